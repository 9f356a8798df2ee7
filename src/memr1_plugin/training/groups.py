"""Completions to one prompt computed together: the prompt once, each completion seeing it and itself alone.

RL samples several completions of every prompt, and here a prompt is forty times as long as a completion. TRL computes
the prompt again for each; on a small machine that is nearly all of a step. Sampling and log-probabilities are the same
numbers either way (`tests/training/test_groups.py`), as in `sft.pack` for supervised rows. Losses are TRL's.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from memr1_plugin.errors import MissingExtraError

try:
    import torch
    from torch import Tensor
    from transformers import DynamicCache
except ImportError as error:
    raise MissingExtraError.of("torch", "train") from error


def by_prompt(prompts: Sequence[Sequence[int]]) -> list[list[int]]:
    """Return the places of equal prompts, together, in the order of their first occurrence.

    >>> by_prompt([[1, 2], [3], [1, 2]])
    [[0, 2], [1]]
    """
    places: dict[tuple[int, ...], list[int]] = {}
    for n, prompt in enumerate(prompts):
        places.setdefault(tuple(prompt), []).append(n)
    return list(places.values())


def rows_of(ids: Tensor, mask: Tensor) -> list[list[int]]:
    """Return the tokens of each row of a padded (B, T) batch, padding left out."""
    return [row[kept.bool()].tolist() for row, kept in zip(ids, mask, strict=True)]


# ── log-probabilities ────────────────────────────────────────────────────────────────────────────────────────


def packed_inputs(groups: Sequence[tuple[Sequence[int], Sequence[Sequence[int]]]]) -> tuple[dict[str, Tensor], Tensor]:
    """Lay (prompt, completions) groups out as one sequence.

    Returns:
        The model's inputs: tokens, positions and mask of one sequence of L tokens, (1, L) and (1, 1, L, L). And the
        (N,) places whose logits predict the completions' tokens, completion after completion.
    """
    ids: list[int] = []
    positions: list[int] = []
    group: list[int] = []
    own: list[int] = []  # 0 for a prompt, n for the n-th completion's tokens
    places: list[int] = []
    for number, (prompt, completions) in enumerate(groups):
        last = len(ids) + len(prompt) - 1
        ids += prompt
        positions += range(len(prompt))
        own += [0] * len(prompt)
        for n, completion in enumerate(completions, 1):
            fed = completion[:-1]  # nothing is predicted from the last token
            places += [last, *range(len(ids), len(ids) + len(fed))][: len(completion)]
            ids += fed
            positions += range(len(prompt), len(prompt) + len(fed))
            own += [n] * len(fed)
        group += [number] * (len(ids) - len(group))
    of_group, of_own = torch.tensor(group), torch.tensor(own)
    seen = (of_own[:, None] == of_own[None, :]) | (of_own == 0)[None, :]
    mask = torch.tril(seen & (of_group[:, None] == of_group[None, :]))
    inputs = {
        "input_ids": torch.tensor(ids)[None],
        "position_ids": torch.tensor(positions)[None],
        "attention_mask": mask[None, None],
    }
    return inputs, torch.tensor(places)


def logps(
    model: Any,
    prompts: Sequence[Sequence[int]],
    completions: Sequence[Sequence[int]],
    width: int,
    *,
    temperature: float = 1.0,
    entropies: bool = False,
    states: list[Tensor] | None = None,
    at_once: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """Return (B, width) log-probabilities of the completions' tokens and, if asked for, the entropies there.

    Args:
        prompts, completions: tokens of each row, padding left out; rows with equal prompts are computed together.
        width: columns of the result; those after a completion's end are 0.
        states: a list that gets one (B, width, H) tensor more: the last hidden states that the tokens were predicted
            from, without gradient.
        at_once: all groups in one forward pass, so that every process makes the same number of them (FSDP, ZeRO-3).
    """
    grouped = by_prompt(prompts)
    passes = [grouped] if at_once else [[group] for group in grouped]
    logp_of: dict[int, Tensor] = {}
    entropy_of: dict[int, Tensor] = {}
    state_of: dict[int, Tensor] = {}
    for groups in passes:
        rows = [n for group in groups for n in group]
        inputs, places = packed_inputs([(prompts[g[0]], [completions[n] for n in g]) for g in groups])
        inputs = {name: value.to(model.device) for name, value in inputs.items()}
        out = model(
            **inputs, logits_to_keep=places.to(model.device), use_cache=False, output_hidden_states=states is not None
        )
        lengths = [len(completions[n]) for n in rows]
        tokens = torch.tensor([t for n in rows for t in completions[n]], device=out.logits.device)
        log_softmax = torch.log_softmax(out.logits[0].float() / temperature, dim=-1)
        chosen = log_softmax.gather(1, tokens[:, None])[:, 0]
        logp_of |= dict(zip(rows, torch.split(chosen, lengths), strict=True))
        if entropies:
            with torch.no_grad():
                spread = -(log_softmax.exp() * log_softmax).sum(-1)
            entropy_of |= dict(zip(rows, torch.split(spread, lengths), strict=True))
        if states is not None:
            predicting = out.hidden_states[-1][0, places].detach()
            state_of |= dict(zip(rows, torch.split(predicting, lengths), strict=True))
    if states is not None:
        states.append(_padded(state_of, width))
    return _padded(logp_of, width), _padded(entropy_of, width) if entropies else None


def _padded(rows: dict[int, Tensor], width: int) -> Tensor:
    """Stack rows 0 .. B-1, each filled up to `width` with zeros."""
    in_order = [rows[n] for n in range(len(rows))]
    return torch.stack([torch.cat([row, row.new_zeros(width - len(row), *row.shape[1:])]) for row in in_order])


# ── sampling ─────────────────────────────────────────────────────────────────────────────────────────────────


@torch.no_grad()
def sample(
    model: Any, prompts: Sequence[Sequence[int]], generation_config: Any, stop_ids: Sequence[int]
) -> list[list[int]]:
    """Complete each prompt by transformers' `generate`; prompts that are equal are computed once. Order is kept.

    A completion ends with its stop token, if it got one within ``generation_config.max_new_tokens``.
    """
    grouped = by_prompt(prompts)
    ids, mask = _padded_left([prompts[group[0]] for group in grouped], model.device)
    group_of = {n: number for number, group in enumerate(grouped) for n in group}
    rows = torch.tensor([group_of[n] for n in range(len(prompts))], device=model.device)
    cache = DynamicCache(config=model.config)
    if ids.size(1) > 1:
        begun = mask[:, :-1]
        places = (begun.cumsum(1) - 1).clamp(min=0)
        computed = {"input_ids": ids[:, :-1], "attention_mask": begun, "position_ids": places}
        model(**computed, past_key_values=cache, use_cache=True, logits_to_keep=1)
        cache.batch_select_indices(rows)
    out = model.generate(
        input_ids=ids[rows], attention_mask=mask[rows], past_key_values=cache, generation_config=generation_config
    )
    return [_ended(row, stop_ids) for row in out[:, ids.size(1) :].tolist()]


def _padded_left(prompts: Sequence[Sequence[int]], device: Any) -> tuple[Tensor, Tensor]:
    """(ids, mask), both (B, T), padding on the left."""
    width = max(map(len, prompts))
    ids = [[0] * (width - len(prompt)) + list(prompt) for prompt in prompts]
    mask = [[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts]
    return torch.tensor(ids, device=device), torch.tensor(mask, device=device)


def _ended(tokens: list[int], stop_ids: Sequence[int]) -> list[int]:
    ends = [n for n, token in enumerate(tokens) if token in stop_ids]
    return tokens[: ends[0] + 1] if ends else tokens
