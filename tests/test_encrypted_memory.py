"""A memory under a key: behind doors, in the background, in several processes and on the command line."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("sqlcipher3", reason="the extra `encrypt` is not installed")

from memr1_plugin import Memory, Scope
from memr1_plugin.adapters._door import Door
from memr1_plugin.adapters._said import Address, Said
from memr1_plugin.cli import main
from memr1_plugin.errors import BankError
from memr1_plugin.testing import HashEmbedder, ScriptedModel

ANA = Scope(user="ana")
KEY = "0123456789abcdef" * 4
"""Raw, so that no test waits for a key to be derived."""
FACT = "My dog is called Rexamillion."
OPTIONS: dict[str, Any] = {"engine": ScriptedModel.heuristic(), "embedder": HashEmbedder()}


def raw(folder: Path) -> bytes:
    """All bytes of all files."""
    return b"".join(path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file())


def test_doors_find_the_key_in_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """MEMR1_KEY is enough for every door that opens a memory by its path; without it the file stays shut."""
    path = tmp_path / "bot.db"
    monkeypatch.setenv("MEMR1_KEY", KEY)
    door = Door.open("test.door", Address.of("ana"), path=path, on_error="raise", **OPTIONS)
    door.record([Said("user", FACT)])
    assert door.recall("What is my dog called?") and door.memory.bank.encrypted
    assert Memory.shared(path, **OPTIONS) is door.memory
    door.memory.close()
    assert b"Rexamillion" not in raw(tmp_path)
    monkeypatch.delenv("MEMR1_KEY")
    with pytest.raises(BankError, match="give its key"):
        Door.open("test.door", Address.of("ana"), path=path, **OPTIONS)


def test_a_door_that_travels_leaves_the_key_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pickled door of a memory that was opened with a key holds no key; elsewhere it asks that machine for one."""
    with Memory.open(tmp_path / "bot.db", key=KEY, **OPTIONS) as memory:
        door = Door.open("test.door", Address.of("ana"), memory=memory)
        packed = pickle.dumps(door)
        assert KEY.encode() not in packed and pickle.loads(packed).memory is memory
        assert KEY not in repr(door)
    code = "import pickle, sys\ntry:\n    pickle.loads(sys.stdin.buffer.read())\n"
    code += "except Exception as error:\n    print(error)"
    done = subprocess.run([sys.executable, "-c", code], input=packed, capture_output=True)
    assert b"give its key" in done.stdout, done.stderr


def test_a_background_writer_writes_under_the_key(tmp_path: Path) -> None:
    """The writer's thread and readers beside it use the same encrypted file."""
    with Memory.open(tmp_path / "bot.db", key=KEY, write="background", **OPTIONS) as memory:
        for n in range(5):
            memory.observe(f"I have {n} dogs.", scope=ANA)
            memory.search("dogs", scope=ANA)
        memory.flush(30)
        assert len(memory.bank.items(ANA)) == 5
    assert b"dogs" not in raw(tmp_path)


def test_several_processes_use_one_encrypted_file(tmp_path: Path) -> None:
    """Three processes write at once; nobody is locked out and nothing is lost."""
    code = (
        "import sys\nfrom memr1_plugin import Memory, Scope\n"
        "from memr1_plugin.testing import HashEmbedder, ScriptedModel\n"
        "with Memory.open(sys.argv[1], engine=ScriptedModel.heuristic(), embedder=HashEmbedder()) as memory:\n"
        "    for n in range(8):\n"
        "        memory.observe(f'Process {sys.argv[2]} has {n} dogs.', scope=Scope(user='ana'))\n"
    )
    path = tmp_path / "bot.db"
    environment = {**os.environ, "MEMR1_KEY": KEY}
    command = [sys.executable, "-c", code, str(path)]
    children = [subprocess.Popen([*command, str(n)], env=environment, stderr=subprocess.PIPE) for n in range(3)]
    for child in children:
        assert child.wait(timeout=300) == 0, child.stderr and child.stderr.read()
        assert child.stderr is not None
        child.stderr.close()
    with Memory.open(path, key=KEY, **OPTIONS) as memory:
        assert len(memory.turns(scope=ANA, limit=None)) == 24 and memory.bank.check() == []


# -- the command line ---------------------------------------------------------------------------------------


@pytest.fixture
def memr1(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """Runs a command line; returns its exit code, output and errors. Its memories open with doubles."""
    monkeypatch.chdir(tmp_path)
    opened = partial(Memory.open)
    monkeypatch.setattr(
        Memory, "open", lambda path, **options: opened(path, **{**options, **OPTIONS, "model": None, "loras": None})
    )
    monkeypatch.setattr("memr1_plugin.embedding.as_embedder", lambda embedder=None: HashEmbedder())

    def run(*words: str, key: str | None = KEY) -> tuple[int, str, str]:
        monkeypatch.delenv("MEMR1_KEY", raising=False)
        if key is not None:
            monkeypatch.setenv("MEMR1_KEY", key)
        code = 0
        try:
            main(list(words))
        except SystemExit as done:
            code = int(done.code or 0)
        return code, *capsys.readouterr()

    return run


def test_the_command_line_takes_the_key_from_the_environment(memr1: Any, tmp_path: Path) -> None:
    """add, search and export work under MEMR1_KEY; a wrong key or none is exit code 4, and is not repeated."""
    assert memr1("add", FACT, "--user", "ana")[0] == 0
    assert b"Rexamillion" not in raw(tmp_path)
    assert "Rexamillion" in memr1("search", "dog", "--user", "ana")[1]
    for wrong in (None, "f" * 64):
        code, printed, told = memr1("search", "dog", "--user", "ana", key=wrong)
        assert code == 4 and not printed and "key" in told and "f" * 64 not in told
    code, printed, told = memr1("export", "--all")
    assert code == 0 and "not encrypted" in told and "Rexamillion" in printed


def test_a_plain_bank_becomes_an_encrypted_one_by_export_and_import(memr1: Any, tmp_path: Path) -> None:
    """What the docs tell people to type: everything is there afterwards, under the key."""
    assert memr1("add", FACT, "--user", "ana", "--db", "plain.db", key=None)[0] == 0
    assert memr1("export", "--all", "--db", "plain.db", "--out", "rows.jsonl", key=None)[0] == 0
    assert memr1("import", "rows.jsonl", "--trusted", "--db", "bot.db")[0] == 0
    assert "Rexamillion" in memr1("history", "--user", "ana", "--db", "bot.db")[1]
    assert b"Rexamillion" not in (tmp_path / "bot.db").read_bytes()


def test_doctor_says_whether_a_bank_is_encrypted_and_who_can_read_it(memr1: Any, tmp_path: Path) -> None:
    """Two lines for a bug report, or for somebody who wants to be sure."""
    from memr1_plugin.cli.machine import _bank, _Report

    memr1("add", FACT, "--user", "ana")
    memr1("add", FACT, "--user", "ana", "--db", "plain.db", key=None)
    (tmp_path / "plain.db").chmod(0o644)
    plain = _bank(Path("plain.db"), _Report())
    assert plain["encryption"] == "none" and "everybody (chmod 600 plain.db" in plain["readable by"]
    memr1("stats")  # sets the key
    mine = _bank(Path("memory.db"), _Report())
    assert mine["encryption"] == "SQLCipher" and mine["readable by"] == "its owner alone" and mine["state"] == "sound"
    assert json.dumps(mine)
