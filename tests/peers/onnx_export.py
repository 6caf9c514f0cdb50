"""A BERT-like encoder as an ONNX file for infinity's onnxruntime engine: `python onnx_export.py MODEL OUT`; run in its
environment."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import torch
from transformers import AutoModel, AutoTokenizer

INPUTS = ("input_ids", "attention_mask", "token_type_ids")


class Hidden(torch.nn.Module):
    def __init__(self, folder: str) -> None:
        super().__init__()
        self.model = AutoModel.from_pretrained(folder, attn_implementation="eager").eval()

    def forward(self, *given: torch.Tensor) -> torch.Tensor:
        hidden: torch.Tensor = self.model(**dict(zip(INPUTS, given))).last_hidden_state
        return hidden


def main(folder: str, out: Path) -> None:
    shutil.copytree(folder, out, dirs_exist_ok=True)
    found = AutoTokenizer.from_pretrained(folder)(["two texts", "of other lengths"], padding=True, return_tensors="pt")
    torch.onnx.export(
        Hidden(folder),
        tuple(found[name] for name in INPUTS),
        str(out / "model.onnx"),
        input_names=list(INPUTS),
        output_names=["last_hidden_state"],
        dynamic_axes={name: {0: "batch", 1: "tokens"} for name in (*INPUTS, "last_hidden_state")},
        opset_version=14,
        dynamo=False,
    )


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
