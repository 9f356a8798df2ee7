"""Turns a PEFT LoRA folder into the GGUF LoRA that llama.cpp loads beside its base.

It trains nothing and merges nothing: the two small matrices of each layer are renamed, and for LLaMA-like
models reordered. The reordering is derived from how the two programs rotate a head of dimension d: transformers
turns the pairs (i, i + d/2), llama.cpp's "llama" graph turns the neighbours (2i, 2i + 1); so the rows of every
q and k head are dealt like two halves of a deck, and attention scores stay what they were.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np

from memr1_plugin.agents.gguf_base import Geometry, Matrix, check, file_hash, finish, geometry, made_once
from memr1_plugin.errors import LoraMismatchError, MissingExtraError

try:
    import gguf
    from safetensors import deserialize
except ImportError as error:
    raise MissingExtraError.of("gguf or safetensors", "cpu") from error

VERSION = 1
"""Part of every cached file's name: raised when a conversion would come out differently."""
_NEIGHBOURS = frozenset({"llama"})
"""Architectures whose graph rotates neighbours, so that q and k rows are reordered."""
_HALVES = frozenset({"gemma", "gemma2", "gemma3", "qwen2", "qwen3", "olmo2", "starcoder2", "stablelm"})
"""Architectures whose graph rotates halves, as transformers does: nothing to reorder."""
_KEY = re.compile(r"(?:base_model\.model\.)?(.+)\.lora_([AB])(?:\.default)?\.weight")


def converted(lora: Path, base: Path, folder: Path) -> Path:
    """Return the GGUF of the PEFT LoRA in the folder `lora`, for the GGUF model `base`; made once, kept in `folder`.

    Raises:
        LoraMismatchError: the folder is not a plain LoRA, or its matrices do not fit the base.
    """
    config, weights = lora / "adapter_config.json", lora / "adapter_model.safetensors"
    for file in (config, weights):
        if not file.is_file():
            raise LoraMismatchError(f"{lora} holds no {file.name}; expected a LoRA folder as PEFT saves it.")
    check(base)
    name = f"lora-{file_hash(config, weights, base)}-v{VERSION}.gguf"
    return made_once(folder / name, lambda out: convert(lora, geometry(base), out))


def convert(lora: Path, base: Geometry, out: Path) -> None:
    """Write the PEFT LoRA in the folder `lora` as the GGUF file `out`."""
    config = _config(lora)
    alpha = float(config["lora_alpha"])
    writer = gguf.GGUFWriter(out, base.architecture)
    writer.add_type(gguf.GGUFType.ADAPTER)
    writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
    writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, alpha)
    names = gguf.get_tensor_name_map(_architecture(base), base.layers)
    for module, a, b in _pairs(lora):
        name = names.get_name(module)
        _check(module, name, a, b, base)
        # llama.cpp multiplies by alpha / rank; whatever PEFT does beyond that goes into B.
        b = b * np.float32(_scaling(module, config) * a.shape[0] / alpha)
        writer.add_tensor(f"{name}.weight.lora_a", np.ascontiguousarray(a))
        writer.add_tensor(f"{name}.weight.lora_b", np.ascontiguousarray(_reordered(module, b, base)))
    finish(writer)


def _architecture(base: Geometry) -> Any:
    if base.architecture not in _NEIGHBOURS | _HALVES:
        raise LoraMismatchError(
            f"the base {base.name} is a {base.architecture!r} model; LoRAs can be converted for "
            f"{', '.join(sorted(_NEIGHBOURS | _HALVES))}. Serve this one with the transformers engine."
        )
    return next(key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == base.architecture)


def _config(lora: Path) -> dict[str, Any]:
    config: dict[str, Any] = json.loads((lora / "adapter_config.json").read_text(encoding="utf-8"))
    kind = config.get("peft_type", "LORA")
    odd = [name for name in ("use_dora", "fan_in_fan_out", "modules_to_save") if config.get(name)]
    odd += [f"bias={config['bias']}"] if config.get("bias", "none") != "none" else []
    if kind != "LORA" or odd:
        raise LoraMismatchError(
            f"{lora} is a {kind} with {', '.join(odd) or 'no extras'}; expected a plain LoRA "
            f"(matrices A and B only). Train it without these, or serve it with the transformers engine."
        )
    return config


def _scaling(module: str, config: dict[str, Any]) -> float:
    alpha = _pattern(module, config.get("alpha_pattern") or {}, config["lora_alpha"])
    rank = _pattern(module, config.get("rank_pattern") or {}, config["r"])
    return alpha / (rank**0.5 if config.get("use_rslora") else rank)


def _pattern(module: str, pattern: dict[str, float], default: float) -> float:
    """PEFT's rule: the first pattern that matches the end of the module's name wins."""
    return next((v for key, v in pattern.items() if re.match(rf"(.*\.)?({key})$", module)), default)


def _pairs(lora: Path) -> list[tuple[str, Matrix, Matrix]]:
    """Read (module name, A of shape (rank, inputs), B of shape (outputs, rank)) for every module."""
    found: dict[str, dict[str, Matrix]] = {}
    read: Any = deserialize  # safetensors' own types stop at its Rust
    for key, tensor in read((lora / "adapter_model.safetensors").read_bytes()):
        match = _KEY.fullmatch(key)
        if match is None:
            raise LoraMismatchError(f"{lora} holds {key}; expected lora_A and lora_B matrices only.")
        found.setdefault(match[1], {})[match[2]] = _matrix(key, tensor)
    lacking = [module for module, pair in found.items() if set(pair) != {"A", "B"}]
    if lacking or not found:
        raise LoraMismatchError(f"{lora} lacks A or B of {lacking or 'every module'}; the file is not whole.")
    return [(module, pair["A"], pair["B"]) for module, pair in sorted(found.items())]


def _matrix(key: str, tensor: dict[str, Any]) -> Matrix:
    kind, data = tensor["dtype"], bytes(tensor["data"])
    if kind == "BF16":  # numpy has no bfloat16: it is the upper half of a float32
        flat: Matrix = (np.frombuffer(data, np.uint16).astype(np.uint32) << 16).view(np.float32)
    elif kind in ("F32", "F16"):
        flat = np.frombuffer(data, {"F32": np.float32, "F16": np.float16}[kind]).astype(np.float32)
    else:
        raise LoraMismatchError(f"{key} is stored as {kind}; expected F32, F16 or BF16.")
    return flat.reshape(tuple(tensor["shape"]))


def _check(module: str, name: str | None, a: Matrix, b: Matrix, base: Geometry) -> None:
    shape = base.shapes.get(f"{name}.weight")
    if shape is None:
        raise LoraMismatchError(f"the LoRA changes {module}, which {base.name} does not have. Was it trained on it?")
    if (b.shape[0], a.shape[1]) != shape or a.shape[0] != b.shape[1]:
        raise LoraMismatchError(
            f"the LoRA's {module} maps {a.shape[1]} to {b.shape[0]} at ranks {a.shape[0]} and {b.shape[1]}; "
            f"{base.name} has {shape[1]} to {shape[0]} there. It was trained on another base model."
        )


def _reordered(module: str, b: Matrix, base: Geometry) -> Matrix:
    heads = {"q_proj": base.heads, "k_proj": base.kv_heads}.get(module.rsplit(".", 1)[-1])
    if heads is None or base.architecture not in _NEIGHBOURS:
        return b
    return interleaved(b, heads)


def interleaved(rows: Matrix, heads: int) -> Matrix:
    """Deal the rows of each head: row i of the first half to 2i, row i of the second half to 2i + 1.

    Args:
        rows: (heads * d, n), a projection's rows or B's.
    """
    halves = rows.reshape(heads, 2, rows.shape[0] // heads // 2, *rows.shape[1:])
    return np.stack([halves[:, 0], halves[:, 1]], axis=2).reshape(rows.shape)
