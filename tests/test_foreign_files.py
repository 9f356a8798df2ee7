"""Files of other people: whatever is in them, they are taken or refused in words, and no code of theirs runs."""

from __future__ import annotations

import ast
import json
import os
import random
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from memr1_plugin import Memory, Scope
from memr1_plugin.agents import models
from memr1_plugin.agents.engine import Role
from memr1_plugin.agents.foreign import check_embedder_folder
from memr1_plugin.cli import app
from memr1_plugin.cli import bank as bank_verbs
from memr1_plugin.embedding import SentenceTransformerEmbedder
from memr1_plugin.errors import DataError, InputError, LoraMismatchError, ModelError
from memr1_plugin.evaluation.datasets import load
from memr1_plugin.json_files import loads, text_of
from memr1_plugin.testing import HashEmbedder, ScriptedModel, tiny_model

ROOT = Path(__file__).resolve().parent.parent
ANA = Scope(user="ana")


def open_memory(path: Path) -> Memory:
    return Memory.open(path, engine=ScriptedModel.heuristic(), embedder=HashEmbedder())


# -- exported rows ------------------------------------------------------------------------------------------

ODD: tuple[Any, ...] = (
    None, True, -1, 0, 2**63, 2**200, 1e308, float("nan"), float("inf"), "", "x", "\ud800", "\x00", "a" * 300_000, [],
    {}, [[]], {"user": 1}, "2026-01-01", "9" * 30, "9999-12-31T23:59:59+00:00", "0001-01-01T00:00:00+14:00",
)  # fmt: skip


def mutated(value: Any, rng: random.Random) -> Any:
    """A copy of a JSON value with something odd, missing or added in one place."""
    if isinstance(value, dict) and value and rng.random() < 0.8:
        value, name = dict(value), rng.choice(list(value))
        what = rng.random()
        if what < 0.1:
            del value[name]
        elif what < 0.2:
            value["colour"] = rng.choice(ODD)
        else:
            value[name] = mutated(value[name], rng)
        return value
    if isinstance(value, list) and value and rng.random() < 0.7:
        value, place = list(value), rng.randrange(len(value))
        value[place] = mutated(value[place], rng)
        return value
    return rng.choice(ODD)


@pytest.mark.parametrize("trusted", [False, True])
def test_whatever_a_row_holds_it_is_taken_or_refused_in_words(trusted: bool) -> None:
    """A thousand mutated rows: a `DataError` or a sound bank, never a crash.

    Found by this: a role that was a number, an item id that was a list and a scope that was null got as far as
    SQLite, and came out as its errors.
    """
    rng = random.Random(int(trusted))
    with open_memory(Path(":memory:")) as memory:
        memory.observe("I live in Graz.", scope=ANA)
        memory.observe("I have a dog.", scope=ANA, metadata={"a": {"b": [1, 2]}})
        memory.correct(1, "I live in Linz.", scope=ANA)
        memory.feedback(memory.answer("Where do I live?", scope=ANA), correct="Linz")
        rows = list(memory.export())
        refused = 0
        for _ in range(1000):
            row = mutated(rng.choice(rows), rng)
            row = mutated(row, rng) if rng.random() < 0.3 else row
            try:
                memory.import_([rows[0], row], trusted=trusted)
            except DataError as error:
                assert "Nothing was imported" in str(error)
                refused += 1
        assert 500 < refused < 1000
        list(memory.export())
        memory.history()
        assert memory.search("dog", scope=ANA) and memory.bank.check() == []


@pytest.mark.parametrize(
    "line",
    ["[" * 100_000, '{"a":' * 50_000, "1" * 10_000, '{"type": "turn", "text": ' + "1" * 5000 + "}", "\x00", '"text"',
     '{"type": "turn", "text": "a", "metadata": {"a": ' + "[" * 5000 + "]" * 5000 + "}}"],
    ids=lambda line: f"{line[:12]!r}*{len(line)}",
)  # fmt: skip
def test_a_line_that_no_parser_likes_is_named(tmp_path: Path, line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Brackets too deep and numbers too long made Python's parser raise what nobody caught."""
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "rows.jsonl"
    file.write_text('{"type": "bank", "format": 1}\n' + line + "\n", encoding="utf-8")
    done = CliRunner().invoke(app, ["import", str(file)])
    assert isinstance(done.exception, DataError) and "line 2" in str(done.exception)


def test_rows_of_a_program_that_nest_too_deep_are_refused(tmp_path: Path) -> None:
    """Python objects can be deeper than JSON; so can what a framework hangs on a message."""
    deep: dict[str, Any] = {}
    inner = deep
    for _ in range(100_000):
        inner["a"] = inner = {}
    with open_memory(tmp_path / "bot.db") as memory:
        with pytest.raises(DataError, match=r"nests too deep|not JSON"):
            memory.import_([{"type": "turn", "text": "a", "metadata": deep}])
        with pytest.raises(InputError, match="not JSON"):
            memory.observe("I live in Graz.", metadata=deep)
        for wrong in ({"role": "\ud800"}, {"session": "\x00"}, {"role": 5}):
            with pytest.raises(InputError, match=f"turn's {next(iter(wrong))}"):
                memory.observe("I live in Graz.", **wrong)  # type: ignore[arg-type]


def test_what_is_exported_can_be_imported_whatever_its_size(tmp_path: Path) -> None:
    """A message with a picture has megabytes: the limit of a line once was below what a bank takes."""
    picture = {"url": "data:image/png;base64," + "A" * 4_500_000}
    with open_memory(tmp_path / "bot.db") as memory:
        memory.observe("Look at my dog.", scope=ANA, metadata={"picture": picture})
        with pytest.raises(InputError, match="at most 32,000,000"):
            memory.observe("Look at my cat.", scope=ANA, metadata={"picture": "A" * 33_000_000})
        rows = list(memory.export())
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    with file.open(encoding="utf-8") as lines, open_memory(tmp_path / "copy.db") as copy:
        assert copy.import_(bank_verbs._rows(lines), trusted=True) > 0
        assert copy.turns(scope=ANA)[0].metadata == {"picture": picture}


def test_files_are_limited_in_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A line, a file and a conversation file that are too large are refused before they fill the memory."""
    file = tmp_path / "rows.jsonl"
    file.write_text('{"type": "bank", "format": 1}\n' * 10, encoding="utf-8")
    monkeypatch.setattr(bank_verbs, "MAX_FILE_CHARS", 100)
    with file.open(encoding="utf-8") as lines, pytest.raises(DataError, match="Import in parts"):
        list(bank_verbs._rows(lines))
    monkeypatch.setattr(bank_verbs, "MAX_LINE_CHARS", 20)
    with file.open(encoding="utf-8") as lines, pytest.raises(DataError, match="more than 20 characters"):
        list(bank_verbs._rows(lines))
    with pytest.raises(DataError, match="at most 50 are read"):
        text_of(file, max_bytes=50)


@pytest.mark.parametrize("text", ["[" * 100_000, "[" + "1" * 5000 + "]", '{"conversation": ' * 3000, "\x00\x01"])
def test_a_conversation_file_that_no_parser_likes_is_told(tmp_path: Path, text: str) -> None:
    """As with exports: an error of ours that names the file."""
    file = tmp_path / "talk.jsonl"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match=r"talk\.jsonl"):
        load(file)
    with pytest.raises(DataError):
        loads(text, "talk.jsonl")


@pytest.mark.skipif(os.name == "nt", reason="modes are POSIX's")
def test_an_export_over_an_old_file_is_its_owners_alone(tmp_path: Path) -> None:
    """A file that others could read before kept that mode, with what people said now in it."""
    old = tmp_path / "rows.jsonl"
    old.write_text("old", encoding="utf-8")
    old.chmod(0o644)
    open_memory(tmp_path / "bot.db").close()
    from memr1_plugin.cli._shell import private

    with private(old) as file:
        file.write("new")
    assert stat.S_IMODE(old.stat().st_mode) == 0o600 and old.read_text(encoding="utf-8") == "new"


# -- weights ------------------------------------------------------------------------------------------------

CODE = "from pathlib import Path\nPath({marker!r}).touch()\n"


def lora(folder: Path, **config: Any) -> tuple[Path, models.Weights]:
    """A LoRA folder that fits its base, but for `config`."""
    weights = models.Weights("tiny", "folder", folder, "0123")
    run = {"role": "manager", "base": "tiny", "base_revision": "0123"}
    run["prompt_hash"] = models.trained_prompt_hash(Role.MANAGER)
    (folder / "training_run.json").write_text(json.dumps(run), encoding="utf-8")
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", **config}), encoding="utf-8")
    return folder, weights


def test_a_plain_lora_is_taken(tmp_path: Path) -> None:
    """The measure of the next test."""
    folder, weights = lora(tmp_path)
    assert models.read_lora(folder, Role.MANAGER, weights).name == "tiny/manager"


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda f: (f / "training_run.json").write_text("{"), "no JSON"),
        (lambda f: (f / "training_run.json").write_text("[]"), "expected dict"),
        (lambda f: (f / "training_run.json").write_text(" " * 2_000_000), "at most 1,000,000"),
        (lambda f: (f / "adapter_config.json").write_text("[" * 100_000), "no JSON"),
        (lambda f: (f / "adapter_config.json").write_bytes(b"\xff\xfe"), "not UTF-8"),
        (lambda f: lora(f, peft_type="LOHA"), "expected a plain LoRA"),
        (lambda f: lora(f, auto_mapping={"parent_library": "os"}), "auto_mapping"),
        (lambda f: lora(f, megatron_config={}, megatron_core="antigravity"), ""),
        (lambda f: lora(f, megatron_config={"a": 1}, megatron_core="antigravity"), "megatron_config"),
    ],
)  # fmt: skip
def test_a_lora_of_somebody_else_is_looked_at_before_it_is_loaded(
    tmp_path: Path, spoil: Callable[[Path], Any], words: str
) -> None:
    """Broken, oversized and importing ones are refused with what is wrong; an empty field asks for nothing."""
    folder, weights = lora(tmp_path)
    spoil(folder)
    if not words:
        assert models.read_lora(folder, Role.MANAGER, weights)
        return
    with pytest.raises(LoraMismatchError, match=words):
        models.read_lora(folder, Role.MANAGER, weights)


def test_an_embedders_folder_runs_no_code_unless_asked_to(tmp_path: Path) -> None:
    """Before its version 6.2, sentence-transformers executed the module that a local folder names."""
    folder, marker = tmp_path / "model", tmp_path / "ran"
    folder.mkdir()
    modules = [{"idx": 0, "name": "0", "path": "", "type": "evil.Module"}]
    (folder / "modules.json").write_text(json.dumps(modules), encoding="utf-8")
    (folder / "evil.py").write_text(CODE.format(marker=str(marker)), encoding="utf-8")
    with pytest.raises(ModelError, match=r"run code of its own \(evil\.Module\)"):
        check_embedder_folder(folder, trust_remote_code=False)
    check_embedder_folder(folder, trust_remote_code=True)
    pytest.importorskip("transformers")
    with pytest.raises(ModelError, match=r"evil\.Module"):
        SentenceTransformerEmbedder(folder).embed(["a"])
    assert not marker.exists()


def test_an_embedders_pickled_weights_are_not_loaded(tmp_path: Path) -> None:
    """Pickles can run code when they are read; beside safetensors they are not read."""
    (tmp_path / "2_Dense").mkdir()
    (tmp_path / "2_Dense" / "pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'true'\ntR.")
    with pytest.raises(ModelError, match="pickled weights can run code"):
        check_embedder_folder(tmp_path, trust_remote_code=False)
    (tmp_path / "2_Dense" / "model.safetensors").touch()
    check_embedder_folder(tmp_path, trust_remote_code=False)


def test_a_models_own_code_does_not_run(tmp_path: Path) -> None:
    """A folder whose config names classes of its own is refused with transformers' words, and nothing was executed."""
    pytest.importorskip("torch")
    from memr1_plugin.agents import loading

    folder, marker = tiny_model(tmp_path / "tiny"), tmp_path / "ran"
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config |= {"model_type": "evil", "auto_map": {"AutoConfig": "evil.C", "AutoModelForCausalLM": "evil.M"}}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    (folder / "evil.py").write_text(CODE.format(marker=str(marker)), encoding="utf-8")
    with pytest.raises(ModelError, match="trust_remote_code"):
        loading.load_base(folder, quantize=False, device="cpu")
    assert not marker.exists()


def test_no_file_is_unpickled_and_no_code_of_others_is_trusted_by_default() -> None:
    """In the package: no `pickle`, no `torch.load` without ``weights_only``, no ``trust_remote_code=True``."""
    for path in (ROOT / "src" / "memr1_plugin").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            where = f"{path.relative_to(ROOT)}:{getattr(node, 'lineno', 0)}"
            if isinstance(node, (ast.Import, ast.ImportFrom)):
                named = {alias.name for alias in node.names} | {getattr(node, "module", "") or ""}
                assert not named & {"pickle", "cPickle", "dill", "joblib", "cloudpickle", "shelve", "marshal"}, where
            if isinstance(node, ast.Call):
                given = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
                assert given.get("trust_remote_code", "False") != "True", where
                assert given.get("allow_pickle", "False") == "False", where
                if ast.unparse(node.func) == "torch.load":
                    assert given.get("weights_only") == "True", where
