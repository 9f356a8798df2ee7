"""An LLM judge: what it is asked, how its words are read, and that a judge which fails scores nobody."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from talk import SYSTEMS, TALK, run

from memr1_plugin.agents.engine import Prompt, Role
from memr1_plugin.cli import main
from memr1_plugin.errors import InputError, ModelError
from memr1_plugin.evaluation import report
from memr1_plugin.evaluation.judge import Judge, judge_all, verdict
from memr1_plugin.evaluation.metrics import word_set
from memr1_plugin.evaluation.replies import Reply
from memr1_plugin.testing import ScriptedModel

REPLIES = [
    Reply("a", "c1", "q0", "Where?", "In Rome, with her parents."),
    Reply("a", "c1", "q1", "What?", "Tom"),
    Reply("b", "c1", "q0", "Where?", "", abstained=True),
    Reply("b", "c1", "q2", "Who?", "", abstained=True),
]


def judged(text: str) -> str:
    """Judge by words, as the prompt asks: lenient if a word of the gold is there, strict if all are and no others."""
    gold, answer = re.findall(r"^Gold answer: (.*)\nAnswer to grade: (.*)", text, re.MULTILINE)[0]
    shared, wanted = word_set(gold) & word_set(answer), word_set(gold)
    right = bool(shared) if "generous" in text else wanted == word_set(answer)
    return f'It says {answer!r}. {{"label": "{"CORRECT" if right else "WRONG"}"}}'


def scripted(prompt: Prompt, role: Role) -> str:
    assert role is Role.BASE and prompt.chat
    return judged(prompt.fixed + prompt.body)


def test_lenient_and_strict_judge_differently(tmp_path: Path) -> None:
    """A longer answer about the same place passes the lenient judge alone; an abstention is wrong without a call."""
    model = ScriptedModel(scripted)
    found = judge_all(REPLIES, [TALK], Judge(model), tmp_path)
    assert found["lenient"] == {("a", "c1", "q0"): True, ("a", "c1", "q1"): False, ("b", "c1", "q0"): False}
    assert found["strict"] == {("a", "c1", "q0"): False, ("a", "c1", "q1"): False, ("b", "c1", "q0"): False}
    assert len(model.prompts) == 4


def test_verdicts_are_kept_with_the_words_that_were_judged(tmp_path: Path) -> None:
    """The same answer is judged once by one judge; another answer, another judge or a torn line is judged again."""
    first = judge_all(REPLIES, [TALK], Judge(ScriptedModel(scripted)), tmp_path)
    again = ScriptedModel(scripted)
    assert judge_all(REPLIES, [TALK], Judge(again), tmp_path) == first and again.prompts == []
    changed = [replace(REPLIES[1], text="Rex"), *REPLIES[:1]]
    assert judge_all(changed, [TALK], Judge(again), tmp_path)["strict"]["a", "c1", "q1"]
    assert len(again.prompts) == 2
    judge_all(REPLIES, [TALK], Judge(again, name="another"), tmp_path)
    assert len(again.prompts) == 6
    file = tmp_path / "verdicts.jsonl"
    file.write_text(file.read_text()[:-9])
    assert judge_all(REPLIES, [TALK], Judge(ScriptedModel(scripted)), tmp_path) == first


def test_a_judge_that_fails_raises_and_what_it_said_before_stays(tmp_path: Path) -> None:
    """A failing judge is never a zero: the run stops, and goes on from there."""
    many = [replace(REPLIES[0], system=f"s{n}") for n in range(20)]
    calls = iter(range(100))

    def failing(prompt: Prompt, role: Role) -> str:
        if next(calls) == 12:
            raise ModelError("the judge is away.")
        return scripted(prompt, role)

    with pytest.raises(ModelError, match="away"):
        judge_all(many, [TALK], Judge(ScriptedModel(failing)), tmp_path, kinds=["lenient"])
    rest = ScriptedModel(scripted)
    assert all(judge_all(many, [TALK], Judge(rest), tmp_path, kinds=["lenient"])["lenient"].values())
    assert len(rest.prompts) == 12


@pytest.mark.parametrize(
    "reply", ["", "I am not sure.", '{"label": "PARTLY"}', '{"label": "CORRECT"} or {"label": "WRONG"}']
)
def test_words_that_are_no_verdict_raise(reply: str) -> None:
    """No label, or both, is a failure of the judge and not of the answer."""
    with pytest.raises(ModelError, match=r"wrote (no|both) label"):
        verdict(reply, "m")


def test_labels_are_read_where_models_write_them() -> None:
    """In JSON with or without a fence, in any case, or as the bare word."""
    assert verdict('```json\n{"label":"correct"}\n```') and verdict("CORRECT.") and verdict("**Correct**")
    assert not verdict('{ "label" : "WRONG" }') and not verdict("wrong")


def test_any_langchain_model_judges(tmp_path: Path) -> None:
    """A LangChain runnable is asked in batches; what it raises comes out as this library's error."""
    runnables = pytest.importorskip("langchain_core.runnables")
    messages = pytest.importorskip("langchain_core.messages")
    model = runnables.RunnableLambda(lambda text: messages.AIMessage(judged(text)))
    found = judge_all(REPLIES, [TALK], Judge(model, name="words"), tmp_path, kinds=["lenient"])
    assert found["lenient"]["a", "c1", "q0"]

    def broken(text: str) -> str:
        raise TimeoutError("too slow")

    with pytest.raises(ModelError, match=r"the judge slow failed \(TimeoutError: too slow\)"):
        Judge(runnables.RunnableLambda(broken), name="slow").read("strict", [("q", "g", "a")])
    with pytest.raises(ModelError, match="replied with int"):
        Judge(runnables.RunnableLambda(lambda text: 1)).read("strict", [("q", "g", "a")])


def test_what_is_no_model_is_refused(tmp_path: Path) -> None:
    """And so is a kind of judge that there is not."""
    with pytest.raises(InputError, match="the judge is str"):
        Judge("gpt")
    with pytest.raises(InputError, match="fair is no kind"):
        judge_all([], [TALK], Judge(ScriptedModel(scripted)), tmp_path, kinds=["fair"])  # type: ignore[list-item]


def test_the_table_shows_the_judges_verdicts(tmp_path: Path) -> None:
    """Each kind of judge is a column, with its interval, over the questions that have an answer."""
    pytest.importorskip("nltk", reason="the train extra is not installed")
    done = run(tmp_path, SYSTEMS[:2])
    verdicts = judge_all(done.replies, [TALK], Judge(ScriptedModel(scripted)), tmp_path)
    summary = report.write(done, [TALK], tmp_path, verdicts=verdicts)
    assert summary["systems"][1]["judge"]["lenient"]["mean"] == 1.0
    assert "judge, lenient | judge, strict" in (tmp_path / "table.md").read_text()


@dataclass
class Server:
    """An OpenAI-compatible server that judges by words; `fail` may answer the n-th request instead."""

    url: str = ""
    bodies: list[dict[str, Any]] = field(default_factory=list)
    keys: set[str] = field(default_factory=set)
    fail: Callable[[int], int] = lambda n: 200


@pytest.fixture
def server() -> Iterator[Server]:
    """A server on a free port of loopback."""
    state = Server()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            state.bodies.append(body)
            state.keys.add(self.headers.get("authorization", ""))
            status = state.fail(len(state.bodies))
            message = {"role": "assistant", "content": judged(body["messages"][0]["content"])}
            found = {"choices": [{"message": message, "finish_reason": "stop"}]} if status == 200 else {"error": "no"}
            reply = json.dumps(found).encode()
            self.send_response(status)
            self.send_header("content-length", str(len(reply)))
            self.end_headers()
            self.wfile.write(reply)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    http.daemon_threads = True
    state.url = f"http://127.0.0.1:{http.server_port}/v1"
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield state
    http.shutdown()
    http.server_close()
    thread.join()


def test_a_server_judges_over_http(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Greedy chat completions with the key of the environment; a refusal stops the run and scores nobody."""
    pytest.importorskip("httpx")
    from memr1_plugin.cli.evaluate import _endpoint

    monkeypatch.setenv("JUDGE_KEY", "k")
    server.fail = lambda n: 200 if n <= 2 else 401
    with _endpoint(server.url, "big", "JUDGE_KEY") as judge:
        assert judge_all(REPLIES, [TALK], judge, tmp_path, kinds=["lenient"])["lenient"]["a", "c1", "q0"]
        with pytest.raises(ModelError, match="refused the key"):
            judge_all(REPLIES, [TALK], judge, tmp_path, kinds=["strict"])
        server.fail = lambda n: 200
        assert not judge_all(REPLIES, [TALK], judge, tmp_path, kinds=["strict"])["strict"]["a", "c1", "q0"]
    assert {(b["model"], b["temperature"]) for b in server.bodies} == {("big", 0.0)}
    assert server.keys == {"Bearer k"}
    assert len(server.bodies) == 2 + 2 + 2


def test_half_a_judge_on_the_command_line_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A server without a model, or a kind of judge without a server, is said before anything is asked."""
    monkeypatch.chdir(tmp_path)
    Path("x.jsonl").write_text("{}")
    for words in (["--judge-url", "http://localhost:1/v1"], ["--judge", "strict"]):
        with pytest.raises(SystemExit) as stopped:
            main(["eval", "x.jsonl", "--out", "o", *words])
        assert stopped.value.code == 2 and "both" in capsys.readouterr().err
