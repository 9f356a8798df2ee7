"""Doubles that compute: a bot's memory tested in milliseconds, with no weights and no torch.

`HashEmbedder` really embeds, `ScriptedModel.heuristic` really decides and answers from what the prompt
says, `tiny_model` writes a real (random) Llama folder for code that must run transformers. Not mocks: nothing
here records expectations. The feature hashing is Weinberger et al. 2009, the tokenizer folder follows SmolLM2's.
"""

from __future__ import annotations

import hashlib
import re
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from memr1_plugin.agents.engine import Completion, LoraInfo, Prompt, Role
from memr1_plugin.embedding import Vectors
from memr1_plugin.errors import InputError, ModelError

_STOP_WORDS = """
a an and are as at be been but by did do does for from had has have he her his how i in is it its me my of on or our
she so that the their them they this to was we were what when where which who why will with you your
"""
STOP_WORDS = frozenset(_STOP_WORDS.split())
"""Words that say nothing about what a text is about."""

_PLACES = 4
"""Vector positions a word is hashed to; one would make every 64th pair of words identical."""


def stem(word: str) -> str:
    """Cut an English word's common endings ("moved", "moving", "moves" -> "mov"); crude and deterministic."""
    word = word.lower()
    for ending in ("'s", "ing", "ied", "ies", "ed", "es", "s", "e", "y"):
        if word.endswith(ending) and len(word) - len(ending) >= 3:
            return word[: -len(ending)]
    return word


def words(text: str) -> list[str]:
    """Return the stems of a text's words, stop words out (unless nothing else is there)."""
    found = re.findall(r"\w+(?:'s)?", text.lower())
    return [stem(w) for w in found if w not in STOP_WORDS] or [stem(w) for w in found]


@lru_cache(maxsize=20_000)
def _places(word: str, dim: int) -> list[tuple[int, float]]:
    digest = hashlib.blake2b(word.encode(), digest_size=4 * _PLACES).digest()
    numbers = [int.from_bytes(digest[4 * n : 4 * n + 4], "big") for n in range(_PLACES)]
    return [(n // 2 % dim, 1.0 if n % 2 else -1.0) for n in numbers]


class HashEmbedder:
    """An `Embedder` without weights: texts that share stemmed words are near each other.

    Deterministic across processes and machines, thread-safe (it has no state).
    """

    def __init__(self, dim: int = 64) -> None:
        if dim < 1:
            raise InputError(f"dim is {dim}; expected at least 1.")
        self._dim = dim

    @property
    def id(self) -> str:
        """The name that a bank stores."""
        return f"hash-{self._dim}"

    @property
    def dim(self) -> int:
        """Length of a vector."""
        return self._dim

    def embed(self, texts: Sequence[str]) -> Vectors:
        """Return (len(texts), dim) float32 unit vectors."""
        vectors = np.zeros((len(texts), self._dim), dtype=np.float32)
        for row, text in zip(vectors, texts, strict=True):
            for word in words(text):
                for place, sign in _places(word, self._dim):
                    row[place] += sign
            if not row.any():  # no words, or signs that cancelled out: still a unit vector
                row[_places(text, self._dim)[0][0]] = 1.0
            row /= np.linalg.norm(row)
        return vectors


Reply = Callable[[Prompt, Role], str] | Mapping[str, str] | Sequence[str]
"""How a `ScriptedModel` replies: computed, looked up by a text that the prompt holds, or in order."""


@dataclass(frozen=True)
class Call:
    """One prompt that a `ScriptedModel` was given, and its reply."""

    prompt: Prompt
    role: Role
    completion: Completion


class ScriptedModel:
    """An `Engine` whose replies you write. It counts words as tokens and keeps every call in ``calls``.

    ``reply`` is a function of prompt and role; or a mapping, whose first key found in the prompt gives the
    reply ("" matches all); or a sequence, used up in order. An exhausted script is a `ModelError`. Replies
    are not forced into the prompt's grammar, so that bad completions can be tried too.

    >>> ScriptedModel(["ADD"]).complete([Prompt("", "- [8 May 2023] Ana: I moved.")], Role.MANAGER)[0].text
    'ADD'
    """

    def __init__(self, reply: Reply, *, loras: Mapping[Role, LoraInfo] | None = None) -> None:
        self._reply = reply
        self._loras = dict(loras or {})
        self._lock = threading.Lock()
        self._seen: set[tuple[Role, str]] = set()
        self._closed = False
        self.calls: list[Call] = []

    @classmethod
    def heuristic(cls) -> ScriptedModel:
        """Return a model that decides and answers by the words that texts share (`by_words`).

        Good enough for a bot's tests: a changed home is an UPDATE, "no longer" a DELETE, an answer is the
        newest memory that shares the most words with the question.
        """
        return cls(by_words)

    @property
    def id(self) -> str:
        """A name that says it is a double."""
        return "scripted"

    @property
    def prompts(self) -> list[Prompt]:
        """The prompts so far, oldest first."""
        return [call.prompt for call in self.calls]

    def lora(self, role: Role) -> LoraInfo | None:
        """The LoRA that was given for `role`."""
        return self._loras.get(role)

    def complete(self, prompts: Sequence[Prompt], role: Role) -> list[Completion]:
        """Reply to each prompt, in order."""
        with self._lock:  # a script's order and the calls' order are one
            if self._closed:
                raise ModelError("this scripted model is closed; make another.")
            return [self._complete(prompt, role) for prompt in prompts]

    def _complete(self, prompt: Prompt, role: Role) -> Completion:
        text = self._text(prompt, role)
        if not (finished := len(text.split()) <= prompt.max_tokens):
            text = "".join(re.findall(r"\s*\S+", text)[: prompt.max_tokens])
        fixed = len(prompt.fixed.split())
        cached = fixed if (role, prompt.fixed) in self._seen else 0
        self._seen.add((role, prompt.fixed))
        total = fixed + len(prompt.body.split())
        completion = Completion(text, total, cached, len(text.split()), finished)
        self.calls.append(Call(prompt, role, completion))
        return completion

    def _text(self, prompt: Prompt, role: Role) -> str:
        if callable(self._reply):
            return self._reply(prompt, role)
        if isinstance(self._reply, Mapping):
            whole = prompt.fixed + prompt.body
            for key, reply in self._reply.items():
                if key in whole:
                    return reply
            raise ModelError(f"no key of the script is in the prompt {prompt.body!r}; keys: {list(self._reply)}.")
        if len(self.calls) >= len(self._reply):
            raise ModelError(f"the script holds {len(self._reply)} replies and was asked for one more.")
        return self._reply[len(self.calls)]

    def close(self) -> None:
        """Refuse further prompts."""
        self._closed = True


_LISTED = re.compile(r"^(?:(\d+)\.|-) (\[[^\]]*\]) ([^:\n]*): (.*)$", re.MULTILINE)
_QUESTION = re.compile(r"^Question[^:\n]*: (.*)$", re.MULTILINE)
_ENDED = re.compile(r"\b(no longer|any ?more|stopped|gave up|quit|sold|broke up|cancelled)\b", re.IGNORECASE)
_HOME = {"mov": "liv", "relocat": "liv"}
"""Stems that tell of the same thing."""
_ONE_VALUE_WORDS = "live work job name called number email birthday age favourite favorite"
_ONE_VALUE = frozenset(map(stem, _ONE_VALUE_WORDS.split()))
"""Of these a person (or a person's cat) has one at a time, so that a new one replaces the old."""


@dataclass(frozen=True)
class _Said:
    """One line of a prompt's list."""

    place: int
    date: str
    speaker: str
    text: str

    @property
    def stems(self) -> list[str]:
        return [_HOME.get(w, w) for w in words(re.sub(r"\[[^\]]*\]", " ", self.text))]


def _listed(body: str) -> tuple[list[_Said], list[_Said]]:
    """Read a prompt's lists back: (memories, facts)."""
    found = [_Said(int(n or 0), date, speaker, text) for n, date, speaker, text in _LISTED.findall(body)]
    return [said for said in found if said.place], [said for said in found if not said.place]


def by_words(prompt: Prompt, role: Role) -> str:
    """Reply to a Manager's, Answer Agent's or extraction prompt by word overlap; see `ScriptedModel.heuristic`."""
    if role is Role.BASE:
        return _extracted(prompt.body)
    memories, facts = _listed(prompt.body)
    if role is Role.ANSWER:
        selection_only = prompt.grammar is not None and "text ::=" not in prompt.grammar
        return _answered(prompt.body, memories, selection_only)
    lines, touched = [], set[int]()
    for fact in facts:
        line, place = _managed(fact, [m for m in memories if m.place not in touched])
        touched.add(place)
        lines.append(line)
    return "\n".join(lines)


def _managed(fact: _Said, memories: Sequence[_Said]) -> tuple[str, int]:
    """Decide on one fact; returns (line, the memory it names or 0)."""
    for memory in reversed(memories):
        if memory.speaker != fact.speaker:
            continue
        new, old = set(fact.stems), set(memory.stems)
        if new <= old:
            return "NOOP", 0
        if _ENDED.search(fact.text) and 2 * len(new & old) >= len(old):
            return f"DELETE {memory.place}", memory.place
        if (subject := _subject(fact)) is not None and subject == _subject(memory):
            return f"UPDATE {memory.place}", memory.place
    return "ADD", 0


def _subject(said: _Said) -> tuple[str, ...] | None:
    """Return the stems up to the first that has one value ("my cat is called": cat, call), or None."""
    stems = said.stems
    at = next((n for n, word in enumerate(stems) if word in _ONE_VALUE), None)
    return None if at is None else tuple(stems[: at + 1])


def _answered(body: str, memories: Sequence[_Said], selection_only: bool) -> str:
    """Answer with the newest of the memories that share the most words with the question."""
    question = (_QUESTION.findall(body) or [""])[-1]
    asked = {_HOME.get(w, w) for w in words(question)}
    shared = [len(asked & set(m.stems)) + 0.5 * (stem(m.speaker) in asked) for m in memories]
    best = max(shared, default=0.0)
    if best < 1:
        return " none"
    used = [m for m, score in zip(memories, shared, strict=True) if score == best][-8:]
    places = " ".join(str(m.place) for m in used)
    if selection_only:
        return f" {places} ->"
    dates = re.findall(r"\[([^\]]*)\]", used[-1].text) or [used[-1].date.strip("[]")]
    return f" {places} -> {dates[-1] if question.lower().startswith('when') else used[-1].text}"


def _extracted(body: str) -> str:
    """Write the sentences of a conversation's last message that are no questions, as dashed facts."""
    spoken = [line for line in body.splitlines() if ": " in line]
    speaker, _, text = (spoken[-1] if spoken else ": ").partition(": ")
    sentences = [part for part in re.split(r"(?<=[.!?])\s+", text) if part and not part.endswith("?")]
    return "\n".join(f"- {speaker}: {part}" for part in sentences if len(words(part)) > 1) or "none"


_CHAT_TEMPLATE = (
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n'}}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)

_TOKENIZER_TEXT = (
    "ADD UPDATE 1 UPDATE 2: DELETE 3; NOOP\nMemories:\n(none)\nFacts:\n1. [8 May 2023] Ana: I moved to Berlin last "
    "week.\n- [13 June 2024] Ben: My sister has a small dog named Rex.\nQuestion (21 October 2026): Where does Ana "
    "live? When did Ben go to the concert in July?\nUsed: 1, 2\nAnswer: She lives in Berlin. unknown"
)


def tiny_model(folder: str | Path, *, vocab_size: int = 384, seed: int = 0) -> Path:
    """Write a random Llama-type model and a small byte-level BPE tokenizer to `folder`; return its path.

    A tenth of a million weights, two layers, chat template and special tokens like SmolLM2's: everything that runs
    the default model runs this one, in milliseconds. Needs the ``local`` extra. The same seed
    gives the same weights.
    """
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    path = Path(folder)
    path.mkdir(parents=True, exist_ok=True)
    tokenizer = _tiny_tokenizer(vocab_size)
    config = LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        initializer_range=0.2,  # wide, so that the likeliest token wins by more than rounding
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=2,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        LlamaForCausalLM(config).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


def _tiny_tokenizer(vocab_size: int) -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator([_TOKENIZER_TEXT] * 2, trainer)
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer,
        unk_token=special[0],
        bos_token=special[1],
        eos_token=special[2],
        pad_token=special[2],
        chat_template=_CHAT_TEMPLATE,
    )
