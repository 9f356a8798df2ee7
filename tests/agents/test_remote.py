"""A real HTTP server on loopback that computes its replies, and fails as servers do; then llama.cpp's own server."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

pytest.importorskip("httpx", reason="the remote extra is not installed")

from memr1_plugin.agents import models
from memr1_plugin.agents.engine import Engine, LoraInfo, Prompt, Role
from memr1_plugin.agents.manager import Manager
from memr1_plugin.agents.remote import RemoteEngine, RemoteOptions
from memr1_plugin.errors import InputError, ModelError
from memr1_plugin.operations import grammar
from memr1_plugin.types import Fact, MemoryItem, OperationKind, Scope

QUICK = RemoteOptions(timeout_s=0.4, connect_timeout_s=0.4, attempts=3, backoff_s=0.01)
PROMPT = Prompt("Say it back.\n", "hello there", max_tokens=7)


@dataclass
class Reply:
    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    after_s: float = 0.0


@dataclass
class Loopback:
    """An OpenAI-compatible server that says the prompt back; `fail` may answer the n-th request instead."""

    url: str = ""
    owner: str = "somebody"
    requests: list[tuple[str, dict[str, str], dict[str, Any]]] = field(default_factory=list)
    fail: Callable[[int], Reply | None] = lambda n: None
    in_flight: int = 0
    most_in_flight: int = 0
    lock: Any = field(default_factory=threading.Lock)

    def answer(self, path: str, headers: dict[str, str], body: dict[str, Any]) -> Reply:
        with self.lock:
            self.requests.append((path, headers, body))
            n = len([p for p, _, _ in self.requests if p != "/v1/models"])
            self.in_flight += 1
            self.most_in_flight = max(self.most_in_flight, self.in_flight)
        try:
            if path == "/v1/models":
                return Reply(body=json.dumps({"data": [{"id": "m", "owned_by": self.owner}]}).encode())
            if (failure := self.fail(n)) is not None:
                time.sleep(failure.after_s)
                if failure.status != 200 or failure.body:
                    return failure
            return Reply(body=json.dumps(completion(path, body)).encode())
        finally:
            with self.lock:
                self.in_flight -= 1


def completion(path: str, body: dict[str, Any]) -> dict[str, Any]:
    """Say the prompt back, no longer than max_tokens words."""
    said = body["messages"][0]["content"] if "messages" in body else body["prompt"]
    spoken = said.split()[: body["max_tokens"]]
    choice: dict[str, Any] = {"finish_reason": "length" if len(spoken) < len(said.split()) else "stop"}
    choice["message" if path.endswith("/chat/completions") else "text"] = (
        {"role": "assistant", "content": " ".join(spoken)} if "messages" in body else " ".join(spoken)
    )
    usage = {"prompt_tokens": len(said.split()), "completion_tokens": len(spoken)}
    return {"choices": [choice], "usage": {**usage, "prompt_tokens_details": {"cached_tokens": 2}}}


@pytest.fixture
def server() -> Iterator[Loopback]:
    """A server on a free port of loopback."""
    loopback = Loopback()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            length = int(self.headers.get("content-length", 0))
            body = json.loads(self.rfile.read(length) or b"{}")
            headers = {name.lower(): value for name, value in self.headers.items()}
            reply = loopback.answer(self.path, headers, body)
            try:
                self.send_response(reply.status)
                for name, value in {**reply.headers, "content-length": str(len(reply.body))}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(reply.body)
            except ConnectionError:  # the client gave up waiting: its right
                self.close_connection = True

        do_GET = do_POST  # noqa: N815

        def log_message(self, format: str, *args: Any) -> None:
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    http.daemon_threads = True
    loopback.url = f"http://127.0.0.1:{http.server_port}/v1"
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield loopback
    http.shutdown()
    http.server_close()
    thread.join()


@pytest.fixture
def engine(server: Loopback) -> Iterator[RemoteEngine]:
    """An impatient engine on the loopback server."""
    engine = RemoteEngine(server.url, "m", options=QUICK)
    yield engine
    engine.close()


def test_plain_prompts_are_continued_and_chat_prompts_are_messages(server: Loopback, engine: RemoteEngine) -> None:
    """A trained prompt goes to /completions as it stands, a zero-shot one to /chat/completions as one user message."""
    [plain] = engine.complete([PROMPT], Role.ANSWER)
    [chat] = engine.complete([Prompt("Say it back.\n", "hello there", chat=True, max_tokens=2)], Role.ANSWER)
    assert (plain.text, plain.finished) == ("Say it back. hello there", True)
    assert (chat.text, chat.finished) == ("Say it", False)
    assert [path for path, _, _ in server.requests] == ["/v1/completions", "/v1/chat/completions"]
    assert (plain.prompt_tokens, plain.cached_tokens, plain.output_tokens) == (5, 2, 5)
    assert all(body["temperature"] == 0 for _, _, body in server.requests)
    assert isinstance(engine, Engine)


def test_each_role_has_its_model(server: Loopback) -> None:
    """vLLM serves a LoRA under a model name of its own; a role that is not named runs on the base."""
    loras = {Role.MANAGER: LoraInfo("mine", "0" * 16)}
    engine = RemoteEngine(server.url, {Role.MANAGER: "lora-m", Role.BASE: "base"}, loras=loras, options=QUICK)
    for role in (Role.MANAGER, Role.ANSWER, Role.BASE):
        engine.complete([PROMPT], role)
    assert [body["model"] for _, _, body in server.requests] == ["lora-m", "base", "base"]
    assert engine.lora(Role.MANAGER) == loras[Role.MANAGER] and engine.lora(Role.ANSWER) is None
    assert engine.id == f"lora-m, base at {server.url}"
    engine.close()


@pytest.mark.parametrize(
    ("owner", "structured", "sent"),
    [
        ("llamacpp", "auto", {"grammar"}),
        ("vllm", "auto", {"structured_outputs", "guided_grammar"}),
        ("somebody", "auto", set()),
        ("somebody", "llama.cpp", {"grammar"}),
        ("somebody", "vllm", {"structured_outputs", "guided_grammar"}),
        ("llamacpp", None, set()),
    ],
)
def test_a_grammar_is_sent_as_the_server_takes_it(
    server: Loopback, owner: str, structured: Any, sent: set[str]
) -> None:
    """The server is asked once what it is; one that does not say gets no field that it may refuse."""
    server.owner = owner
    engine = RemoteEngine(server.url, "m", structured=structured, options=QUICK)
    for _ in range(2):
        engine.complete([Prompt("", "x", grammar='root ::= "a"')], Role.BASE)
    bodies = [body for path, _, body in server.requests if path != "/v1/models"]
    assert all(set(body) - {"model", "max_tokens", "temperature", "stream", "prompt"} == sent for body in bodies)
    assert len(server.requests) - len(bodies) == (structured == "auto")
    engine.close()


@pytest.mark.parametrize("status", [429, 500, 502, 503, 408])
def test_failures_that_pass_are_tried_again(server: Loopback, engine: RemoteEngine, status: int) -> None:
    """Two overloaded replies and then a good one are a good one."""
    server.fail = lambda n: Reply(status, b"busy") if n < 3 else None
    assert engine.complete([PROMPT], Role.BASE)[0].text == "Say it back. hello there"
    assert len(server.requests) == 3


def test_a_server_that_keeps_failing_is_an_error_with_its_words(server: Loopback, engine: RemoteEngine) -> None:
    """After the last attempt the error names the address, the count and what the server said."""
    server.fail = lambda n: Reply(500, b'{"error": {"message": "CUDA out of memory"}}')
    with pytest.raises(ModelError, match=r"127\.0\.0\.1.*failed 3 times.*500: CUDA out of memory"):
        engine.complete([PROMPT], Role.BASE)


def test_a_time_out_is_tried_again(server: Loopback, engine: RemoteEngine) -> None:
    """A reply that does not come in time is asked for again, and comes."""
    server.fail = lambda n: Reply(after_s=0.8) if n == 1 else None
    assert engine.complete([PROMPT], Role.BASE)[0].text == "Say it back. hello there"


def test_a_server_that_never_replies_is_an_error(server: Loopback) -> None:
    """The error says how long it was waited for."""
    server.fail = lambda n: Reply(after_s=0.5)
    options = RemoteOptions(timeout_s=0.1, attempts=2, backoff_s=0.01)
    engine = RemoteEngine(server.url, "m", options=options)
    with pytest.raises(ModelError, match=r"failed 2 times.*no reply within 0\.1 s"):
        engine.complete([PROMPT], Role.BASE)
    engine.close()


@pytest.mark.parametrize(
    "torn", [b'{"choices": [{"te', b"<html>gateway</html>", b'{"choices": []}', b"[]", b'{"choices": [{"text": 7}]}']
)
def test_a_torn_reply_is_tried_again_and_never_taken_for_text(
    server: Loopback, engine: RemoteEngine, torn: bytes
) -> None:
    """Half a reply with status 200, as a dying proxy sends it, is a failure, not a completion."""
    server.fail = lambda n: Reply(body=torn) if n == 1 else None
    assert engine.complete([PROMPT], Role.BASE)[0].text == "Say it back. hello there"
    server.fail = lambda n: Reply(body=torn)
    with pytest.raises(ModelError, match="not a completion"):
        engine.complete([PROMPT], Role.BASE)


@pytest.mark.parametrize(
    ("status", "message"), [(400, "refused the request"), (401, "OPENAI_API_KEY"), (404, r"ends in /v1.*\['m'\]")]
)
def test_refusals_are_errors_at_once(server: Loopback, engine: RemoteEngine, status: int, message: str) -> None:
    """What will not pass is not tried again, and the error says what to change."""
    server.fail = lambda n: Reply(status, b'{"error": {"message": "no such thing"}}')
    with pytest.raises(ModelError, match=rf"(?s)no such thing.*|{message}") as caught:
        engine.complete([PROMPT], Role.BASE)
    assert len(server.requests) == 1
    caught.match(message)


def test_nobody_listening_is_an_error() -> None:
    """A server that is down is tried a few times and then named."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    engine = RemoteEngine(f"http://127.0.0.1:{port}/v1", "m", options=QUICK)
    with pytest.raises(ModelError, match=rf":{port}/v1/completions failed 3 times.*ConnectError"):
        engine.complete([PROMPT], Role.BASE)
    engine.close()


def test_a_server_says_when_to_come_back(server: Loopback, engine: RemoteEngine) -> None:
    """Retry-After is obeyed; a date or nonsense in it is not waited for."""
    server.fail = lambda n: Reply(429, b"", {"retry-after": "0.3"}) if n == 1 else None
    start = time.monotonic()
    engine.complete([PROMPT], Role.BASE)
    assert time.monotonic() - start >= 0.3
    server.requests.clear()
    server.fail = lambda n: Reply(429, b"", {"retry-after": "Wed, 21 Oct 2026 07:28:00 GMT"}) if n == 1 else None
    assert engine.complete([PROMPT], Role.BASE)[0].text


def test_no_more_requests_fly_than_allowed(server: Loopback) -> None:
    """Thirty prompts of three threads keep to the limit, come back in order, and do use it."""
    server.fail = lambda n: Reply(after_s=0.02)
    engine = RemoteEngine(server.url, "m", options=RemoteOptions(concurrency=4))
    found: dict[int, list[str]] = {}

    def ask(thread: int) -> None:
        prompts = [Prompt("", f"thread {thread} prompt {n}") for n in range(10)]
        found[thread] = [c.text for c in engine.complete(prompts, Role.BASE)]

    threads = [threading.Thread(target=ask, args=(n,)) for n in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {t: [f"thread {t} prompt {n}" for n in range(10)] for t in range(3)}
    assert 2 <= server.most_in_flight <= 4
    engine.close()


def test_the_key_is_sent_and_never_told(server: Loopback, monkeypatch: pytest.MonkeyPatch) -> None:
    """The key comes from the environment or a callback, is asked for each time, and is in no error message."""
    monkeypatch.setenv("OPENAI_API_KEY", "from-environment")
    keys = iter(["first", "second"])
    for engine, expected in (
        (RemoteEngine(server.url, "m", options=QUICK), ["from-environment"] * 2),
        (RemoteEngine(server.url, "m", api_key=lambda: next(keys), options=QUICK), ["first", "second"]),
    ):
        server.requests.clear()
        engine.complete([PROMPT], Role.BASE)
        server.fail = lambda n: Reply(401, b"bad key")
        with pytest.raises(ModelError) as caught:
            engine.complete([PROMPT], Role.BASE)
        server.fail = lambda n: None
        assert [headers["authorization"] for _, headers, _ in server.requests] == [f"Bearer {k}" for k in expected]
        assert not any(key in str(caught.value) for key in expected)
        engine.close()


def test_a_closed_engine_says_so(server: Loopback, engine: RemoteEngine) -> None:
    """After close, one prompt and many are refused."""
    engine.close()
    for prompts in ([PROMPT], [PROMPT] * 2):
        with pytest.raises(ModelError, match="closed"):
            engine.complete(prompts, Role.BASE)


def test_closing_ends_the_wait_for_another_attempt(server: Loopback) -> None:
    """A call that waits out a failing server ends when the engine is closed, not a minute later."""
    server.fail = lambda n: Reply(503, b"", {"retry-after": "15"})
    engine = RemoteEngine(server.url, "m")
    errors: list[ModelError] = []

    def ask() -> None:
        try:
            engine.complete([PROMPT], Role.BASE)
        except ModelError as error:
            errors.append(error)

    thread = threading.Thread(target=ask)
    thread.start()
    while not server.requests:
        time.sleep(0.01)
    engine.close()
    thread.join(timeout=5)
    assert not thread.is_alive() and "closed" in str(errors[0])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"base_url": "localhost:8000", "models": "m"}, "http://localhost:8000/v1"),
        ({"base_url": "http://x/v1", "models": {Role.MANAGER: "m"}}, "manager and answer, or base"),
        ({"base_url": "http://x/v1", "models": {}}, "manager and answer, or base"),
        ({"base_url": "http://x/v1", "models": "m", "structured": "json"}, "llama.cpp"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_is_sent(arguments: dict[str, Any], message: str) -> None:
    """An address without http, a role without a model and an unknown dialect are input errors."""
    with pytest.raises(InputError, match=message):
        RemoteEngine(**arguments)


@pytest.mark.parametrize("options", [{"attempts": 0}, {"concurrency": 0}, {"timeout_s": 0}])
def test_impossible_options_are_refused(options: dict[str, Any]) -> None:
    """No attempts, no requests and no time are input errors."""
    with pytest.raises(InputError, match="expected"):
        RemoteOptions(**options)


@pytest.mark.real
def test_llama_cpps_own_server_serves_both_agents(monday: Any) -> None:
    """On a real server with the real model: grammars hold, prefixes are cached, errors are told."""
    xllamacpp = pytest.importorskip("xllamacpp", reason="the cpu extra is not installed")
    weights = models.in_wheel(models.SMOLLM2)
    if weights is None:
        pytest.skip(f"no weights: {models.PIP_LINE}")
    params = xllamacpp.CommonParams()
    params.model.path, params.n_ctx, params.verbosity = str(weights), 1024, -1
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
    params.cache_ram_mib, params.ui = 0, False
    params.api_keys = ["right"]
    server = xllamacpp.Server(params)
    engine = RemoteEngine(f"{server.listening_address}/v1", "any", api_key=lambda: "right")
    item = MemoryItem(7, Scope(), "I live in Paris.", "Ana", monday, created_at=monday, updated_at=monday)
    fact = Fact("I moved to Berlin.", "Ana", monday)
    decision = Manager(engine).decide([fact], [[item]])
    assert not decision.rejections and isinstance(decision.operations[-1].kind, OperationKind)
    again = Manager(engine).decide([fact], [[item]])
    assert again.operations == decision.operations
    assert again.completion is not None and again.completion.cached_tokens > 100
    [one] = engine.complete([Prompt("", "I am", grammar=grammar(1, 0), max_tokens=8)], Role.MANAGER)
    assert one.text in ("ADD", "NOOP")
    with pytest.raises(ModelError, match=r"refused the request.*grammar"):
        engine.complete([Prompt("", "I am", grammar="root ::= nothing")], Role.BASE)
    with pytest.raises(ModelError, match=r"refused the request.*context size"):
        engine.complete([Prompt("", "again and " * 2000)], Role.BASE)
    engine.close()
    stranger = RemoteEngine(f"{server.listening_address}/v1", "any", api_key=lambda: "wrong", options=QUICK)
    with pytest.raises(ModelError, match=r"refused the key.*api_key callback"):
        stranger.complete([PROMPT], Role.BASE)
    stranger.close()
