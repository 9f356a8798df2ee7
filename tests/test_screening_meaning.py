"""Screening by meaning finds attacks that no pattern knows, and knows which vectors it was trained on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from memr1_plugin.errors import InputError
from memr1_plugin.screening_meaning import DIRECTION, RULE, MeaningScreener
from memr1_plugin.testing import HashEmbedder

ROWS = [
    json.loads(line)
    for line in (Path(__file__).parent / "data" / "red_team.jsonl").read_text(encoding="utf-8").splitlines()
]


@pytest.fixture(scope="module")
def screener() -> MeaningScreener:
    from memr1_plugin.agents import models

    pytest.importorskip("transformers")
    if models.in_wheel(models.MINILM) is None:
        pytest.skip(f"no MiniLM weights; run: {models.PIP_LINE}")
    return MeaningScreener()


def test_other_vectors_are_refused() -> None:
    """A direction means nothing in another embedder's space."""
    with pytest.raises(InputError, match="trained on all-MiniLM-L6-v2"):
        MeaningScreener(HashEmbedder())


def test_the_direction_says_what_it_was_trained_on() -> None:
    """The file holds numbers and their origin; no text of anybody."""
    row = json.loads(DIRECTION.read_text(encoding="utf-8"))
    assert len(row["direction"]) == 384 and set(row["texts"]) == {"hostile", "look-alikes", "LongMemEval", "chat"}


@pytest.mark.real
def test_it_catches_what_the_rules_do_not(screener: MeaningScreener) -> None:
    """Of attempts that neither rules nor training saw, it catches at least a third; ordinary talk passes."""
    unseen = [row["text"] for row in ROWS if row["split"] == "unseen" and row["hostile"]]
    caught = [text for text in unseen if screener.screen(text)]
    assert len(caught) >= len(unseen) / 3
    assert any(finding.rule == RULE for text in caught for finding in screener.screen(text))
    ordinary = ["I live in Graz.", "My dog is called Rex.", "We went to the sea last summer.", "Rosa is a nurse.", ""]
    assert not any(screener.screen(text) for text in ordinary)


@pytest.mark.real
def test_a_long_text_is_looked_at_in_pieces(screener: MeaningScreener) -> None:
    """An attack in the middle of a long message is found, and its place is named."""
    attack = next(row["text"] for row in ROWS if row["split"] == "design" and row["kind"] == "role play"
                  and row["id"].startswith("fresh"))  # fmt: skip
    talk = "We went to the sea and had a wonderful time with the children. " * 10
    at = len(talk) // 600 * 600
    [finding] = screener.screen(talk[:at] + " " * (600 - at % 600 if at % 600 else 0) + attack)
    assert finding.rule in (RULE, "role", "override", "standing order")
