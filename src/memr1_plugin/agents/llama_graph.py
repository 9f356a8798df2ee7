"""A LLaMA-type decoder as an OpenVINO graph, with its key-value cache inside: one call computes a whole step.

Only the shape of the computation is here; weights come from the caller, and `compiled` runs it. The nodes stand in
the patterns that OpenVINO's CPU plugin fuses (RMS norm, rotary embedding, attention with its cache): a graph that is
equal but drawn otherwise computes the same at half the speed. Model: transformers' `modeling_llama`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib import import_module
from typing import Any

import numpy as np

from memr1_plugin.errors import MissingExtraError


def _openvino() -> Any:
    """Import OpenVINO without the package beside it that reports each import to its maker's analytics."""
    reports = "openvino_telemetry"
    unknown = reports not in sys.modules
    if unknown:
        sys.modules[reports] = None  # type: ignore[assignment]  # OpenVINO takes its own stub where this is not found
    try:
        return import_module("openvino")
    except ImportError as error:
        raise MissingExtraError.of("openvino", "openvino") from error
    finally:
        if unknown:
            del sys.modules[reports]


ov: Any = _openvino()
op: Any = import_module("openvino.opset13")
_util: Any = import_module("openvino.op.util")

Weights = Callable[[str], "np.ndarray[Any, Any]"]
"""Returns the float32 array of a name as transformers gives it: "model.layers.0.mlp.up_proj.weight", (out, in)."""
_MASKED = np.float32(-65504.0)
"""Added to the score of a position that may not be seen: -inf would make a row of padding NaN."""
_TURNS_FIXED = ("default", "linear", "llama3")
"""Kinds of rotary embedding whose frequencies do not depend on the length of the prompt."""


def unfit(config: Any) -> str:
    """Return why a model of this transformers `config` cannot be drawn, in words; "" if it can."""
    if config.model_type != "llama":
        return f"it is a {config.model_type!r} model; expected 'llama'"
    if config.hidden_act != "silu":
        return f"its activation is {config.hidden_act!r}; expected 'silu'"
    if config.attention_bias or config.mlp_bias:
        return "its layers have biases"
    turns = (config.rope_parameters or {}).get("rope_type", "default")
    return "" if turns in _TURNS_FIXED else f"its rotary embedding is {turns!r}; expected one of {_TURNS_FIXED}"


def draw(config: Any, weights: Weights, frequencies: np.ndarray[Any, Any], scaling: float = 1.0) -> Any:
    """Return the graph as an `openvino.Model`.

    Inputs: ``input_ids``, ``position_ids`` (rows, new tokens) and ``attention_mask`` (rows, all tokens so far),
    int64, padded on the left; ``beam_idx`` (rows,) int32: which row of the cache each row goes on from. Output:
    ``logits`` (rows, 1, vocabulary) of the last token. The cache is the model's state.

    Args:
        frequencies: rotary frequencies, (head size / 2,) float32.
        scaling: what the rotary embedding's cosines and sines are multiplied by.
    """
    return _Drawing(config, weights).model(frequencies, scaling)


def halve(model: Any) -> None:
    """Keep the weights of a graph in float16, from which a processor that computes in 16 bits takes them."""
    import_module("openvino._offline_transformations").compress_model_transformation(model)


class _Drawing:
    """One graph while it is drawn."""

    def __init__(self, config: Any, weights: Weights) -> None:
        self.weights = weights
        self.layers, self.epsilon = config.num_hidden_layers, np.float32(config.rms_norm_eps)
        self.heads, self.shared = config.num_attention_heads, config.num_key_value_heads
        self.size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        self.tied = config.tie_word_embeddings
        self.ids = _input("input_ids", [-1, -1], "i64")
        self.mask = _input("attention_mask", [-1, -1], "i64")
        self.positions = _input("position_ids", [-1, -1], "i64")
        self.beam = _input("beam_idx", [-1], "i32")
        self.rows, self.new = _dimension(self.ids, 0), _dimension(self.ids, 1)
        self.all = _dimension(self.mask, 1)
        self.writes: list[Any] = []

    def model(self, frequencies: np.ndarray[Any, Any], scaling: float) -> Any:
        turn, seen = self._turns(frequencies, scaling), self._seen()
        table = self._weight("model.embed_tokens")
        x = op.gather(table, op.convert(self.ids, "i32"), _ints(0))
        for n in range(self.layers):
            layer = f"model.layers.{n}."
            x = op.add(x, self._attention(self._norm(x, f"{layer}input_layernorm"), layer + "self_attn.", turn, seen))
            x = op.add(x, self._mlp(self._norm(x, f"{layer}post_attention_layernorm"), layer + "mlp."))
        last = self._norm(op.gather(x, _ints([-1]), _ints(1)), "model.norm")
        logits = op.matmul(last, table, False, True) if self.tied else self._product(last, "lm_head")
        result = op.result(logits)
        result.output(0).get_tensor().set_names({"logits"})
        return ov.Model([result], self.writes, [self.ids, self.mask, self.positions, self.beam], "llama")

    def _turns(self, frequencies: np.ndarray[Any, Any], scaling: float) -> tuple[Any, Any]:
        """Return the cosines and sines of the rotary embedding, (rows, 1, new tokens, head size)."""
        both = np.concatenate([frequencies, frequencies]).astype(np.float32)
        angles = op.multiply(op.unsqueeze(op.convert(self.positions, "f32"), _ints([1, 3])), op.constant(both))
        cosines, sines = op.cos(angles), op.sin(angles)
        if scaling != 1:
            factor = op.constant(np.float32(scaling))
            cosines, sines = op.multiply(cosines, factor), op.multiply(sines, factor)
        return cosines, sines

    def _seen(self) -> Any:
        """Return what is added to the scores, (rows, 1, new, all tokens): `_MASKED` for later tokens and padding."""

        def count(to: Any) -> Any:
            return op.range(_ints(0), op.squeeze(to, _ints([0])), _ints(1), "i64")

        places = op.add(count(self.new), op.subtract(self.all, self.new))
        earlier = op.less_equal(op.unsqueeze(count(self.all), _ints([0])), op.unsqueeze(places, _ints([1])))
        real = op.unsqueeze(op.convert(self.mask, "boolean"), _ints([1, 2]))
        allowed = op.logical_and(op.unsqueeze(earlier, _ints([0, 1])), real)
        return op.select(allowed, op.constant(np.float32(0)), op.constant(_MASKED))

    def _attention(self, x: Any, layer: str, turn: tuple[Any, Any], seen: Any) -> Any:
        q = self._split(self._product(x, layer + "q_proj"), self.heads)
        k, v = (self._split(self._product(x, layer + name), self.shared) for name in ("k_proj", "v_proj"))
        k, v = self._with_past(self._turned(k, turn), layer + "k"), self._with_past(v, layer + "v")
        scale = op.constant(np.float32(self.size**-0.5))
        found = op.scaled_dot_product_attention(
            self._turned(q, turn), self._spread(k), self._spread(v), seen, scale, False
        )
        joined = op.reshape(op.transpose(found, _ints([0, 2, 1, 3])), _ints([0, 0, self.heads * self.size]), True)
        return self._product(joined, layer + "o_proj")

    def _mlp(self, x: Any, layer: str) -> Any:
        gate = op.swish(self._product(x, layer + "gate_proj"))
        return self._product(op.multiply(gate, self._product(x, layer + "up_proj")), layer + "down_proj")

    def _product(self, x: Any, name: str) -> Any:
        return op.matmul(x, self._weight(name), False, True)

    def _weight(self, name: str) -> Any:
        return op.constant(self.weights(f"{name}.weight"))

    def _norm(self, x: Any, name: str) -> Any:
        square = op.reduce_mean(op.power(x, op.constant(np.float32(2))), _ints([-1]), True)
        root = op.sqrt(op.add(square, op.constant(self.epsilon)))
        return op.multiply(self._weight(name), op.multiply(x, op.divide(op.constant(np.float32(1)), root)))

    def _split(self, x: Any, heads: int) -> Any:
        """(rows, tokens, heads * size) to (rows, heads, tokens, size)."""
        return op.transpose(op.reshape(x, _ints([0, 0, heads, self.size]), True), _ints([0, 2, 1, 3]))

    def _turned(self, x: Any, turn: tuple[Any, Any]) -> Any:
        half = self.size // 2
        first, second = op.variadic_split(x, _ints(3), _ints([half, half])).outputs()
        rotated = op.concat([op.multiply(second, op.constant(np.float32(-1))), first], -1)
        cosines, sines = turn
        return op.add(op.multiply(x, cosines), op.multiply(rotated, sines))

    def _with_past(self, x: Any, name: str) -> Any:
        """Return keys or values of all tokens so far, and write them to the state called `name`."""
        info = _util.VariableInfo()
        info.data_shape, info.data_type = ov.PartialShape([-1, self.shared, -1, self.size]), ov.Type.f32
        info.variable_id = name
        variable = _util.Variable(info)
        none = op.broadcast(op.constant(np.float32(0)), op.concat([self.rows, _ints([self.shared, 0, self.size])], 0))
        past = op.gather(op.read_value(none, variable), self.beam, _ints(0))
        everything = op.concat([past, x], 2)
        self.writes.append(op.assign(everything, variable))
        return everything

    def _spread(self, x: Any) -> Any:
        """Give each query head the key-value head that it shares."""
        groups = self.heads // self.shared
        shape = op.concat([self.rows, _ints([self.shared, groups]), self.all, _ints([self.size])], 0)
        wide = op.broadcast(op.unsqueeze(x, _ints([2])), shape, broadcast_spec="BIDIRECTIONAL")
        return op.reshape(wide, _ints([0, self.heads, -1, self.size]), True)


def _input(name: str, shape: list[int], kind: str) -> Any:
    node = op.parameter(ov.PartialShape(shape), getattr(ov.Type, kind), name=name)
    node.output(0).get_tensor().set_names({name})
    return node


def _ints(values: int | list[int]) -> Any:
    return op.constant(np.array(values, np.int64))


def _dimension(node: Any, axis: int) -> Any:
    """Return one dimension of a node's shape, (1,) int64."""
    return op.gather(op.shape_of(node, "i64"), _ints([axis]), _ints(0))
