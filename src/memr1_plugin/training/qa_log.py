"""A bot's own logs as training data: importers into conversations with questions, and a check before training.

The schema is the JSONL of `evaluation.datasets`, which reads LoCoMo and LongMemEval too; here are the other sources (a
bank's journal and feedback, OpenAI chat JSONL, LangChain dumps, LlamaIndex chat stores) and `check`, which counts
what a run would train on and names what should stop it. A bad line is an error with its number and field: a run never
trains on half a file.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

from memr1_plugin.bank.bank import Bank
from memr1_plugin.errors import DataError, InputError, MissingExtraError
from memr1_plugin.evaluation.datasets import Conversation, Question, load
from memr1_plugin.json_files import loads, text_of
from memr1_plugin.types import Answer, Scope, Turn

FORMATS = ("auto", "openai", "langchain", "llama-index", "locomo", "longmemeval")
UNDATED = datetime(2000, 1, 1, tzinfo=timezone.utc)
"""When messages without a time were said: a minute after each other from here on. `check` reports them."""
_LANGCHAIN_ROLES = {"human": "user", "ai": "assistant", "system": "system", "tool": "tool"}


def read(path: str | Path, format: str = "auto") -> list[Conversation]:
    """Read a file of conversations.

    Args:
        format: "auto", "locomo" and "longmemeval" for this project's JSONL, LoCoMo and LongMemEval, which are told
            apart by their keys; the others are chats without questions.

    Raises:
        DataError: a line that cannot be used, by its number and field.
    """
    if format in ("auto", "locomo", "longmemeval"):
        return load(path)
    if format not in _READERS:
        raise InputError(f"the format is {format!r}; expected one of {', '.join(FORMATS)}.")
    found = list(_READERS[format](Path(path)))
    if not found:
        raise DataError(f"{path} is empty; expected at least one conversation.")
    return found


def read_all(paths: Iterable[str | Path], format: str = "auto") -> list[Conversation]:
    """Read several files; an id that two of them share is a `DataError`, for nobody could tell whose it is."""
    found: dict[str, tuple[str | Path, Conversation]] = {}
    for path in paths:
        for one in read(path, format):
            if one.id in found:
                raise DataError(f"{found[one.id][0]} and {path} both have a conversation {one.id!r}; rename one.")
            found[one.id] = (path, one)
    return [one for _, one in found.values()]


# ── one's own bank ───────────────────────────────────────────────────────────────────────────────────────────


def from_bank(bank: Bank) -> list[Conversation]:
    """Each scope's journal, with what users said the right answers were (`memory.feedback`)."""
    found = []
    for scope in bank.scopes():
        turns = bank.turns(scope)
        if turns:
            known = {turn.id for turn in turns}
            asked = [_from_feedback(n, a, c, known) for n, (a, c) in enumerate(bank.feedback(scope))]
            speakers = tuple(dict.fromkeys(turn.speaker for turn in turns))
            found.append(Conversation(scope.key, speakers, tuple(turns), tuple(asked)))
    return found


def _from_feedback(number: int, answer: Answer, correct: str, known: set[str]) -> Question:
    """A corrected answer as a question. What the agent used is evidence only if its answer was right."""
    right = answer.text.strip().casefold() == correct.strip().casefold()
    evidence = tuple(t for item in answer.selected for t in item.turn_ids if t in known) if right else ()
    return Question(
        answer.id or f"feedback-{number}",
        answer.question,
        correct,
        "feedback",
        evidence,
        answer.asked_at,
        unanswerable=not correct.strip(),
    )


# ── chats ────────────────────────────────────────────────────────────────────────────────────────────────────


def _openai(path: Path) -> Iterator[Conversation]:
    """OpenAI chat JSONL: one ``{"messages": [{"role", "content"}, ...]}`` a line."""
    for number, row in _jsonl(path):
        where = f"{path}: line {number}"
        messages = _need(row, "messages", list, where)
        name = str(row.get("id") or row.get("conversation_id") or f"{path.stem}-{number}")
        yield _chat(name, [_openai_message(m, f"{where}, message {n}") for n, m in enumerate(messages)], where)


def _openai_message(row: Any, where: str) -> dict[str, Any]:
    role = _need(row, "role", str, where)
    return {"role": "system" if role == "developer" else role, "text": _text(row.get("content"), where), "row": row}


def _langchain(path: Path) -> Iterator[Conversation]:
    """LangChain's `messages_to_dict`: a list of ``{"type", "data": {"content"}}``, whole or one list a line."""
    for number, rows in _lists(path):
        where = f"{path}: line {number}"
        found = []
        for n, row in enumerate(rows):
            place = f"{where}, message {n}"
            kind, data = _need(row, "type", str, place), _need(row, "data", dict, place)
            if kind not in _LANGCHAIN_ROLES:
                raise DataError(f'{place}: "type" is {kind!r}; expected one of {sorted(_LANGCHAIN_ROLES)}.')
            found.append({"role": _LANGCHAIN_ROLES[kind], "text": _text(data.get("content"), place), "row": data})
        yield _chat(f"{path.stem}-{number}", found, where)


def _llama_index(path: Path) -> Iterator[Conversation]:
    """LlamaIndex's `SimpleChatStore.persist`: ``{"store": {key: [{"role", "blocks" | "content"}, ...]}}``."""
    row = loads(text_of(path), f"{path}")
    store = _need(row, "store", dict, str(path))
    for key, messages in store.items():
        where = f"{path}: store {key!r}"
        found = []
        for n, message in enumerate(messages):
            place = f"{where}, message {n}"
            content = message.get("blocks", message.get("content"))
            found.append({"role": _need(message, "role", str, place), "text": _text(content, place), "row": message})
        yield _chat(str(key), found, where)


_READERS: dict[str, Callable[[Path], Iterator[Conversation]]] = {
    "openai": _openai,
    "langchain": _langchain,
    "llama-index": _llama_index,
}


def _chat(name: str, messages: Sequence[Mapping[str, Any]], where: str) -> Conversation:
    """A conversation from messages; empty ones (tool calls) are left out."""
    scope, turns = Scope(user=name), []
    for n, message in enumerate(messages):
        if not message["text"].strip():
            continue
        at = _time(message["row"], f"{where}, message {n}") or UNDATED + timedelta(minutes=n)
        speaker = str(message["row"].get("name") or message["role"])
        try:
            turns.append(Turn(message["text"], speaker, scope, at, f"{name}/{n}", message["role"]))
        except InputError as error:
            raise DataError(f"{where}, message {n}: {error}") from error
    return Conversation(name, tuple(dict.fromkeys(t.speaker for t in turns)), tuple(turns))


def _time(row: Mapping[str, Any], where: str) -> datetime | None:
    """The time of a message: "time", "timestamp" or "created_at", as ISO 8601 or seconds."""
    extra = row.get("additional_kwargs") or {}
    for key in ("time", "timestamp", "created_at"):
        value = row.get(key, extra.get(key) if isinstance(extra, Mapping) else None)
        if value is None:
            continue
        try:
            if isinstance(value, (int, float)):
                return datetime.fromtimestamp(value, tz=timezone.utc)
            return datetime.fromisoformat(re.sub(r"[zZ]$", "+00:00", value))
        except (TypeError, ValueError, OverflowError, OSError) as error:
            raise DataError(f'{where}: "{key}" is {value!r}; expected ISO 8601 or seconds since 1970.') from error
    return None


def _text(content: Any, where: str) -> str:
    """The text of a message: a string, or the text parts of a list of parts. None is a call of a tool."""
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        return " ".join(p if isinstance(p, str) else str(p.get("text") or "") for p in content).strip()
    raise DataError(f'{where}: "content" is {type(content).__name__}; expected str, or a list of parts.')


def _need(row: Any, key: str, kind: type, where: str) -> Any:
    if not isinstance(row, Mapping):
        raise DataError(f"{where} is {type(row).__name__}; expected an object with {key!r}.")
    if not isinstance(row.get(key), kind):
        found = f"is {type(row[key]).__name__}" if key in row else "is missing"
        raise DataError(f'{where}: "{key}" {found}; expected {kind.__name__}.')
    return row[key]


def _jsonl(path: Path) -> Iterator[tuple[int, Any]]:
    yield from _lines(path, text_of(path))


def _lines(path: Path, text: str) -> Iterator[tuple[int, Any]]:
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            yield number, loads(line, f"{path}: line {number}")


def _lists(path: Path) -> Iterator[tuple[int, list[Any]]]:
    """One list of messages for the whole file, or one a line."""
    text = text_of(path)
    try:
        whole = loads(text, str(path))
    except DataError:  # not one value: a list a line, or broken, which the lines will say
        whole = None
    rows = [(1, whole)] if isinstance(whole, list) and whole and isinstance(whole[0], Mapping) else _lines(path, text)
    for number, row in rows:
        if not isinstance(row, list):
            raise DataError(f"{path}: line {number} is {type(row).__name__}; expected a list of messages.")
        yield number, row


# ── the check ────────────────────────────────────────────────────────────────────────────────────────────────

PII = {
    "email": re.compile(r"[\w.+-]+@[\w-]+\.[\w.]{2,}"),
    "phone": re.compile(r"(?<![\w.])\+?\d[\d ()/-]{7,}\d(?![\w.])"),
    "card": re.compile(r"(?<!\d)(?:\d{4}[ -]?){3}\d{4}(?!\d)"),
    "iban": re.compile(r"\b[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){3,7}\b"),
    "ip": re.compile(r"(?<![\d.])(?:\d{1,3}\.){3}\d{1,3}(?![\d.])"),
    "secret": re.compile(r"\b(?:sk|ghp|xox[bap]|AKIA)[-_A-Za-z0-9]{16,}\b"),
}
"""What must not be trained on unseen, where the libraries of the extra ``redact`` are not installed: a hint."""


def pii_finder() -> Callable[[str], Iterable[str]]:
    """A function from a text to the kinds of personal data and secrets in it: the redaction libraries', or `PII`."""
    try:
        from memr1_plugin.redaction import LibraryRedactor
    except MissingExtraError:
        return lambda text: [kind for kind, pattern in PII.items() if pattern.search(text)]
    found = LibraryRedactor("all")
    return lambda text: dict.fromkeys(kind.lower() for kind in found.kinds(text))


def redacted(conversations: Iterable[Conversation], redact: Callable[[str], str]) -> list[Conversation]:
    """The conversations with `redact` applied to every turn, question and answer."""
    return [
        replace(
            c,
            turns=tuple(replace(t, text=redact(t.text)) for t in c.turns),
            questions=tuple(replace(q, text=redact(q.text), answer=redact(q.answer)) for q in c.questions),
        )
        for c in conversations
    ]


@dataclass(frozen=True)
class Hit:
    """A turn, or a question with its answer, that looks as if it held personal data."""

    kind: str
    conversation: str
    turn: str
    """Its id, or the question's."""


@dataclass(frozen=True)
class Report:
    """What a run would train on, and what is wrong with it."""

    conversations: int
    turns: int
    questions: int
    categories: Mapping[str, int]
    unanswerable: int
    unlinked: tuple[str, ...]
    """Ids of questions without evidence: they are linked by retrieval, which guesses."""
    duplicate_turns: int
    duplicate_questions: tuple[str, ...]
    """Ids of questions asked before, in the same words, in the same conversation."""
    undated: tuple[str, ...]
    """Conversations whose messages had no time: "when" questions about them teach nothing."""
    leaks: tuple[str, ...]
    """Conversations that stand in a held-out split too, by id or by half of their turns."""
    pii: tuple[Hit, ...]

    @property
    def blocking(self) -> list[str]:
        """Reasons not to train, in words; empty when there are none."""
        found = []
        if not self.questions:
            found.append("no question: nothing says what a right answer is. Add questions, or feedback to a bank.")
        if self.leaks:
            found.append(f"{len(self.leaks)} conversations are in the held-out split too, {self.leaks[0]!r} first.")
        return found

    def to_json(self) -> dict[str, Any]:
        """Return what `memr1 data check --json` prints."""
        return {**asdict(self), "blocking": self.blocking}


def check(conversations: Iterable[Conversation], held_out: Iterable[Conversation] = ()) -> Report:
    """Count and inspect `conversations`; `held_out` are those that a run validates or is tested on."""
    told = list(conversations)
    questions = [q for c in told for q in c.questions]
    texts = Counter((c.id, t.speaker, t.at, t.text) for c in told for t in c.turns)
    return Report(
        conversations=len(told),
        turns=sum(len(c.turns) for c in told),
        questions=len(questions),
        categories=dict(Counter(q.category or "(none)" for q in questions)),
        unanswerable=sum(q.unanswerable for q in questions),
        unlinked=tuple(q.id for q in questions if not q.evidence and not q.unanswerable),
        duplicate_turns=sum(n - 1 for n in texts.values()),
        duplicate_questions=tuple(_repeated(told)),
        undated=tuple(c.id for c in told if c.turns and c.turns[0].at.year == UNDATED.year),
        leaks=tuple(_leaks(told, list(held_out))),
        pii=tuple(_hits(told)),
    )


def _repeated(conversations: Sequence[Conversation]) -> Iterator[str]:
    for conversation in conversations:
        seen: set[str] = set()
        for question in conversation.questions:
            words = " ".join(question.text.lower().split())
            if words in seen:
                yield question.id
            seen.add(words)


def _leaks(told: Sequence[Conversation], held_out: Sequence[Conversation]) -> Iterator[str]:
    ids = {c.id for c in held_out}
    said = {t.text for c in held_out for t in c.turns if len(t.text.split()) > 5}
    for conversation in told:
        long = [t.text for t in conversation.turns if len(t.text.split()) > 5]
        if conversation.id in ids or (long and sum(text in said for text in long) * 2 >= len(long)):
            yield conversation.id


def _hits(conversations: Sequence[Conversation]) -> Iterator[Hit]:
    find = pii_finder()
    for conversation in conversations:
        texts = [(t.id, t.text) for t in conversation.turns]
        texts += [(q.id, f"{q.text} {q.answer}") for q in conversation.questions]
        for name, text in texts:
            yield from (Hit(kind, conversation.id, name) for kind in find(text))
