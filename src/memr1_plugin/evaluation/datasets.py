"""Conversations with questions, from the files that hold them: LoCoMo, LongMemEval, and the project's own JSONL.

What a score is belongs to `metrics`, which split is train belongs to the caller. Loaders repair only what is known to
be broken in the published files (each repair is named where it is made); anything else that is wrong is a
`DataError` that names the line and the field, because half a file is worse than none.

The project's JSONL has one conversation a line; "?" marks what may be left out:

    {"conversation": "c1",
     "turns": [{"id": "t1", "speaker": "Ana", "text": "I moved to Rome.", "time": "2026-05-08T13:56:00+00:00",
                "role"?: "user" | "assistant" | "system" | "tool", "session"?: "monday"}],
     "questions"?: [{"id"?: "c1_q0", "question": "Where does Ana live?", "answer": "Rome", "evidence"?: ["t1"],
                     "asked_at"?: "2026-06-01", "category"?: "single-hop", "unanswerable"?: false}]}

Times are ISO 8601 and UTC where they name no zone. "asked_at" is the last turn's time where it is absent. The answer of
an unanswerable question may be "". Evidence lists the ids of the turns that the answer rests on.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from itertools import chain
from pathlib import Path
from typing import Any

from memr1_plugin.dates import MONTHS
from memr1_plugin.errors import DataError, InputError
from memr1_plugin.json_files import loads, text_of
from memr1_plugin.types import Scope, Turn, aware


@dataclass(frozen=True)
class Question:
    """One question about a conversation, its gold answer, and the turns that the answer rests on."""

    id: str
    text: str
    answer: str
    category: str = ""
    """LoCoMo: "1" to "5" (the paper prints 1 as single hop, 2 temporal, 3 multi-hop, 4 open domain, 5 is
    adversarial). LongMemEval: its question type."""
    evidence: tuple[str, ...] = ()
    """Turn ids. Empty where the file names none."""
    asked_at: datetime | None = None
    unanswerable: bool = False
    """True when the right answer is to abstain."""
    adversarial: str = ""
    """LoCoMo category 5: the wrong answer that the question invites."""


@dataclass(frozen=True)
class Conversation:
    """A dialogue over some sessions, and the questions asked about it."""

    id: str
    speakers: tuple[str, ...]
    turns: tuple[Turn, ...]
    questions: tuple[Question, ...] = ()

    @property
    def scope(self) -> Scope:
        """The scope that all its turns carry: conversations never see each other."""
        return Scope(user=self.id)


def load(path: str | Path) -> list[Conversation]:
    """Read `path`, whichever of the known formats it is in.

    Raises:
        DataError: the file has a bad line, or no known format.
    """
    rows = _rows(Path(path))
    first = rows[0][1]
    for key, convert in _FORMATS.items():
        if key in first:
            conversations = [convert(row, where) for where, row in rows]
            _unique((c.id for c in conversations), f"{path}: conversation ids")
            return conversations
    raise DataError(
        f"{path}: no known format: its first object has the keys {sorted(first)[:12]}. Expected LoCoMo (qa), "
        "LongMemEval (question_id) or this project's JSONL (conversation, turns)."
    )


def save(conversations: Iterable[Conversation], path: str | Path) -> None:
    """Write `conversations` as the project's JSONL; `load` reads equal ones back."""
    with Path(path).open("w", encoding="utf-8") as file:
        for conversation in conversations:
            file.write(json.dumps(to_json(conversation), ensure_ascii=False) + "\n")


def to_json(conversation: Conversation) -> dict[str, Any]:
    """Return one line of the project's JSONL as a dict."""
    turns = [
        {
            "id": t.id,
            "speaker": t.speaker,
            "text": t.text,
            "time": t.at.isoformat(),
            "role": t.role,
            "session": t.session,
        }
        for t in conversation.turns
    ]
    questions = []
    for q in conversation.questions:
        row: dict[str, Any] = {"id": q.id, "question": q.text, "answer": q.answer, "category": q.category}
        row |= {"evidence": list(q.evidence), "unanswerable": q.unanswerable, "adversarial": q.adversarial}
        questions.append(row | ({"asked_at": q.asked_at.isoformat()} if q.asked_at else {}))
    return {
        "conversation": conversation.id,
        "speakers": list(conversation.speakers),
        "turns": turns,
        "questions": questions,
    }


def correct(conversations: Sequence[Conversation], errata: str | Path) -> list[Conversation]:
    """Return `conversations` with the wrong gold answers and citations of an errata file put right.

    The file is locomo-audit's (one JSON object a line). Published scores use the uncorrected answers, so report
    the corrected ones as a second figure.
    """
    fixes = {row["id"]: (where, row) for where, row in _jsonl(Path(errata))}
    return [replace(c, questions=tuple(_corrected(q, c, fixes) for q in c.questions)) for c in conversations]


def wrong_golds(errata: str | Path) -> set[str]:
    """Return the ids of the questions whose published answer an errata file calls wrong."""
    return {row["id"] for where, row in _jsonl(Path(errata)) if _field(row, "affects_score", bool, where)}


def _corrected(question: Question, conversation: Conversation, fixes: Mapping[str, tuple[str, Any]]) -> Question:
    if question.id not in fixes:
        return question
    where, row = fixes[question.id]
    answer = question.answer
    if _field(row, "affects_score", bool, where) and row.get("correct_answer") is not None:
        answer = str(row["correct_answer"])
    evidence = clean_evidence(row.get("correct_evidence") or [], {t.id for t in conversation.turns})
    return replace(question, answer=answer, evidence=evidence or question.evidence)


def _rows(path: Path) -> list[tuple[str, Any]]:
    """Return (where, object) for each object of a JSON list, a single JSON object, or JSON lines."""
    text = text_of(path)
    try:
        whole = json.loads(text)
    except RecursionError as error:
        raise DataError(f"{path} nests too deep; expected conversations.") from error
    except ValueError as error:  # not one value: a value a line, or broken
        if not isinstance(error, json.JSONDecodeError):
            raise DataError(f"{path} is no JSON that can be read: {error}.") from error
        if text.lstrip().startswith("[") and error.msg != "Extra data":
            raise DataError(f"{path}: line {error.lineno} is no JSON: {error.msg}.") from error
        rows = list(_jsonl(path))
    else:
        rows = [(f"{path}: entry {n}", row) for n, row in enumerate(whole if isinstance(whole, list) else [whole], 1)]
    if not rows:
        raise DataError(f"{path} is empty; expected at least one conversation.")
    for where, row in rows:
        if not isinstance(row, dict):
            raise DataError(f"{where} is {type(row).__name__}; expected an object.")
    return rows


def _jsonl(path: Path) -> Iterator[tuple[str, Any]]:
    for number, line in enumerate(text_of(path).split("\n"), 1):
        if line.strip():
            yield f"{path}: line {number}", loads(line, f"{path}: line {number}")


def _field(row: Mapping[str, Any], key: str, kind: type, where: str, default: Any = None) -> Any:
    """Return ``row[key]`` if it is of `kind`, `default` (if given) where it is absent; else `DataError`."""
    if key not in row and default is not None:
        return default
    if not isinstance(row.get(key), kind):
        found = f"is {type(row[key]).__name__}" if key in row else "is missing"
        raise DataError(f'{where}: "{key}" {found}; expected {kind.__name__}.')
    return row[key]


def _unique(ids: Iterable[str], what: str) -> None:
    seen: set[str] = set()
    for one in ids:
        if one in seen:
            raise DataError(f"{what}: {one!r} stands twice; each id names one thing.")
        seen.add(one)


def _turn(where: str, **fields: Any) -> Turn:
    try:
        return Turn(**fields)
    except InputError as error:
        raise DataError(f"{where}: {error}") from error


_KEYS = {"conversation", "speakers", "turns", "questions"}
_TURN_KEYS = {"id", "speaker", "text", "time", "role", "session"}
_QUESTION_KEYS = {"id", "question", "answer", "evidence", "asked_at", "category", "unanswerable", "adversarial"}


def _own(row: Mapping[str, Any], where: str) -> Conversation:
    _known(row, _KEYS, where)
    name = _field(row, "conversation", str, where)
    turns = [_own_turn(t, name, f"{where}, turn {n}") for n, t in enumerate(_field(row, "turns", list, where), 1)]
    _unique((t.id for t in turns), f"{where}, turn ids")
    ids, last = {t.id for t in turns}, turns[-1].at if turns else None
    questions = [
        _own_question(q, f"{name}_q{n}", ids, last, f"{where}, question {n + 1}")
        for n, q in enumerate(_field(row, "questions", list, where, default=[]))
    ]
    _unique((q.id for q in questions), f"{where}, question ids")
    speakers = _field(row, "speakers", list, where, default=list(dict.fromkeys(t.speaker for t in turns)))
    return Conversation(name, tuple(speakers), tuple(turns), tuple(questions))


def _known(row: Any, keys: set[str], where: str) -> None:
    if not isinstance(row, dict):
        raise DataError(f"{where} is {type(row).__name__}; expected an object with the keys {sorted(keys)}.")
    if extra := sorted(set(row) - keys):
        raise DataError(f"{where}: unknown field {extra[0]!r}; expected some of {sorted(keys)}.")


def _own_turn(row: Any, conversation: str, where: str) -> Turn:
    _known(row, _TURN_KEYS, where)
    return _turn(
        where,
        text=_field(row, "text", str, where),
        speaker=_field(row, "speaker", str, where),
        scope=Scope(user=conversation),
        at=_iso(_field(row, "time", str, where), "time", where),
        id=_field(row, "id", str, where),
        role=_field(row, "role", str, where, default="user"),
        session=_field(row, "session", str, where, default=""),
    )


def _own_question(row: Any, default_id: str, turn_ids: set[str], last: datetime | None, where: str) -> Question:
    _known(row, _QUESTION_KEYS, where)
    evidence = _field(row, "evidence", list, where, default=[])
    if lost := [e for e in evidence if e not in turn_ids]:
        raise DataError(f'{where}: "evidence" names {lost[0]!r}, which no turn of this conversation has as its id.')
    unanswerable = _field(row, "unanswerable", bool, where, default=False)
    return Question(
        id=_field(row, "id", str, where, default=default_id),
        text=_field(row, "question", str, where),
        answer=_field(row, "answer", str, where, default="" if unanswerable else None),
        category=_field(row, "category", str, where, default=""),
        evidence=tuple(evidence),
        asked_at=_iso(row["asked_at"], "asked_at", where) if "asked_at" in row else last,
        unanswerable=unanswerable,
        adversarial=_field(row, "adversarial", str, where, default=""),
    )


def _iso(value: Any, key: str, where: str) -> datetime:
    try:
        return aware(datetime.fromisoformat(re.sub(r"[zZ]$", "+00:00", value)))  # Python 3.10 knows no "Z"
    except (TypeError, ValueError) as error:
        raise DataError(f'{where}: "{key}" is {value!r}; expected ISO 8601, e.g. "2026-05-08T13:56:00".') from error


# LoCoMo (Maharana et al., ACL 2024)
_LOCOMO_TIME = re.compile(r"(\d{1,2}):(\d\d) (am|pm) on (\d{1,2}) (\w+), (\d{4})")
_DIA_ID = re.compile(r"D:?(\d+):(\d+)")


def clean_evidence(evidence: Iterable[str], turn_ids: set[str]) -> tuple[str, ...]:
    """Return the turn ids that a LoCoMo evidence list means.

    Nine entries of the published file hold several ids ("D8:6; D9:17"), a stray colon ("D:11:26"), a zero
    ("D30:05"), no number ("D") or a turn that does not exist ("D4:36").
    """
    meant = [f"D{int(s)}:{int(t)}" for entry in evidence for s, t in _DIA_ID.findall(entry)]
    return tuple(one for one in dict.fromkeys(meant) if one in turn_ids)


def _locomo(row: Mapping[str, Any], where: str) -> Conversation:
    name = _field(row, "sample_id", str, where)
    dialogue = _field(row, "conversation", dict, where)
    numbers = sorted(
        int(key[8:]) for key in dialogue if re.fullmatch(r"session_\d+", key)
    )  # some dates have no session
    turns = list(chain.from_iterable(_locomo_session(dialogue, n, name, f"{where} ({name})") for n in numbers))
    if not turns:
        raise DataError(f"{where} ({name}): no session_1; expected the sessions of a conversation.")
    _unique((t.id for t in turns), f"{where} ({name}), dia_id")
    ids, asked = {t.id for t in turns}, turns[-1].at
    questions = [
        _locomo_question(q, f"{name}_q{n}", ids, asked, f"{where} ({name}), question {n}")
        for n, q in enumerate(_field(row, "qa", list, where))
    ]
    speakers = tuple(str(dialogue[key]) for key in ("speaker_a", "speaker_b") if key in dialogue)
    return Conversation(name, speakers, tuple(turns), tuple(questions))


def _locomo_session(dialogue: Mapping[str, Any], number: int, name: str, where: str) -> Iterator[Turn]:
    session = f"session_{number}"
    at = _locomo_time(_field(dialogue, f"{session}_date_time", str, where), f"{where}, {session}_date_time")
    for row in _field(dialogue, session, list, where):
        place = f"{where}, {session}, {row.get('dia_id')}"
        text = _field(row, "text", str, place)
        if caption := row.get("blip_caption"):
            text = f"{text} [shares a photo: {caption}]".strip()
        yield _turn(
            place,
            text=text,
            speaker=_field(row, "speaker", str, place),
            scope=Scope(user=name),
            at=at,
            id=_field(row, "dia_id", str, place),
            session=session,
        )


def _locomo_time(value: str, where: str) -> datetime:
    """Read "1:56 pm on 8 May, 2023"; `strptime` would read it in the machine's language."""
    found = _LOCOMO_TIME.fullmatch(value.strip())
    if found is None or found[5] not in MONTHS:
        raise DataError(f'{where} is {value!r}; expected like "1:56 pm on 8 May, 2023".')
    hour = int(found[1]) % 12 + (12 if found[3] == "pm" else 0)
    return datetime(int(found[6]), MONTHS.index(found[5]) + 1, int(found[4]), hour, int(found[2]), tzinfo=timezone.utc)


def _locomo_question(row: Mapping[str, Any], name: str, ids: set[str], asked: datetime, where: str) -> Question:
    category = str(_field(row, "category", int, where))
    adversarial = category == "5"  # two of these also have an "answer", which no scorer uses
    if not adversarial and "answer" not in row:
        raise DataError(f'{where}: "answer" is missing; only category 5 may leave it out.')
    return Question(
        id=name,
        text=_field(row, "question", str, where).strip(),
        answer="" if adversarial else str(row["answer"]).strip(),  # six answers are numbers
        category=category,
        evidence=clean_evidence(row.get("evidence", []), ids),
        asked_at=asked,
        unanswerable=adversarial,
        adversarial=str(row.get("adversarial_answer", "")),
    )


# LongMemEval (Wu et al., ICLR 2025)
def _longmemeval(row: Mapping[str, Any], where: str) -> Conversation:
    """One conversation per question; takes the published files, and files of evidence turns alone."""
    name = _field(row, "question_id", str, where)
    turns: list[Turn] = []
    evidence: list[str] = []
    for number, (date, said) in enumerate(_longmemeval_sessions(row, where)):
        at = _longmemeval_time(date, f"{where}: session {number}")
        for n, turn in enumerate(said):
            place = f"{where}: session {number}, turn {n}"
            text, role = _field(turn, "content", str, place), _field(turn, "role", str, place)
            if not text.strip():
                continue
            one = _turn(place, text=text, speaker=role, role=role, scope=Scope(user=name), at=at,
                        id=f"S{number}:{n}", session=f"S{number}")  # fmt: skip
            turns.append(one)
            if turn.get("has_answer", "evidence_sessions" in row):
                evidence.append(one.id)
    question = Question(
        id=name,
        text=_field(row, "question", str, where),
        answer=str(row.get("answer", "")),
        category=_field(row, "question_type", str, where),
        evidence=tuple(evidence),
        asked_at=_longmemeval_time(row.get("question_date"), f"{where}: question_date"),
        unanswerable=bool(row.get("abstention", name.endswith("_abs"))),
    )
    return Conversation(name, tuple(dict.fromkeys(t.speaker for t in turns)), tuple(turns), (question,))


def _longmemeval_sessions(row: Mapping[str, Any], where: str) -> list[tuple[str, list[Any]]]:
    """Return (date, turns) of each session, oldest first: the published order is shuffled."""
    if "evidence_sessions" in row:
        sessions = [(s["date"], s["turns"]) for s in _field(row, "evidence_sessions", list, where)]
    else:
        dates = _field(row, "haystack_dates", list, where)
        sessions = list(zip(dates, _field(row, "haystack_sessions", list, where), strict=True))
    return sorted(sessions, key=lambda session: str(session[0]))


def _longmemeval_time(value: Any, where: str) -> datetime:
    found = re.fullmatch(r"(\d{4})/(\d\d)/(\d\d) \(\w+\) (\d\d):(\d\d)", str(value))
    if found is None:
        raise DataError(f'{where} is {value!r}; expected like "2023/04/10 (Mon) 23:07".')
    year, month, day, hour, minute = map(int, found.groups())
    return datetime(year, month, day, hour, minute, tzinfo=timezone.utc)


_FORMATS: dict[str, Callable[[Mapping[str, Any], str], Conversation]] = {
    "qa": _locomo,
    "question_id": _longmemeval,
    "conversation": _own,
}
"""The key that tells each format, first match first."""
