"""MLX, for Apple Silicon; on Linux its CPU build runs the same code in the tests.

FAMILIES says which architectures are written here. Imports nothing, so that asking costs nothing; backend.py opens.
"""

FAMILIES = {
    "bert": "vecgate.backends.mlx.bert",
    "camembert": "vecgate.backends.mlx.bert",
    "distilbert": "vecgate.backends.mlx.distilbert",
    "electra": "vecgate.backends.mlx.bert",
    "gemma2": "vecgate.backends.mlx.decoder",
    "gemma3_text": "vecgate.backends.mlx.gemma3",
    "granite": "vecgate.backends.mlx.decoder",
    "llama": "vecgate.backends.mlx.decoder",
    "mistral": "vecgate.backends.mlx.decoder",
    "modernbert": "vecgate.backends.mlx.modernbert",
    "mpnet": "vecgate.backends.mlx.mpnet",
    "nomic_bert": "vecgate.backends.mlx.nomic_bert",
    "olmo2": "vecgate.backends.mlx.decoder",
    "phi3": "vecgate.backends.mlx.decoder",
    "qwen2": "vecgate.backends.mlx.qwen2",
    "qwen3": "vecgate.backends.mlx.qwen3",
    "roberta": "vecgate.backends.mlx.bert",
    "smollm3": "vecgate.backends.mlx.decoder",
    "xlm-roberta": "vecgate.backends.mlx.bert",
}
"""config.json's model_type -> the module that exports Config and Model for it."""
