"""`benchmarks/peers.py` counts what it says it counts; no peer is installed for this, and no model runs."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

FOLDER = Path(__file__).resolve().parent.parent / "benchmarks"


@pytest.fixture
def peers(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script as a module."""
    pytest.importorskip("gguf")
    pytest.importorskip("httpx")
    monkeypatch.syspath_prepend(str(FOLDER))
    import peers

    return peers


def call(**fields: Any) -> dict[str, Any]:
    made = {"path": "/v1/chat/completions", "seconds": 1.0, "status": 200}
    return {**made, "prompt_tokens": 100, "cached_tokens": 40, "output_tokens": 5, **fields}


def turn(name: str, calls: list[dict[str, Any]], **fields: Any) -> dict[str, Any]:
    made = {"turn": name, "error": "", "seconds": 2.0, "processor seconds": 1.0, "changed": {}, "gone": []}
    return {**made, "calls": calls, **fields}


def test_a_system_is_summed_up_from_what_the_server_saw(peers: ModuleType, tmp_path: Path) -> None:
    """Calls and tokens are means over turns, embeddings are no model calls, and failures of both sides are counted."""
    rows = peers.Rows(tmp_path / "some" / "turns.jsonl")
    rows.add(turn("D1:1", [call(), call(path="/v1/embeddings", prompt_tokens=0)], changed={"a": "x", "b": "y"}))
    rows.add(turn("D1:2", [call(unparseable=True), call(status=500)], gone=["a"], changed={"b": "z"}, error="broke"))
    row = peers.summary("some", tmp_path)
    assert row["model calls a turn"] == 1.5 and row["prompt tokens a turn"] == 150
    assert row["failed"] == 2 and row["unparseable"] == 1 and row["memories"] == 1
    assert peers.sources(rows.read()) == {"a": ["D1:1"], "b": ["D1:1", "D1:2"]}


def test_a_line_that_was_cut_short_is_told_again(peers: ModuleType, tmp_path: Path) -> None:
    """A run that was killed while it wrote goes on with the turn whose line is not whole."""
    rows = peers.Rows(tmp_path / "turns.jsonl")
    rows.add({"turn": "D1:1"})
    with rows.path.open("a") as file:
        file.write('{"turn": "D1:')
    assert rows.read() == [{"turn": "D1:1"}]
    rows.add({"turn": "D1:2"})
    assert rows.read() == [{"turn": "D1:1"}, {"turn": "D1:2"}]


def test_a_system_that_counts_itself_may_be_restarted(peers: ModuleType, tmp_path: Path) -> None:
    """The counters of a process begin at nothing; those of several processes are added."""
    counts = [{"turns": 1, "model_calls": 1, "prompt_tokens": 90}, {"turns": 2, "model_calls": 1, "prompt_tokens": 90}]
    rows = [turn(f"t{n}", [], counts=c) for n, c in enumerate([*counts, {"turns": 1, "prompt_tokens": 30}])]
    assert peers._totals(rows)["prompt_tokens"] == 120 and peers._totals(rows)["model_calls"] == 1


def test_replies_that_are_no_json_are_found(peers: ModuleType) -> None:
    """JSON in a code fence is JSON; words, and words where tools were offered, are not."""
    from peer_systems import server

    wants = {"response_format": {"type": "json_object"}}
    assert not server._unparseable(wants, {"message": {"content": '```json\n{"facts": []}\n```'}})
    assert server._unparseable(wants, {"message": {"content": "Sure! Here are"}})
    tools = {"tools": [{"type": "function"}]}
    assert server._unparseable(tools, {"message": {"content": "I would call Memory"}})
    called = {"message": {"tool_calls": [{"function": {"arguments": json.dumps({"content": "x"})}}]}}
    assert not server._unparseable(tools, called)
    assert str(FOLDER) in sys.path
