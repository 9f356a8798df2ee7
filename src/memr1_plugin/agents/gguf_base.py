"""The base model's GGUF file: its geometry, and a copy of it in the format that is to be computed.

It downloads nothing (`models` finds the weights) and runs nothing (`llamacpp` does). The file as shipped is
Q4_1, with which llama.cpp also rounds every layer's inputs to eight bits; the same weights as F16 are computed
as transformers computes them in float32, and as fast (docs/engines.md has the table).
"""

from __future__ import annotations

import hashlib
import mmap
import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from memr1_plugin.errors import InputError, MissingExtraError, ModelError, WeightsNotFoundError

try:
    import gguf
except ImportError as error:
    raise MissingExtraError.of("gguf", "cpu") from error


Matrix = npt.NDArray[np.float32]

KINDS = ("F32", "F16", "BF16", "Q8_0", "Q5_1", "Q5_0", "Q4_1", "Q4_0")
NF4_BLOCK = 64
_BELOW = (-1.0, -0.69619280, -0.52507305, -0.39491749, -0.28444138, -0.18477343, -0.09105004)
_ABOVE = (0.07958030, 0.16093020, 0.24611230, 0.33791524, 0.44070983, 0.56261700, 0.72295684, 1.0)
NF4 = np.array([*_BELOW, 0.0, *_ABOVE], np.float32)
"""The 16 values of nf4: quantiles of a normal distribution (Dettmers et al., QLoRA, appendix E)."""


@dataclass(frozen=True)
class Geometry:
    """What a LoRA must know about the base that it changes."""

    name: str
    architecture: str
    """llama.cpp's name of the architecture, e.g. "llama" (SmolLM2 is one)."""
    layers: int
    heads: int
    kv_heads: int
    shapes: dict[str, tuple[int, int]]
    """(outputs, inputs) of each matrix, by its GGUF name."""


def check(path: Path) -> None:
    """Raise `WeightsNotFoundError` unless `path` is a file that begins as GGUF files do. Reads four bytes."""
    if not path.is_file():
        raise WeightsNotFoundError(f"no GGUF file at {path}; expected the base model. Run: memr1 setup")
    with path.open("rb") as file:
        start = file.read(4)
    if start != b"GGUF":
        raise WeightsNotFoundError(f"{path} begins with {start!r}; expected a GGUF file. Name one, or run: memr1 setup")


def open_gguf(path: Path) -> Any:
    """Open a GGUF file for reading; a missing or broken one is `WeightsNotFoundError`.

    Takes 2 s: the reader makes Python objects of 49,152 tokens. Nothing that every start does may call it.
    """
    check(path)
    try:
        return gguf.GGUFReader(path)
    except (ValueError, IndexError, KeyError) as error:
        raise WeightsNotFoundError(
            f"{path} is not a whole GGUF file ({error}); it may have been cut short. Delete it and run: memr1 setup"
        ) from error


def has_chat_template(path: Path) -> bool:
    """Say whether the file names a chat template: looks for the key as GGUF stores it, parsing nothing."""
    key = gguf.Keys.Tokenizer.CHAT_TEMPLATE.encode()
    stored = len(key).to_bytes(8, "little") + key + int(gguf.GGUFValueType.STRING).to_bytes(4, "little")
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as view:
        return view.find(stored) >= 0


def geometry(path: Path) -> Geometry:
    """Read the geometry of the model in a GGUF file."""
    reader = open_gguf(path)
    architecture = str(_value(reader, "general.architecture", path))
    heads = int(_value(reader, f"{architecture}.attention.head_count", path))
    kv = reader.get_field(f"{architecture}.attention.head_count_kv")
    name = reader.get_field("general.name")
    return Geometry(
        name=str(name.contents()) if name else path.stem,
        architecture=architecture,
        layers=int(_value(reader, f"{architecture}.block_count", path)),
        heads=heads,
        kv_heads=int(kv.contents()) if kv else heads,
        shapes={t.name: (int(t.shape[1]), int(t.shape[0])) for t in reader.tensors if len(t.shape) == 2},
    )


def _value(reader: Any, key: str, path: Path) -> Any:
    field = reader.get_field(key)
    if field is None:
        raise ModelError(f"{path} holds no {key}; expected a language model. Give a GGUF file of a causal LM.")
    return field.contents()


def requantised(source: Path, folder: Path, *, kind: str = "F16") -> Path:
    """Return `source` with its quantised matrices written as `kind`; made once (seconds), then found in `folder`.

    Args:
        kind: a GGUF type ("F16", "Q8_0"), or one after "nf4+": then the layers' matrices are first rounded as
            bitsandbytes rounds them, and the model is the one that the 4-bit transformers engine serves.
    """
    _kinds(kind)
    check(source)
    name = f"{source.stem}-as-{kind}-{file_hash(source)}.gguf"
    return made_once(folder / name, lambda out: _rewrite(source, out, kind))


def _kinds(kind: str) -> tuple[bool, Any]:
    form = kind.removeprefix("nf4+")
    if form not in KINDS:
        raise InputError(f'kind is {kind!r}; expected one of {", ".join(KINDS)}, each also after "nf4+".')
    return form != kind, gguf.GGMLQuantizationType[form]


def to_nf4(rows: Matrix) -> Matrix:
    """Round (n, m) to nf4 and back as bitsandbytes does: blocks of 64 along each row, scaled by their largest.

    Raises:
        InputError: m is no multiple of 64; bitsandbytes' blocks then span rows, whose order GGUF changes.
    """
    if rows.shape[-1] % NF4_BLOCK:
        raise InputError(f"a matrix has {rows.shape[-1]} columns; expected a multiple of {NF4_BLOCK} for nf4.")
    blocks = rows.reshape(-1, NF4_BLOCK)
    largest = np.abs(blocks).max(axis=1, keepdims=True)
    scaled = blocks / np.where(largest == 0, 1, largest)
    nearest = NF4[np.searchsorted((NF4[1:] + NF4[:-1]) / 2, scaled)]
    found: Matrix = (nearest * largest).reshape(rows.shape)
    return found


def _rewrite(source: Path, out: Path, kind: str) -> None:
    reader = open_gguf(source)
    writer = gguf.GGUFWriter(out, str(_value(reader, "general.architecture", source)))
    for field in reader.fields.values():
        if field.name == "general.architecture" or field.name.startswith("GGUF."):
            continue  # the writer writes these itself
        array = field.types[0] == gguf.GGUFValueType.ARRAY
        writer.add_key_value(field.name, field.contents(), field.types[0], sub_type=field.types[-1] if array else None)
    for tensor in reader.tensors:
        data, form = _rewritten(tensor, kind)
        writer.add_tensor(tensor.name, data, raw_shape=data.shape, raw_dtype=form)
    finish(writer)


def _rewritten(tensor: Any, kind: str) -> tuple[Any, Any]:
    as_nf4, want = _kinds(kind)
    as_nf4 = as_nf4 and tensor.name.startswith("blk.")  # as transformers: never embeddings or the output layer
    if tensor.tensor_type == gguf.GGMLQuantizationType.F32 or (tensor.tensor_type == want and not as_nf4):
        return tensor.data, tensor.tensor_type
    values = gguf.dequantize(tensor.data, tensor.tensor_type)
    return gguf.quantize(to_nf4(values) if as_nf4 else values, want), want


def finish(writer: Any) -> None:
    """Write out everything that was added to a `gguf.GGUFWriter`, and close its file."""
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def file_hash(*paths: Path) -> str:
    """16 hex digits of the bytes of some files, in order."""
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()[:16]


def made_once(path: Path, make: Callable[[Path], None]) -> Path:
    """Return `path`, made by `make` if it is not there: whole or not at all, also when processes race."""
    if path.is_file():
        return path
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as scratch:
            make(Path(scratch) / path.name)
            os.replace(Path(scratch) / path.name, path)
    except OSError as error:
        raise ModelError(f"could not write {path} ({error}); expected a folder with room. Set its folder.") from error
    return path
