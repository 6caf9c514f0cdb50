"""Find the passage that answers a question, with LangChain, Qdrant and Cohere's reranking protocol.

Needs `pip install langchain-openai langchain-cohere langchain-qdrant` and a running server: `python rag_langchain.py http://127.0.0.1:9000`.
"""

import sys

from langchain_cohere import CohereRerank
from langchain_openai import OpenAIEmbeddings
from langchain_qdrant import QdrantVectorStore

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

# check_embedding_ctx_length=False: send texts. Otherwise LangChain fetches OpenAI's token table and sends ids.
embeddings = OpenAIEmbeddings(base_url=f"{BASE}/v1", api_key="unused", model=EMBEDDER, check_embedding_ctx_length=False)
reranker = CohereRerank(base_url=BASE, cohere_api_key="unused", model=RERANKER, top_n=2)

# The index, in this process: give url="http://127.0.0.1:6333" instead of location for a Qdrant that runs.
store = QdrantVectorStore.from_texts(PASSAGES, embeddings, location=":memory:", collection_name="help")

found = store.similarity_search_with_score(QUESTION, k=4)
print("retrieved:")
for document, score in found:
    print(f"  {score:.3f}  {document.page_content}")

best = reranker.compress_documents([document for document, _ in found], QUESTION)
print("reranked:")
for document in best:
    print(f"  {document.metadata['relevance_score']:.3f}  {document.page_content}")

print(f"answer: {best[0].page_content}")
