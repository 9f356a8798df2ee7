"""Questions made of statements: a sentence that somebody said, turned round by rules.

"I bought a kayak for my brother" becomes "What did Ana buy for her brother?" with the answer "a kayak". The rules are
those of cloze question generation (Heilman 2011), the shallow end of it; a sentence that no rule fits is left alone.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from memr1_plugin.training.synthetic import PRONOUNS, Person

MAX_ANSWER_WORDS = 10

_PAST = {
    **dict.fromkeys(["went"], "go"), "bought": "buy", "got": "get", "saw": "see", "made": "make", "ate": "eat",
    "took": "take", "wrote": "write", "found": "find", "lost": "lose", "built": "build", "broke": "break",
    "met": "meet", "taught": "teach", "won": "win", "heard": "hear", "read": "read", "had": "have", "left": "leave",
    "drove": "drive", "flew": "fly", "grew": "grow", "ran": "run", "swam": "swim", "sold": "sell", "gave": "give",
    "told": "tell", "said": "say", "drank": "drink", "sang": "sing", "wore": "wear", "chose": "choose", "rode": "ride",
}  # fmt: skip
_REGULAR = [
    "watch", "play", "learn", "start", "finish", "cook", "bake", "adopt", "visit", "join", "try", "study", "paint",
    "move", "work", "help", "clean", "receive", "order", "call", "miss", "enjoy", "love", "like", "use", "walk",
    "travel", "design", "create", "collect", "attend", "decide", "plan", "want", "need", "notice", "dream",
]  # fmt: skip
_PRESENT = [
    "love", "like", "enjoy", "hate", "prefer", "want", "need", "play", "study", "watch", "use", "eat", "collect",
    "speak", "teach", "own", "drive", "cook", "read", "write", "make", "have", "listen", "drink", "miss", "hope",
    "sing", "run", "dance", "paint",
]  # fmt: skip
_ADVERBS = (
    r"(?:(?:really|also|just|actually|always|usually|still|probably|definitely|only|honestly|finally|recently) )*"
)
LEAD = re.compile(
    r"^(?:(?:well|oh|yeah|yes|no|yep|haha|hahaha|lol|and|but|so|also|plus|honestly|actually|like|ok|okay|hmm)[,.! ]+)+",
    re.IGNORECASE,
)
_STOP = re.compile(
    r"\s*(?:[,;:!.()\"]|\.\.+| - |\b(?:but|because|cause|so that|so|which|when|where|if|though|although|while|lol|haha+"
    r"|since|until|and (?:i|we|it|they|then|he|she|that)|as well|too|right now|at the moment|even|unless|than)\b).*$",
    re.IGNORECASE,
)
_LIST_WORD = (
    r"(?!(?:i|we|you|it|they|he|she|but|so|because|then|which|when|where|if|though|lol|haha+|too|right|yeah|"
    r"is|are|was|were|has|have|had|will|can|could|would|there|that|this|for|to|at|from|as|since|after|before)\b)[\w'-]+"
)
_LIST_PART = rf"{_LIST_WORD}(?: {_LIST_WORD}){{0,2}}"
_LIST = re.compile(rf"^({_LIST_PART}(?:, {_LIST_PART})*,? (?:and|or) {_LIST_PART})(?:[.!;(]|$)", re.IGNORECASE)
"""Two or more things of up to three words, to the end of the sentence: "pizza, sushi and old movies"."""
_PREPOSITION = re.compile(r" (?=(?:in|at|with|for|about|from|on|during|after|before|near) )")
_EMPTY = re.compile(
    r"(?:it|that|this|them|they|him|her|you|your|one|some|something|stuff|things?|those|these|everything|anything|all|"
    r"nothing|what|there|here|to|not|no|a|the|lot|lots|of|way|being|be|do|so|much|more|know|go|see|say)",
    re.IGNORECASE,
)
_COUNTED = re.compile(r"(?:an?|two|three|four|five|six|my|several|lots of|many|\d+) \w+", re.IGNORECASE)
_DANGLING = re.compile(
    r"^(?:in|on|at|to|for|with|of|from|by|about|again|that|if|how|up|out|off|over|down|into) "
    r"|^(?:again|back|up|out)$| (?:and|or|to|of|in|on|at|with|for|the|an?|her|his|is|are|was|now|then)$",
    re.IGNORECASE,
)
"""An answer that begins or ends in the middle of something."""
_RELATIVE = "mom|mother|dad|father|sister|brother|wife|husband|boyfriend|girlfriend|roommate|dog|cat|son|daughter"


@dataclass(frozen=True)
class Asked:
    """A question that one sentence answers. Texts have {N} for the speaker; pronouns are filled in already."""

    question: str
    answer: str
    key: str
    """What the question asks for without its details: two tellings with one key answer one question together."""


def asked_of(sentence: str, person: Person) -> list[Asked]:
    """Return the questions that `sentence`, said by `person`, answers; most sentences answer none.

    >>> asked_of("I bought a kayak for my brother.", Person("Ana", "f"))[0].question
    'What did Ana buy for her brother?'
    """
    text = LEAD.sub("", sentence.strip())
    found = [asked for rule in _RULES for asked in rule(text)]
    made = [told(asked, person) for asked in found]
    return [asked for asked in made if asked is not None]


WAYS = ("why", "how by")
"""Keys of questions whose answers may begin with "to" or "by"."""


def told(asked: Asked, person: Person) -> Asked | None:
    """Fill in names; None where the answer says nothing or the question still speaks of "I"."""
    answer = _third(asked.answer, person).strip(" '*~-")
    words = re.findall(r"[\w']+", answer)
    if not 1 <= len(words) <= MAX_ANSWER_WORDS or all(_EMPTY.fullmatch(word) for word in words):
        return None
    if _DANGLING.search(answer.removeprefix("to ").removeprefix("by ") if asked.key.startswith(WAYS) else answer):
        return None
    question = re.sub(r"\s+", " ", _third(asked.question, person)).replace("{N}", person.name)
    if re.search(r"\b(?:I|i|you|your|me|we|us|our|it|this|that|they|them)\b", question + " " + answer):
        return None
    return Asked(question, answer, f"{person.name}: {asked.key}")


def _third(text: str, person: Person) -> str:
    said = PRONOUNS[person.sex]
    for mine, theirs in (("my", said["his"]), ("myself", said["himself"]), ("mine", said["his"])):
        text = re.sub(rf"\b{mine}\b", theirs, text, flags=re.IGNORECASE)
    return text.replace("{himself}", said["himself"]).replace("{his}", said["his"]).replace("{he}", said["he"])


def object_of(text: str) -> str:
    """What is left of a clause's end when all that follows its object is taken off; a list is kept whole."""
    if several := _LIST.match(text):
        return several[1]
    return re.sub(
        r"\s+(?:haha+|lol|though|either|again|now|today|yet|ever|once|before|recently)$",
        "",
        _STOP.sub("", text).strip(),
    )


def _split(text: str) -> tuple[str, str]:
    """("a kayak", " for my brother"); no details where the object has no preposition after it."""
    parts = _PREPOSITION.split(text, 1)
    return (parts[0], f" {parts[1]}") if len(parts) == 2 and len(parts[0].split()) > 1 else (text, "")


# ── rules: a sentence in, questions out ──────────────────────────────────────────────────────────────────────


def _present(text: str) -> Iterator[Asked]:
    match = re.match(rf"i {_ADVERBS}({'|'.join(_PRESENT)}) (.+)", text, re.IGNORECASE)
    if match is None:
        return
    verb, rest = match[1].lower(), object_of(match[2])
    doing = re.match(r"to (.+)", rest)
    if verb in ("have", "own") and not _COUNTED.match(rest):
        return  # "I have seen it", "I have no idea"
    if verb == "listen":
        if doing:
            yield Asked("What does {N} listen to?", doing[1], "listen to")
    elif doing:
        yield Asked(f"What does {{N}} {verb} to do?", doing[1], f"{verb} to do")
    else:
        thing, details = _split(rest)
        yield Asked(f"What does {{N}} {verb}{details}?", thing, verb)


def _past(text: str) -> Iterator[Asked]:
    match = re.match(rf"(?:i|we) {_ADVERBS}({'|'.join(TOLD)}) (.+)", text, re.IGNORECASE)
    if match is None:
        return
    verb, rest = TOLD[match[1].lower()], object_of(match[2])
    thing, details = _split(rest)
    if (verb == "have" and not _COUNTED.match(rest)) or (verb == "use" and rest.startswith("to ")):
        return
    if verb == "go":
        where = re.match(r"(?:to|on|for) (.+)", rest)
        if where:
            yield Asked("Where did {N} go?", _split(where[1])[0], "went")
    elif verb == "grow" and rest.startswith("up "):
        yield Asked("Where did {N} grow up?", re.sub(r"^up (?:in|on|near) ", "", rest), "grew up")
    elif verb == "move":
        yield Asked("Where did {N} move?", re.sub(r"^(?:to|into) ", "", rest), "moved")
    elif verb in ("decide", "want", "need", "plan", "try", "start", "learn") and rest.startswith("to "):
        yield Asked(f"What did {{N}} {verb} to do?", rest[3:], f"did {verb} to do")
    elif verb == "meet":
        yield Asked(f"Who did {{N}} meet{details}?", thing, "did meet")
    else:
        yield Asked(f"What did {{N}} {verb}{details}?", thing, f"did {verb}")


def _regular_past(verb: str) -> str:
    if verb.endswith("e"):
        return f"{verb}d"
    if re.search(r"[^aeiou]y$", verb):
        return f"{verb[:-1]}ied"
    return f"{verb}{'n' if verb == 'plan' else ''}ed"


TOLD = {**_PAST, **{_regular_past(verb): verb for verb in _REGULAR}}
"""Past form to verb."""


def _being(text: str) -> Iterator[Asked]:
    ways = (
        (r"i(?:'m| am) from (.+)", "Where is {N} from?", "is from"),
        (r"i {a}live (?:in|near|at) (.+)", "Where does {N} live?", "lives"),
        (r"i {a}work (?:in|at|for) (.+)", "Where does {N} work?", "works"),
        (r"i {a}work as (.+)", "What does {N} work as?", "works as"),
        (r"i was born (?:and raised )?(?:here )?in (.+)", "Where was {N} born?", "was born"),
        (r"i(?:'m| am) {a}(?:majoring|studying) (?:in )?(.+)", "What is {N} studying?", "studies"),
        (r"i(?:'m| am) {a}learning (?:how )?(?:to )?(.+)", "What is {N} learning?", "is learning"),
        (r"i(?:'m| am) {a}planning (?:on|to) (.+)", "What is {N} planning?", "is planning"),
        (r"i(?:'m| am) {a}going to (\w+ \w+.*)", "What is {N} going to do?", "is going to"),
        (r"i(?:'m| am) {a}trying to (.+)", "What is {N} trying to do?", "is trying to"),
        (r"i(?:'m| am) {a}working on (.+)", "What is {N} working on?", "is working on"),
        (r"i(?:'m| am) {a}reading (.+)", "What is {N} reading?", "is reading"),
        (r"i(?:'m| am) {a}(?:so |very |super )?excited (?:about|for|to) (.+)", "What is {N} excited about?", "excited"),
        (r"i(?:'m| am) {a}(?:a bit |so |very )?(?:scared|afraid) of (.+)", "What is {N} afraid of?", "afraid"),
        (r"i(?:'m| am) {a}allergic to (.+)", "What is {N} allergic to?", "allergic"),
        (r"i(?:'m| am) (an? .+)", "How does {N} describe {himself}?", "is a"),
        (r"i {a}used to (.+)", "What did {N} use to do?", "used to"),
        (r"i've {a}never (.+)", "What has {N} never done?", "never"),
        (r"i(?:'ve| have) {a}been to (.+)", "Where has {N} been?", "has been to"),
        (r"i(?:'d| would) love to (.+)", "What would {N} love to do?", "would love"),
        (r"i(?:'d| would) want to (.+)", "What would {N} want to do?", "would want"),
        (r"i wish i (?:could|had|was|were) (.+)", "What does {N} wish for?", "wishes"),
        (r"i {a}feel (?!like|ya)((?:so |very )?\w+)(?:$|[.!,]| (?:when|about|because))", "How does {N} feel?", "feels"),
    )  # fmt: skip
    for pattern, question, key in ways:
        if match := re.match(pattern.replace("{a}", _ADVERBS), text, re.IGNORECASE):
            yield Asked(question, object_of(match[1]), key)
            return


def _favourite(text: str) -> Iterator[Asked]:
    match = re.match(r"my (?:all time )?favou?rite ([\w ]{3,25}?) (?:is|are|was|would be|has to be) (.+)", text, re.I)
    if match:
        yield Asked(f"What is {{N}}'s favorite {match[1]}?", object_of(match[2]), f"favorite {match[1]}")


def _relative(text: str) -> Iterator[Asked]:
    match = re.match(rf"my ({_RELATIVE}) (loves|likes|has|plays|works|lives|is a|is an|is|was) (.+)", text, re.I)
    if match is None:
        return
    who, verb, rest = match[1].lower(), match[2].lower(), object_of(match[3])
    if verb in ("works", "lives") and (where := re.match(r"(?:in|at|for|near|as) (.+)", rest)):
        yield Asked(f"Where does {{N}}'s {who} {verb[:-1]}?", where[1], f"{who} {verb}")
    elif verb in ("is a", "is an"):
        yield Asked(f"What is {{N}}'s {who}?", f"{verb[3:]} {rest}", f"{who} is")
    elif verb in ("loves", "likes", "plays", "has"):
        base = "have" if verb == "has" else verb[:-1]
        yield Asked(f"What does {{N}}'s {who} {base}?", rest, f"{who} {verb}")


def _number(text: str) -> Iterator[Asked]:
    counted = r"(\d+|two|three|four|five|six|seven|eight|nine|ten)"
    if match := re.match(rf"i {_ADVERBS}(?:have|own|got) {counted} (\w+s)\b", text, re.IGNORECASE):
        yield Asked(f"How many {match[2].lower()} does {{N}} have?", match[1], f"how many {match[2].lower()}")
    long = r"((?:about |over |almost )?(?:\d+|an?|one|two|three|four|five|six|seven|ten|a few|a couple(?: of)?) \w*"
    if match := re.match(rf"i(?:'ve| have) been (\w+ing)(.*?) for {long}(?:years?|months?|weeks?|days?))", text, re.I):
        yield Asked(f"How long has {{N}} been {match[1]}{match[2]}?", match[3], f"how long {match[1]}")


def _why(text: str) -> Iterator[Asked]:
    match = re.match(rf"i {_ADVERBS}({'|'.join([*_PRESENT, *TOLD])}) ([^,.]+?) (?:be)?cause (.+)", text, re.IGNORECASE)
    if match:
        reason = _he_for_i(re.sub(r"[.!,;].*$", "", match[3]))
        verb = match[1].lower()
        asks = f"did {{N}} {TOLD[verb]}" if verb in TOLD and verb not in _PRESENT else f"does {{N}} {verb}"
        yield Asked(f"Why {asks} {match[2]}?", reason, f"why {verb} {match[2]}")


def _he_for_i(text: str) -> str:
    return re.sub(r"\bi\b", "{he}", re.sub(r"\bi'm\b|\bi am\b", "{he} is", text, flags=re.I), flags=re.I)


def _purpose(text: str) -> Iterator[Asked]:
    """ "I took a trip to clear my mind": why, and how, where and with whom something was done."""
    done = rf"(?:i|we) {_ADVERBS}({'|'.join(TOLD)}) "
    text = _no_end(text)
    if match := re.match(
        done + r"([^,.!?]+?) (?:in order |just )?to (?!(?:the|an?|my|our|some|this|that) )([a-z]+ [^,.!?]+)$",
        text,
        re.IGNORECASE,
    ):
        verb = TOLD[match[1].lower()]
        if verb not in _TAKES_TO and not re.search(r"\b(?:how|what|where|way|time|able|going|to)$", match[2]):
            yield Asked(f"Why did {{N}} {verb} {match[2]}?", f"to {match[3]}", f"why did {verb} {match[2]}")
    if match := re.match(done + r"([^,.!?]+?) with (my [^,.!?]+|a friend|some friends|friends)$", text, re.I):
        verb = TOLD[match[1].lower()]
        yield Asked(f"Who did {{N}} {verb} {match[2]} with?", match[3], f"who {verb} {match[2]}")
    if match := re.match(done + r"([^,.!?]+?) (?:in|at|from) ((?:the |a |an |my )?[\w' ]+)$", text, re.I):
        verb = TOLD[match[1].lower()]
        if verb not in ("go", "move", "say", "tell") and not _WHEN.search(match[3]):
            yield Asked(f"Where did {{N}} {verb} {match[2]}?", match[3], f"where {verb} {match[2]}")
    if match := re.match(rf"i {_ADVERBS}({'|'.join(_PRESENT)}|stay|keep|relax) ([^,.!?]*?) ?by (\w+ing [^,.!?]+)$",
                         text, re.IGNORECASE):  # fmt: skip
        yield Asked(f"How does {{N}} {match[1].lower()} {match[2]}?".replace(" ?", "?"), f"by {match[3]}", "how by")


_TAKES_TO = ("go", "try", "want", "need", "decide", "plan", "learn", "start", "have", "get", "like", "love", "use",
             "listen", "say", "tell", "move", "run", "choose", "teach", "give", "help")  # fmt: skip
_WHEN = re.compile(
    r"\d|\b(?:morning|evening|night|afternoon|day|days|week|weeks|month|months|year|years|spring|summer|fall|autumn|"
    r"winter|january|february|march|april|may|june|july|august|september|october|november|december|past|future|"
    r"first|end|least|last|general|while|time|moment|age|total|case|fact|all|way|person|mind|it|there)\b",
    re.IGNORECASE,
)


def _no_end(text: str) -> str:
    return re.sub(r"\s*(?:(?:too|as well|lol|haha+|though)\s*)?[.!]*$", "", text.strip())


_FEELS = ("excited|happy|nervous|sad|tired|stressed|proud|worried|bored|glad|disappointed|scared|thrilled|upset|"
          "jealous|curious|confused|passionate|grateful|anxious|relieved|obsessed")  # fmt: skip


def _feeling(text: str) -> Iterator[Asked]:
    how = rf"i(?:'m| am| was| feel| felt) {_ADVERBS}(?:so |very |super |pretty |a bit |a little |quite )*({_FEELS})"
    if match := re.match(rf"{how} (about|for|with|by|of) ([^,.!?]+)$", _no_end(text), re.IGNORECASE):
        thing = object_of(match[3])
        yield Asked(f"How does {{N}} feel about {thing}?", match[1].lower(), f"feels about {thing}")
        yield Asked(f"What is {{N}} {match[1].lower()} {match[2].lower()}?", thing, f"{match[1].lower()}")
    if match := re.match(rf"{how} (?:that|because|to) ([^,.!?]+)$", _no_end(text), re.IGNORECASE):
        yield Asked(f"Why is {{N}} {match[1].lower()}?", _he_for_i(match[2]), "why feels")


def _opinion(text: str) -> Iterator[Asked]:
    """ "The view was calm and beautiful": how somebody describes a thing, and what they say about it."""
    thing = r"((?:the|my) [\w']+(?: (?!is|was|are|were)[\w']+){0,3}|\w{3,}ing(?: (?!is|was)\w+){0,2})"
    much = r"(?:so |very |really |pretty |super |just |quite |absolutely |always )*"
    lead = r"(?:i (?:think|feel like|guess|believe) (?:that )?)?"
    if match := re.match(rf"{lead}{thing} (?:is|was|are|were|looks|looked|seems|tastes) {much}([^,.!?]+)", text, re.I):
        what, said = match[1][:1].lower() + match[1][1:], match[2].strip()
        if re.fullmatch(r"[a-z]{4,}(?: (?:and|but) [a-z]{4,})?", said, re.I) and not _EMPTY.fullmatch(said):
            yield Asked(f"How does {{N}} describe {what}?", said.lower(), f"describes {what}")
        elif 3 <= len(said.split()) <= MAX_ANSWER_WORDS and re.match(r"an? |my |one of |to |the ", said, re.I):
            yield Asked(f"What does {{N}} say about {what}?", said, f"says about {what}")


_NO_KIND = re.compile(
    r"an? (?:lot|few|bit|couple|little|good|great|bad|nice|big|huge|new|really|very|ton|bunch|quick|long|much|whole|"
    r"week|month|year|day|hour|friend|funny|uncanny|single) |\w+ \w+ (?:of|ago|times?|bit|things?|days?|years?|weeks?|"
    r"months?|idea|problem|more|now|too|while|out|take|ones?|\w+ing)$",
    re.IGNORECASE,
)


def _kind(text: str) -> Iterator[Asked]:
    match = re.match(
        rf"(?:i|we) {_ADVERBS}({'|'.join([*TOLD, 'have', 'own'])}) (an? [a-z]+ ([a-z]{{3,}}))"
        r"(?= (?:for|from|at|in|with|that|which|to|on|and)\b|[.,!]|$)",
        text,
        re.IGNORECASE,
    )
    if match and not _NO_KIND.search(match[2]):
        verb, thing = match[1].lower(), match[3]
        asks = f"does {{N}} {verb}" if verb in ("have", "own") else f"did {{N}} {TOLD[verb]}"
        yield Asked(f"What kind of {thing} {asks}?", re.sub(r"^an? ", "", match[2]), f"kind of {thing}")


_RULES = (
    _present, _past, _being, _favourite, _relative, _number, _why, _purpose, _feeling, _opinion, _kind
)  # fmt: skip
