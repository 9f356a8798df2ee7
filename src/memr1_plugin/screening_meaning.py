"""Screening by meaning: is a text near, in the default embedder's space, to texts that talk to a model?

A direction in MiniLM's space, trained by training/screen.py, beside the patterns of `screening`: it finds attacks in
words that no pattern knows, costs one embedding a text, and cries wolf more often (docs/security.md has the numbers).
Off unless asked for: ``Memory.open(..., screener=MeaningScreener())``.
"""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path

import numpy as np

from memr1_plugin.embedding import Embedder, Vectors, as_embedder
from memr1_plugin.errors import InputError
from memr1_plugin.screening import Finding, RuleScreener

DIRECTION = Path(__file__).with_name("screening_direction.json")
MAX_CHARS = 600
"""Of one piece: what the embedder reads. A longer text is looked at in pieces."""
MAX_PIECES = 16
RULE = "meaning"


class MeaningScreener:
    """The rules, and a look at what a text is about."""

    def __init__(self, embedder: Embedder | None = None) -> None:
        """Take the default embedder, or the one given if it makes the same vectors."""
        self._rules = RuleScreener()
        self._embedder = as_embedder(embedder)
        trained = _direction()[0]
        if self._embedder.id != trained:
            raise InputError(
                f"the embedder is {self._embedder.id}; screening by meaning was trained on {trained}. Leave the "
                "embedder out: the screener then has one of its own."
            )

    def screen(self, text: str) -> list[Finding]:
        """Return what the rules find, and "meaning" if a piece of `text` is like an attack."""
        found = self._rules.screen(text)
        pieces = [text[at : at + MAX_CHARS] for at in range(0, len(text), MAX_CHARS)][:MAX_PIECES]
        pieces = [piece for piece in pieces if piece.strip()]
        if not pieces or found:
            return found
        _, direction, threshold = _direction()
        scores = self._embedder.embed(pieces) @ direction
        worst = int(np.argmax(scores))
        if scores[worst] <= threshold:
            return found
        return [Finding(RULE, "plain", worst * MAX_CHARS, min(len(text), (worst + 1) * MAX_CHARS))]


@lru_cache(maxsize=1)
def _direction() -> tuple[str, Vectors, float]:
    row = json.loads(DIRECTION.read_text(encoding="utf-8"))
    return row["embedder"], np.asarray(row["direction"], dtype=np.float32), float(row["threshold"])
