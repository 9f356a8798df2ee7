"""From a turn to facts worth remembering: verbatim (the default, no model call) or by an LLM.

What is new and what is old is the Manager's business (`agents.manager`): an extractor sees one turn and the turn before
it, and no memory. The paper has an LLM extract (its figure 2); LoCoMo's evidence is whole turns, and keeping the
speaker's own words costs nothing and loses nothing, so that is where we begin.

Small talk is known by its words, in English. Other languages keep their greetings: a wasted row, nothing lost.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol

from memr1_plugin import prompts
from memr1_plugin.agents.engine import Engine, Prompt, Role
from memr1_plugin.dates import resolve
from memr1_plugin.errors import InputError, MemoryR1Error, ModelError
from memr1_plugin.types import Fact, Turn, storable

LONG_CHARS = 400
"""A turn longer than this is split into several facts; nine in ten turns of a dialogue are shorter."""
PIECE_CHARS = 300
"""Length that the facts of a long turn aim at."""
CONTEXT_CHARS = 200
"""How much of the turn before goes with a fact."""
REPLY_WORDS = 8
"""A reply of at most so many words says little alone, so it takes the question along."""
MAX_LLM_FACTS = 12
"""Lines of an LLM's output that are read; a model that writes more repeats itself."""

_SMALL_TALK_WORDS = """
a about absolutely ace adorable again agree agreed ah aha all already alright always amazing an and anything anytime
appreciate appreciated are aw awesome aww awww be beautiful been best bet better big both buddy bunch but bye can
can't care chat chatting cheers congrats congratulations cool could definitely did do doing don't done dude
encouragement enjoy everything exactly excellent exciting fab fantastic fine for from fun getting glad go going gonna
good goodbye gorgeous got gotcha great guess guys ha haha happy have having hear heard hello help her here hey hi him
his hope how huge i i'll i'm impressed impressive incredible indeed inspiring is it it'll it's just keep kind know
later let's like lol long look looking looks lot lots love loved lovely luck made make makes man many maybe me mean
means meet morning much must my neat need news nice night no nope not of off oh ok okay on one our out part perfect
photo pic picture please pleasure posted pretty prob problem proud quite rad really right rock rocks same see share
sharing she shot should so sorry sound sounds special stay strong stunning such super support sure sweet take talk
talked talking terrific thank thanks that that'd that'll that's the their them there these they they're this those
thought time to ton tons too totally true u up ur us very wait was way we welcome well were what what's whoa will wish
with woah won't wonderful woohoo words work worries worth would wow ya yay yea yeah yep yes you you'll you're you've
your yours yourself yup
"""
_SMALL_TALK = frozenset(_SMALL_TALK_WORDS.split())
_ABBREVIATION = re.compile(r"(?:\b(?:Mr|Mrs|Ms|Dr|Prof|St|vs|etc|No|e\.g|i\.e|[A-Z]))\.\s*$")
_BORDER = re.compile(r"[.!?…]+[\"\u201d\u2019)*_]*\s+|[。\uff01\uff1f]+|\s*\n\s*|(?=\[shares )")
_WORD = re.compile(r"[^\W_]+(?:['\u2019][^\W_]+)*")
_QUESTION = re.compile(r"[?\uff1f؟][\"\u201d\u2019)*_!\s]*[^\w?]*$")
_YES_NO = re.compile(r"(?:\W*\w+,\s+)?(?:do|does|did|are|is|was|were|have|has|had|will|would|can|could|should)\b", re.I)
_VOCATIVE = re.compile(r"(?i:hey|hi|hello|thanks|thank you|bye|goodbye|good morning|wow)[, ]+[A-Z]\w+[.!\s]*")
_OPENING = r"(?:(?:and|so|also|but|well|by the way),? )?"
_TELLS = re.compile(_OPENING + r"(?:I|we|my|our)\b(?! (?:wonder|guess)).{20}", re.I | re.S)
_OWN_SUBJECT = re.compile(
    r"\b(?:I|we|my|our|mine)\b|\b(?!(?:it|that|this|they|those|these|he|she|here|there)\b)\w+"
    r"(?:['\u2019]s|\s+(?:is|are|was|were|has|have|had|will))\b",
    re.I,
)
_BULLET = re.compile(r"^\s*(?:[-*•\u2013]|\d{1,2}[.)])\s+")


class Extractor(Protocol):
    """Turns one turn into its facts."""

    def extract(self, turn: Turn, previous: Turn | None) -> list[Fact]:
        """Return the facts of `turn`; `previous` is the turn before it in its session."""


def sentences(text: str) -> list[str]:
    """Split `text` at the ends of sentences and lines; joined by spaces it reads as before."""
    found, start = [], 0
    for match in _BORDER.finditer(text):
        piece = text[start : match.end()]
        if piece.strip() and not _ABBREVIATION.search(piece[-8:]):
            found.append(piece.strip())
            start = match.end()
    return [*found, text[start:].strip()] if text[start:].strip() else found


def is_question(sentence: str) -> bool:
    """True when `sentence` ends as a question (closing quotes and emoji aside)."""
    return _QUESTION.search(sentence[-40:]) is not None


def has_substance(sentence: str, names: Iterable[str] = ()) -> bool:
    """True unless `sentence` is a question, or made of small talk and `names` alone.

    "I'm visiting my sister Emily in Denver, do you know a hotel?" tells something first, so it counts.
    """
    if _VOCATIVE.fullmatch(sentence) or (is_question(sentence) and not _TELLS.match(sentence)):
        return False
    known = [part for name in names for part in name.lower().split()]
    for match in _WORD.finditer(sentence.lower().replace("\u2019", "'")):
        word = match[0]
        nickname = len(word) >= 3 and any(part.startswith(word) for part in known)  # "Mel" of Melanie
        if word not in _SMALL_TALK and word not in known and not nickname:
            return True
    return False


def context_of(previous: Turn | None) -> str:
    """Return the turn before as "speaker: text", its end if it is long: that is where the question stands."""
    if previous is None:
        return ""
    text = " ".join(previous.text.split())
    if len(text) > CONTEXT_CHARS:
        text = "..." + text[3 - CONTEXT_CHARS :]
    return f"{previous.speaker}: {text}"


def trim(parts: Sequence[str], names: Iterable[str] = ()) -> list[str]:
    """Drop the sentences without substance at both ends; those in the middle hold a text together."""
    keep = [n for n, part in enumerate(parts) if has_substance(part, names)]
    return list(parts[keep[0] : keep[-1] + 1]) if keep else []


def split(parts: Sequence[str]) -> list[str]:
    """Pack sentences into texts of about PIECE_CHARS, none longer than LONG_CHARS."""
    if sum(len(p) + 1 for p in parts) <= LONG_CHARS:
        return [" ".join(parts)] if parts else []
    pieces: list[str] = []
    for part in (bit for p in parts for bit in _hard_split(p)):
        if pieces and len(pieces[-1]) + 1 + len(part) <= PIECE_CHARS:
            pieces[-1] += " " + part
        else:
            pieces.append(part)
    return pieces


def _hard_split(sentence: str) -> list[str]:
    """Cut a sentence that is longer than a fact may be, between words where there are any."""
    bits = []
    while len(sentence) > LONG_CHARS:
        cut = sentence.rfind(" ", PIECE_CHARS // 2, LONG_CHARS)
        cut = cut if cut > 0 else LONG_CHARS
        bits.append(sentence[:cut].strip())
        sentence = sentence[cut:].strip()
    return [*bits, sentence] if sentence else bits


class VerbatimExtractor:
    """The speaker's own words, one fact a turn; needs no model.

    Greetings, thanks, praise and questions at both ends are left out, relative dates are resolved, a long turn
    becomes several facts, and a short reply takes the question along ("Luna and Oliver! (asked: "What are their
    names?")").
    """

    def extract(self, turn: Turn, previous: Turn | None) -> list[Fact]:
        """Return no fact for small talk, else one, or several for a long turn."""
        names = [turn.speaker, *([previous.speaker] if previous else [])]
        parts = sentences(turn.text)
        trimmed = trim(parts, names)
        alone = len(trimmed) == 1 and trimmed[0].startswith("[shares ")  # a photo is about what was said with it
        pieces = split(parts if alone else trimmed)
        asked = _asked(turn, previous)
        if not pieces and _YES_NO.match(asked) and _is_yes_or_no(turn.text):
            pieces = [f'{" ".join(turn.text.split())} (asked: "{asked}")']
        elif len(pieces) == 1 and asked and _is_elliptic(pieces[0]):
            pieces = [f'{pieces[0]} (asked: "{asked}")']
        contexts = [context_of(previous), *(f"{turn.speaker}: {p[-CONTEXT_CHARS:]}" for p in pieces)]
        return [_fact(turn, piece, context) for piece, context in zip(pieces, contexts, strict=False)]


def _asked(turn: Turn, previous: Turn | None) -> str:
    """The question that `turn` replies to, or ""."""
    if previous is None or previous.speaker == turn.speaker:
        return ""
    questions = [s for s in sentences(previous.text)[-3:] if is_question(s) and len(s) <= CONTEXT_CHARS]
    return questions[-1] if questions else ""


def _is_elliptic(reply: str) -> bool:
    """True for "Luna and Oliver!" and "It's a kayak.", false for "My cat is called Rex." """
    return len(_WORD.findall(reply)) <= REPLY_WORDS and not _OWN_SUBJECT.search(reply)


def _is_yes_or_no(text: str) -> bool:
    """True when `text` begins as a reply to a yes-or-no question."""
    first = _WORD.search(text.lower())
    return first is not None and first[0] in {"yes", "yeah", "yep", "yup", "no", "nope", "sure", "definitely"}


def _fact(turn: Turn, text: str, context: str) -> Fact:
    return Fact(
        text=resolve(text, turn.at),
        speaker=turn.speaker,
        at=turn.at,
        turn_id=turn.id,
        context=context,
        metadata={key: value for key, value in turn.metadata.items() if not key.startswith("_")},
    )


class LLMExtractor:
    """Facts written by a language model: one of our engines, a LangChain model or Runnable, or a LlamaIndex LLM.

    Costs one call a turn that has substance; small talk is still left out without a call. What the model writes is
    read line by line and leniently, since a bad line is at worst a bad memory; a model that fails raises `ModelError`.
    """

    def __init__(self, llm: Any) -> None:
        self._llm = llm
        self._complete = _completer(llm)

    def extract(self, turn: Turn, previous: Turn | None) -> list[Fact]:
        """Ask the model for the facts of `turn`."""
        names = [turn.speaker, *([previous.speaker] if previous else [])]
        if not any(has_substance(s, names) for s in sentences(turn.text)) and not _asked(turn, previous):
            return []
        context = context_of(previous)
        shown = f"{context}\n" if context else ""
        body = prompts.load("extract").fill(conversation=f"{shown}{turn.speaker}: {' '.join(turn.text.split())}")
        return [_fact(turn, line, context) for line in _lines(self._ask(body))]

    def _ask(self, body: str) -> str:
        try:
            return self._complete(prompts.load("extract").fixed, body)
        except ModelError:
            raise
        except Exception as error:
            raise ModelError(
                f"extraction failed: {type(self._llm).__name__} raised {type(error).__name__}: {error}. "
                "The turn stays pending; it is extracted again when the model works."
            ) from error


def _lines(text: str) -> list[str]:
    """Read an LLM's list of facts: bullets and numbers off, "none" and repeats out."""
    lines = (" ".join(_BULLET.sub("", line).split()) for line in storable(text).splitlines())
    kept = [s for s in lines if s and s.rstrip(".").lower() not in ("none", "facts:") and not is_question(s)]
    return list(dict.fromkeys(s[:LONG_CHARS] for s in kept))[:MAX_LLM_FACTS]


def _completer(llm: Any) -> Callable[[str, str], str]:
    """Return a function (fixed, body) -> text for whichever kind of model `llm` is."""
    if isinstance(llm, Engine):
        return lambda fixed, body: llm.complete([Prompt(fixed, body, max_tokens=160, chat=True)], Role.BASE)[0].text
    if callable(getattr(llm, "invoke", None)):  # LangChain: a Runnable returns a message or a string
        return lambda fixed, body: _text_of(llm.invoke(fixed + body))
    if callable(getattr(llm, "complete", None)):  # LlamaIndex: a CompletionResponse has a text
        return lambda fixed, body: _text_of(llm.complete(fixed + body))
    raise InputError(
        f"the extractor's model is {type(llm).__name__}; expected an Engine, a LangChain model (invoke) or a "
        'LlamaIndex LLM (complete). Leave it out, or say extractor="verbatim", to extract without a model.'
    )


def _text_of(reply: Any) -> str:
    """The text of a string, a LangChain message (its content may be blocks) or a LlamaIndex response."""
    content = getattr(reply, "content", None)
    content = getattr(reply, "text", reply) if content is None else content
    if isinstance(content, list):
        content = "".join(b if isinstance(b, str) else str(b.get("text", "")) for b in content)
    if not isinstance(content, str):
        raise ModelError(
            f"the extractor's model replied with {type(reply).__name__}; expected text, or something with .content."
        )
    return content


def extract(extractor: Extractor, turn: Turn, previous: Turn | None) -> list[Fact]:
    """Return the facts of `turn`; whatever an extractor raises comes out as `ModelError`: the turn stays pending."""
    try:
        return extractor.extract(turn, previous)
    except MemoryR1Error:
        raise
    except Exception as error:
        raise ModelError(
            f"extraction failed: {type(extractor).__name__} raised {type(error).__name__}: {error}. "
            "The turn stays pending; it is extracted again when the extractor works."
        ) from error


def as_extractor(extractor: Any = None, engine: Engine | None = None) -> Extractor:
    """Return the extractor that "verbatim" (or None), "llm", an `Extractor` or a language model stands for.

    "llm" lets `engine`, the memory's own model, extract.
    """
    if extractor is None or extractor == "verbatim":
        return VerbatimExtractor()
    if extractor == "llm" and engine is not None:
        return LLMExtractor(engine)
    if isinstance(extractor, str):
        raise InputError(f'the extractor is {extractor!r}; expected "verbatim", "llm" (with a model), or an object.')
    if callable(getattr(extractor, "extract", None)):
        return extractor  # type: ignore[no-any-return]
    return LLMExtractor(extractor)
