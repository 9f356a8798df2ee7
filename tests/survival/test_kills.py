"""Killed with SIGKILL: what was acknowledged is there, the rest whole or absent. `make torture` kills 500 times."""

from __future__ import annotations

from pathlib import Path

import crash


def test_nothing_acknowledged_is_lost_by_sigkill(tmp_path: Path) -> None:
    """Twenty writers die, half of them at a labelled step; their fsynced record is the independent witness."""
    report = crash.run(20, seed=20, folder=tmp_path)
    assert report.failures == ()
    assert int(report.checked.split()[0]) >= 18, report.numbers


def test_the_plan_of_the_long_form_holds_every_step() -> None:
    """500 kills are half at random moments or more, and come to each labelled step several times."""
    plan = crash.plan(500, seed=1)
    assert len(plan) == 500 and plan.count(None) >= 250
    assert min(plan.count(step) for step in crash.STEPS) >= 5


def test_the_witness_is_believed_and_not_the_bank(tmp_path: Path) -> None:
    """The comparison itself is tried: a lost turn, a changed text and half a turn are each told."""
    path, witness = tmp_path / "bank.db", tmp_path / "witness.jsonl"
    with crash.crash_writer.opened(str(path)) as memory:
        turn = crash.crash_writer.Turn(
            "add aaaaaaaaaaaaaa | add bbbbbbbbbbbbbb", "Ana", crash.SCOPES[0], id="t1", session="s"
        )
        changes = [crash.crash_writer.plain(change) for change in memory.observe_many([turn])]
        with memory.bank._store.writing() as connection:
            connection.execute("DELETE FROM changes WHERE id = ?", (changes[1]["id"],))
    note = crash.crash_writer.Witness(str(witness)).note
    note("observed", scope="ana", turns=[["ana", "t1", turn.text], ["ana", "t2", "add x"]], changes=changes)
    known = crash.Known()
    assert known.hear(witness) == 1
    inspector = crash.Inspector(path, known)
    inspector.look(heal=False)
    told = "\n".join(inspector.failures)
    assert "turn t2 of ana is None" in told and "is lost" in told and "half applied" in told
