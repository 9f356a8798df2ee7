"""The compiled model: what OpenVINO computes is what transformers computes, however prompts are padded and batched."""

from __future__ import annotations

import copy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("xgrammar")
pytest.importorskip("openvino", reason="the openvino extra is not installed")

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config

from memr1_plugin.agents import compiled, llama_graph, loading
from memr1_plugin.agents.compiled import Compiled
from memr1_plugin.agents.engine import Prompt, Role
from memr1_plugin.agents.local import LocalEngine, LocalOptions
from memr1_plugin.agents.unpacked import Unpacked
from memr1_plugin.errors import MissingExtraError, ModelError
from memr1_plugin.operations import grammar
from memr1_plugin.training.base import round_to_nf4

FIXED = "You manage the memories of an assistant. Write one operation for each fact.\n"
PROMPTS = [
    *(Prompt(FIXED, f"Facts:\n{'- Ana moved. ' * n}\n", grammar(1 + n % 3, n % 5), max_tokens=30) for n in range(1, 7)),
    *(Prompt(FIXED, f"Say {n} things about {'Rex ' * n}", max_tokens=10) for n in range(3)),
]


def unpacked(tiny: Path, loras: Path, dtype: torch.dtype = torch.float32) -> Unpacked:
    folders = {role: loras / role.value for role in (Role.MANAGER, Role.ANSWER)}
    return Unpacked(loading.add_loras(loading.load_base(tiny, device="cpu", dtype=dtype), folders))


def logits(model: Any, ids: torch.Tensor, mask: torch.Tensor | None = None, cache: Any = None) -> torch.Tensor:
    """The last token's logits, of a prompt or of what follows a cache."""
    mask = torch.ones_like(ids) if mask is None else mask
    positions = (mask.cumsum(1) - 1).clamp(min=0)[:, -ids.shape[1] :]
    cache = model.new_cache() if cache is None else cache
    return model(input_ids=ids, attention_mask=mask, position_ids=positions, past_key_values=cache).logits[:, -1]


def test_compiled_weights_are_those_of_nf4_with_each_roles_lora(tiny: Path, loras: Path) -> None:
    """Each role's logits are those of the weights rounded to nf4 with PEFT's LoRA beside them; the base's too."""
    folders = {role: loras / role.value for role in (Role.MANAGER, Role.ANSWER)}
    dense = round_to_nf4(loading.load_base(tiny, quantize=False, device="cpu", dtype=torch.float32))
    expected, model = loading.add_loras(dense, folders), Compiled(unpacked(tiny, loras))
    ids = torch.arange(5, 45)[None]
    with torch.inference_mode():
        for role in (Role.MANAGER, Role.ANSWER, Role.MANAGER):
            expected.set_adapter(role.value)
            model.speak_as(role.value)
            torch.testing.assert_close(logits(model, ids), expected(input_ids=ids).logits[:, -1], rtol=0, atol=1e-3)
        model.speak_as(Role.BASE.value)
        with expected.disable_adapter():
            torch.testing.assert_close(logits(model, ids), expected(input_ids=ids).logits[:, -1], rtol=0, atol=1e-3)


@pytest.mark.parametrize("tokens", [1, 31, 32, 33, 63, 64, 65, 200])
def test_padding_to_lengths_that_are_met_again_changes_nothing(tiny: Path, loras: Path, tokens: int) -> None:
    """A prompt of any length has the logits that transformers computes of it, and so have the tokens after it."""
    plain = unpacked(tiny, loras)
    model, cache = Compiled(plain), None
    ids = torch.arange(tokens + 2)[None] % 300 + 3
    with torch.inference_mode():
        for end in (tokens, tokens + 1, tokens + 2):
            cache = cache or model.new_cache()
            new = ids[:, 0 if end == tokens else end - 1 : end]
            found = logits(model, new, torch.ones((1, end), dtype=torch.long), cache)
            torch.testing.assert_close(found, plain(input_ids=ids[:, :end]).logits[:, -1], rtol=0, atol=1e-3)


def test_rows_that_go_on_are_the_rows_that_were_kept(tiny: Path, loras: Path) -> None:
    """Of three prompts of different lengths the second ends: the others go on from their own pasts."""
    plain = unpacked(tiny, loras)
    model = Compiled(plain)
    rows = [torch.arange(5, 5 + n) for n in (40, 12, 33)]
    width = max(map(len, rows))
    ids = torch.stack([torch.nn.functional.pad(row, (width - len(row), 0)) for row in rows])
    mask = torch.stack([(torch.arange(width) >= width - len(row)).long() for row in rows])
    cache = model.new_cache()
    with torch.inference_mode():
        logits(model, ids, mask, cache)
        kept = torch.tensor([0, 2])
        cache.batch_select_indices(kept)
        mask = torch.cat([mask[kept], torch.ones((2, 1), dtype=torch.long)], dim=1)
        found = logits(model, torch.tensor([[7], [9]]), mask, cache)
        for row, token, one in zip((rows[0], rows[2]), (7, 9), found, strict=True):
            whole = torch.cat([row, torch.tensor([token])])[None]
            torch.testing.assert_close(one, plain(input_ids=whole).logits[0, -1], rtol=0, atol=1e-3)


@pytest.mark.parametrize(("dtype", "off"), [(torch.float32, 1e-3), (torch.bfloat16, 0.15)])
def test_a_fixed_part_is_taken_up_again_after_another_prompt(
    tiny: Path, loras: Path, dtype: torch.dtype, off: float
) -> None:
    """A copy of a cache goes on from where it was copied, whatever was computed meanwhile; the next too."""
    model, whole_model = Compiled(unpacked(tiny, loras, dtype)), Compiled(unpacked(tiny, loras, dtype))
    fixed = torch.arange(5, 25)[None]
    kept = model.new_cache()
    with torch.inference_mode():
        logits(model, fixed, cache=kept)
        for token in (7, 8, 9):
            one = copy.deepcopy(kept)
            one.batch_repeat_interleave(2)
            both = torch.tensor([[token], [token + 1]])
            found = logits(model, both, torch.ones((2, 21), dtype=torch.long), one)
            whole = logits(whole_model, torch.cat([fixed.repeat(2, 1), both], dim=1))
            torch.testing.assert_close(found, whole, rtol=0, atol=off)
            assert (whole[0] - whole[1]).abs().max() > 10 * off, "the rows differ by more than what is allowed for"
            logits(model, torch.arange(50, 90)[None])


def test_a_cache_that_lost_its_place_is_refused_and_not_made_up(tiny: Path, loras: Path) -> None:
    """The graph holds one cache; a copy of one that is gone would be a copy of another prompt."""
    model = Compiled(unpacked(tiny, loras))
    first = model.new_cache()
    with torch.inference_mode():
        logits(model, torch.arange(5, 9)[None], cache=first)
        logits(model, torch.arange(9, 19)[None])
    with pytest.raises(ModelError, match="defect"):
        copy.deepcopy(first)
    with pytest.raises(ModelError, match="defect"):
        logits(model, torch.tensor([[7]]), torch.ones((1, 5), dtype=torch.long), first)


@pytest.mark.parametrize("reuse_prefix", [True, False])
def test_a_compiled_engine_says_what_the_unpacked_one_says(tiny: Path, loras: Path, reuse_prefix: bool) -> None:
    """The same texts from every role, in batches and alone, grammar or not, the fixed part computed once or not."""
    options = {"dtype": "float32", "device": "cpu", "unpack": True, "reuse_prefix": reuse_prefix}
    plain = LocalEngine(tiny, loras, options=LocalOptions(compile=False, **options))
    engine = LocalEngine(tiny, loras, options=LocalOptions(compile=True, **options))
    for role in (Role.ANSWER, Role.MANAGER, Role.BASE, Role.ANSWER):
        expected = [c.text for c in plain.complete(PROMPTS, role)]
        assert [c.text for c in engine.complete(PROMPTS, role)] == expected
        assert [engine.complete([prompt], role)[0].text for prompt in PROMPTS] == expected
    assert (plain.id, engine.id) == ("tiny nf4 unpacked float32 cpu", "tiny nf4 openvino float32 cpu")
    plain.close()
    engine.close()


@pytest.mark.parametrize(
    "changed",
    [
        {"tie_word_embeddings": False},
        {"head_dim": 32},
        {"num_key_value_heads": 4},
        {
            "rope_parameters": {
                "rope_type": "llama3",
                "rope_theta": 10000.0,
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 16,
            }
        },
    ],
)
def test_the_graph_is_that_of_transformers(changed: dict[str, Any]) -> None:
    """Other heads, an output layer of its own, Llama 3's rotary embedding: the logits are transformers'."""
    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "vocab_size": 200}
    config = LlamaConfig(**{**sizes, "num_attention_heads": 4, "num_key_value_heads": 2, **changed})
    torch.manual_seed(0)
    model = LlamaForCausalLM(config).eval()
    assert not llama_graph.unfit(config)
    weights = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    turns = model.model.rotary_emb
    graph = llama_graph.draw(config, weights.__getitem__, turns.inv_freq.numpy(), turns.attention_scaling)
    options = {"INFERENCE_PRECISION_HINT": "f32", "KV_CACHE_PRECISION": "f32"}
    request = llama_graph.ov.Core().compile_model(graph, "CPU", options).create_infer_request()
    ids = torch.arange(5, 75)[None]
    inputs = {"input_ids": ids.numpy(), "attention_mask": np.ones((1, 70), np.int64)}
    found = request.infer({**inputs, "position_ids": np.arange(70)[None], "beam_idx": np.zeros(1, np.int32)})["logits"]
    with torch.inference_mode():
        np.testing.assert_allclose(found[:, -1], model(input_ids=ids).logits[:, -1].numpy(), rtol=0, atol=1e-4)


def test_models_of_another_kind_are_left_to_transformers(tiny: Path, loras: Path) -> None:
    """What cannot be drawn is not compiled by itself, and asking for it says why."""
    qwen = Qwen2Config()
    assert "expected 'llama'" in llama_graph.unfit(qwen)
    assert "biases" in llama_graph.unfit(LlamaConfig(attention_bias=True))
    assert "activation" in llama_graph.unfit(LlamaConfig(hidden_act="gelu"))
    by_length = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0}
    assert "rotary" in llama_graph.unfit(LlamaConfig(rope_parameters=by_length))
    base = loading.load_base(tiny, device="cpu", dtype=torch.bfloat16)
    assert compiled.compiles(base, None) and not compiled.compiles(base, False)
    exact = loading.load_base(tiny, device="cpu", dtype=torch.float32)
    assert not compiled.compiles(exact, None) and compiled.compiles(exact, True), "nothing is gained in float32"
    base.config = qwen
    assert not compiled.compiles(base, None)
    model = unpacked(tiny, loras)
    model.config = qwen
    with pytest.raises(ModelError, match=r"'qwen2' model.*LocalOptions\.compile"):
        Compiled(model)


def test_without_openvino_the_error_names_its_extra(tiny: Path, loras: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Asked for and not there: the error says what to install. Not asked for: the weights are computed unpacked."""
    monkeypatch.setattr(compiled, "find_spec", lambda name: None)
    base = loading.load_base(tiny, device="cpu", dtype=torch.bfloat16)
    assert not compiled.compiles(base, None)
    monkeypatch.delitem(sys.modules, "memr1_plugin.agents.llama_graph")
    monkeypatch.delattr("memr1_plugin.agents.llama_graph")
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(MissingExtraError, match=r"memr1-plugin\[openvino\]"):
        Compiled(unpacked(tiny, loras))


def test_importing_openvino_reports_to_nobody() -> None:
    """OpenVINO sends its maker an event when it is imported, by a package of its own: that package is not loaded."""
    code = (
        "import sys; from memr1_plugin.agents import llama_graph; "
        "print([m for m in sys.modules if 'openvino_telemetry' in m], llama_graph.ov.__name__, "
        "sys.modules['openvino.tools.ovc'].telemetry.__class__.__module__)"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert said.split() == ["[]", "openvino", "openvino.tools.ovc.telemetry_stub"]


def test_sixteen_bits_are_as_near_as_transformers_sixteen_bits(tiny: Path, loras: Path) -> None:
    """In bfloat16 the logits are no farther from those of float32 than twice what transformers' are."""
    exact, plain = unpacked(tiny, loras), unpacked(tiny, loras, torch.bfloat16)
    model, ids = Compiled(plain), torch.arange(5, 45)[None]
    with torch.inference_mode():
        expected = exact(input_ids=ids).logits[:, -1]
        ours = (logits(model, ids) - expected).norm()
        theirs = (plain(input_ids=ids).logits[:, -1].float() - expected).norm()
    assert 0 < ours <= 2 * theirs
