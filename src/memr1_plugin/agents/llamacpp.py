"""The fast engine for a machine without a GPU: llama.cpp in this process, by way of `xllamacpp`.

One base model and the LoRAs of both roles in one server, each request naming the LoRA it wants; each slot
keeps the prompt it computed last, so that a role's instructions are computed once. It trains nothing and knows
no transformers; `local` is the engine for GPUs, and the one whose weights training sees.
"""

from __future__ import annotations

import http.client
import json
import logging
import os
import secrets
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from memr1_plugin.agents import models
from memr1_plugin.agents.engine import Completion, LoraInfo, Prompt, Role
from memr1_plugin.errors import InputError, MissingExtraError, ModelError, WeightsNotFoundError
from memr1_plugin.logs import fields

log = logging.getLogger(__name__)

CONTEXT_TOKENS = 4096
"""Prompt and completion of one call: 60 memories, as many as the paper shows, are about 2,700 tokens."""
SLOTS = 2
"""Calls computed at once. Each costs 94 MB at the default context with SmolLM2-135M."""
_MARK = "MEMR1-MESSAGE"
_SECONDS = 10.0
"""Time-out of a tokeniser call; those take a millisecond."""


def available() -> bool:
    """True where the `cpu` extra is installed; imports none of it."""
    return all(find_spec(name) is not None for name in ("xllamacpp", "gguf", "safetensors"))


def find_gguf(model: str | Path | None = None) -> Path | None:
    """Return the GGUF file of a model as `models.resolve` names it; None: it has none (a hub id, a folder)."""
    if model is None or str(model) in models.PRESETS:
        return models.in_wheel(models.PRESETS[str(model)] if model else models.DEFAULT)
    path = Path(model).expanduser()
    return path if path.suffix == ".gguf" and path.is_file() else None


def serves(model: str | Path | None = None) -> bool:
    """True where this engine can serve `model`: the `cpu` extra is installed and the model has a GGUF file."""
    return available() and find_gguf(model) is not None


def open_engine(
    model: str | Path | None = None, loras: str | Path | Mapping[Role, Path] | None = None, **options: Any
) -> LlamaCppEngine:
    """Open the engine for a model and LoRAs named as for `local.LocalEngine`, and log that it was chosen.

    Args:
        model: a preset or a GGUF file; None: the default preset.
        loras: a folder with ``manager/`` and ``answer/``, or each role's folder; None: those that ship; ``{}``: none.
        options: for `LlamaCppEngine`. `kind` is "nf4+F16" where a LoRA is served, for those that ship were trained
            on the base as nf4 rounds it, and "F16" where none is.
    """
    path = find_gguf(model)
    if path is None:
        raise WeightsNotFoundError(
            f"no GGUF file of {model or models.DEFAULT.name} is on this machine; llama.cpp reads no other format. "
            f"Run: {models.PIP_LINE}, give a GGUF file, or use the transformers engine."
        )
    weights = models.resolve(model)
    folders = dict(loras) if isinstance(loras, Mapping) else models.find_loras(weights.name, loras)
    known = {role: (folder, models.read_lora(folder, role, weights)) for role, folder in folders.items()}
    options.setdefault("kind", "nf4+F16" if known else "F16")
    engine = LlamaCppEngine(path, loras=known, **options)
    log.info("serving %s", engine.id, extra=fields("engine_opened", engine="llama.cpp"))
    return engine


class LlamaCppEngine:
    """An `Engine` on llama.cpp. Nothing is loaded before the first prompt; thread-safe: concurrent calls share the
    slots, and wait when all are taken."""

    def __init__(
        self,
        model: str | Path,
        *,
        loras: Mapping[Role, tuple[Path, LoraInfo]] | None = None,
        cache: str | Path | None = None,
        kind: str | None = "F16",
        context_tokens: int = CONTEXT_TOKENS,
        slots: int = SLOTS,
        threads: int | None = None,
    ) -> None:
        """Name the parts; the first prompt loads them: 1 s, and 5 s more the first time (a copy in `kind` is made).

        Args:
            loras: for each role a PEFT LoRA folder, or a GGUF LoRA file, and what it is.
            cache: where converted files are kept; None: this user's cache folder.
            kind: the format in which the weights are computed; None: as the file has them. See `gguf_base`.
            threads: None: one less than this process may use, because a thread that loses its core to another
                process keeps all others waiting (measured: 60 tokens/s with one thread, 3-19 with two, on
                two busy cores).

        Raises:
            WeightsNotFoundError: no such file, or not a GGUF file. One that is broken further in, and a LoRA for
                another base, are errors of the first prompt.
        """
        if slots < 1 or context_tokens < 64:
            raise InputError(f"{slots} slots of {context_tokens} tokens; expected at least 1 slot of 64 tokens.")
        self._threads = threads or default_threads()
        self._context_tokens = context_tokens
        self._loras = dict(loras or {})
        self._lora_places = {role: place for place, role in enumerate(self._loras)}
        self._model = Path(model)
        self._cache = Path(cache) if cache is not None else cache_folder()
        _check(self._model)
        self._kind = kind
        self._key = secrets.token_urlsafe()
        self._n_slots = slots
        self._starting = threading.Lock()
        self._server: Any = None
        self._closed = False
        self._pool = ThreadPoolExecutor(slots, thread_name_prefix="memr1-llamacpp")
        self._slots = _Slots(slots)
        self._tokens: dict[tuple[str, bool, bool], list[int]] = {}
        self._template = ("", "")

    @property
    def id(self) -> str:
        """Model, weight format, device and threads."""
        xllamacpp = import_module("xllamacpp")
        kind = f" as {self._kind}" if self._kind else ""
        how = f"llama.cpp (xllamacpp {xllamacpp.__version__}) on the CPU, threads: {self._threads}"
        return f"{self._model.stem}{kind}, {how}"

    def lora(self, role: Role) -> LoraInfo | None:
        """The LoRA loaded for `role`; None: zero-shot."""
        return self._loras[role][1] if role in self._loras else None

    @property
    def closed(self) -> bool:
        """True after `close`."""
        return self._closed

    def complete(self, prompts: Sequence[Prompt], role: Role) -> list[Completion]:
        """Complete each prompt greedily, as many at once as there are slots; order is kept."""
        self._running()
        one = partial(self._complete, role=role)
        if len(prompts) == 1:
            return [one(prompts[0])]
        return list(self._pool.map(one, prompts))

    def close(self) -> None:
        """Release the model. Calls that run are finished first."""
        self._pool.shutdown(wait=True)
        with self._slots.all(), self._starting:
            self._closed, self._server = True, None

    def _running(self) -> Any:
        """Return the server, started if this is the first call."""
        with self._starting:
            if self._closed:
                raise ModelError("this engine is closed; open a new one.")
            if self._server is None:
                weights = _weights(self._model, self._cache, self._kind)
                files = [_lora_file(path, self._model, self._cache) for path, _ in self._loras.values()]
                self._server = _start(self._params(weights, files, self._n_slots))
                self._template = self._read_template(self._server, weights)
            return self._server

    def _complete(self, prompt: Prompt, role: Role) -> Completion:
        tokens = self.tokens(prompt)
        with self._slots.one(role) as slot:
            reply = self._running().handle_completions(self._request(prompt, tokens, role, slot))
        if "error" in reply:
            raise ModelError(self._explained(reply["error"], len(tokens)))
        choice, usage = reply["choices"][0], reply["usage"]
        return Completion(
            text=choice["text"],
            prompt_tokens=len(tokens),
            cached_tokens=int(usage.get("prompt_tokens_details", {}).get("cached_tokens", 0)),
            output_tokens=int(usage["completion_tokens"]),
            finished=choice["finish_reason"] != "length",
        )

    def _request(self, prompt: Prompt, tokens: list[int], role: Role, slot: int) -> dict[str, Any]:
        request = {
            "prompt": tokens,
            "max_tokens": prompt.max_tokens,
            "temperature": 0.0,
            "id_slot": slot,
            "cache_prompt": True,
            "lora": [{"id": n, "scale": float(r is role)} for r, n in self._lora_places.items()],
        }
        return {**request, "grammar": prompt.grammar} if prompt.grammar else request

    def _explained(self, error: Mapping[str, Any], n_tokens: int) -> str:
        if error.get("type") == "exceed_context_size_error":
            return (
                f"a prompt of {n_tokens} tokens does not fit into {self._context_tokens}. "
                f"Show fewer memories (settings.candidates), or open the engine with a larger context_tokens."
            )
        return f"llama.cpp refused a prompt of {n_tokens} tokens: {error.get('message', error)}"

    def tokens(self, prompt: Prompt) -> list[int]:
        """Return the tokens of a prompt, the same as `tokens.encode` makes with the transformers tokenizer.

        What stands before and after the message may hold control tokens; the message never does: a remembered
        "<|im_end|>" is text, and cannot end the user's turn.
        """
        self._running()
        head, tail = self._template if prompt.chat else ("", "")
        fixed = self._tokenised_once(head, frame=True, first=True) + self._tokenised_once(prompt.fixed)
        return fixed + self._tokenise(prompt.body) + self._tokenised_once(tail, frame=True)

    def _tokenised_once(self, text: str, *, frame: bool = False, first: bool = False) -> list[int]:
        key = (text, frame, first)
        if key not in self._tokens:
            self._tokens[key] = self._tokenise(text, frame=frame, first=first)
        return self._tokens[key]

    def _tokenise(self, text: str, *, frame: bool = False, first: bool = False) -> list[int]:
        """`frame`: the text may hold control tokens. `first`: the model's BOS token, if it has one, goes before it."""
        if not text and not first:
            return []
        reply = self._post(
            self._running(), "/tokenize", {"content": text, "add_special": first, "parse_special": frame}
        )
        return [int(token) for token in reply["tokens"]]

    def _read_template(self, server: Any, weights: Path) -> tuple[str, str]:
        from memr1_plugin.agents.gguf_base import has_chat_template

        if not has_chat_template(weights):
            return "", ""  # a base model: llama.cpp would make up a template, transformers would not
        messages = [{"role": "user", "content": _MARK}]
        head, mark, tail = self._post(server, "/apply-template", {"messages": messages})["prompt"].partition(_MARK)
        if not mark:
            raise ModelError(
                f"the chat template of {self._model.stem} does not write the user's message where it is told to."
            )
        return head, tail

    def _post(self, server: Any, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        # http.client: a proxy in the environment is not asked for what is in this process.
        host = server.listening_address.removeprefix("http://")
        connection = http.client.HTTPConnection(host, timeout=_SECONDS)
        headers = {"Content-Type": "application/json", "Authorization": f"Bearer {self._key}"}
        try:
            connection.request("POST", path, json.dumps(body), headers)
            response = connection.getresponse()
            reply = json.loads(response.read())
        except (OSError, ValueError) as error:
            raise ModelError(f"llama.cpp did not answer {path} on {host}: {error}") from error
        finally:
            connection.close()
        if response.status != 200:
            raise ModelError(f"llama.cpp answered {path} with {response.status}: {reply}")
        return dict(reply)

    def _params(self, weights: Path, loras: Sequence[Path], slots: int) -> Any:
        xllamacpp = _xllamacpp()
        params = xllamacpp.CommonParams()
        params.model.path = str(weights)
        params.lora_adapters = [xllamacpp.CommonAdapterLoraInfo(str(file), 0.0) for file in loras]
        params.n_parallel = slots
        params.n_ctx = self._context_tokens * slots
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = self._threads
        params.cache_ram_mib = 0  # would copy every slot's last prompt into up to 8 GB
        params.fit_params = False  # would shrink the context to the memory that is free just now
        # The server always listens on loopback; other users of the machine have no business there.
        params.api_keys = [self._key]
        params.ui = params.endpoint_slots = False
        params.verbosity = -1
        return params


class _Slots:
    """Who computes where: a role gets the free slot that it used last, whose prefix and LoRA are in place."""

    def __init__(self, n: int) -> None:
        self._free: list[int] = list(range(n))
        self._n = n
        self._last: dict[int, Role] = {}
        self._changed = threading.Condition()

    @contextmanager
    def one(self, role: Role) -> Iterator[int]:
        """Take a slot; waits while none is free."""
        with self._changed:
            self._changed.wait_for(lambda: self._free)
            slot = min(self._free, key=lambda n: (self._last.get(n) is not role, n in self._last, self._free.index(n)))
            self._free.remove(slot)
            self._last[slot] = role
        try:
            yield slot
        finally:
            self._give([slot])

    @contextmanager
    def all(self) -> Iterator[None]:
        """Take every slot: nobody computes."""
        with self._changed:
            self._changed.wait_for(lambda: len(self._free) == self._n)
            taken, self._free[:] = list(self._free), []
        try:
            yield
        finally:
            self._give(taken)

    def _give(self, slots: list[int]) -> None:
        with self._changed:
            self._free += slots  # the longest unused is first
            self._changed.notify_all()


def default_threads() -> int:
    """One less than the cores that this process may use, at least one."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cores - 1)


def cache_folder() -> Path:
    """Where converted files are kept: beside the other converted weights."""
    return models.home() / "gguf"


def _xllamacpp() -> Any:
    try:
        return import_module("xllamacpp")
    except ImportError as error:
        raise MissingExtraError.of("xllamacpp", "cpu") from error


def _start(params: Any) -> Any:
    try:
        return _xllamacpp().Server(params)
    except (RuntimeError, ValueError) as error:
        raise ModelError(f"llama.cpp could not load {params.model.path}: {error}") from error


def _check(model: Path) -> None:
    from memr1_plugin.agents.gguf_base import check

    check(model)


def _weights(base: Path, folder: Path, kind: str | None) -> Path:
    from memr1_plugin.agents.gguf_base import requantised

    return base if kind is None else requantised(base, folder, kind=kind)


def _lora_file(lora: Path, base: Path, folder: Path) -> Path:
    if lora.suffix == ".gguf":
        return lora
    from memr1_plugin.agents.gguf_lora import converted

    return converted(lora, base, folder)
