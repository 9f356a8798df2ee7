"""The base model as training sees it: the one that serving computes, in a form that has gradients.

On a GPU that is the 4-bit model itself (QLoRA, Dettmers et al. 2023). On a CPU it is the same model written out: every
matrix rounded to nf4 and back, for a dense product is faster there than unpacking at each step, and the function is the
same. A LoRA trained on the unrounded weights lost 9 F1 when it was served on the rounded ones (training/LOG.md).
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from memr1_plugin.agents.hardware import choose_device, quiet_bitsandbytes
from memr1_plugin.agents.loading import load_base, quantization
from memr1_plugin.errors import MissingExtraError, ModelError
from memr1_plugin.training.shared import keep_trainable

try:
    import torch
except ImportError as error:
    raise MissingExtraError.of("torch", "train") from error


def load_trainable(folder: Path, *, device: str | None = None, dense: bool = False) -> Any:
    """Load the causal LM in `folder` as serving rounds it, ready for a LoRA and its gradients.

    Args:
        device: None chooses; of the processes that ``accelerate launch`` starts each takes its own GPU. On "cpu" the
            weights are float32 (autocast computes in bfloat16 where that pays).
        dense: on a GPU: nf4 written out in bfloat16. Four times the memory; several GPUs can share it between them.
    """
    device = device or choose_device()
    if device == "cuda":
        device = f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
    if device != "cpu" and dense:
        return round_to_nf4(load_base(folder, quantize=False, device=device, dtype=torch.bfloat16))
    if device != "cpu":
        model = load_base(folder, device=device)
        keep_trainable(model)
        return model
    return round_to_nf4(load_base(folder, quantize=False, device=device, dtype=torch.float32))


def round_to_nf4(model: Any) -> Any:
    """Round in place every matrix that serving quantises (all but embeddings and the output layer); returns `model`.

    Raises:
        ModelError: there is no such matrix.
    """
    with quiet_bitsandbytes():
        from bitsandbytes.functional import dequantize_4bit, quantize_4bit
    kind = quantization(torch.float32).bnb_4bit_quant_type
    output = model.get_output_embeddings()
    rounded = 0
    for module in model.modules():
        if isinstance(module, torch.nn.Linear) and module is not output:
            packed, state = quantize_4bit(module.weight.data.contiguous(), quant_type=kind, compress_statistics=False)
            module.weight.data = dequantize_4bit(packed, state).to(module.weight.dtype)
            rounded += 1
    if not rounded:
        raise ModelError(f"{type(model).__name__} has no matrix to round to nf4; expected a causal language model.")
    return model
