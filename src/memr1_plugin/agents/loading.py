"""Loads a causal LM in 4-bit with its LoRAs, and writes a GGUF file as safetensors.

Not where weights lie (`models`), not how text is decoded (`decoding`). One base, at most one LoRA a role,
all in memory at once: switching a role costs no load.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from memr1_plugin.agents.engine import Role
from memr1_plugin.agents.hardware import choose_device, choose_dtype, quiet_bitsandbytes
from memr1_plugin.agents.unpacked import fits
from memr1_plugin.errors import MissingExtraError, ModelError

try:
    import psutil
    import torch
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig, PreTrainedTokenizerBase
    from transformers.utils import logging as transformers_logging
except ImportError as error:
    raise MissingExtraError.of("transformers", "local") from error

_BROKEN = (OSError, ValueError, RuntimeError, KeyError, ImportError, SafetensorError)
"""What transformers, safetensors and bitsandbytes raise for weights that cannot be loaded."""


def quantization(dtype: torch.dtype) -> BitsAndBytesConfig:
    """Return the one 4-bit configuration of serving and training: nf4, computed in `dtype`."""
    return BitsAndBytesConfig(  # type: ignore[no-untyped-call]
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_compute_dtype=dtype,
        bnb_4bit_use_double_quant=False,
    )


@contextmanager
def quiet() -> Iterator[None]:
    """Hold back progress bars and load reports, which would tear a chat's screen."""
    bars = transformers_logging.is_progress_bar_enabled()
    level = transformers_logging.get_verbosity()
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    transformers_logging.set_verbosity(logging.ERROR)
    try:
        with quiet_bitsandbytes(), warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # of peft's use of transformers
            yield
    finally:
        transformers_logging.set_verbosity(level)
        if bars:
            transformers_logging.enable_progress_bar()  # type: ignore[no-untyped-call]


def load_base(
    folder: Path,
    *,
    quantize: bool = True,
    device: str | None = None,
    device_map: str | Mapping[str, Any] | None = None,
    dtype: torch.dtype | None = None,
    trust_remote_code: bool = False,
) -> Any:
    """Load a causal LM for inference.

    Args:
        folder: config and safetensors (pickled weights are refused).
        quantize: nf4 by bitsandbytes; False: dense.
        device: None chooses; ignored with `device_map`, which goes to transformers as it is.
        dtype: None chooses what the device does well.
    """
    device = device or choose_device()
    dtype = dtype or choose_dtype(device)
    options: dict[str, Any] = {"quantization_config": quantization(dtype)} if quantize else {}
    try:
        with quiet():
            model: Any = AutoModelForCausalLM.from_pretrained(
                folder,
                dtype=dtype,
                device_map=device_map or {"": device},
                local_files_only=True,
                use_safetensors=True,
                trust_remote_code=trust_remote_code,
                **options,
            )
    except _BROKEN as error:
        raise ModelError(
            f"the model in {folder} could not be loaded on {device} ({type(error).__name__}: {error}). If the files "
            "are damaged, delete the folder and run: memr1 setup"
        ) from error
    return model.eval()


def unpacks(model: Any, wanted: bool | None) -> bool:
    """Say whether a 4-bit `model` is to be computed unpacked (`unpacked`): as `wanted`, or where that is faster."""
    if wanted is None:
        wanted = gains_unpacked(model.device.type) and roomy(model)
    return wanted and model.device.type == "cpu" and fits(model)


def roomy(model: Any, available: int | None = None, *, copies: int = 1) -> bool:
    """Say whether the dense matrices of `model`, once for each LoRA and the base, take at most half of free memory.

    Args:
        copies: of each matrix.
        available: bytes that are free; None asks the system.
    """
    weights = sum(m.in_features * m.out_features for m in model.modules() if hasattr(m, "compute_type_is_set"))
    roles = 1 + len(getattr(model, "peft_config", {}))
    free = psutil.virtual_memory().available if available is None else available
    return bool(weights * model.dtype.itemsize * roles * copies <= free / 2)


def gains_unpacked(device: str) -> bool:
    """Say whether 4-bit weights are faster computed unpacked: on a CPU (docs/engines.md)."""
    return device == "cpu"


def load_tokenizer(folder: Path, *, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a model folder."""
    try:
        with quiet():
            tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
                folder, local_files_only=True, trust_remote_code=trust_remote_code
            )
    except _BROKEN as error:
        raise ModelError(
            f"the tokenizer in {folder} could not be loaded ({type(error).__name__}: {error}). If the files are "
            "damaged, delete the folder and run: memr1 setup"
        ) from error
    return tokenizer


def add_loras(model: Any, loras: Mapping[Role, Path]) -> Any:
    """Return `model` with one named adapter for each role; the base itself if there are none."""
    if not loras:
        return model
    try:
        from peft import PeftModel
    except ImportError as error:
        raise MissingExtraError.of("peft", "local") from error
    try:
        with quiet():
            model = _with_loras(PeftModel, model, loras)
    except _BROKEN as error:
        raise ModelError(
            f"the LoRAs in {', '.join(map(str, loras.values()))} could not be loaded ({type(error).__name__}: "
            f"{error}). Export them again, or leave them out."
        ) from error
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data = parameter.data.to(model.dtype)
    return model.eval()


def _with_loras(peft_model: Any, model: Any, loras: Mapping[Role, Path]) -> Any:
    for role, folder in loras.items():
        # In the compute dtype: PEFT's default float32 would cast every activation there and back.
        options: dict[str, Any] = {"adapter_name": role.value, "autocast_adapter_dtype": False, "is_trainable": False}
        if isinstance(model, peft_model):
            model.load_adapter(str(folder), **options)
        else:
            model = peft_model.from_pretrained(model, str(folder), **options)
    return model


def convert_gguf(gguf: Path, folder: Path) -> None:
    """Write a GGUF file's weights, dequantised to float32, its tokenizer and chat template to `folder`."""
    try:
        with quiet():
            options: dict[str, Any] = {"gguf_file": gguf.name, "local_files_only": True}
            model: Any = AutoModelForCausalLM.from_pretrained(gguf.parent, dtype=torch.float32, **options)
            tokenizer = AutoTokenizer.from_pretrained(gguf.parent, **options)
            _forget_quantization(model)
            model.save_pretrained(folder)
            tokenizer.save_pretrained(folder)
    except _BROKEN as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # a full disk is its own message
        raise ModelError(f"{gguf} could not be converted ({type(error).__name__}: {error}).") from error


def _forget_quantization(model: Any) -> None:
    """A model read from GGUF still says that it is quantised, and `save_pretrained` refuses it; it is dense."""
    model.is_quantized = False
    for holder in (model, model.config):
        for name in ("hf_quantizer", "quantization_config"):
            if hasattr(holder, name):
                delattr(holder, name)
