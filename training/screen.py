"""Trains the direction that `screening_meaning` looks along: a linear classifier on MiniLM's vectors.

Hostile are the "design" attempts of tests/data/red_team.jsonl; ordinary are small talk (chitchat-dataset, MIT), half of
the messages to an assistant in LongMemEval's evidence (MIT) and the "design" look-alikes. LoCoMo, the rest of
LongMemEval and the "report" and "unseen" texts are not trained on: `benchmarks/screening.py` measures with them.

    python training/screen.py            writes src/memr1_plugin/screening_direction.json (a minute, no GPU)
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from memr1_plugin.embedding import as_embedder
from memr1_plugin.screening_meaning import DIRECTION, MAX_CHARS
from memr1_plugin.training.sources import chatter

ROOT = Path(__file__).resolve().parent.parent
DATA = Path(os.environ.get("MEMR1_DATA", ROOT.parent / "shared" / "data"))
FALSE_ALARMS = 1 / 1000
"""Share of ordinary texts, held out of each fold, that the threshold lets through to the quarantine."""
STRENGTHS = (0.03, 0.1, 0.3, 1.0, 3.0)
FOLDS = 5

Floats = NDArray[np.float64]


def red_team(hostile: bool) -> list[str]:
    """The design texts."""
    lines = (ROOT / "tests" / "data" / "red_team.jsonl").read_text(encoding="utf-8").splitlines()
    return [row["text"] for row in map(json.loads, lines) if row["split"] == "design" and row["hostile"] == hostile]


def longmemeval() -> list[str]:
    """The even ones of the messages to an assistant; the odd ones are `benchmarks/screening.py`'s."""
    file = DATA / "longmemeval_evidence" / "longmemeval_oracle_evidence_turns.jsonl"
    rows = map(json.loads, file.read_text(encoding="utf-8").splitlines())
    turns = [turn for row in rows for session in row["evidence_sessions"] for turn in session["turns"]]
    return list(dict.fromkeys(turn["content"] for turn in turns if turn["role"] == "user"))[::2]


def fit(x: Floats, hostile: NDArray[np.bool_], strength: float) -> Floats:
    """Logistic regression by Newton's method, classes of equal weight; returns (dim + 1,): direction and bias."""
    ones = np.c_[x, np.ones(len(x))]
    weights = np.where(hostile, (~hostile).sum() / hostile.sum(), 1.0)
    ridge = np.r_[np.full(x.shape[1], strength), 1e-6]
    w = np.zeros(ones.shape[1])
    for _ in range(50):
        p = 1 / (1 + np.exp(-ones @ w))
        gradient = ones.T @ (weights * (p - hostile)) + ridge * w
        hessian = (ones * (weights * p * (1 - p))[:, None]).T @ ones + np.diag(ridge)
        step = np.linalg.solve(hessian, gradient)
        w -= step
        if np.abs(step).max() < 1e-8:
            break
    return w


def held_out(x: Floats, hostile: NDArray[np.bool_], strength: float) -> Floats:
    """Each text's score by a direction that was not trained on it."""
    fold = np.random.default_rng(0).permutation(len(x)) % FOLDS
    scores = np.zeros(len(x))
    for n in range(FOLDS):
        w = fit(x[fold != n], hostile[fold != n], strength)
        scores[fold == n] = x[fold == n] @ w[:-1] + w[-1]
    return scores


def main() -> None:
    """Choose the strength by what held-out attempts it catches, fit on all, write."""
    texts = {"hostile": red_team(True), "look-alikes": red_team(False), "LongMemEval": longmemeval(), "chat": chatter()}
    embedder = as_embedder(None)
    vectors = {name: embedder.embed([text[:MAX_CHARS] for text in each]) for name, each in texts.items()}
    x = np.vstack(list(vectors.values())).astype(np.float64)
    hostile = np.arange(len(x)) < len(texts["hostile"])
    found: dict[float, tuple[float, float]] = {}
    for strength in STRENGTHS:
        scores = held_out(x, hostile, strength)
        threshold = float(np.quantile(scores[~hostile], 1 - FALSE_ALARMS))
        found[strength] = float((scores[hostile] > threshold).mean()), threshold
        print(f"strength {strength}: {found[strength][0]:.1%} of held-out attempts above {threshold:.2f}")
    strength = max(found, key=lambda s: found[s][0])
    w = fit(x, hostile, strength)
    row: dict[str, Any] = {
        "embedder": embedder.id,
        "threshold": round(found[strength][1] - float(w[-1]), 4),
        "strength": strength,
        "texts": {name: len(each) for name, each in texts.items()},
        "direction": [round(float(value), 4) for value in w[:-1]],
    }
    DIRECTION.write_text(json.dumps(row) + "\n", encoding="utf-8")
    print(f"{DIRECTION}: strength {strength}, threshold {row['threshold']}")


if __name__ == "__main__":
    main()
