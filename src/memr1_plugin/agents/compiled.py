"""The unpacked 4-bit weights, computed by OpenVINO: the same values again, in half the time on a CPU in bfloat16.

transformers computes a step as a thousand calls from Python, most of them small; here a step is one call of a graph
that is compiled for this processor when its role first speaks (a second or two). `Decoder` speaks to it as it does to
a transformers model. LLaMA-type models only; others are served by `unpacked`.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from memr1_plugin.agents.loading import roomy
from memr1_plugin.agents.unpacked import BASE, Unpacked
from memr1_plugin.errors import ModelError

Array = np.ndarray[Any, Any]
_COPIES = 2
"""The graph keeps its weights beside those that are laid out for the processor."""
_WIDTH = 32
"""A prompt is padded to a multiple of this: for a length that it has not met, OpenVINO prepares each product anew."""


def gains(dtype: torch.dtype) -> bool:
    """Say whether OpenVINO is here, on a kind of processor and in a dtype where it gains; imports nothing.

    In float32 nothing is gained (docs/engines.md).
    """
    measured = platform.machine().lower() in ("x86_64", "amd64") and dtype is not torch.float32
    return measured and find_spec("openvino") is not None


def compiles(model: Any, wanted: bool | None) -> bool:
    """Say whether a 4-bit `model` is to be compiled: as `wanted`, or where it can be, is faster, and there is room."""
    if wanted is None and gains(model.dtype):
        from memr1_plugin.agents.llama_graph import unfit

        return not unfit(model.config.get_text_config()) and roomy(model, copies=_COPIES)
    return bool(wanted)


class Compiled:
    """A model that `Unpacked` serves, as one compiled graph a role. Not thread-safe: one thread owns it."""

    def __init__(self, unpacked: Unpacked) -> None:
        """Take over `unpacked`; nothing is compiled before a role speaks.

        Raises:
            MissingExtraError: the ``openvino`` extra is not installed.
            ModelError: the model is of a kind that cannot be compiled.
        """
        from memr1_plugin.agents import llama_graph

        self._graph = llama_graph
        self._unpacked = unpacked
        self.config, self.generation_config = unpacked.config, unpacked.generation_config
        self.roles, self.dtype, self.device = unpacked.roles, unpacked.dtype, unpacked.device
        if why := llama_graph.unfit(self.config.get_text_config()):
            raise ModelError(f"OpenVINO cannot serve this model: {why}. Leave LocalOptions.compile at None or False.")
        self._requests: dict[str, _Request] = {}
        self._name = BASE

    @property
    def how(self) -> str:
        """How the weights are computed, for an engine's id."""
        return "openvino"

    def get_base_model(self) -> Any:
        """The transformers model whose weights these are."""
        return self._unpacked.inner

    def speak_as(self, name: str) -> None:
        """Compute with the LoRA called `name` from now on; without one if there is none of that name."""
        self._name = name if name in self.roles else BASE

    def new_cache(self) -> Cache:
        """Return an empty key-value cache for the role that speaks."""
        if self._name not in self._requests:
            self._requests[self._name] = _Request(self._compile(), self._graph.ov.Tensor)
        return Cache(self._requests[self._name])

    def __call__(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        position_ids: torch.Tensor,
        past_key_values: Cache,
        **_: Any,
    ) -> Any:
        """Compute as a transformers model does; ``logits`` are the last token's, (rows, 1, vocabulary)."""
        found = past_key_values.feed(input_ids.numpy(), attention_mask.numpy(), position_ids.numpy())
        return SimpleNamespace(logits=torch.from_numpy(found))

    def _compile(self) -> Any:
        turns = self._unpacked.inner.model.rotary_emb
        model = self._graph.draw(
            self.config.get_text_config(),
            lambda weight: self._unpacked.dense(weight, self._name).numpy(),
            turns.inv_freq.float().numpy(),
            turns.attention_scaling,
        )
        if self.dtype is not torch.float32:  # the graph keeps its weights beside the compiled ones: in 16 bits, not 32
            self._graph.halve(model)
        kind = {torch.float32: "f32", torch.bfloat16: "bf16", torch.float16: "f16"}[self.dtype]
        options = {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
            "INFERENCE_PRECISION_HINT": kind,
            "KV_CACHE_PRECISION": kind,  # 8 bits if nothing is said
            "DYNAMIC_QUANTIZATION_GROUP_SIZE": 0,  # nor may it round activations
            "ENABLE_CPU_PINNING": False,  # other programs, and the bot itself, use these cores too
        }
        return self._graph.ov.Core().compile_model(model, "CPU", options)


class _Request:
    """One compiled graph, whose state holds one cache at a time."""

    def __init__(self, compiled: Any, tensor: Callable[[Array], Any]) -> None:
        self._infer = compiled.create_infer_request()
        self._tensor = tensor
        self.holder: Cache | None = None

    def run(self, **inputs: Array) -> Array:
        found: Array = self._infer.infer(inputs)["logits"]
        return found

    def saved(self) -> dict[str, Array]:
        """Return a copy of the state."""
        return {variable.name: variable.state.data.copy() for variable in self._infer.query_state()}

    def restore(self, saved: Mapping[str, Array] | None) -> None:
        """Put back what `saved` returned; None: nothing, a cache's beginning."""
        self._infer.reset_state()
        if saved is not None:
            for variable in self._infer.query_state():
                variable.state = self._tensor(saved[variable.name])


class Cache:
    """The key-value cache of a batch, as far as `Decoder` asks transformers' `DynamicCache` for it."""

    def __init__(self, request: _Request) -> None:
        self._request = request
        self._saved: dict[str, Array] | None = None
        """The state, while another cache may take its place."""
        self._real = np.zeros((0, 0), np.int64)
        """Which tokens of the state are no padding: 1 or 0, (rows, tokens)."""
        self._rows = np.zeros(0, np.int32)
        """Which row of the state each row goes on from."""

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        """Keep these rows."""
        chosen = indices.numpy()
        self._rows, self._real = self._rows[chosen], self._real[chosen]

    def batch_repeat_interleave(self, n: int) -> None:
        """Repeat each row `n` times."""
        self._rows, self._real = np.repeat(self._rows, n), np.repeat(self._real, n, axis=0)

    def __deepcopy__(self, memo: dict[int, Any]) -> Cache:
        self._check()
        if self._saved is None:
            self._saved = self._request.saved()
        copied = Cache(self._request)
        copied._saved, copied._real, copied._rows = self._saved, self._real, self._rows
        return copied

    def feed(self, ids: Array, mask: Array, positions: Array) -> Array:
        """Compute new tokens behind those of the cache; return the last's logits, (rows, 1, vocabulary).

        Args:
            ids, positions: (rows, new), padded on the left.
            mask: (rows, tokens so far), of which the last columns are those of `ids`.
        """
        n, new = ids.shape
        real = mask[:, -new:]
        if new > _WIDTH:  # not the single tokens of writing
            padding = [(0, 0), (-new % _WIDTH, 0)]
            ids, real, positions = (np.pad(array, padding) for array in (ids, real, positions))
        if not self._real.size:
            self._rows, self._real = np.zeros(n, np.int32), np.zeros((n, 0), np.int64)
        if self._request.holder is not self:
            self._check()
            self._request.restore(self._saved)
            self._request.holder = self
        self._real = np.concatenate([self._real, real], axis=1)
        found = self._request.run(input_ids=ids, attention_mask=self._real, position_ids=positions, beam_idx=self._rows)
        self._rows, self._saved = np.arange(n, dtype=np.int32), None
        return found

    def _check(self) -> None:
        """Raise if what this cache held is gone: going on from another's tokens would say something, and nonsense."""
        if self._real.size and self._saved is None and self._request.holder is not self:
            raise ModelError("a cache was taken up after another had taken its place: a defect of this engine.")
