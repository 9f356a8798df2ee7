"""An engine on any OpenAI-compatible server: vLLM, llama.cpp or a hosted one, with a model name for each role.

With vLLM's ``--enable-lora`` one base serves both roles, which is how a deployment outgrows one machine. It
starts no server and holds no model. A server that cannot constrain its output is used without a grammar: what
comes back is parsed like everything else, and refused where it makes no sense.
"""

from __future__ import annotations

import logging
import os
import random
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, TypeVar, get_args

from memr1_plugin.agents.engine import Completion, LoraInfo, Prompt, Role
from memr1_plugin.errors import InputError, MissingExtraError, ModelError
from memr1_plugin.logs import fields, text_allowed

try:
    import httpx
except ImportError as error:
    raise MissingExtraError.of("httpx", "remote") from error

log = logging.getLogger(__name__)

T = TypeVar("T")
Dialect = Literal["auto", "llama.cpp", "vllm"]
"""How a server is told the grammar; "auto" asks it once what it is."""

_PASSING = frozenset({408, 409, 425, 429})
"""Refusals that pass by themselves; so do all from 500 on."""
_SHOWN = 300
"""Characters of a server's own words in an error message."""


@dataclass(frozen=True)
class RemoteOptions:
    """How patient a `RemoteEngine` is."""

    timeout_s: float = 120.0
    """Longest silence of the server in one attempt; it is silent until a completion is whole."""
    connect_timeout_s: float = 5.0
    attempts: int = 5
    """How often a call is tried before it fails; only failures that can pass are tried again."""
    backoff_s: float = 0.5
    """Longest wait before the second attempt; doubles with each. The wait is drawn from 0 to it, so that many
    clients do not come back at once."""
    max_backoff_s: float = 20.0
    concurrency: int = 8
    """Most requests in flight."""

    def __post_init__(self) -> None:
        for name in ("attempts", "concurrency"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} is {getattr(self, name)}; expected at least 1.")
        for name in ("timeout_s", "connect_timeout_s"):
            if getattr(self, name) <= 0:
                raise InputError(f"{name} is {getattr(self, name)}; expected seconds above 0.")


class _Passing(Exception):  # noqa: N818  # a signal to the loop below, never seen outside
    """This attempt failed, the next may not."""

    def __init__(self, message: str, retry_after_s: float | None = None, *, kind: str) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s
        self.kind = kind
        """What a log may say: servers quote prompts in their messages."""


class RemoteEngine:
    """An `Engine` on an OpenAI-compatible server. Thread-safe; opens no connection before the first call."""

    def __init__(
        self,
        base_url: str,
        models: str | Mapping[Role, str],
        *,
        loras: Mapping[Role, LoraInfo] | None = None,
        api_key: Callable[[], str] | None = None,
        api_key_env: str = "OPENAI_API_KEY",
        structured: Dialect | None = "auto",
        options: RemoteOptions | None = None,
    ) -> None:
        """Name the server and its models; nothing is sent yet.

        Args:
            base_url: with the version, as servers print it: "http://gpu-1:8000/v1".
            models: one model name for all roles, or one for each; a role that is left out uses `Role.BASE`'s.
            loras: what the models of trained roles were trained on: such a role gets the short prompt.
            api_key: called before each request (a key may expire); None: the environment's `api_key_env`, or no key.
            structured: how the server is told a grammar; None: it is not told.
            options: time-outs, attempts, concurrency.

        Raises:
            InputError: a URL that is none, or a role without a model.
        """
        self._url = _checked_url(base_url)
        self._models = {role: models for role in Role} if isinstance(models, str) else dict(models)
        if not self._models or (Role.BASE not in self._models and set(self._models) != set(Role) - {Role.BASE}):
            raise InputError(
                f"models names {sorted(r.value for r in self._models)}; expected manager and answer, or base."
            )
        if structured is not None and structured not in get_args(Dialect):
            raise InputError(f"structured is {structured!r}; expected one of {get_args(Dialect)}, or None.")
        self._loras = dict(loras or {})
        self._api_key = api_key or (lambda: os.environ.get(api_key_env, ""))
        self._key_origin = "the api_key callback" if api_key else f"the environment variable {api_key_env}"
        self._structured: Dialect | None = structured
        self.options = options or RemoteOptions()
        timeout = httpx.Timeout(self.options.timeout_s, connect=self.options.connect_timeout_s)
        self._client = httpx.Client(timeout=timeout, limits=httpx.Limits(max_connections=self.options.concurrency))
        self._free = threading.BoundedSemaphore(self.options.concurrency)
        self._pool = ThreadPoolExecutor(self.options.concurrency, thread_name_prefix="memr1-remote")
        self._probing = threading.Lock()
        self._closed = threading.Event()

    @property
    def id(self) -> str:
        """The models and the server."""
        return f"{', '.join(dict.fromkeys(self._models.values()))} at {self._url}"

    def lora(self, role: Role) -> LoraInfo | None:
        """What the role's model was trained on, as it was given; None: zero-shot."""
        return self._loras.get(role)

    def complete(self, prompts: Sequence[Prompt], role: Role) -> list[Completion]:
        """Complete each prompt greedily, up to `concurrency` at once; order is kept.

        Raises:
            ModelError: the server refused, or failed as often as there are attempts.
        """
        one = partial(self._complete, role=role)
        if len(prompts) == 1:
            return [one(prompts[0])]
        if self._closed.is_set():
            raise ModelError("this engine is closed; open a new one.")
        return list(self._pool.map(one, prompts))

    def close(self) -> None:
        """Drop the connections; calls that wait for another attempt fail at once."""
        self._closed.set()
        self._pool.shutdown(wait=True)
        self._client.close()

    def _complete(self, prompt: Prompt, role: Role) -> Completion:
        model = self._models.get(role) or self._models.get(Role.BASE)
        if model is None:
            raise ModelError(f"no model is named for the role {role.value!r}; name one for Role.BASE.")
        body: dict[str, Any] = {"model": model, "max_tokens": prompt.max_tokens, "temperature": 0.0, "stream": False}
        if prompt.grammar is not None:
            body.update(self._grammar(prompt.grammar))
        if prompt.chat:
            body["messages"] = [{"role": "user", "content": prompt.fixed + prompt.body}]
            return self._call("POST", "/chat/completions", body, _read)
        body["prompt"] = prompt.fixed + prompt.body
        return self._call("POST", "/completions", body, _read)

    def _grammar(self, grammar: str) -> dict[str, Any]:
        with self._probing:
            if self._structured == "auto":
                self._structured = self._probe()
        if self._structured == "llama.cpp":
            return {"grammar": grammar}
        if self._structured == "vllm":
            # The second is the name before vLLM 0.12; each version ignores the other's.
            return {"structured_outputs": {"grammar": grammar}, "guided_grammar": grammar}
        return {}

    def _probe(self) -> Dialect | None:
        owners = self._call("GET", "/models", None, lambda reply: [str(m.get("owned_by", "")) for m in reply["data"]])
        for owner, dialect in (("llamacpp", "llama.cpp"), ("vllm", "vllm")):
            if owner in owners:
                return dialect  # type: ignore[return-value]  # mypy does not see through the tuple
        log.warning(
            "%s does not say that it is llama.cpp or vLLM (%s): no grammars are sent",
            self._url,
            owners,
            extra=fields("remote_without_grammar"),
        )
        return None

    def _call(self, method: str, path: str, body: dict[str, Any] | None, read: Callable[[Any], T]) -> T:
        """Send until it works: `attempts` times, longer apart each time."""
        for attempt in range(1, self.options.attempts + 1):
            try:
                return self._attempt(method, path, body, read)
            except _Passing as failure:
                if attempt == self.options.attempts:
                    times = "once" if attempt == 1 else f"{attempt} times"
                    raise ModelError(f"{self._url}{path} failed {times}; the last time: {failure}") from failure
                wait = failure.retry_after_s
                if wait is None:
                    wait = random.uniform(
                        0, min(self.options.backoff_s * 2 ** (attempt - 1), self.options.max_backoff_s)
                    )
                log.info(
                    "%s%s: %s; trying again in %.1f s",
                    self._url,
                    path,
                    failure if text_allowed() else failure.kind,
                    wait,
                    extra=fields("remote_retry", kind=failure.kind, attempt=attempt, wait_s=round(wait, 3)),
                )
                self._closed.wait(min(wait, self.options.max_backoff_s))
        raise AssertionError("attempts is at least 1")

    def _attempt(self, method: str, path: str, body: dict[str, Any] | None, read: Callable[[Any], T]) -> T:
        if self._closed.is_set():
            raise ModelError("this engine is closed; open a new one.")
        key = self._api_key()
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        try:
            with self._free:
                response = self._client.request(method, self._url + path, json=body, headers=headers)
        except httpx.TimeoutException as error:
            raise _Passing(
                f"no reply within {self.options.timeout_s:g} s ({type(error).__name__})", kind="time-out"
            ) from error
        except RuntimeError as error:  # httpx: its client was closed just now
            raise ModelError("this engine was closed during the call; open a new one.") from error
        except httpx.TransportError as error:
            raise _Passing(f"{type(error).__name__}: {error}", kind=type(error).__name__) from error
        self._check(response, path)
        try:
            return read(response.json())
        except (ValueError, KeyError, TypeError, IndexError) as error:
            raise _Passing(
                f"a reply that is not a completion ({type(error).__name__}): {response.text[:_SHOWN]!r}",
                kind="a reply that is not a completion",
            ) from error

    def _check(self, response: httpx.Response, path: str) -> None:
        status = response.status_code
        if status < 400:
            return
        said = f"{status}: {_said(response)}"
        if status in _PASSING or status >= 500:
            raise _Passing(said, _retry_after(response), kind=f"status {status}")
        if status in (401, 403):
            raise ModelError(f"{self._url}{path} refused the key ({said}); expected a valid one in {self._key_origin}.")
        if status == 404:
            raise ModelError(
                f"{self._url}{path} is not there ({said}). Check base_url (it ends in /v1 as a rule) and the names of "
                f"the models: {sorted(set(self._models.values()))}."
            )
        raise ModelError(f"{self._url}{path} refused the request ({said}).")


def _checked_url(base_url: str) -> str:
    try:
        url = httpx.URL(base_url)
    except (httpx.InvalidURL, TypeError) as error:
        raise InputError(f"base_url is {base_url!r} ({error}); expected one like http://localhost:8000/v1") from error
    if url.scheme not in ("http", "https") or not url.host:
        raise InputError(f"base_url is {base_url!r}; expected one like http://localhost:8000/v1")
    return str(url).rstrip("/")


def _read(reply: Any) -> Completion:
    choice, usage = reply["choices"][0], reply.get("usage") or {}
    text = choice["message"]["content"] if "message" in choice else choice["text"]
    if text is not None and not isinstance(text, str):
        raise TypeError(f"the text is {type(text).__name__}")
    return Completion(
        text=text or "",
        prompt_tokens=int(usage.get("prompt_tokens") or 0),
        cached_tokens=int((usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0),
        output_tokens=int(usage.get("completion_tokens") or 0),
        finished=choice.get("finish_reason") != "length",
    )


def _said(response: httpx.Response) -> str:
    """A server's own explanation, without the JSON around it."""
    try:
        found = response.json()
        inner = found.get("error", found)
        text = inner.get("message", inner) if isinstance(inner, dict) else inner
    except (ValueError, AttributeError):
        text = response.text
    return " ".join(str(text).split())[:_SHOWN] or response.reason_phrase


def _retry_after(response: httpx.Response) -> float | None:
    """Seconds that the server asks for; a date instead of seconds is ignored."""
    try:
        return max(0.0, float(response.headers["retry-after"]))
    except (KeyError, ValueError):
        return None
