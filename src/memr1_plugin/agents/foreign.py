"""What a folder of somebody else's weights may hold: no pickles, no code, and JSON of a sane size.

Loading is `loading`'s and `embedding`'s business; here a folder is looked at before, because what a library underneath
executes depends on its version (sentence-transformers before 6.2 ran the code of a local folder without being asked).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from memr1_plugin.errors import DataError, LoraMismatchError, ModelError
from memr1_plugin.json_files import loads, text_of

MAX_CONFIG_BYTES = 1_000_000
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
_OWN = "sentence_transformers."
_IMPORTS = ("auto_mapping", "megatron_config")
"""Fields of a PEFT config that make PEFT import a module by its name."""


def check_embedder_folder(folder: Path, *, trust_remote_code: bool) -> None:
    """Look at a sentence-transformers folder.

    Raises:
        ModelError: it names Python code that would be executed, or has pickled weights alone.
    """
    if trust_remote_code:
        return
    modules = _json(folder / "modules.json", list) if (folder / "modules.json").is_file() else []
    kinds = [str(module.get("type")) if isinstance(module, Mapping) else repr(module)[:100] for module in modules]
    if foreign := [kind for kind in kinds if not kind.startswith(_OWN)]:
        raise ModelError(
            f"{folder} wants to run code of its own ({', '.join(foreign)}); expected modules of sentence-transformers. "
            "Read that code; if you trust it, give SentenceTransformerEmbedder(..., trust_remote_code=True)."
        )
    for place in (folder, *(path for path in folder.iterdir() if path.is_dir())):
        pickled = sorted(path.name for pattern in _PICKLES for path in place.glob(pattern))
        if pickled and not list(place.glob("*.safetensors")):
            raise ModelError(
                f"{place} holds {', '.join(pickled)} and no *.safetensors; pickled weights can run code and are not "
                "loaded. Save the model again with save_pretrained(..., safe_serialization=True)."
            )


def lora_run(folder: Path) -> Mapping[str, Any]:
    """Return what the LoRA in `folder` says it was trained on, after a look at the rest of the folder.

    Raises:
        LoraMismatchError: a file is missing, is no JSON, or asks for more than a LoRA needs.
    """
    for name in ("training_run.json", "adapter_config.json"):
        if not (folder / name).is_file():
            raise LoraMismatchError(
                f"{folder} lacks {name}, so what it was trained on is unknown. Export it again with this library."
            )
    try:
        run: Mapping[str, Any] = _json(folder / "training_run.json", dict)
        config: Mapping[str, Any] = _json(folder / "adapter_config.json", dict)
    except (DataError, ModelError) as error:
        raise LoraMismatchError(f"the LoRA in {folder} cannot be used: {error}") from error
    kind, imports = config.get("peft_type", "LORA"), [name for name in _IMPORTS if config.get(name)]
    if kind != "LORA" or imports:
        raise LoraMismatchError(
            f"{folder / 'adapter_config.json'} is a {kind!r} with {', '.join(imports) or 'no extras'}; expected a "
            "plain LoRA that imports nothing."
        )
    return run


def _json(path: Path, kind: type) -> Any:
    found = loads(text_of(path, MAX_CONFIG_BYTES), str(path))
    if not isinstance(found, kind):
        raise ModelError(f"{path} holds {type(found).__name__}; expected {kind.__name__}.")
    return found
