"""The Memory Manager asks the model only what is not certain, and believes only what parses."""

from __future__ import annotations

from datetime import datetime, timezone

import pytest

from memr1_plugin.agents.engine import Prompt, Role
from memr1_plugin.agents.manager import Manager, prompt
from memr1_plugin.errors import ModelError
from memr1_plugin.testing import ScriptedModel
from memr1_plugin.types import Fact, MemoryItem, Scope

AT = datetime(2023, 5, 8, tzinfo=timezone.utc)


def fact(text: str) -> Fact:
    return Fact(text, "Ana", AT)


def item(id: int, text: str, days: int = 0) -> MemoryItem:
    at = AT.replace(day=8 + days)
    return MemoryItem(id, Scope(), text, "Ana", at, at, at)


def test_a_fact_with_nothing_related_is_added_without_the_model() -> None:
    """The first fact of a bank costs no token."""
    engine = ScriptedModel(["never asked"])
    decision = Manager(engine).decide([fact("I live in Rome.")], [[]])
    assert [op.kind.value for op in decision.operations] == ["ADD"]
    assert decision.sources == ("rule",)
    assert decision.completion is None and engine.prompts == []


def test_an_exact_duplicate_is_a_noop_without_the_model() -> None:
    """Saying the same again, whatever the case and spacing, stores nothing twice and costs no token."""
    engine = ScriptedModel(["never asked"])
    decision = Manager(engine).decide([fact("i live  in rome.")], [[item(1, "I live in Rome.")]])
    assert [op.kind.value for op in decision.operations] == ["NOOP"]
    assert engine.prompts == []


def test_the_cheap_path_can_be_switched_off() -> None:
    """With use_certain=False the model decides everything."""
    engine = ScriptedModel(["NOOP"])
    decision = Manager(engine, use_certain=False).decide([fact("I live in Rome.")], [[]])
    assert [op.kind.value for op in decision.operations] == ["NOOP"]
    assert decision.sources == ("manager",) and len(engine.prompts) == 1


def test_all_open_facts_of_a_turn_are_one_call_over_the_union_of_what_is_related() -> None:
    """Two facts that share a related memory see it once, under one number; what is most related comes first."""
    engine = ScriptedModel(["UPDATE 1\nADD"])
    rome, cat = item(7, "I live in Rome."), item(9, "My cat is Rex.", days=1)
    decision = Manager(engine).decide(
        [fact("I moved to Berlin."), fact("New thing."), fact("Rex is grey.")], [[rome, cat], [], [cat]]
    )
    [asked] = engine.prompts
    assert asked.body.count("Rex.") == 1 and asked.body.index("1. ") < asked.body.index("I live in Rome")
    assert "New thing" not in asked.body
    assert [(op.kind.value, op.target) for op in decision.operations] == [("ADD", None), ("UPDATE", 7), ("ADD", None)]
    assert decision.sources == ("rule", "manager", "manager")


def test_braces_in_a_memory_are_text_and_never_placeholders() -> None:
    """A memory that says {facts} stays as it is: prompts are filled in one pass."""
    built = prompt([fact("{memories}")], [item(1, "{facts} {0}")], trained=True)
    assert "Ana: {facts} {0}" in built.body and "- [8 May 2023] Ana: {memories}" in built.body


def test_a_very_long_memory_is_cut_in_the_prompt_only() -> None:
    """One long memory cannot cost a thousand tokens at every turn."""
    long = item(1, "word " * 1000)
    assert len(prompt([fact("x")], [long], trained=True).body) < 500
    assert len(long.text) == 5000


def test_a_model_that_fails_raises_and_is_never_a_noop() -> None:
    """A dying engine is an error for the caller to hold the turn; it decides nothing."""

    def fails(asked: Prompt, role: Role) -> str:
        raise ModelError("out of memory")

    with pytest.raises(ModelError, match="out of memory"):
        Manager(ScriptedModel(fails)).decide([fact("a")], [[item(1, "b")]])
