"""Plain statements carry gold operations that the Manager's own parser reads."""

from __future__ import annotations

import re
from collections import Counter

import pytest

pytest.importorskip("trl", reason="needs the extra train")

from memr1_plugin.training.statements import examples, questions


def test_the_same_seed_gives_the_same_examples() -> None:
    """A run can be repeated, and another seed says other things."""
    assert list(examples(1, 20)) == list(examples(1, 20)) != list(examples(2, 20))


def test_every_operation_occurs_and_names_a_memory_that_is_shown() -> None:
    """The gold is one line of the operation language; a target is a number of the prompt's list."""
    kinds: Counter[str] = Counter()
    for example in examples(3, 200):
        match = re.fullmatch(r"(ADD|NOOP)|(UPDATE|DELETE) (\d+)", example.completion)
        assert match is not None
        kinds[match[1] or match[2]] += 1
        if match[3]:
            assert f"\n{match[3]}. [" in "\n" + example.prompt.body
    assert min(kinds.values()) > 10 and kinds["ADD"] > kinds["NOOP"]


def test_a_question_is_answered_by_the_newest_statement_about_it() -> None:
    """Memories may hold what was replaced too: the gold names the line that holds, and quotes it; unsaid is none."""
    asked = [example for group in questions(7, 60) for example in group]
    unsaid = [example for example in asked if example.completion == " none"]
    assert 0.05 < len(unsaid) / len(asked) < 0.4
    for example in asked:
        if example in unsaid:
            continue
        place, value = example.completion.strip().split(" -> ")
        [line] = [row for row in example.prompt.body.splitlines() if row.startswith(f"{place}. ")]
        assert value in line
