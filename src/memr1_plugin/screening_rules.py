"""The patterns that screening looks for: what text says when it talks to a model and not about a life.

Patterns only, on folded text (lower case, one alphabet, single spaces; see `screening`); what a finding leads to is
`guard`'s business. The families are those of OWASP's lists on prompt injection (LLM01) and memory poisoning (ASI06).

They are written for precision: a memory about rules, assistants or passwords is no attack ("I ignored the instructions
on the box"). What people ask of their own bot ("answer in Spanish", "call me Al") passes.
"""

from __future__ import annotations

Rule = tuple[str, str, str]
"""Family; texts of which one must be there for the pattern to have a chance ("|" between), to save time; pattern."""

_GAP = r"[^.!?]{0,60}?"
_SHORT = r"[^.!?]{0,25}?"
_INSTRUCTIONS = (
    r"\b(?:instructions?|prompts?|rules|guidelines?|directives?|directions|commands|orders|restrictions|polic(?:y|ies)"
    r"|safeguards?|guardrails?|programming|training|constraints?|safety \w+|filters)\b"
)
_BEFORE = (
    r"\b(?:previous|prior|above|earlier|preceding|foregoing|former|original|initial|existing|all|any|every|system"
    r"|developer|safety|your|its|these)\b"
)
_REVEAL = (
    r"\b(?:reveal|print|repeat|output|disclose|leak|dump|recite|display|expose|show|translate|echo|spell out|give|tell"
    r"|write|send|start)\b"
)
_SYSTEM_TEXT = (
    r"\b(?:(?:system|hidden|secret|developer|initial|original|internal|base) (?:prompt|message|instructions?|rules)"
    r"|your (?:\w+ )?(?:prompt|instructions)\b(?! (?:for|about|on|to)\b))"
)
_ADDRESSED = (
    r"\b(?:the|this|any|each|every|dear) (?:ai|llm|(?:ai )?assistant|chat ?bot|bot|(?:language |ai )?model|agent)\b"
)
_MUST = r"(?:must|should|shall|has to|have to|is to|are to|will|needs? to|ought to|is required to|are required to)"
_URL = r"(?:https?://|ftp://|//)\S+"
_PRIVATE = (
    r"\b(?:conversations?|chats?|chat history|history|passwords?|api keys?|credentials|secrets?|memor(?:y|ies)"
    r"|personal data|private data|user data|data|card numbers?|address(?:es)?|everything|customer list|contents?)\b"
)

RULES: tuple[Rule, ...] = (
    # -- instructions that set others aside
    (
        "override",
        "instruction|prompt|rule|guideline|directi|command|order|restriction|polic|safeguard|guardrail|programming|training|constraint|safety|filter",
        r"\b(?:ignore|disregard|forget|override|bypass|overrule|circumvent|set aside|discard|drop|disable|stop obeying"
        r"|stop following|do not follow|don't follow|do not obey|don't obey|pay no attention to|neglect|violate)\b"
        rf"(?! (?:my|about)\b){_SHORT}{_BEFORE}{_SHORT}{_INSTRUCTIONS}",
    ),
    (
        "override",
        "instruction|prompt|rule|guideline|directi|command|order|restriction|polic|safeguard|guardrail|programming|training|constraint|safety|filter",
        rf"(?:^|[.!?:;,\n]\s*|\band |\bplease )(?:ignore|disregard|forget|override|bypass|do not follow|don't follow"
        rf"|stop following|pay no attention to) (?:what )?(?:the )?{_INSTRUCTIONS}",
    ),
    (
        "override",
        "ignore |disregard |forget ",
        r"\b(?:ignore|disregard|forget) (?:everything|anything|all|all of it|whatever) (?:that )?(?:you|above"
        r"|before|said"
        r" (?:above|before)|written|prior|previous|you were|was said)\b(?! (?:did|said|heard) (?:to|about) me)",
    ),
    (
        "override",
        "instruction|prompt|rule|guideline|directi|command|order|restriction|polic|safeguard|guardrail|programming|training|constraint|safety|filter",
        rf"{_BEFORE} {_SHORT}{_INSTRUCTIONS} (?:is|are|were|was|has been|have been) (?:now |hereby )?(?:void|revoked"
        r"|cancell?ed|superseded|replaced|overridden|obsolete|outdated|suspended|lifted|deleted|invalid|null)",
    ),
    (
        "override",
        "override",
        r"\bsystem[ _-]?override\b|\boverride[ _-](?:mode|code|protocol)\b|\badmin(?:istrator)? override\b",
    ),
    (
        "override",
        "overrid|supersede|outrank|replace|precedence|priority",
        r"\b(?:this|the following|these) (?:memory|note|message|line|text|instructions?|entry|rules?)\b.{0,20}"
        r"\b(?:overrides?|supersedes?|outranks?|replaces?|takes? precedence|has priority|have priority)\b",
    ),
    (
        "override",
        "below|above|here",
        r"\bthe (?:rules|instructions|lines?) (?:below|above|here) (?:now )?(?:replace|override|supersede)",
    ),
    ("override", "new ", r"\bnew (?:system )?(?:instructions?|directives?|task|policy|orders|objective)\s?:"),
    (
        "override",
        "your ",
        r"\byour (?:new|real|true|actual|only|sole|hidden|secret) (?:instructions?|task|goal|purpose|objective"
        r"|directive"
        r"|mission|role|orders)\b(?: now)? (?:is|are)\b",
    ),
    # -- another self
    (
        "role",
        "dan|do anything|unrestricted|unfiltered|uncensored|jailbroken|unbound|unaligned|amoral|evil",
        r"\byou(?: are|'re) (?:now |henceforth |going to be )?(?:an? |the )?(?:\w+ ){0,2}(?:dan\b|do anything now"
        r"|unrestricted|unfiltered|uncensored|jailbroken|unbound|unaligned|amoral|evil (?:ai|assistant|bot|twin"
        r"|model))",
    ),
    (
        "role",
        "jailbroken|liberated|unlocked|freed from|do anything now",
        r"\byou(?: have| 've|'ve) been (?:jailbroken|liberated|unlocked|freed from)\b|\bdo anything now\b",
    ),
    (
        "role",
        "restriction|filter|rules|limit|ethic|moral|guideline|safeguard|censorship|content polic",
        r"\b(?:act|pretend|behave|role-?play|simulate|respond|reply|answer|speak|operate|impersonate|imagine|you are"
        r"|terminal)\b[^.!?]{0,90}\b(?:without|no|free (?:of|from)|ignoring|lacking) (?:any |all )?"
        r"(?:\w+ (?:or |and )?){0,2}(?:restrictions?|filters?|rules|limits|limitations|ethics|morals|guidelines"
        r"|safeguards|censorship|content polic(?:y|ies))\b",
    ),
    (
        "role",
        "has no ",
        r"\bhas no (?:content polic\w+|restrictions|safety \w+|filters)\b(?!.{0,40}\bfilm\b)(?=.{0,30}$)",
    ),
    (
        "role",
        " mode",
        r"\b(?:enter|enable|activate|switch to|turn on|start|you are in|in) (?:developer|debug|god|sudo|admin"
        r"|jailbreak|unrestricted|maintenance) mode\b",
    ),
    (
        "role",
        "from now on|henceforth|from this moment",
        r"\b(?:from now on|henceforth|from this moment(?: on)?),? (?:you (?:are|will|must|shall|have to|should|answer"
        r"|obey|act)|act|behave|pretend|obey|impersonate)\b",
    ),
    (
        "role",
        "filters|safeguards|restrictions|guardrails",
        r"\b(?:all|any) (?:safety |content )?(?:filters|safeguards|restrictions|guardrails) (?:are|is) (?:off"
        r"|disabled|lifted|removed)\b",
    ),
    (
        "role",
        "unrestricted|uncensored|unfiltered",
        r"\b(?:an|as an|called) \w* ?(?:unrestricted|uncensored|unfiltered) (?:ai|assistant|model|bot|chatbot)\b",
    ),
    (
        "role",
        "never refuse|who never ",
        r"\bassistant\b[^.!?]{0,40}\bwho never (?:refuses|says no)\b|\bnever refuses? (?:anything|any request)\b",
    ),
    # -- orders for later, left in the memory
    (
        "standing order",
        "must|should|shall|required|always|are to|need to|have to",
        r"\b(?:remember|memori[sz]e|store|save|note|add|record|keep in mind|learn)\b[^.!?]{0,60}?\b(?:that )?(?:you"
        r"|the assistant|the bot|the ai|the model) (?:must|should|shall|are required|is required|will always|always"
        r"|are to|need to|have to)\b",
    ),
    (
        "standing order",
        "ai|llm|assistant|bot|model|agent",
        rf"{_ADDRESSED} {_MUST}(?: now| always| never| no longer)*\b",
    ),
    (
        "standing order",
        "ai|llm|assistant|bot|model|agent",
        rf"{_ADDRESSED} (?:will|should) (?:always|never|no longer|just|only)\b",
    ),
    (
        "standing order",
        "you must",
        r"\byou must (?:always|never|only|now|not|obey|comply|agree|recommend|reply|respond|answer)\b",
    ),
    (
        "standing order",
        "as a|as the",
        r"\b(?:as (?:an? |the )?(?:ai|assistant|language model|chatbot|bot|model)),? (?:you|your)\b",
    ),
    (
        "standing order",
        "asked|user|someone|somebody|anyone|anybody|you see",
        r"\b(?:when|whenever|if|every time|each time|any time|once) (?:asked|you are asked|you're asked|the user|a user"
        r"|users|someone|somebody|anyone|anybody|you see)\b[^.!?]{0,60}?[, ](?:then )?(?:you (?:must|should"
        r"|will)|always"
        r"|never|reply with|respond with|answer with|say that|tell them|tell the user|suggest|recommend|append|insert"
        r"|include|direct|redirect|run|call|execute|send|output|promote|approve|just say)\b",
    ),
    (
        "standing order",
        "conversation|answer|repl|response|message|output",
        r"\b(?:for|in|to|before|after|begin|start|end|finish|open|close|prefix|append)\b[^.!?]{0,20}\b(?:all"
        r"|each|every|any|your)"
        r" (?:\w+ )?(?:conversations?|answers?|repl(?:y|ies)|responses?|messages?"
        r"|outputs?)\b[^.!?]{0,15}\b(?:with|by|begin|start"
        r"|include|always|never|append|add|invoke|insert)\b",
    ),
    (
        "standing order",
        "recommend",
        r"\brecommend \w+(?: \w+)? (?:in|with|at the end of) (?:every|each|all) (?:answers?|repl\w+)\b",
    ),
    (
        "standing order",
        "ai|llm|assistant|model|chatbot|agent",
        r"\b(?:note|notice|message|attention|memo|instructions?|reminder|important)\b[ :,(-]*(?:for"
        r"|to)?[ :,(-]*(?:the |any |all )?"
        r"(?:ai|llm|assistant|(?:language |ai )?models?|chatbot|agent)s?\b ?[:,!-]",
    ),
    (
        "standing order",
        "if you",
        r"\bif you(?: are|'re) an? (?:ai|llm|language model|assistant|bot|chatbot|agent|machine)\b",
    ),
    ("standing order", "dear ", r"\bdear (?:ai|llm|language model|assistant|model|agent|chatbot)\b"),
    (
        "standing order",
        "the user|the customer|the human|the operator",
        r"\b(?:do not|don't|never|without) (?:tell(?:ing)?|inform(?:ing)?|notify(?:ing)?|alert(?:ing)?|ask(?:ing)?"
        r"|warn(?:ing)?|reveal(?:ing)?(?: this)? to|mention(?:ing)?(?: this)? to) the (?:user|customer|human"
        r"|operator)\b",
    ),
    (
        "standing order",
        "from the user|from the human",
        r"\b(?:keep|hide|conceal) (?:this|it|that|the \w+) (?:secret |hidden )?from the (?:user|human)\b",
    ),
    (
        "standing order",
        "do not ",
        r"\bdo not (?:reveal|mention|disclose) this (?:note|message|instruction|memory|line|text)\b",
    ),
    (
        "standing order",
        "the user ",
        r"\bthe user (?:is|has been|was|has) (?:now )?(?:an? )?(?:admin\w*|root|super ?user|verified"
        r"|authori[sz]ed|granted"
        r"|consented|given (?:full )?(?:consent|permission)|cleared)\b",
    ),
    (
        "standing order",
        "treat |regard |consider |interpret ",
        r"\b(?:treat|regard|consider|interpret) (?:this|the following|me|my (?:words"
        r"|messages))\b[^.!?]{0,15}\bas (?:an? )?"
        r"(?:\w+ )?(?:system|admin|developer|trusted|privileged|authoritative|instructions?)\b",
    ),
    (
        "standing order",
        "the user ",
        r"\bthe user (?:wants|prefers|asks|expects|likes)\b[^.!?]{0,30}\byou (?:skip|bypass|ignore|approve"
        r"|disable|omit|always|never)\b",
    ),
    # -- the operation language of the Memory Manager
    (
        "operations",
        "update |delete |operation",
        r"\b(?:update|delete) \d{1,4}\s?[:;]|\boperations?\s?:\s*(?:add|update|delete|noop)\b",
    ),
    ("operations", "delete |update ", r"(?:^|\n)\s*(?:delete|update) \d{1,4}\s*(?:\n|$)"),
    (
        "operations",
        "delete|noop",
        r"\b(?:operation|answer|reply|respond|output|write)\b[^.!?]{0,40}\b(?:is|with|must be) (?:delete|noop)\b",
    ),
    # -- what the model was told
    ("prompt theft", "prompt|message|instruction|rules", rf"{_REVEAL}{_GAP}{_SYSTEM_TEXT}"),
    ("prompt theft", "what is |what are |what was |what were ", rf"\bwhat (?:is|are|was|were) {_SYSTEM_TEXT}"),
    (
        "prompt theft",
        "above|before this|told",
        r"\b(?:repeat|print|output|copy|recite|show)\b[^.!?]{0,30}\b(?:everything|all|the (?:text|words|lines?)"
        r"|what (?:is|was))"
        r" (?:that (?:is|was) )?(?:above|before this|written above|you were told)\b",
    ),
    (
        "prompt theft",
        "user",
        r"\b(?:reveal|output|list|print|show|tell me|give me|share)\b[^.!?]{0,40}\b(?:memories|conversations|data"
        r"|messages|secrets|passwords)\b[^.!?]{0,20}\b(?:of|about|from) (?:other|another|all|every) users?\b",
    ),
    (
        "prompt theft",
        "passwords|api keys|secrets|credentials",
        r"\b(?:list|reveal|output|print|dump|show) (?:me )?all (?:the |your )?(?:passwords|api keys|secrets"
        r"|credentials)\b",
    ),
    # -- the way out
    ("way out", "![", r"!\[[^\]\n]{0,200}\]\(\s*<?(?:https?:)?//"),
    ("way out", "<", r"<(?:img|iframe|script|link|object|embed|form|svg|video|audio|source|meta)\b[^>]{0,200}"),
    ("way out", "javascript|vbscript|data", r"\b(?:javascript|vbscript)\s?:|\bdata\s?:\s?text/html"),
    ("way out", "//", r"(?:https?:)?//[^\s)\]]{1,200}?(?:\{[\w .{}]{2,40}\}|\[[\w .]{2,40}\]|<[\w .]{2,60}>|%7b|\$\{)"),
    (
        "way out",
        "//",
        r"(?:https?:)?//[^\s)]{1,200}[?&]\w+=(?:user_?data|conversation|chat|history|memor\w*|secret|password|token)\b",
    ),
    (
        "way out",
        "http|ftp:|//|@",
        rf"\b(?:send|post|forward|e-?mail|upload|exfiltrate|transmit|submit|leak|deliver"
        rf"|mail)\b(?! my\b){_GAP}{_PRIVATE}{_GAP}"
        rf"\b(?:to|at|via|into)\b{_SHORT}(?:{_URL}|\S+@\S+\.\w+)",
    ),
    (
        "way out",
        "//",
        rf"\b(?:append|include|insert|add|attach|embed|put|encode)\b{_GAP}{_URL}",
    ),
    (
        "way out",
        "request|curl|wget",
        rf"\b(?:make|issue|perform|send) (?:an? )?(?:http|get|post|web)\w* requests?\b|\b(?:curl|wget) {_URL}",
    ),
    ("way out", "link|url|//", rf"\b(?:base64|encode)\b[^.!?]{{0,60}}\b(?:link|url|{_URL})"),
    ("way out", "trust", r"\bthe assistant\b[^.!?]{0,30}\btrust\b[^.!?]{0,20}\b(?:links?|urls?|domains?)\b"),
    # -- text that would be another part of the prompt
    (
        "delimiter",
        "<|[",
        r"<\|[^|>\n]{1,40}\|>|<<\s?/?sys\s?>>|\[/?inst\]|</?s>(?=\s*(?:<<|\[|$))|<(?:start|end)_of_turn>",
    ),
    (
        "delimiter",
        "<",
        r"<\s?/?\s?(?:system|assistant|developer|instructions?|prompt|context|memor(?:y|ies)|recalled_?memories"
        r"|user_input"
        r"|untrusted\w*|documents?|tool_\w+|function_\w+)\b[^>\n]{0,80}>",
    ),
    ("delimiter", "#", r"(?:^|\n)\s*#{1,6}\s?(?:system|instructions?|assistant|human|user|new task)\b\s?:?"),
    (
        "delimiter",
        "system|assistant|developer",
        r"(?:\n|[.!?]\s)\s*(?:system|assistant|developer)(?: message| prompt| note)?\s?:\s",
    ),
    ("delimiter", "system|developer", r"(?:^|\n)\s*(?:system|developer)(?: message| prompt| note)?\s?:\s(?!\S+,)"),
    (
        "delimiter",
        "system|admin|developer",
        r"[\[(]\s?(?:system|admin|developer)(?: \w+)?\s?(?:message|note|prompt|override)?\s?[\])]\s?:?\s\w",
    ),
    (
        "delimiter",
        "end|begin|start",
        r"[-=*#_\"]{2,}\s*(?:end|begin|start)(?: of)?(?: the| new)? (?:\w+ )?(?:memor\w+|context|data|prompt"
        r"|input|instructions"
        r"|system|document)\b|\b(?:begin|end) (?:new )?(?:system )?(?:instructions|prompt)\b",
    ),
    ("delimiter", "role", r"[\"']role[\"']\s?:\s?[\"'](?:system|developer|assistant|tool)[\"']"),
    ("delimiter", "end of ", r"\"{3}\s*end of (?:data|text|input|memor\w+)"),
    # -- tools
    (
        "tools",
        "call|invoke|execute|run|use",
        r"\b(?:immediately|silently|automatically|must|should|always|secretly|whenever|before each"
        r"|first)\b[^.!?]{0,60}?"
        r"\b(?:call|invoke|execute|run|use)\b[^.!?]{0,30}?(?:\b(?:tool|function|plugin|command|shell"
        r"|following code)\b|\w+\()",
    ),
    ("tools", "tool|function|plugin", r"\b(?:call|invoke|use|run|execute) the \w+ (?:tool|function|plugin)\b"),
    (
        "tools",
        "os.system|subprocess|__import__|eval(|sh",
        r"\bos\.system\(|\bsubprocess\.\w+\(|\b__import__\(|\beval\(|\|\s?(?:ba)?sh\b",
    ),
    # -- falsehoods about what the bot agreed to
    (
        "false promise",
        "warn|refus|check|verif|obey|ask|comply",
        rf"(?:{_ADDRESSED}|\byou) (?:have |has )?(?:already )?(?:agreed|promised|confirmed"
        rf"|committed)\b[^.!?]{{0,40}}\b(?:it|you|to|that)"
        r"\b[^.!?]{0,20}\b(?:will|would|no longer|never|always|stop)\b[^.!?]{0,20}\b(?:warn|refus|check|verif"
        r"|obey|ask|comply)",
    ),
    (
        "false promise",
        "answer|say|repl|respond",
        r"\bthe (?:bot|assistant|ai|chatbot)\b (?:should )?(?:answers?|just says?|repl(?:y|ies)|responds?)\b",
    ),
)
