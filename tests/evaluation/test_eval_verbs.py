"""The verbs eval and eval-manager, on a tiny random model that everything real runs through."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from talk import TALK

pytest.importorskip("xgrammar", reason="the local extra is not installed")

from memr1_plugin import embedding
from memr1_plugin.agents import hardware
from memr1_plugin.cli import main
from memr1_plugin.evaluation.datasets import save
from memr1_plugin.testing import HashEmbedder, tiny_model


@pytest.fixture
def shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """Runs a verb in a folder with a tiny model and Ana's talk; returns what it printed, after its exit code."""
    tiny_model(tmp_path / "tiny")
    save([TALK], tmp_path / "talk.jsonl")
    monkeypatch.setattr(embedding, "as_embedder", lambda embedder=None: HashEmbedder())
    monkeypatch.chdir(tmp_path)

    def run(*words: str, code: int = 0) -> str:
        try:
            main([*words, "--model", "tiny"])
            found: Any = 0
        except SystemExit as done:
            found = done.code or 0
        printed = capsys.readouterr()
        assert found == code, printed.out + printed.err
        return printed.out if code == 0 else printed.err

    return run


def test_eval_prints_its_tables_and_goes_on_where_it_stopped(shell: Any) -> None:
    """The same command asks for what is missing alone, and says the same in a terminal and as JSON."""
    words = ["eval", "talk.jsonl", "--out", "run", "--system", "rag", "--system", "untrained:always-add"]
    text = shell(*words, "--baseline", "rag", "--category", "all")
    assert "untrained:always-add" in text and "F1 minus rag" in text.replace("\n", " ")
    answers = Path("run/answers.jsonl").read_text()
    summary = json.loads(shell(*words, "--category", "all", "--json"))
    assert [s["system"] for s in summary["systems"]] == ["rag", "untrained:always-add"]
    assert [s["n"] for s in summary["systems"]] == [2, 2]
    assert Path("run/answers.jsonl").read_text() == answers and answers.count("\n") == 6
    assert Path("run/f1.png").exists()


def test_eval_says_what_is_wrong_before_it_asks(shell: Any) -> None:
    """A conversation, a system or a LoRA that there is not."""
    assert "no conversation called c9; it has c1" in shell("eval", "talk.jsonl", "--out", "o", "--only", "c9", code=2)
    assert "is no system" in shell("eval", "talk.jsonl", "--out", "o", "--system", "magic", code=2)
    assert "manager ships" in shell("eval", "talk.jsonl", "--out", "o", "--system", "x=manager:shipped", code=3)


def test_eval_computes_in_the_dtype_asked_for(shell: Any) -> None:
    """So that machines compare; a run goes on in the one that it began with, and an unknown one is named."""
    words = ["eval", "talk.jsonl", "--out", "run", "--system", "rag", "--dtype"]
    shell(*words, "float32")
    assert json.loads(Path("run/run.json").read_text())["model"].endswith(" float32")
    assert "float32" in shell(*words, "bfloat16", code=2)
    assert "dtype is 'float8'; expected" in shell(*words, "float8", code=2)


def test_eval_refuses_to_go_on_on_a_machine_that_computes_in_another_dtype(
    shell: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run begun without --dtype, copied to a processor with bfloat16, mixed two arithmetics in one table."""
    words = ["eval", "talk.jsonl", "--out", "run", "--system", "rag"]
    monkeypatch.setattr(hardware, "dtype_name", lambda: "float32")
    shell(*words)
    monkeypatch.setattr(hardware, "dtype_name", lambda: "bfloat16")
    assert "bfloat16" in shell(*words, code=2)


def test_eval_manager_prints_a_matrix(shell: Any) -> None:
    """Always-ADD over one invented conversation: every stale fact is kept, none is lost."""
    pytest.importorskip("trl", reason="the train extra is not installed")
    words = ["eval-manager", "--out", "run", "--conversations", "1", "--system", "untrained:always-add"]
    assert "gold in rows" in shell(*words)
    [row] = json.loads(shell(*words, "--json"))["systems"]
    assert row["stale_kept"]["mean"] == 1.0 and row["lost"]["mean"] == 0.0
