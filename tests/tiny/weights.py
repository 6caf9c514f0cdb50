"""Random weights that are calm, vary everywhere, and still tell texts apart."""

from __future__ import annotations

from typing import Any, Literal

import torch
from tokenizers import Tokenizer

from tests.tiny.words import CHARS, OTHERS, WORDS

SPREAD = 0.35
"""Standard deviation of the tables of embeddings; at the usual 0.02 every text of a random model gives nearly the same
row."""
CALM = 0.12
"""That of the layers' matrices, 64 wide: each keeps the scale of its input. At 0.35 float32 is 3e-5 away from float64
after three layers, which would hide a mistake of that size."""
WIDE = 4.0
"""How much wider the words' table is than those of positions and types, which all texts share."""
SAMPLES = ["", *WORDS[::9], *(" ".join(WORDS[at::7]) for at in range(7)), *OTHERS[::5], *CHARS[::9]]
SAMPLES += ["".join(CHARS[at::6]) for at in range(6)] + ["".join(OTHERS[at : at + 12]) for at in range(0, 48, 12)]
"""Texts whose mean row is taken away from the last layer's bias: what all texts of a random encoder share."""


def vary(model: Any) -> None:
    """Biases and norms are initialised to 0 and 1, which would hide a mapping that forgets them; matrices calm down."""
    model.eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(torch.randn_like(parameter) * 0.1)
        for module in model.modules():
            if isinstance(module, torch.nn.Linear):
                module.weight.mul_(CALM / module.weight.std())
        model.get_input_embeddings().weight.mul_(WIDE)


def hush(model: Any, token: int) -> None:
    """Make the embedding of this special token small: a row pooled there tells of its text, not of the token."""
    with torch.no_grad():
        model.get_input_embeddings().weight[token] *= 0.2


def centre(
    model: Any, norm: torch.nn.Module, tokenizer: Tokenizer, pooling: Literal["cls", "mean"], prompt: str = ""
) -> None:
    """Take the mean row of SAMPLES away from every row, through the last norm's bias."""
    tokenizer = Tokenizer.from_str(tokenizer.to_str())
    tokenizer.enable_padding()
    given = tokenizer.encode_batch([prompt + text for text in SAMPLES])
    ids, real = (torch.tensor([getattr(one, name) for one in given]) for name in ("ids", "attention_mask"))
    with torch.no_grad():
        hidden = model(input_ids=ids, attention_mask=real).last_hidden_state
        weights = real / real.sum(1, keepdim=True)
        rows = hidden[:, 0] if pooling == "cls" else torch.einsum("blh,bl->bh", hidden, weights)
        bias: Any = norm.bias
        bias.sub_(rows.mean(0))


def sizes(tokenizer: Tokenizer, **more: Any) -> dict[str, Any]:
    """What most configs call the same."""
    return {
        "vocab_size": tokenizer.get_vocab_size(),
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "initializer_range": SPREAD,
        **more,
    }
