"""What Managers decide, against the gold of synthetic conversations: matrices, stale facts, lost facts."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("trl", reason="the train extra is not installed")

from memr1_plugin.agents.engine import Prompt, Role
from memr1_plugin.errors import DataError, InputError, ModelError
from memr1_plugin.evaluation import decisions
from memr1_plugin.evaluation.systems import BASELINES, System
from memr1_plugin.operations import render_operations
from memr1_plugin.settings import Settings
from memr1_plugin.testing import HashEmbedder, ScriptedModel
from memr1_plugin.training.synthetic import Synthetic, conversations

UNTRAINED = BASELINES["untrained"]
ADDING = System("always-add", "managed", always_add=True)
BOLD = Settings(related_floor=0.0, believed_floor=0.0, certain=False)
"""Every decision is the model's."""


@pytest.fixture(scope="module")
def told() -> list[Synthetic]:
    """Two conversations full of changes."""
    return list(conversations(9100, 2, sessions=(4, 5), changing=0.6))


@pytest.fixture(scope="module")
def oracle(told: list[Synthetic]) -> dict[str, str]:
    """By the facts of a prompt, the completion that the gold asks for."""
    found = {}
    for case in decisions.cases(told, HashEmbedder(), BOLD):
        shown = decisions.union(case.related)
        prompt = decisions_prompt(case)
        found[prompt.partition("Facts:")[2]] = render_operations(case.gold, case.facts, shown)
    return found


def right(oracle: dict[str, str]) -> Callable[[Prompt, Role], str]:
    """A Manager that says what the gold asks for."""
    return lambda prompt, role: oracle.get(prompt.body.partition("Facts:")[2], "ADD")


def decisions_prompt(case: decisions.Case) -> str:
    from memr1_plugin.agents.manager import prompt

    return prompt(case.facts, decisions.union(case.related), trained=False).body


def measured(told: list[Synthetic], out: Path, systems: list[System], reply: Any, **options: Any) -> dict[str, Any]:
    engine = ScriptedModel(reply)
    options = {"settings": BOLD, **options}
    summary = decisions.evaluate(
        told, systems, out, engine_for=lambda _: engine, embedder=HashEmbedder(), **options
    )  # fmt: skip
    return {s["system"]: s for s in summary["systems"]} | {"": summary, "calls": len(engine.calls)}


def test_a_right_manager_is_right(told: list[Synthetic], oracle: dict[str, str], tmp_path: Path) -> None:
    """Gold completions fill the diagonal of what was said; the rules that follow them are counted apart."""
    row = measured(told, tmp_path, [UNTRAINED], right(oracle))["untrained"]
    assert row["right_as_said"]["mean"] == 1.0
    assert all(row["confusion_as_said"][gold][said] == 0 for gold in decisions.KINDS for said in decisions.KINDS
               if gold != said)  # fmt: skip
    assert row["confusion_as_said"]["UPDATE"]["UPDATE"] > 0 < row["confusion_as_said"]["DELETE"]["DELETE"]
    assert row["confusion"] != row["confusion_as_said"], "small talk that no memory says is kept: a NOOP loses facts"
    assert row["right"]["mean"] < 1.0 and row["wrong_target"] == 0


def test_always_adding_is_right_about_adds_alone_and_keeps_every_stale_fact(
    told: list[Synthetic], tmp_path: Path
) -> None:
    """No fact is lost, every contradicted one is still there, and no model was asked."""
    found = measured(told, tmp_path, [ADDING], {})
    row = found["always-add"]
    assert found["calls"] == 0 and row["by_rule"] == row["facts"]
    assert {gold: kinds["ADD"] for gold, kinds in row["confusion"].items()} == {
        gold: sum(kinds.values()) for gold, kinds in row["confusion"].items()
    }
    assert row["stale_kept"]["mean"] == 1.0 and row["lost"]["mean"] == 0.0
    assert row["stale_retrieved"]["mean"] >= 0.5
    assert found[""]["contradicted"]["n"] == row["stale_kept"]["n"] > 4


def test_what_was_replaced_again_need_not_be_found(
    told: list[Synthetic], oracle: dict[str, str], tmp_path: Path
) -> None:
    """A bank kept rightly once seemed to lose every new fact that a still newer one had replaced."""
    chains = [
        (early, late)
        for one in told
        for early in decisions.contradicted(one)
        for late in decisions.contradicted(one)
        if early.new and early.new == late.old
    ]
    assert chains and not any(early.stands for early, _ in chains)
    row = measured(told, tmp_path, [UNTRAINED], right(oracle))["untrained"]
    assert row["current_retrieved"]["n"] == sum(
        c.stands for one in told for c in decisions.contradicted(one) if c.kind == "UPDATE" and c.new
    )


def test_a_manager_that_replaces_the_first_memory_loses_what_holds(told: list[Synthetic], tmp_path: Path) -> None:
    """UPDATEs of whatever comes first leave few stale facts, and lose true ones."""

    def first(prompt: Prompt, role: Role) -> str:
        return "\n".join(["UPDATE 1"] * prompt.body.count("\n- "))

    row = measured(told, tmp_path, [UNTRAINED], first)["untrained"]
    assert row["lost"]["mean"] > 0.3 and row["stale_kept"]["mean"] < 1.0
    assert row["confusion_as_said"]["ADD"]["UPDATE"] > 0


def test_a_decision_that_cannot_be_read_is_counted_as_nothing(told: list[Synthetic], tmp_path: Path) -> None:
    """It is neither a NOOP nor a failure: it has a column of its own."""
    row = measured(told[:1], tmp_path, [UNTRAINED], {"": "hm"})["untrained"]
    assert sum(kinds[decisions.REFUSED] for kinds in row["confusion_as_said"].values()) == row["facts"]


def test_a_stopped_run_goes_on_where_it_stopped(told: list[Synthetic], tmp_path: Path) -> None:
    """Decisions on the disk are not made again, a turn that was half written is, and the figures are the same."""
    whole = measured(told[:1], tmp_path / "whole", [UNTRAINED], {"": "ADD"})["untrained"]
    calls = iter(range(1000))

    def failing(prompt: Prompt, role: Role) -> str:
        if next(calls) == 20:
            raise ModelError("the model is away.")
        return "ADD"

    with pytest.raises(ModelError, match="away"):
        measured(told[:1], tmp_path / "run", [UNTRAINED], failing)
    file = tmp_path / "run" / "decisions.jsonl"
    file.write_text(file.read_text()[:-20])
    rest = measured(told[:1], tmp_path / "run", [UNTRAINED], {"": "ADD"})
    for row in (rest["untrained"], whole):
        del row["bank"]  # seconds are in it
    assert rest["untrained"] == whole
    assert measured(told[:1], tmp_path / "run", [UNTRAINED], {})["calls"] == 0
    with pytest.raises(DataError, match="other conversations"):
        measured(told, tmp_path / "run", [UNTRAINED], {})


def test_tables_and_files(told: list[Synthetic], tmp_path: Path) -> None:
    """The folder holds the summary as JSON and as Markdown with a matrix for each system."""
    summary = measured(told[:1], tmp_path, [ADDING, UNTRAINED], {"": "NOOP"})[""]
    assert json.loads((tmp_path / "summary.json").read_text()) == summary
    text = (tmp_path / "table.md").read_text()
    assert "always-add: gold in rows" in text and "untrained: gold in rows, what the model said in columns" in text
    for table in decisions.tables(summary):
        assert all(len(row) == len(table.heads) for row in table.rows)


def test_a_system_without_a_manager_is_refused(told: list[Synthetic], tmp_path: Path) -> None:
    """There is nothing to measure."""
    with pytest.raises(InputError, match="rag: no Manager"):
        measured(told, tmp_path, [BASELINES["rag"]], {})
