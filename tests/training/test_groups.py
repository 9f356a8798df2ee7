"""Completions to one prompt are computed together, and nothing changes by it."""

from __future__ import annotations

import pytest

pytest.importorskip("trl", reason="needs the extra train")
torch = pytest.importorskip("torch")

from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM  # noqa: E402

from memr1_plugin.training import groups  # noqa: E402

PROMPTS = [[5, 6, 7, 8], [9, 10], [5, 6, 7, 8], [11]]
COMPLETIONS = [[1, 2, 3], [4], [1, 9], [3, 3, 3, 3]]


@pytest.fixture(scope="module")
def model() -> LlamaForCausalLM:
    """A random model of two layers."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64, bos_token_id=0, eos_token_id=1, pad_token_id=0,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


@pytest.mark.parametrize("at_once", [False, True])
def test_log_probabilities_entropies_states_and_gradients_are_those_of_rows_computed_one_by_one(
    model: LlamaForCausalLM, at_once: bool
) -> None:
    """Packing by prompt changes the cost and no number."""
    states: list[torch.Tensor] = []
    logps, entropies = groups.logps(
        model, PROMPTS, COMPLETIONS, 4, temperature=0.7, entropies=True, states=states, at_once=at_once
    )
    logps.sum().backward()
    packed = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    total = torch.zeros(())
    for n, (prompt, completion) in enumerate(zip(PROMPTS, COMPLETIONS, strict=True)):
        out = model(torch.tensor([[*prompt, *completion]]), output_hidden_states=True)
        places = slice(len(prompt) - 1, len(prompt) + len(completion) - 1)
        log_softmax = torch.log_softmax(out.logits[0, places] / 0.7, -1)
        alone = log_softmax.gather(1, torch.tensor(completion)[:, None])[:, 0]
        total = total + alone.sum()
        end = len(completion)
        torch.testing.assert_close(logps[n, :end], alone)
        torch.testing.assert_close(entropies[n, :end], -(log_softmax.exp() * log_softmax).sum(-1))
        torch.testing.assert_close(states[0][n, :end], out.hidden_states[-1][0, places])
        assert not logps[n, end:].any() and not states[0][n, end:].any()
    total.backward()
    for found, parameter in zip(packed, model.parameters(), strict=True):
        torch.testing.assert_close(found, parameter.grad, rtol=1e-4, atol=1e-5)
    model.zero_grad()


def test_greedy_completions_are_those_of_rows_completed_one_by_one(model: LlamaForCausalLM) -> None:
    """Prompts that are equal get what each would get alone; what follows a stop token is cut off."""
    config = GenerationConfig(do_sample=False, max_new_tokens=6, eos_token_id=1, pad_token_id=0)
    found = groups.sample(model, PROMPTS, config, [1])
    for prompt, completion in zip(PROMPTS, found, strict=True):
        ids = torch.tensor([prompt])
        alone = model.generate(ids, attention_mask=torch.ones_like(ids), generation_config=config)[0, len(prompt) :]
        assert completion == alone.tolist()[: len(completion)] and 1 not in completion[:-1]


def test_samples_of_one_prompt_differ(model: LlamaForCausalLM) -> None:
    """A group is several draws, not one draw copied."""
    config = GenerationConfig(do_sample=True, max_new_tokens=8, eos_token_id=1, pad_token_id=0)
    torch.manual_seed(1)
    assert len({tuple(row) for row in groups.sample(model, [[5, 6, 7]] * 6, config, [1])}) > 1
