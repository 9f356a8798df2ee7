"""Decodes a batch of prompts on a loaded model: greedy, inside a grammar, with the fixed part computed once.

One thread calls it (`local` sees to that); it loads nothing. The grammar is compiled and matched by
xgrammar. Why not transformers' `generate`: rows end at different steps and leave the batch here, tokens that
the grammar forces cost no step of their own, and a completion that cannot go on stops without an end token.
"""

from __future__ import annotations

import copy
import inspect
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from memr1_plugin.agents.engine import Completion, Prompt, Role
from memr1_plugin.agents.tokens import encode
from memr1_plugin.errors import MissingExtraError, ModelError

try:
    import numpy as np
    import torch
    import xgrammar
    from transformers import DynamicCache, PreTrainedTokenizerBase
except ImportError as error:
    raise MissingExtraError.of("xgrammar", "local") from error

MIN_PREFIX = 8
"""A fixed part shorter than this is cheaper to compute again than to copy."""
_KEPT_PREFIXES = 8
_KEPT_GRAMMARS = 256


class Grammars:
    """Compiles GBNF for one tokenizer, and keeps what it compiled (20 ms each)."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, vocab_size: int, stop_ids: Sequence[int]) -> None:
        self.vocab_size = vocab_size
        self._stop_ids = list(stop_ids)
        info = xgrammar.TokenizerInfo.from_huggingface(tokenizer, vocab_size=vocab_size, stop_token_ids=self._stop_ids)
        self._compiler = xgrammar.GrammarCompiler(info, max_threads=1, cache_enabled=False)
        self._kept: OrderedDict[str, Any] = OrderedDict()

    def matcher(self, gbnf: str) -> Any:
        """Return a fresh matcher at the grammar's beginning."""
        if gbnf not in self._kept:
            try:
                self._kept[gbnf] = self._compiler.compile_grammar(gbnf)
            except RuntimeError as error:
                raise ModelError(f"the grammar cannot be compiled ({error}); expected GBNF:\n{gbnf}") from error
            if len(self._kept) > _KEPT_GRAMMARS:
                self._kept.popitem(last=False)
        self._kept.move_to_end(gbnf)
        return xgrammar.GrammarMatcher(self._kept[gbnf])


class _Row:
    """One prompt of a batch on its way: what it wrote, and what it may write next."""

    def __init__(self, prompt: Prompt, grammars: Grammars, stop_ids: frozenset[int]) -> None:
        self.limit = prompt.max_tokens
        self.output: list[int] = []
        self.pending: list[int] = []
        """Written, but not yet seen by the model."""
        self.done = self.finished = False
        self.mask: Any = None
        self._stop_ids = stop_ids
        self._matcher = grammars.matcher(prompt.grammar) if prompt.grammar else None
        if self._matcher is not None:
            self.mask = xgrammar.allocate_token_bitmask(1, grammars.vocab_size)
            self._matcher.fill_next_token_bitmask(self.mask)

    def take(self, token: int) -> None:
        """Write the token that the model chose, then those that the grammar leaves no choice about."""
        self.pending = []
        next_token: int | None = token
        while next_token is not None and not self.done:
            if next_token in self._stop_ids:
                self.done = self.finished = True
                return
            self.output.append(next_token)
            self.pending.append(next_token)
            next_token = self._step(next_token)

    def _step(self, token: int) -> int | None:
        """Move the grammar past `token`; return the only token that may follow, or None where there is a choice."""
        forced = None
        if self._matcher is not None:
            self._matcher.accept_token(token)
            self._matcher.fill_next_token_bitmask(self.mask)
            forced = only_token(self.mask[0].numpy())
            if forced in self._stop_ids:
                self.done = self.finished = True
                return None
        self.done = len(self.output) >= self.limit
        return forced


def only_token(mask: Any) -> int | None:
    """Return the one token that a bit mask (int32 words) allows, or None if it allows none or several."""
    words = mask.view(np.uint32)
    [at] = np.nonzero(words)
    if len(at) != 1:
        return None
    word = int(words[at[0]])
    return 32 * int(at[0]) + word.bit_length() - 1 if word & (word - 1) == 0 else None


class _State:
    """The key-value cache of a batch, with the mask and the positions that go with it."""

    def __init__(self, cache: Any, mask: torch.Tensor, positions: torch.Tensor) -> None:
        self.cache, self.mask, self.positions = cache, mask, positions

    def keep(self, rows: Sequence[int]) -> None:
        """Drop the rows of the batch that are not named."""
        index = torch.tensor(rows, device=self.mask.device)
        self.cache.batch_select_indices(index)
        self.mask, self.positions = self.mask[index], self.positions[index]


class Decoder:
    """One loaded model, spoken to in batches. Not thread-safe: one thread owns it."""

    def __init__(self, model: Any, tokenizer: PreTrainedTokenizerBase, *, reuse_prefix: bool = True) -> None:
        self.model, self.tokenizer, self.reuse_prefix = model, tokenizer, reuse_prefix
        config = model.config.get_text_config()
        self._window = int(getattr(config, "max_position_embeddings", 0) or 1 << 30)
        self._stop_ids = frozenset(stop_ids(model, tokenizer))
        self._grammars = Grammars(tokenizer, int(config.vocab_size), sorted(self._stop_ids))
        self._prefixes: OrderedDict[tuple[str, tuple[int, ...]], Any] = OrderedDict()
        inner = model.get_base_model() if hasattr(model, "get_base_model") else model
        self._last_only = "logits_to_keep" in inspect.signature(inner.forward).parameters
        self._active: str | None = None

    @torch.inference_mode()
    def complete(
        self, prompts: Sequence[Prompt], role: Role, stopped: Callable[[], bool] = lambda: False
    ) -> list[Completion]:
        """Complete prompts that share their fixed part, as one batch; order is kept.

        Raises:
            ModelError: a prompt is longer than the model's window, or `stopped` became true.
        """
        encoded = [encode(self.tokenizer, prompt) for prompt in prompts]
        for prompt, (fixed, body) in zip(prompts, encoded, strict=True):
            self._check_length(len(fixed) + len(body), prompt)
        with self._speaking_as(role) as adapter:
            prefix, bodies = self._split(encoded)
            hit = (adapter, prefix) in self._prefixes
            state = self._begin(adapter, prefix, len(prompts))
            rows = [_Row(prompt, self._grammars, self._stop_ids) for prompt in prompts]
            self._run(state, rows, bodies, stopped)
        cached = [len(prefix) if hit or n else 0 for n in range(len(rows))]
        return [
            Completion(self._text(row), len(fixed) + len(body), from_cache, len(row.output), row.finished)
            for row, (fixed, body), from_cache in zip(rows, encoded, cached, strict=True)
        ]

    def make_room(self) -> None:
        """Drop the cached fixed parts and what the allocator keeps, after a failure that may be a full memory."""
        self._prefixes.clear()
        if self.model.device.type == "cuda":
            torch.cuda.empty_cache()

    def _check_length(self, tokens: int, prompt: Prompt) -> None:
        if tokens == 0:
            raise ModelError("the prompt is empty; expected at least one token to continue.")
        if tokens + prompt.max_tokens > self._window:
            raise ModelError(
                f"the prompt has {tokens:,} tokens and may write {prompt.max_tokens:,}; the model's window holds "
                f"{self._window:,}. Show fewer memories (Settings.candidates, Settings.related) or shorter turns."
            )

    def _split(self, encoded: Sequence[tuple[list[int], list[int]]]) -> tuple[tuple[int, ...], list[list[int]]]:
        """Return (the prefix to take from the cache, what each row must compute)."""
        prefix = tuple(encoded[0][0])
        same = all(tuple(fixed) == prefix and body for fixed, body in encoded)
        if self.reuse_prefix and same and len(prefix) >= MIN_PREFIX:
            return prefix, [body for _, body in encoded]
        return (), [[*fixed, *body] for fixed, body in encoded]

    def _begin(self, adapter: str, prefix: tuple[int, ...], n: int) -> _State:
        device = self.model.device
        if not prefix:
            empty = torch.zeros((n, 0), dtype=torch.long, device=device)
            return _State(self._new_cache(), empty, torch.zeros(n, dtype=torch.long, device=device))
        key = (adapter, prefix)
        if key not in self._prefixes:
            alone = self._begin(adapter, (), 1)
            self._feed(alone, [list(prefix)])
            self._prefixes[key] = alone.cache
            if len(self._prefixes) > _KEPT_PREFIXES:
                self._prefixes.popitem(last=False)
        self._prefixes.move_to_end(key)
        cache = copy.deepcopy(self._prefixes[key])
        cache.batch_repeat_interleave(n)
        mask = torch.ones((n, len(prefix)), dtype=torch.long, device=device)
        return _State(cache, mask, torch.full((n,), len(prefix), dtype=torch.long, device=device))

    def _new_cache(self) -> Any:
        make = getattr(self.model, "new_cache", None)  # `compiled`
        return DynamicCache(config=self.model.config) if make is None else make()

    def _run(
        self, state: _State, rows: Sequence[_Row], bodies: Sequence[list[int]], stopped: Callable[[], bool]
    ) -> None:
        logits = self._feed(state, bodies)
        going = list(rows)
        while True:
            for row, token in zip(going, self._choose(logits, going), strict=True):
                row.take(token)
            keep = [n for n, row in enumerate(going) if not row.done]
            if not keep:
                return
            if stopped():
                raise ModelError("the engine was closed while it was completing a prompt.")
            if len(keep) < len(going):
                state.keep(keep)
                going = [going[n] for n in keep]
            logits = self._feed(state, [row.pending for row in going])

    def _feed(self, state: _State, rows: Sequence[Sequence[int]]) -> torch.Tensor:
        """Compute the rows' new tokens, padded on the left; return (rows, vocabulary) float32 logits of the last."""
        width, device = max(map(len, rows)), state.mask.device
        lengths = torch.tensor([len(row) for row in rows], device=device)
        ids = torch.tensor([[0] * (width - len(row)) + list(row) for row in rows], device=device)
        offsets = torch.arange(width, device=device)[None] - (width - lengths)[:, None]
        state.mask = torch.cat([state.mask, (offsets >= 0).long()], dim=1)
        positions = state.positions[:, None] + offsets.clamp(min=0)
        state.positions = state.positions + lengths
        out = self.model(
            input_ids=ids,
            attention_mask=state.mask,
            position_ids=positions,
            past_key_values=state.cache,
            use_cache=True,
            **({"logits_to_keep": 1} if self._last_only else {}),
        )
        logits: torch.Tensor = out.logits[:, -1].float()
        return logits

    def _choose(self, logits: torch.Tensor, rows: Sequence[_Row]) -> list[int]:
        held = [n for n, row in enumerate(rows) if row.mask is not None]
        if held:
            masks = torch.cat([rows[n].mask for n in held]).to(logits.device)
            some = logits[held]
            xgrammar.apply_token_bitmask_inplace(some, masks)
            logits[held] = some
        tokens: list[int] = logits.argmax(-1).tolist()
        return tokens

    def _text(self, row: _Row) -> str:
        text = self.tokenizer.decode(row.output, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return str(text)

    @contextmanager
    def _speaking_as(self, role: Role) -> Iterator[str]:
        """Switch to the role's LoRA, or to none; yields the adapter's name ("" for the base)."""
        adapters = getattr(self.model, "peft_config", {})
        if hasattr(self.model, "speak_as"):  # `unpacked`, `compiled`
            self.model.speak_as(role.value)
            yield role.value if role.value in self.model.roles else ""
        elif role.value in adapters:
            if self._active != role.value:
                self.model.set_adapter(role.value)
                self._active = role.value
            yield role.value
        elif adapters:
            with self.model.disable_adapter():
                yield ""
        else:
            yield ""


def stop_ids(model: Any, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return the tokens that end a text: the tokenizer's, and those that the model's own settings name."""
    named = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    found = [named] if isinstance(named, int) else list(named or [])
    if isinstance(tokenizer.eos_token_id, int):
        found.append(tokenizer.eos_token_id)
    return sorted(set(found))
