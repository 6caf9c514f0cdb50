"""vecgate: an OpenAI/Cohere-compatible gateway for embeddings and reranking; importing it imports no third party."""

__version__ = "0.1.0"
