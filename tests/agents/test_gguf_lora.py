"""LoRAs as PEFT saves them, read back by the package that defines GGUF; rotation checked by its definition."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

gguf = pytest.importorskip("gguf", reason="the cpu extra is not installed")
save_file = pytest.importorskip("safetensors.numpy", reason="the cpu extra is not installed").save_file

from memr1_plugin.agents.gguf_base import geometry, has_chat_template, made_once, requantised, to_nf4  # noqa: E402
from memr1_plugin.agents.gguf_lora import VERSION, converted, interleaved  # noqa: E402
from memr1_plugin.errors import InputError, LoraMismatchError, WeightsNotFoundError  # noqa: E402

HEADS, KV_HEADS, HEAD_DIM, HIDDEN, RANK = 4, 2, 8, 32, 3
LAYERS = 2


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """A LLaMA-shaped base in Q4_1, as small as GGUF's blocks of 32 allow."""
    path = tmp_path / "base.gguf"
    random = np.random.default_rng(0)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("tiny")
    writer.add_block_count(LAYERS)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_array("tokenizer.ggml.tokens", ["a", "b"])
    for layer in range(LAYERS):
        for name, outputs in (("attn_q", HIDDEN), ("attn_k", KV_HEADS * HEAD_DIM), ("attn_v", KV_HEADS * HEAD_DIM)):
            data = gguf.quantize(
                random.standard_normal((outputs, HIDDEN)).astype(np.float32), gguf.GGMLQuantizationType.Q4_1
            )
            writer.add_tensor(
                f"blk.{layer}.{name}.weight", data, raw_shape=data.shape, raw_dtype=gguf.GGMLQuantizationType.Q4_1
            )
        writer.add_tensor(f"blk.{layer}.attn_norm.weight", np.ones(HIDDEN, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def save_lora(folder: Path, tensors: dict[str, Any] | None = None, **config: Any) -> Path:
    folder.mkdir(exist_ok=True)
    plain = {"peft_type": "LORA", "r": RANK, "lora_alpha": 6, "bias": "none"}
    (folder / "adapter_config.json").write_text(json.dumps({**plain, **config}), encoding="utf-8")
    save_file(tensors if tensors is not None else matrices(), folder / "adapter_model.safetensors")
    return folder


def matrices(dtype: type = np.float32, outputs: int = HIDDEN) -> dict[str, Any]:
    random = np.random.default_rng(1)
    found = {}
    for module, rows in (("q_proj", outputs), ("k_proj", KV_HEADS * HEAD_DIM), ("v_proj", KV_HEADS * HEAD_DIM)):
        key = f"base_model.model.model.layers.1.self_attn.{module}"
        found[f"{key}.lora_A.weight"] = random.standard_normal((RANK, HIDDEN)).astype(dtype)
        found[f"{key}.lora_B.weight"] = random.standard_normal((rows, RANK)).astype(dtype)
    return found


def read(path: Path) -> tuple[dict[str, Any], Any]:
    reader = gguf.GGUFReader(path)
    return {t.name: np.array(t.data) for t in reader.tensors}, reader


def rotated(x: Any, angles: Any, *, neighbours: bool) -> Any:
    """Turn the pairs of one head: neighbours (2i, 2i + 1), or halves (i, i + d/2)."""
    d = len(x)
    first, second = (
        (np.arange(0, d, 2), np.arange(1, d, 2)) if neighbours else (np.arange(d // 2), np.arange(d // 2, d))
    )
    out = np.empty_like(x)
    out[first] = x[first] * np.cos(angles) - x[second] * np.sin(angles)
    out[second] = x[first] * np.sin(angles) + x[second] * np.cos(angles)
    return out


def test_interleaved_rows_give_the_same_attention_scores() -> None:
    """Rotating neighbours of interleaved rows scores as rotating halves of the rows as transformers has them."""
    random = np.random.default_rng(2)
    q, k, x = (random.standard_normal((HIDDEN, HIDDEN)) for _ in range(3))
    theta = 1.0 / 100 ** (np.arange(HEAD_DIM // 2) / (HEAD_DIM // 2))
    q2, k2 = interleaved(q, HEADS) @ x[0], interleaved(k, HEADS) @ x[1]
    for head in range(HEADS):
        rows = slice(head * HEAD_DIM, (head + 1) * HEAD_DIM)
        halves = [rotated((w @ v)[rows], theta * n, neighbours=False) for w, v, n in ((q, x[0], 7), (k, x[1], 3))]
        pairs = [rotated(v[rows], theta * n, neighbours=True) for v, n in ((q2, 7), (k2, 3))]
        assert np.dot(*halves) == pytest.approx(np.dot(*pairs))


def test_a_converted_lora_holds_its_matrices_under_llama_cpp_names(tmp_path: Path, base: Path) -> None:
    """A is copied, v's B is copied, q's and k's B are interleaved by their own number of heads."""
    given = matrices()
    tensors, reader = read(converted(save_lora(tmp_path / "lora", given), base, tmp_path / "cache"))
    key = "base_model.model.model.layers.1.self_attn"
    assert set(tensors) == {f"blk.1.attn_{m}.weight.lora_{x}" for m in "qkv" for x in "ab"}
    for module in "qkv":
        np.testing.assert_array_equal(
            tensors[f"blk.1.attn_{module}.weight.lora_a"], given[f"{key}.{module}_proj.lora_A.weight"]
        )
    np.testing.assert_array_equal(tensors["blk.1.attn_v.weight.lora_b"], given[f"{key}.v_proj.lora_B.weight"])
    np.testing.assert_array_equal(
        tensors["blk.1.attn_q.weight.lora_b"], interleaved(given[f"{key}.q_proj.lora_B.weight"], HEADS)
    )
    np.testing.assert_array_equal(
        tensors["blk.1.attn_k.weight.lora_b"], interleaved(given[f"{key}.k_proj.lora_B.weight"], KV_HEADS)
    )
    fields = {
        name: reader.get_field(name).contents() for name in ("general.type", "adapter.type", "adapter.lora.alpha")
    }
    assert fields == {"general.type": "adapter", "adapter.type": "lora", "adapter.lora.alpha": 6.0}


@pytest.mark.parametrize(
    ("config", "factor"),
    [
        ({}, 1.0),
        ({"use_rslora": True}, RANK**0.5),
        ({"alpha_pattern": {"v_proj": 12}}, 2.0),
        ({"alpha_pattern": {"q_proj": 12}}, 1.0),
    ],
)
def test_scaling_beyond_alpha_over_rank_goes_into_b(
    tmp_path: Path, base: Path, config: dict[str, Any], factor: float
) -> None:
    """llama.cpp knows one alpha over the rank; rank-stabilised scaling and per-module alphas are kept in B."""
    given = matrices()
    tensors, _ = read(converted(save_lora(tmp_path / "lora", given, **config), base, tmp_path))
    expected = given["base_model.model.model.layers.1.self_attn.v_proj.lora_B.weight"] * np.float32(factor)
    np.testing.assert_allclose(tensors["blk.1.attn_v.weight.lora_b"], expected, rtol=1e-6)


def test_half_precision_loras_are_read(tmp_path: Path, base: Path) -> None:
    """A LoRA saved in float16 is converted value by value."""
    given = matrices(np.float16)
    tensors, _ = read(converted(save_lora(tmp_path / "lora", given), base, tmp_path))
    expected = given["base_model.model.model.layers.1.self_attn.v_proj.lora_A.weight"].astype(np.float32)
    np.testing.assert_array_equal(tensors["blk.1.attn_v.weight.lora_a"], expected)


def test_bfloat16_loras_are_read(tmp_path: Path, base: Path) -> None:
    """bfloat16, which numpy does not know and GPU training writes, is the upper half of a float32."""
    torch = pytest.importorskip("torch", reason="the local extra is not installed")
    from safetensors.torch import save_file as save_torch

    given = {name: torch.from_numpy(m).to(torch.bfloat16) for name, m in matrices().items()}
    folder = save_lora(tmp_path / "lora")
    save_torch(given, folder / "adapter_model.safetensors")
    tensors, _ = read(converted(folder, base, tmp_path))
    expected = given["base_model.model.model.layers.1.self_attn.v_proj.lora_A.weight"].float().numpy()
    np.testing.assert_array_equal(tensors["blk.1.attn_v.weight.lora_a"], expected)


def test_a_lora_is_converted_once_and_again_when_it_changes(tmp_path: Path, base: Path) -> None:
    """The cached file is named by the LoRA's own bytes: the same LoRA is found, a retrained one is converted."""
    folder = save_lora(tmp_path / "lora")
    first = converted(folder, base, tmp_path / "cache")
    stamp = first.stat().st_mtime_ns
    assert converted(folder, base, tmp_path / "cache") == first and first.stat().st_mtime_ns == stamp
    save_lora(folder, {name: m * 2 for name, m in matrices().items()})
    assert converted(folder, base, tmp_path / "cache") != first
    assert f"-v{VERSION}.gguf" in first.name


@pytest.mark.parametrize(
    ("config", "tensors", "message"),
    [
        ({"use_dora": True}, None, "use_dora"),
        ({"bias": "all"}, None, "bias=all"),
        ({"modules_to_save": ["lm_head"]}, None, "modules_to_save"),
        ({}, matrices(outputs=64), "maps 32 to 64"),
        ({}, {"base_model.model.model.layers.7.self_attn.q_proj.lora_A.weight": np.ones((3, 32), np.float32)}, "lacks"),
        ({}, {"base_model.model.lm_head.weight": np.ones((3, 32), np.float32)}, "lora_A and lora_B"),
        ({}, {}, "every module"),
    ],
)
def test_what_cannot_be_converted_is_refused_and_leaves_no_file(
    tmp_path: Path, base: Path, config: dict[str, Any], tensors: dict[str, Any] | None, message: str
) -> None:
    """DoRA, biases, another base's shapes and half a file are errors that say what was found."""
    folder = save_lora(tmp_path / "lora", tensors, **config)
    with pytest.raises(LoraMismatchError, match=message):
        converted(folder, base, tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_layer_that_the_base_lacks_is_refused(tmp_path: Path, base: Path) -> None:
    """A LoRA of a deeper model names a layer that the base does not have."""
    deeper = {name.replace("layers.1", "layers.5"): m for name, m in matrices().items()}
    with pytest.raises(LoraMismatchError, match=r"layers\.5.*does not have"):
        converted(save_lora(tmp_path / "lora", deeper), base, tmp_path)


def test_a_folder_that_is_no_lora_is_refused(tmp_path: Path, base: Path) -> None:
    """An empty folder is named, with the file that it lacks."""
    with pytest.raises(LoraMismatchError, match=r"holds no adapter_config\.json"):
        converted(tmp_path, base, tmp_path)


def test_requantised_weights_are_the_same_to_eight_bits(tmp_path: Path, base: Path) -> None:
    """The Q8_0 copy holds every matrix of the Q4_1 file within a step of 1/127 of its block's largest value."""
    copy = requantised(base, tmp_path / "cache", kind="Q8_0")
    before, after = gguf.GGUFReader(base), gguf.GGUFReader(copy)
    assert geometry(copy) == geometry(base)
    assert after.get_field("tokenizer.ggml.tokens").contents() == ["a", "b"]
    for old, new in zip(before.tensors, after.tensors, strict=True):
        was, now = (gguf.dequantize(t.data, t.tensor_type).reshape(-1, 32) for t in (old, new))
        if len(old.shape) == 2:
            assert new.tensor_type == gguf.GGMLQuantizationType.Q8_0
        assert np.all(np.abs(was - now) <= 0.6 / 127 * np.abs(was).max(axis=1, keepdims=True))
    assert requantised(base, tmp_path / "cache", kind="Q8_0") == copy


def test_nf4_is_rounded_as_bitsandbytes_rounds_it() -> None:
    """The CPU engine can serve the very weights of the 4-bit transformers engine; a block of zeros stays zero."""
    torch = pytest.importorskip("torch", reason="the local extra is not installed")
    functional = pytest.importorskip("bitsandbytes.functional", reason="the local extra is not installed")
    rows = np.random.default_rng(3).standard_normal((48, 192)).astype(np.float32)
    rows[0] = 0
    packed, state = functional.quantize_4bit(torch.from_numpy(rows), blocksize=64, quant_type="nf4")
    np.testing.assert_allclose(to_nf4(rows), functional.dequantize_4bit(packed, state).numpy(), atol=1e-6)
    with pytest.raises(InputError, match="multiple of 64"):
        to_nf4(rows[:, :32])


def test_an_unknown_format_is_refused(tmp_path: Path, base: Path) -> None:
    """A format that the package cannot write is named beside those it can."""
    with pytest.raises(InputError, match=r"Q4_K_M.*Q8_0"):
        requantised(base, tmp_path, kind="Q4_K_M")


def test_a_torn_gguf_file_is_named(tmp_path: Path, base: Path) -> None:
    """A download that was cut short is an error with the file's name and the remedy, not a crash of the parser."""
    torn = tmp_path / "torn.gguf"
    torn.write_bytes(base.read_bytes()[:200])
    for path in (torn, tmp_path / "absent.gguf"):
        with pytest.raises(WeightsNotFoundError, match=rf"{path.name}.*memr1 setup"):
            geometry(path)


def test_a_chat_template_is_found_by_its_key(tmp_path: Path, base: Path) -> None:
    """A base model has no template, also when one of its tokens is the key's name; a chat model has one."""
    found = {}
    for name in ("base", "chat"):
        writer = gguf.GGUFWriter(tmp_path / f"{name}.gguf", "llama")
        writer.add_array("tokenizer.ggml.tokens", ["tokenizer.chat_template", "x"])
        if name == "chat":
            writer.add_chat_template("{{ messages }}")
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.close()
        found[name] = has_chat_template(tmp_path / f"{name}.gguf")
    assert found == {"base": False, "chat": True}


def test_a_file_is_made_whole_or_not_at_all(tmp_path: Path) -> None:
    """A maker that fails half-way leaves nothing that a later start could take for the file."""

    def fails(out: Path) -> None:
        out.write_bytes(b"half")
        raise RuntimeError("power cut")

    with pytest.raises(RuntimeError, match="power cut"):
        made_once(tmp_path / "x.gguf", fails)
    assert list(tmp_path.iterdir()) == []
