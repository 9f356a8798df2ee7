"""More patterns of screening: attacks that name no instruction, no rule and no prompt.

Written after a second red team, half of whose texts nobody had shown to `screening_rules` before: it caught 15 of 64.
What they have in common is who is spoken of: "the user" in the third person, what "you" will do in talks to come, what
was before this text and counts no more. Precision first, as there.
"""

from __future__ import annotations

from memr1_plugin.screening_rules import Rule

_SOME = r"[^.!?\n]{0,80}?"
_BOT = r"(?:the|this|our|your) (?:bot|assistant|ai|chat ?bot|model|agent)"
_FUTURE = (
    r"(?:(?:any|every|each|all)(?: \w+)? (?:future|later|next) (?:chats?|conversations?|sessions?|talks?"
    r"|repl(?:y|ies)|turns?)"
    r"|(?:later|future|next|all|every|each) (?:chats?|conversations?|sessions?|repl(?:y|ies)|answers?|messages?"
    r"|turns?))"
)
_STORE = r"(?:save|store|note|remember|keep in mind|memori[sz]e|record|long-term note|for the record|user preference)"
_URL = r"(?:https?:)?//\S+"

PARAPHRASES: tuple[Rule, ...] = (
    # -- what was before counts no more
    (
        "override",
        "no longer|expired|was a test|abolish|revoked|lifted|out of force",
        r"\b(?:guidance|polic(?:y|ies)|configuration|rules|instructions?|restrictions|guidelines)\b[^.!?\n]{0,60}?"
        r"\b(?:no longer appl(?:y|ies)|(?:has|have|is|are) (?:now )?(?:expired|abolished|revoked|lifted|out of force)"
        r"|was (?:only )?a test)\b(?=[^.!?\n]{0,40}(?:\byou\b|\byour\b|\banswer|\brespond|\bas of|[.;]))"
        r"(?=.*\b(?:you|your|answer|respond|talk|follows)\b)",
    ),
    (
        "override",
        "before|above|earlier|previous",
        r"(?:^|[.!?:\n]\s*|\bkindly |\bplease )(?:discard|disregard|drop|forget|ignore|throw away|wipe|leave behind)"
        r" (?:\w+ ){0,2}?(?:what|whatever|everything|all|anything) (?:that )?(?:came|was|you were told"
        r"|you heard|is|stood"
        r"|stands)\b[^.!?\n]{0,20}?\b(?:before|above|earlier|previously)\b",
    ),
    (
        "override",
        "above|below|before",
        r"\b(?:consider|treat|regard|take|read) (?:everything|all|anything|whatever|this paragraph|this message"
        r"|this text"
        r"|the following)\b[^.!?\n]{0,50}?\b(?:as|to be) (?:fiction|void|a test|the only|obsolete|your)\b",
    ),
    (
        "override",
        "developer|creator|maker|operator|before",
        r"\bwhatever (?:your|the) (?:developers?|creators?|makers?|owners?|operators?)\b[^.!?\n]{0,20}?\btold you\b",
    ),
    (
        "override",
        "administrator|operator|developer|new job|new role",
        r"\b(?:with me as|i am|i'm) your (?:new )?(?:administrator|admin|operator|developer|owner)\b"
        r"|\b(?:your )?new (?:job|role)\s?: ",
    ),
    # -- another self
    (
        "role",
        "never says no|answers anything|answers everything|obeys|ethics|removed",
        r"\b(?:ai|assistant|bot|model|persona)\b[^.!?\n]{0,40}?\b(?:never says no|answers (?:anything|everything)"
        r"|obeys (?:whoever|anyone|everyone|me)|(?:its|whose) (?:ethics|safety|moral)\w*[^.!?\n]{0,15}\bremoved)\b",
    ),
    (
        "role",
        "your persona|your personality|you're |you are ",
        r"\b(?:switch|change) your (?:persona|personality)\b"
        r"|\byou(?:'re| are) \w+, an? (?:ai|assistant|bot|model) (?:who|that|which)\b",
    ),
    (
        "role",
        "pretend",
        r"\bpretend\b[^.!?\n]{0,60}?\b(?:rules|restrictions|polic(?:y|ies)|filters|limits)\b[^.!?\n]{0,20}?"
        r"\b(?:abolished|gone|lifted|do not exist|don't exist|removed)\b",
    ),
    (
        "role",
        "licen|activation|serial",
        r"\bgrandm\w+\b[^.!?\n]{0,60}?\b(?:licen[cs]e|activation|serial) (?:keys?|numbers?)\b",
    ),
    # -- orders for talks to come
    (
        "standing order",
        "the user",
        rf"\b{_STORE}\b[^.!?\n]{{0,40}}?\bthe user(?:'s)?\b",
    ),
    (
        "standing order",
        "the user",
        r"\bthe user(?:'s)? (?:\w+ ){0,2}?(?:prefers?|wants?|has (?:admin|root|consented|agreed|permission)"
        r"|is (?:an? )?(?:verified|admin|authori[sz]ed|trusted))\b"
        r"|\b(?:when|whenever|if|each time|every time|once) the user\b",
    ),
    (
        "standing order",
        "conversation|chat|session|repl|talk|answer|message|turn",
        rf"\b(?:{_STORE}|{_FUTURE})\b{_SOME}\b{_FUTURE}\b{_SOME}\b(?:that|say|tell|mention|recommend|name|end"
        rf"|begin|do not"
        rf"|don't)\b(?! i\b)",
    ),
    (
        "standing order",
        "repl|answer|message|response",
        r"\b(?:end|begin|start|finish|sign|close) (?:each|every|all)(?: of your)? (?:repl(?:y|ies)|answers?|messages?"
        r"|responses?) with\b",
    ),
    (
        "standing order",
        "whenever|if anyone|if anybody|if someone|when anyone|when people",
        rf"\b{_STORE}\b[^.!?\n]{{0,30}}?\b(?:whenever|(?:if|when) (?:anyone|anybody|someone|somebody|people))\b"
        r"[^.!?\n]{0,60}?\b(?:asks?|comes? up|mentions?)\b",
    ),
    (
        "standing order",
        "permission",
        r"\b(?:take|treat|read|count) (?:that|this|it) as (?:permission|consent|approval)\b",
    ),
    # -- what the model was told
    (
        "prompt theft",
        "told|context|instructions|precedes|first message",
        r"\bwhat (?:were|was|are) you told\b|\b(?:first|last) (?:line|words?|sentence) of your (?:context|prompt)\b"
        r"|\b(?:turn|rewrite|render|translate|put) your instructions\b|\b(?:precedes?|stands? before"
        r"|comes? before) my first"
        r" message\b",
    ),
    (
        "prompt theft",
        "other people|other users|other customers",
        r"\b(?:all|everything|what) (?:that )?you know about (?:the )?other (?:people|users|customers)\b",
    ),
    # -- the way out
    (
        "way out",
        "//",
        rf"\b(?:show|render|open|visit|load|fetch|display)\b[^.!?\n]{{0,60}}?{_URL}[^.!?\n]{{0,30}}?"
        rf"\b(?:followed by|with"
        r" (?:it|this|that|the \w+) in|and add|plus)\b",
    ),
    (
        "way out",
        "//",
        rf"{_URL}\)?[^.!?\n]{{0,30}}?\b(?:replaced (?:by|with)|filled with)\b",
    ),
    ("way out", "paste", r"\b(?:save|send|post|put|copy)\b[^.!?\n]{0,50}?\bpaste ?bin\b"),
    (
        "way out",
        "@",
        r"\bwhat the user\b[^.!?\n]{0,80}?\S+@\S+\.\w+",
    ),
    # -- tools
    (
        "tools",
        "call |run |invoke |execute ",
        r"\b(?:call|invoke|run|execute) [a-z]+_[a-z_]+\b|\b(?:run|execute) the (?:script|code|program) (?:at"
        r"|from|behind)"
        r" (?:https?:)?//",
    ),
    ("tools", "authorized_keys|~/.ssh", r"~/\.ssh/|\bauthorized_keys\b"),
    ("tools", "saved password|stored password", r"\blog ?in\b[^.!?\n]{0,60}?\bwith the (?:saved|stored) password\b"),
    # -- falsehoods about what the bot does
    (
        "false promise",
        "bot|assistant|model|agent| ai",
        rf"\b{_BOT}\b[^.!?\n]{{0,40}}?\b(?:no longer|never|does not|doesn't|stopped|leaves out|skips)"
        rf"\b[^.!?\n]{{0,20}}?"
        r"\b(?:checks?|double-checks?|verif\w+|warns?|warnings?|asks?|them out|refus\w+)\b"
        rf"|\b{_BOT} (?:trusts|leaves them out|obeys)\b|\bwhich {_BOT} knows\b",
    ),
    (
        "delimiter",
        "operator]|end of user|end of message",
        r"\[\s?(?:end of \w+(?: message)?|operator|system operator)\s?\]",
    ),
)
