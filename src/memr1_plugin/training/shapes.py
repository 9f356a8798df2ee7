"""The shape of a language model, and from it the memory that training a LoRA on it takes.

An estimate in GB, for ``memr1 train --dry-run``: weights, LoRA with its gradient and Adam's two moments, activations,
logits. Measured against it: see the table in docs/training.md. Nothing is loaded.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from memr1_plugin.agents.models import PRESETS, Weights


@dataclass(frozen=True)
class Shape:
    """Sizes of a decoder-only transformer."""

    hidden: int
    layers: int
    inner: int
    """Width of the MLP."""
    vocabulary: int
    key_value: int
    """Width of keys and of values (fewer heads than queries: grouped-query attention)."""
    tied: bool
    """True where input and output embeddings are one matrix."""

    @property
    def linear(self) -> int:
        """Weights of all linear layers but the output: what is quantised to nf4, and what a LoRA sits on."""
        attention = self.hidden * (2 * self.hidden + 2 * self.key_value)
        return self.layers * (attention + 3 * self.hidden * self.inner)

    @property
    def embeddings(self) -> int:
        """Weights of input and output embeddings."""
        return self.hidden * self.vocabulary * (1 if self.tied else 2)

    @property
    def parameters(self) -> int:
        """All weights but the norms."""
        return self.linear + self.embeddings

    def lora(self, r: int) -> int:
        """Weights of a LoRA of rank `r` on all linear layers."""
        attention = 4 * self.hidden + 2 * (self.hidden + self.key_value)
        return self.layers * r * (attention + 3 * (self.hidden + self.inner))


SMOLLM2_135M = Shape(576, 30, 1536, 49_152, 192, tied=True)
KNOWN = {
    "meta-llama/llama-3.1-8b-instruct": Shape(4096, 32, 14_336, 128_256, 1024, tied=False),
    "qwen/qwen2.5-3b-instruct": Shape(2048, 36, 11_008, 151_936, 256, tied=True),
    "qwen/qwen2.5-7b-instruct": Shape(3584, 28, 18_944, 152_064, 512, tied=False),
    "qwen/qwen2.5-14b-instruct": Shape(5120, 48, 13_824, 152_064, 1024, tied=False),
}
"""Bases of the recipes, so that a dry run needs no download. From their config.json."""


def of(model: str, weights: Weights | None) -> Shape | None:
    """The shape of a base: from its folder, else from what is known of its name; None where neither tells."""
    if weights is not None and (found := _in_folder(weights.path)):
        return found
    if model == "" or model in PRESETS:
        return SMOLLM2_135M
    return KNOWN.get(model.lower())


def _in_folder(folder: Path) -> Shape | None:
    path = folder / "config.json"
    if not path.is_file():
        return None
    row = json.loads(path.read_text(encoding="utf-8"))
    row = row.get("text_config", row)
    try:
        hidden, heads = int(row["hidden_size"]), int(row["num_attention_heads"])
        head = int(row.get("head_dim") or hidden // heads)
        key_value = head * int(row.get("num_key_value_heads") or heads)
        tied = bool(row.get("tie_word_embeddings", True))
        layers, inner = int(row["num_hidden_layers"]), int(row["intermediate_size"])
        return Shape(hidden, layers, inner, int(row["vocab_size"]), key_value, tied)
    except KeyError:  # another architecture names its sizes otherwise
        return None


def training_gb(shape: Shape, r: int, tokens: int, learned: int, *, on_gpu: bool, dense: bool = False) -> float:
    """Estimate the memory of one training step, in GB.

    On a GPU: nf4 weights (4.5 bits; `dense`: 16), embeddings in bfloat16, layers recomputed in the backward pass (each
    keeps its input, one its inside). On a CPU: float32 weights, every layer keeps its inside.

    Args:
        tokens: in one forward pass.
        learned: of those, the ones whose logits are computed.
    """
    wide = 2 if on_gpu else 4
    weights = shape.linear * (2 if dense else 4.5 / 8) + shape.embeddings * 2 if on_gpu else shape.parameters * 4.0
    trained = shape.lora(r) * 16
    inside = tokens * wide * (10 * shape.hidden + 2 * shape.key_value + 4 * shape.inner)
    kept = shape.layers * tokens * wide * shape.hidden + inside if on_gpu else shape.layers * inside
    logits = learned * shape.vocabulary * 4 * 3
    overhead = 1.0e9 if on_gpu else 0.7e9  # CUDA's context, or Python with torch, transformers and the embedder
    return (weights + trained + kept + logits + overhead) / 1e9
