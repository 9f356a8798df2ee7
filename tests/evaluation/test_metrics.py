"""Scores: the recorded golden values, the definitions' corners, and the intervals."""

from __future__ import annotations

import doctest
import json
from pathlib import Path

import pytest

from memr1_plugin.errors import InputError
from memr1_plugin.evaluation import metrics


@pytest.fixture(scope="module")
def recorded(data_dir: Path) -> list[dict[str, object]]:
    """The 1,100 scores that the reference pipelines recorded."""
    path = data_dir / "metric_vectors" / "recorded_scores.jsonl"
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_f1_equals_every_recorded_score(recorded: list[dict[str, object]]) -> None:
    """F1 is the recorded one on all 1,100 rows."""
    wrong = [r["key"] for r in recorded if abs(metrics.f1(str(r["response"]), str(r["answer"])) - r["f1"]) > 1e-12]
    assert len(recorded) == 1100 and wrong == []


def test_bleu_equals_the_recorded_scores(recorded: list[dict[str, object]]) -> None:
    """BLEU-1 is the recorded one on 1,099 rows; the last hangs on how punkt reads "etc.)'."."""
    wrong = [r for r in recorded if abs(metrics.bleu1(str(r["response"]), str(r["answer"])) - r["bleu1"]) > 1e-12]
    assert len(wrong) == 1 and "etc.)" in str(wrong[0]["answer"])


def test_examples_in_docstrings_run() -> None:
    """Every worked example of the page gives the value that it shows."""
    assert doctest.testmod(metrics).failed == 0


def test_f1_counts_a_word_once() -> None:
    """The paper's F1 is over sets: repeating the right word neither helps nor hurts."""
    assert metrics.f1("May May May", "May") == 1.0
    assert metrics.f1("", "May") == metrics.f1("May", "") == metrics.f1("!?", "May") == 0.0


def test_f1_keeps_other_punctuation() -> None:
    """Quotes and semicolons stay part of a word, as in the code that made the paper's tables."""
    assert metrics.f1('"May"', "May") == 0.0
    assert metrics.f1("MAY!", "may") == 1.0


def test_bleu_punishes_brevity_not_length_alone() -> None:
    """A right but shorter answer pays exp(1 - r/c), a longer one its precision."""
    assert metrics.bleu1("may 2023", "7 may 2023 x") == pytest.approx(2.718281828**-1, rel=1e-6)
    assert metrics.bleu1("7 may 2023 x", "may 2023") == 0.5


def test_exact_match_in_both_forms() -> None:
    """A full stop fails the raw match and passes the normalised one; nothing matches an empty gold."""
    assert metrics.exact_match_raw("May.", "may") == 0.0
    assert metrics.exact_match("May.", "may") == 1.0
    assert metrics.exact_match("", "") == metrics.exact_match("the", "a") == 0.0


def test_locomo_f1_follows_its_authors_category_rules() -> None:
    """Stems count, category 1 matches comma parts in any order, category 3 cuts the gold at ';'."""
    pytest.importorskip("nltk")
    assert metrics.locomo_f1("running", "runs") == 1.0
    assert metrics.locomo_f1("hiking, painting", "paintings, hikes", category=1) == 1.0
    assert metrics.locomo_f1("yes", "yes; because she said so", category=3) == 1.0
    assert metrics.locomo_f1("May May", "May") == pytest.approx(2 / 3)
    assert metrics.locomo_f1("and the", "a") == 0.0


def test_recall_without_evidence_is_refused() -> None:
    """A question without evidence has no recall: it is an error, never a 0 or a 1."""
    assert metrics.evidence_recall(["a", "a", "b"], ["a", "c"]) == 0.5
    with pytest.raises(InputError, match="Leave it out"):
        metrics.evidence_recall(["a"], [])


def test_bootstrap_interval_narrows_with_more_scores() -> None:
    """Sixteen times the questions give about a quarter of the width, around the same mean."""
    few, many = metrics.bootstrap([0.0, 1.0] * 20), metrics.bootstrap([0.0, 1.0] * 320)
    assert few.mean == many.mean == 0.5
    assert (few.high - few.low) / (many.high - many.low) == pytest.approx(4, rel=0.3)
    assert metrics.bootstrap([0.3, 0.7, 0.9]) == metrics.bootstrap([0.3, 0.7, 0.9])


def test_bootstrap_refuses_what_it_cannot_average() -> None:
    """No scores, or a NaN among them, is an error that says which."""
    with pytest.raises(InputError, match="no scores"):
        metrics.bootstrap([])
    with pytest.raises(InputError, match="score 1 is not finite"):
        metrics.bootstrap([1.0, float("nan")])


def test_paired_difference_sees_what_two_intervals_hide() -> None:
    """A small gain on every question is beyond the noise although the two means' intervals overlap."""
    base = [i / 100 for i in range(100)]
    better = [b + 0.02 for b in base]
    difference = metrics.paired_difference(better, base)
    assert difference.mean == pytest.approx(0.02) and difference.excludes_zero
    assert metrics.bootstrap(better).low < metrics.bootstrap(base).high
    assert not metrics.paired_difference(base, list(reversed(base))).excludes_zero
    with pytest.raises(InputError, match="3 scores are compared with 2"):
        metrics.paired_difference([1, 1, 1], [1, 1])
