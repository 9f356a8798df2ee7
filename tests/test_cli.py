"""The command line: each verb through the `main` that a shell calls, on a real bank, with doubles for the models."""

from __future__ import annotations

import io
import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from cli_shell import Shell

from memr1_plugin.agents.engine import Prompt, Role
from memr1_plugin.errors import ModelError
from memr1_plugin.memory import Memory
from memr1_plugin.testing import HashEmbedder, ScriptedModel
from memr1_plugin.types import Answer, Change, MemoryItem, Scope


def reply(prompt: Prompt, role: Role) -> str:
    """Move people who move, add the rest; answer with the first memory."""
    if role is Role.MANAGER:
        return "UPDATE 1" if "moved" in prompt.body.partition("Facts:")[2] else "ADD"
    return " 1 -> Berlin"


class BankShell(Shell):
    """Runs command lines on one bank."""

    def __init__(self, db: Path, capsys: pytest.CaptureFixture[str]) -> None:
        super().__init__(capsys)
        self.db = db

    def __call__(self, *words: Any, code: int = 0, db: bool = True) -> str:
        return super().__call__(*words, *(["--db", self.db] if db else []), code=code)


@pytest.fixture
def model() -> ScriptedModel:
    """The model behind the command line."""
    return ScriptedModel(reply)


@pytest.fixture
def memr1(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, model: ScriptedModel
) -> BankShell:
    """A shell in an empty folder whose memories open with doubles."""

    def open_with_doubles(path: Path, *, model: None, loras: None, **options: Any) -> Memory:
        return opened(path, **options)

    opened = partial(Memory.open, engine=model, embedder=HashEmbedder())
    monkeypatch.setattr(Memory, "open", open_with_doubles)
    monkeypatch.chdir(tmp_path)
    for name in ("MEMR1_DB", "MEMR1_USER", "MEMR1_MODEL", "MEMR1_LORAS"):
        monkeypatch.delenv(name, raising=False)
    return BankShell(tmp_path / "bot.db", capsys)


@pytest.fixture
def lisbon(memr1: BankShell) -> BankShell:
    """A shell whose bank knows where Ana lives."""
    memr1("add", "I live in Lisbon.", "--speaker", "Ana", "--user", "ana", "--at", "2026-11-01")
    return memr1


LINE = {
    "conversation": "c1",
    "turns": [
        {"id": "t1", "speaker": "Ana", "text": "I live in Lisbon.", "time": "2026-11-01"},
        {"id": "t2", "speaker": "Ben", "text": "What a lovely city!", "time": "2026-11-01"},
        {"id": "t3", "speaker": "Ana", "text": "I moved to Berlin, I live there now.", "time": "2026-11-09"},
    ],
}


@pytest.fixture
def conversation(tmp_path: Path) -> Path:
    """A file with two conversations in the project's format."""
    path = tmp_path / "talks.jsonl"
    rows = [LINE, {**LINE, "conversation": "c2"}]
    path.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    return path


def test_what_is_added_is_found_and_answered_from(lisbon: Shell) -> None:
    """add, search and ask work on one bank file, each opening it anew."""
    assert lisbon("search", "where does Ana live", "--user", "ana").startswith("    1 ")
    printed = lisbon("ask", "Where does Ana live?", "--user", "ana")
    assert printed.startswith("Berlin\n")
    assert "Ana: I live in Lisbon." in printed


def test_the_first_thing_that_is_said_is_reported_as_any_other(memr1: BankShell) -> None:
    """The changes of the first turn after opening are printed: catching up once took them along unseen."""
    assert '"I live in Lisbon."' in memr1("add", "I live in Lisbon.", "--user", "ana")
    assert memr1("add", "Hi there!", "--user", "ana").startswith("nothing to remember")


def test_json_is_what_the_library_returns(lisbon: Shell) -> None:
    """With --json a verb prints one document that from_json reads back."""
    [item] = [MemoryItem.from_json(row) for row in lisbon.json("search", "Lisbon", "--user", "ana")]
    assert (item.text, item.speaker, item.scope) == ("I live in Lisbon.", "Ana", Scope(user="ana"))
    answer = Answer.from_json(lisbon.json("ask", "Where does Ana live?", "--user", "ana"))
    assert answer.used == (item.id,)
    [change] = [Change.from_json(row) for row in lisbon.json("history", "--user", "ana")]
    assert change.after is not None and change.after.id == item.id


def test_a_scope_is_a_wall_on_the_command_line_too(lisbon: Shell) -> None:
    """Another user, agent or session finds nothing."""
    for other in (["--user", "ben"], ["--user", "ana", "--agent", "a"], ["--user", "ana", "--session", "s"], []):
        assert lisbon.json("search", "Lisbon", *other) == []
        assert lisbon.json("ask", "Where does Ana live?", *other)["abstained"]


def test_history_shows_the_ids_that_undo_takes(lisbon: Shell) -> None:
    """A contradicted fact is updated, the history shows both texts, and undo brings the old one back."""
    lisbon("add", "I moved to Berlin, I live there now.", "--speaker", "Ana", "--user", "ana")
    last = lisbon("history", "--user", "ana").splitlines()[-1]
    assert '"I live in Lisbon." -> "I moved to Berlin, I live there now."' in last
    lisbon("undo", last.split()[0], "--user", "ana")
    assert "Lisbon" in lisbon("search", "live", "--user", "ana")
    assert len(lisbon("history", "1", "--user", "ana").splitlines()) == 3


def test_forget_asks_first(lisbon: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without --yes nothing is erased unless somebody says so; with it the item is gone, journal and all."""
    monkeypatch.setattr("sys.stdin", io.StringIO("n\n"))
    lisbon("forget", "1", "--user", "ana", code=1)
    assert lisbon.json("stats", "--user", "ana")["items"] == 1
    assert "1 items" in lisbon("forget", "1", "--user", "ana", "--yes")
    left = lisbon.json("stats", "--user", "ana")
    assert (left["items"], left["turns"]) == (0, 0)


def test_forget_takes_an_item_or_everything(lisbon: Shell) -> None:
    """Neither and both are refused; --everything empties the scope and leaves the others."""
    lisbon("add", "I like tea.", "--user", "ben")
    lisbon("forget", "--user", "ana", "--yes", code=2)
    lisbon("forget", "1", "--everything", "--user", "ana", "--yes", code=2)
    lisbon("forget", "--everything", "--user", "ana", "--yes")
    assert lisbon.json("stats", "--all")["items"] == 1


def test_a_conversation_goes_into_a_scope_of_its_own(memr1: BankShell, conversation: Path) -> None:
    """Two conversations of a file do not mix; the summary says what each did."""
    first, second = memr1.json("add", "--conversation", str(conversation))
    assert (first["conversation"], first["new"], first["operations"]) == ("c1", 3, {"ADD": 2, "UPDATE": 1})
    assert second["scope"]["user"] == "c2"
    assert {row["text"] for row in memr1.json("search", "live", "--user", "c1")} >= {
        "I moved to Berlin, I live there now."
    }


def test_only_names_one_conversation(memr1: BankShell, conversation: Path) -> None:
    """--only takes in one; a name that is not there lists those that are; a scope takes one only."""
    memr1("add", "--conversation", str(conversation), "--only", "c2", "--user", "ana")
    assert memr1.json("stats", "--user", "ana")["turns"] == 3
    memr1("add", "--conversation", str(conversation), "--only", "c3", code=2)
    assert "c1, c2" in memr1.err
    memr1("add", "--conversation", str(conversation), "--user", "ana", code=2)
    assert "2 conversations" in memr1.err


def test_an_interrupted_conversation_goes_on_where_it_stopped(
    memr1: BankShell, conversation: Path, model: ScriptedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same command after a failing model takes in what is missing, and nothing twice."""
    complete = model.complete

    def fails(prompts: Any, role: Role) -> Any:
        raise ModelError("the model is out of memory")

    monkeypatch.setattr(model, "complete", fails)
    memr1("add", "--conversation", str(conversation), "--only", "c1", code=1)
    assert memr1.err.endswith("memr1: the model is out of memory\n")
    monkeypatch.setattr(model, "complete", complete)
    [row] = memr1.json("add", "--conversation", str(conversation), "--only", "c1")
    assert (row["turns"], row["bank"]["turns"], row["bank"]["pending"]) == (3, 3, 0)
    [again] = memr1.json("add", "--conversation", str(conversation), "--only", "c1")
    assert (again["new"], again["bank"]["items"]) == (0, row["bank"]["items"])


def test_ctrl_c_stops_a_conversation_and_loses_nothing(
    memr1: BankShell, conversation: Path, model: ScriptedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An interrupted `add` says so, exits with 130, and the same command takes in the rest."""

    def interrupted(prompts: Any, role: Role) -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(model, "complete", interrupted)
        memr1("add", "--conversation", str(conversation), "--only", "c1", code=130)
        assert "nothing is lost" in memr1.err
    [row] = memr1.json("add", "--conversation", str(conversation), "--only", "c1")
    assert (row["bank"]["turns"], row["bank"]["pending"]) == (3, 0)
    assert "moved to Berlin" in memr1("search", "Berlin", "--user", "c1")


def test_export_and_import_carry_a_bank(lisbon: Shell, tmp_path: Path) -> None:
    """What export writes, import reads into another bank: the same answers, the same history."""
    lines = lisbon("export", "--user", "ana")
    assert all(isinstance(json.loads(line), dict) for line in lines.splitlines())
    lisbon("export", "--all", "--out", "all.jsonl")
    other = BankShell(tmp_path / "other.db", lisbon.capsys)
    assert other.json("import", "all.jsonl")["new"] > 0
    assert other.json("import", "all.jsonl")["new"] == 0
    assert other("history", "--user", "ana") == lisbon("history", "--user", "ana")


def test_an_import_with_a_bad_line_names_it(memr1: BankShell, tmp_path: Path) -> None:
    """A line that is no JSON object is an error with its number, and nothing is imported."""
    (tmp_path / "bad.jsonl").write_text("{oops\n", encoding="utf-8")
    memr1("import", "bad.jsonl", code=2)
    assert "line 1 is no JSON" in memr1.err


def test_replay_rebuilds_a_bank_from_its_journal(lisbon: Shell) -> None:
    """The new bank holds the same items; a file that exists is never written over."""
    assert lisbon.json("replay", "--into", "new.db", "--all")["bank"]["items"] == 1
    lisbon("replay", "--into", "new.db", "--all", code=2)
    assert "exists already" in lisbon.err


def test_chat_remembers_and_answers(memr1: BankShell, monkeypatch: pytest.MonkeyPatch) -> None:
    """A statement is remembered, a question answered, a command obeyed; a mistake does not end the chat."""
    said = ["I live in Lisbon.", "", "Where do I live?", "/nonsense", "/undo x", "/memories", "/forget 1", "/memories"]
    monkeypatch.setattr("sys.stdin", io.StringIO("\n".join([*said, "/quit", "never read"])))
    printed = memr1("chat", "--name", "Ana")
    assert "ADD" in printed and "Berlin" in printed and "erased item 1" in printed
    assert printed.count("Ana: I live in Lisbon.") == 2  # under the answer, and by /memories
    assert "/nonsense is no command" in memr1.err and "needs a number" in memr1.err


def test_chat_speaks_json_lines(memr1: BankShell, monkeypatch: pytest.MonkeyPatch) -> None:
    """With --json each event is one object on a line of its own."""
    monkeypatch.setattr("sys.stdin", io.StringIO("I live in Lisbon.\nWhere do I live?\n"))
    events = [json.loads(line) for line in memr1("chat", "--json").splitlines()]
    assert [next(iter(event)) for event in events] == ["change", "answer"]


def test_a_bank_that_is_not_there_is_not_made_by_reading(memr1: BankShell) -> None:
    """A misspelt --db is an error with the remedy, and leaves no empty file behind."""
    for verb in (["search", "x"], ["ask", "x?"], ["history"], ["undo", "1"], ["stats"], ["export"], ["reembed"]):
        memr1(*verb, code=2)
        assert "there is no bank at" in memr1.err
    assert not memr1.db.exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["add"], "found neither or both"),
        (["add", "   "], "is empty"),
        (["add", "x", "--at", "yesterday"], "expected ISO 8601"),
        (["add", "x" * 200_000], "200,000 characters"),
        (["undo", "99"], "99"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(lisbon: Shell, words: list[str], message: str) -> None:
    """Whatever is wrong with what was typed is said in one line."""
    lisbon(*words, "--user", "ana", code=2)
    assert message in lisbon.err and lisbon.err.count("\n") == 1


def test_errors_are_json_when_json_is_asked_for(memr1: BankShell) -> None:
    """With --json an error is one object on stderr, and stdout stays empty."""
    assert memr1("search", "x", "--json", code=2) == ""
    assert json.loads(memr1.err)["error"] == "InputError"


def test_a_file_that_is_no_bank_is_exit_code_4(memr1: BankShell) -> None:
    """Errors of the bank have an exit code of their own."""
    memr1.db.write_bytes(b"not a database, whatever its name says" * 100)
    memr1("stats", code=4)


def test_a_memory_cannot_steer_the_terminal(memr1: BankShell) -> None:
    """Control characters in what somebody said are shown as replacement characters; brackets are kept."""
    memr1("add", "My \x1b[31mdog\x07 is [bold]Rex[/bold].")
    printed = memr1("search", "dog")
    assert "\x1b" not in printed and "\x07" not in printed
    assert "[bold]Rex[/bold]" in printed


def test_the_version_and_the_help(memr1: BankShell) -> None:
    """--version prints it; --help lists every verb with a line, and the exit codes."""
    assert memr1("--version", db=False).strip() == "0.1.0"
    text = memr1("--help", db=False)
    for verb in ("setup", "chat", "add", "search", "ask", "history", "undo", "forget", "export", "import", "replay"):
        assert verb in text
    assert "Exit codes" in text


def test_options_can_come_from_the_environment(lisbon: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    """MEMR1_DB and MEMR1_USER stand in for --db and --user."""
    monkeypatch.setenv("MEMR1_DB", str(lisbon.db))
    monkeypatch.setenv("MEMR1_USER", "ana")
    assert "Lisbon" in lisbon("search", "Lisbon", db=False)
