"""The 4-bit weights as dense matrices, for a processor that has no 4-bit product: the same values, computed faster.

A CPU unpacks nf4 anew in every product, and computes a LoRA as two more. Here each layer is unpacked once a
role, with the role's LoRA added in, and is one product. The values are those of the 4-bit model (a LoRA's sum is
rounded to the compute dtype once, which packed serving does not). Costs 2 bytes a weight and role, in memory only.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

from memr1_plugin.agents.hardware import quiet_bitsandbytes
from memr1_plugin.errors import MissingExtraError

try:
    import torch
except ImportError as error:
    raise MissingExtraError.of("torch", "local") from error

BASE = ""
"""The name under which the base speaks, without a LoRA."""


class Unpacked(torch.nn.Module):
    """A 4-bit model with or without LoRAs, whose quantised layers are dense. Owns the model that it is given."""

    def __init__(self, model: Any) -> None:
        """Replace the layers of `model`, which must not have computed anything yet; seconds of work come later."""
        super().__init__()
        self.inner = model.get_base_model() if hasattr(model, "get_base_model") else model
        self.roles = frozenset(getattr(model, "peft_config", {}))
        self._layers = list(_replace(self.inner))
        self.config, self.generation_config = self.inner.config, getattr(self.inner, "generation_config", None)
        self.speak_as(BASE)

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        device: torch.device = self.inner.device
        return device

    @property
    def dtype(self) -> torch.dtype:
        """What it computes in."""
        dtype: torch.dtype = self.inner.dtype
        return dtype

    def get_base_model(self) -> Any:
        """The transformers model, as PEFT's wrapper names it."""
        return self.inner

    def speak_as(self, name: str) -> None:
        """Compute with the LoRA called `name` from now on; without one if there is none of that name."""
        for layer in self._layers:
            layer.name = name if name in self.roles else BASE

    @property
    def how(self) -> str:
        """How the weights are computed, for an engine's id."""
        return "unpacked"

    def dense(self, weight: str, name: str) -> torch.Tensor:
        """Return one weight ("model.norm.weight") in float32, with the LoRA called `name` added in."""
        module: Any = self.inner.get_submodule(weight.removesuffix(".weight"))
        found: torch.Tensor = module.unpack(name) if isinstance(module, _Layer) else module.weight.detach().float()
        return found

    def forward(self, **inputs: Any) -> Any:
        """Compute as the transformers model does."""
        return self.inner(**inputs)


class _Layer(torch.nn.Module):
    """One linear layer: its 4-bit matrix, and a dense one for each role that has spoken."""

    def __init__(self, packed: Any, lora: Any) -> None:
        super().__init__()
        self._packed, self._lora = packed, lora
        self._dense: dict[str, torch.Tensor] = {}
        self.name = BASE

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weight = self._dense.get(self.name)
        if weight is None:
            weight = self._dense[self.name] = self.unpack(self.name).to(x.dtype)
        bias = self._packed.bias
        return torch.nn.functional.linear(x, weight, None if bias is None else bias.to(x.dtype))

    def unpack(self, name: str) -> torch.Tensor:
        """Return the matrix, (out, in) float32, with the LoRA called `name` added in if there is one."""
        with quiet_bitsandbytes():
            from bitsandbytes.functional import dequantize_4bit
        packed = self._packed.weight
        weight: torch.Tensor = dequantize_4bit(packed.data, packed.quant_state).float()
        if self._lora is not None and name in self._lora.lora_A:
            a, b = self._lora.lora_A[name].weight, self._lora.lora_B[name].weight
            weight = weight + self._lora.scaling[name] * (b.float() @ a.float())
        return weight


def _replace(model: Any) -> Any:
    """Put a `_Layer` in the place of each 4-bit layer, alone or inside a LoRA's; yields them."""
    with quiet_bitsandbytes():
        nn: Any = import_module("bitsandbytes.nn")
    for name, module in list(model.named_modules()):
        packed = getattr(module, "base_layer", module)
        if not isinstance(packed, nn.Linear4bit) or name.endswith("base_layer"):
            continue
        layer = _Layer(packed, module if packed is not module else None)
        parent, _, own = name.rpartition(".")
        setattr(model.get_submodule(parent), own, layer)
        yield layer


def fits(model: Any) -> bool:
    """Say whether this can serve the model: its LoRAs must be plain sums (no DoRA, no other variant)."""
    for module in model.modules():
        if getattr(module, "lora_variant", None) or any(getattr(module, "use_dora", {}).values()):
            return False
    return True
