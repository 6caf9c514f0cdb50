"""Find the passage that answers a question, with LlamaIndex, Qdrant and Cohere's reranking protocol.

Needs a running server (`python rag_llama_index.py http://127.0.0.1:9000`) and
`pip install llama-index-embeddings-openai-like llama-index-postprocessor-cohere-rerank llama-index-vector-stores-qdrant`.
"""

import sys

from llama_index.core import StorageContext, VectorStoreIndex
from llama_index.core.schema import TextNode
from llama_index.embeddings.openai_like import OpenAILikeEmbedding
from llama_index.postprocessor.cohere_rerank import CohereRerank
from llama_index.vector_stores.qdrant import QdrantVectorStore
from qdrant_client import QdrantClient

BASE = sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:9000"
EMBEDDER = "all-MiniLM-L6-v2"
RERANKER = "all-MiniLM-L6-v2"  # a cross-encoder's name, where the server has one (vecgate serve --reranker ...)
PASSAGES = [
    "Parcels leave the warehouse on the day of the order if it is placed before 14:00.",
    "Refunds are paid to the card you used, within five working days of the parcel's return.",
    "An order can be changed or cancelled until the parcel is handed to the carrier.",
    "Gift cards are valid for three years and can't be exchanged for cash.",
    "The warranty covers faults in material for two years, not wear.",
    "We ship to all countries of the European Union, to Norway and to Switzerland.",
    "To reset your password, follow the link on the sign-in page.",
    "Invoices are sent by e-mail as PDF and stay in your account for ten years.",
]
QUESTION = "How long does it take until I get my money back?"

embeddings = OpenAILikeEmbedding(model_name=EMBEDDER, api_base=f"{BASE}/v1", api_key="unused")
reranker = CohereRerank(base_url=BASE, api_key="unused", model=RERANKER, top_n=2)

# The index, in this process: QdrantClient("http://127.0.0.1:6333") for a Qdrant that runs.
store = QdrantVectorStore("help", client=QdrantClient(":memory:"))
index = VectorStoreIndex(
    [TextNode(text=passage) for passage in PASSAGES],
    storage_context=StorageContext.from_defaults(vector_store=store),
    embed_model=embeddings,
)

found = index.as_retriever(similarity_top_k=4).retrieve(QUESTION)
print("retrieved:")
for one in found:
    print(f"  {one.score:.3f}  {one.text}")

best = reranker.postprocess_nodes(found, query_str=QUESTION)
print("reranked:")
for one in best:
    print(f"  {one.score:.3f}  {one.text}")

print(f"answer: {best[0].text}")
