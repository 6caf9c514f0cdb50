"""Find the passage that answers a question, with OpenAI's SDK and numpy alone.

Needs `pip install openai numpy` and a running server: `python rag_openai.py http://127.0.0.1:9000`.
"""

import sys

import numpy as np
from openai import OpenAI

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

client = OpenAI(base_url=f"{BASE}/v1", api_key="unused")


def embed(texts: list[str]) -> np.ndarray:
    answer = client.embeddings.create(model=EMBEDDER, input=texts)
    return np.array([row.embedding for row in answer.data], dtype=np.float32)


# The index: one row of length 1 for each passage, so that a product of rows is their cosine.
index = embed(PASSAGES)

# Retrieve: the four passages whose rows are nearest to the question's.
cosines = index @ embed([QUESTION])[0]
found = [int(i) for i in np.argsort(-cosines)[:4]]
print("retrieved:")
for i in found:
    print(f"  {cosines[i]:.3f}  {PASSAGES[i]}")

# Rerank these four: the SDK has no such call, but it sends any.
body = {"model": RERANKER, "query": QUESTION, "documents": [PASSAGES[i] for i in found], "top_n": 2}
ranking = client.post("/rerank", body=body, cast_to=object)
print("reranked:")
for one in ranking["results"]:
    print(f"  {one['relevance_score']:.3f}  {PASSAGES[found[one['index']]]}")

print(f"answer: {PASSAGES[found[ranking['results'][0]['index']]]}")
