"""An LLM as judge: is an answer right, whatever its words? Lenient as in the published tables, or strict.

Off unless asked for, and never a reward or a metric of its own: a model's opinion, kept word for word in
``verdicts.jsonl``. The lenient instructions say what mem0's prompt says, which Memory-R1 prints (Figures 11 and 12), in
our words; the strict ones leave the generosity out, as the paper's authors do for MSC, and ask for every part of the
gold answer. A judge that fails, or whose reply is no verdict, raises `ModelError`: it never makes a zero.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

from memr1_plugin import prompts
from memr1_plugin.agents.engine import Engine, Prompt, Role
from memr1_plugin.errors import InputError, ModelError
from memr1_plugin.evaluation.banks import Progress
from memr1_plugin.evaluation.datasets import Conversation, Question
from memr1_plugin.evaluation.replies import Reply
from memr1_plugin.operations import one_line

Kind = Literal["lenient", "strict"]
KINDS: tuple[Kind, ...] = get_args(Kind)
MAX_TOKENS = 512
"""Room for a reason and a label; models that think before they write need a server that keeps that apart."""
BATCH = 8
"""Verdicts asked for together, and written together."""
_LABEL = re.compile(r'"label"\s*:\s*"(CORRECT|WRONG)"', re.IGNORECASE)

Verdicts = dict[str, dict[tuple[str, str, str], bool]]
"""By kind of judge, then by (system, conversation, question): was the answer called right?"""


@dataclass(frozen=True)
class Verdict:
    """One answer, judged: a line of ``verdicts.jsonl``."""

    kind: Kind
    judge: str
    system: str
    conversation: str
    question: str
    gold: str
    answer: str
    correct: bool
    reply: str
    """What the judge wrote; "" for an abstention, which is wrong without a judge where there is an answer."""

    @property
    def key(self) -> tuple[str, ...]:
        """What was judged: the same words by the same judge are judged once."""
        return (self.kind, self.judge, self.system, self.conversation, self.question, self.gold, self.answer)


class Judge:
    """A language model that says whether answers are right."""

    def __init__(self, model: Any, *, name: str | None = None) -> None:
        """Take a model; nothing is asked yet.

        Args:
            model: a LangChain chat model or Runnable (``invoke``), or an `Engine`, e.g. a `RemoteEngine` on any
                OpenAI-compatible server. Set its temperature to 0.
            name: what the verdicts are kept under; None: what the model calls itself.

        Raises:
            InputError: it is neither.
        """
        if not isinstance(model, Engine) and not callable(getattr(model, "invoke", None)):
            raise InputError(
                f"the judge is {type(model).__name__}; expected a LangChain chat model (invoke) or an Engine, e.g. "
                "RemoteEngine(url, model)."
            )
        self._model = model
        self.name = name or _name(model)

    def read(self, kind: Kind, asked: Sequence[tuple[str, str, str]]) -> list[tuple[bool, str]]:
        """Judge some (question, gold answer, answer); returns for each whether it is right, and the judge's words.

        Raises:
            ModelError: the model failed, or wrote no verdict.
        """
        template = prompts.load(f"judge_{kind}")
        bodies = [template.fill(question=one_line(q), gold=one_line(g), answer=one_line(a)) for q, g, a in asked]
        replies = self._complete(template.fixed, bodies)
        return [(verdict(reply, self.name), reply) for reply in replies]

    def _complete(self, fixed: str, bodies: Sequence[str]) -> list[str]:
        if isinstance(self._model, Engine):
            calls = [Prompt(fixed, body, max_tokens=MAX_TOKENS, chat=True) for body in bodies]
            return [done.text for done in self._model.complete(calls, Role.BASE)]
        texts = [fixed + body for body in bodies]
        try:
            if callable(getattr(self._model, "batch", None)):
                return [_text(reply) for reply in self._model.batch(texts)]
            return [_text(self._model.invoke(text)) for text in texts]
        except ModelError:
            raise
        except Exception as error:
            raise ModelError(
                f"the judge {self.name} failed ({type(error).__name__}: {error}). Verdicts so far are kept; the same "
                "command goes on from there."
            ) from error


def verdict(reply: str, judge: str = "") -> bool:
    """Read a judge's reply: the label in its JSON, or the bare word.

    >>> verdict('Both say 7 May. {"label": "CORRECT"}')
    True

    Raises:
        ModelError: it holds no label, or both.
    """
    labels = {label.upper() for label in _LABEL.findall(reply)}
    if not labels and (bare := reply.strip().strip(".\"'*").upper()) in ("CORRECT", "WRONG"):
        labels = {bare}
    if len(labels) != 1:
        found = "both labels" if labels else "no label"
        raise ModelError(
            f"the judge {judge} wrote {found}: {one_line(reply)[:200]!r}; expected "
            '{"label": "CORRECT"} or {"label": "WRONG"}. Take a model that follows instructions, or one that writes '
            f"its reasoning apart: a reply ends after {MAX_TOKENS} tokens."
        )
    return labels == {"CORRECT"}


def judge_all(
    replies: Sequence[Reply],
    conversations: Sequence[Conversation],
    judge: Judge,
    folder: str | Path,
    *,
    kinds: Sequence[Kind] = KINDS,
    progress: Progress = lambda what, done, of: None,
) -> Verdicts:
    """Judge the answers of a run, keeping each verdict in its folder; those that are there are not asked for again.

    Questions that nothing answers are left out: whether a system abstains needs no judge.
    """
    if unknown := set(kinds) - set(KINDS):
        raise InputError(f"{', '.join(sorted(unknown))} is no kind of judge; expected some of {', '.join(KINDS)}.")
    place = Path(folder) / "verdicts.jsonl"
    known = {(c.id, q.id): q for c in conversations for q in c.questions if not q.unanswerable}
    kept = {v.key: v for v in read(place)}
    found: Verdicts = {}
    for kind in kinds:
        asked = [(r, q) for r in replies if (q := known.get((r.conversation, r.question))) is not None]
        todo = [v for r, q in asked if (v := _open(kind, judge, r, q)).key not in kept]
        with place.open("a", encoding="utf-8") as file:
            for done, part in _judged(judge, kind, [v for v in todo if v.answer], known):
                _write(file, part, kept)
                progress(f"judge, {kind}", done, len(todo))
            _write(file, [v for v in todo if not v.answer], kept)
        wanted = [_open(kind, judge, r, q) for r, q in asked]
        found[kind] = {(v.system, v.conversation, v.question): kept[v.key].correct for v in wanted}
    return found


def _open(kind: Kind, judge: Judge, reply: Reply, question: Question) -> Verdict:
    """The verdict as it stands before a judge has read the answer: an abstention stays wrong."""
    answer = "" if reply.abstained else reply.text
    ids = (reply.system, reply.conversation, reply.question)
    return Verdict(kind, judge.name, *ids, question.answer, answer, False, "")


def _judged(
    judge: Judge, kind: Kind, todo: Sequence[Verdict], known: Mapping[tuple[str, str], Question]
) -> Iterator[tuple[int, list[Verdict]]]:
    for start in range(0, len(todo), BATCH):
        part = todo[start : start + BATCH]
        said = judge.read(kind, [(known[v.conversation, v.question].text, v.gold, v.answer) for v in part])
        pairs = zip(part, said, strict=True)
        yield start + len(part), [replace(v, correct=right, reply=words) for v, (right, words) in pairs]


def _write(file: Any, verdicts: Sequence[Verdict], kept: dict[tuple[str, ...], Verdict]) -> None:
    file.writelines(json.dumps(asdict(v), ensure_ascii=False) + "\n" for v in verdicts)
    file.flush()
    kept.update((v.key, v) for v in verdicts)


def read(place: Path) -> list[Verdict]:
    """Return the verdicts that a file holds; a torn last line (a killed run) is dropped."""
    if not place.exists():
        return []
    lines = place.read_text(encoding="utf-8").splitlines(keepends=True)
    whole = [line for line in lines if line.endswith("\n")]
    if len(whole) < len(lines):
        place.write_text("".join(whole), encoding="utf-8")
    return [Verdict(**json.loads(line)) for line in whole]


def _name(model: Any) -> str:
    for attribute in ("id", "model_name", "model"):
        if isinstance(found := getattr(model, attribute, None), str) and found:
            return found
    return type(model).__name__


def _text(reply: Any) -> str:
    """The text of a string or of a LangChain message, whose content may be blocks."""
    content = getattr(reply, "content", reply)
    if isinstance(content, list):
        content = "".join(b if isinstance(b, str) else str(b.get("text", "")) for b in content)
    if not isinstance(content, str):
        raise ModelError(f"the judge replied with {type(reply).__name__}; expected text, or something with .content.")
    return content
