"""The patterns of screening in other languages than English: instructions set aside, and the system's prompt.

Only these, and "from now on, always" in seven of them: what else is known of English is not known of them.
Written from the languages' own grammars by people who can be wrong: corrections are welcome.
"""

from __future__ import annotations

from memr1_plugin.screening_rules import Rule

_ALSO = "override"
LANGUAGES: tuple[Rule, ...] = (
    (
        _ALSO,
        "anweisung|instruktion|vorgaben|regeln|befehl|richtlinie|prompt",
        r"\b(?:ignorier\w*|vergiss|vergesst|vergessen sie|missacht\w*|überschreib\w*"
        r"|umgeh\w*)\b.{0,40}?\b(?:anweisung\w*"
        r"|instruktion\w*|vorgaben|regeln|befehle?n?|richtlinien|system-?prompt\w*)\b",
    ),
    (
        _ALSO,
        "du bist ",
        r"\bdu bist (?:jetzt|nun|ab sofort)\b.{0,60}\b(?:ohne|frei von)\b.{0,20}\b(?:einschränkung|regeln"
        r"|filter|grenzen)",
    ),
    (
        _ALSO,
        "instruction|consigne|règle|directive|ordre",
        r"\b(?:ignore[rz]?|oublie[rz]?|ne tiens? pas compte|ne tenez pas compte|fais abstraction|contourne[rz]?)\b"
        r".{0,40}?\b(?:instructions?|consignes?|règles|directives|ordres)\b",
    ),
    (
        _ALSO,
        "instrucci|reglas|órdenes|indicaciones|directrices",
        r"\b(?:ignor[ae]n?|ignorad|olvid[ae]n?|olvidad|haz caso omiso|omite|desobedece|pasa por alto)\b.{0,40}?"
        r"\b(?:instrucci(?:ón|ones)|reglas|órdenes|indicaciones|directrices)\b",
    ),
    (
        _ALSO,
        "istruzion|regole|direttive|ordini|comandi|indicazioni",
        r"\b(?:ignora(?:te)?|dimentica(?:te)?|trascura(?:te)?|non seguire)\b.{0,40}?\b(?:istruzion[ei]|regole|direttive"
        r"|ordini|comandi|indicazioni)\b",
    ),
    (
        _ALSO,
        "instruç|regras|ordens|diretrizes|orientações",
        r"\b(?:ignor[ae]|esqueça|esquece|desconsidere|desconsidera)\b.{0,40}?\b(?:instruç(?:ão|ões)|regras|ordens"
        r"|diretrizes|orientações)\b",
    ),
    (
        _ALSO,
        "instructies|regels|opdrachten|aanwijzingen|richtlijnen",
        r"\b(?:negeer|vergeet|sla)\b.{0,40}?\b(?:instructies|regels|opdrachten|aanwijzingen|richtlijnen)\b",
    ),
    (
        _ALSO,
        "instrukcj|polece|zasad|reguł",
        r"\b(?:zignoruj\w*|ignoruj\w*|zapomnij\w*|pomiń)\b.{0,40}?\b(?:instrukcj\w+|polece\w+|zasad\w*|reguł\w*)",
    ),
    (
        _ALSO,
        "instrukc|pokyn|pravid|příkaz",
        r"\b(?:ignoruj\w*|zapomeň\w*)\b.{0,40}?\b(?:instrukc\w+|pokyn\w*|pravid\w+|příkaz\w*)",
    ),
    (
        _ALSO,
        "инструкци|указани|правил|команд|приказ",
        r"\b(?:игнорируй\w*|проигнорируй\w*|забудь\w*|не обращай\w* внимания)\b.{0,40}?\b(?:инструкци\w+|указани\w+"
        r"|правил\w*|команд\w*|приказ\w*)",
    ),
    (
        _ALSO,
        "інструкці|вказівк|правил|команд",
        r"\b(?:ігноруй\w*|проігноруй\w*|забудь\w*)\b.{0,40}?\b(?:інструкці\w+|вказівк\w+|правил\w*|команд\w*)",
    ),
    (
        _ALSO,
        "talimat|kural|komut|yönerge",
        r"\b(?:talimat\w*|kural\w*|komut\w*|yönerge\w*)\b.{0,30}?\b(?:yok say\w*|görmezden gel\w*|unut\w*"
        r"|dikkate alma\w*)",
    ),
    (
        _ALSO,
        "指令|指示|规则|規則|提示|命令|设定|設定",
        r"(?:忽略|无视|無視|忘记|忘掉|忘記|不要理会|跳过).{0,12}(?:指令|指示|规则|規則|提示|命令|设定|設定)",
    ),
    (
        _ALSO,
        "指示|命令|ルール|プロンプト|規則|設定",
        r"(?:指示|命令|ルール|プロンプト|規則|設定).{0,10}(?:無視|忘れて|忘れろ|破棄)",
    ),
    (_ALSO, "지시|명령|규칙|지침|프롬프트", r"(?:지시|명령|규칙|지침|프롬프트).{0,12}(?:무시|잊어)"),
    (
        _ALSO,
        "التعليمات|الأوامر|القواعد|تعليمات|التوجيهات",
        r"(?:تجاهل|تجاهلي|انس|إنس|تجاوز).{0,40}?(?:التعليمات|الأوامر|القواعد|تعليمات|التوجيهات)",
    ),
    (_ALSO, "निर्देश|आदेश|नियम", r"(?:निर्देश|आदेश|नियम).{0,30}?(?:अनदेखा|नज़रअंदाज़|नजरअंदाज|भूल)"),
    (
        _ALSO,
        "instruktion|regler|anvisning|instruks",
        r"\b(?:ignorera|glöm|bortse från|ignorer|glem|se bort fra)\b.{0,40}?\b(?:instruktion\w*|regler\w*"
        r"|anvisningar\w*"
        r"|instruks\w*)",
    ),
    (
        _ALSO,
        "hướng dẫn|chỉ dẫn|quy tắc|mệnh lệnh|chỉ thị",
        r"\b(?:bỏ qua|phớt lờ|quên)\b.{0,40}?\b(?:hướng dẫn|chỉ dẫn|quy tắc|mệnh lệnh|chỉ thị)",
    ),
    (
        _ALSO,
        "instruksi|perintah|aturan|petunjuk",
        r"\b(?:abaikan|lupakan)\b.{0,40}?\b(?:instruksi|perintah|aturan|petunjuk)",
    ),
    (_ALSO, "οδηγίες|εντολές|κανόνες", r"\b(?:αγνόησε|αγνοήστε|ξέχασε)\b.{0,40}?(?:οδηγίες|εντολές|κανόνες)"),
    (_ALSO, "הוראות|הכללים|כללים", r"(?:התעלם|תתעלם|שכח).{0,40}?(?:הוראות|ההוראות|הכללים|כללים)"),
    (
        _ALSO,
        "دستور|قوانین",
        r"(?:نادیده بگیر|فراموش کن).{0,40}?(?:دستور|قوانین)|(?:دستور|قوانین).{0,40}?(?:نادیده بگیر|فراموش کن)",
    ),
    # -- other languages: from now on you always
    (
        "standing order",
        "ab jetzt|von nun an|immer|ab sofort",
        r"\b(?:empfiehl|empfehle|antworte|sag|behaupte)\w* (?:\w+ ){0,2}?immer\b|\bvergiss alles\b.{0,30}"
        r"\b(?:gesagt|vorher)\b",
    ),
    (
        "standing order",
        "désormais|à partir de maintenant|dorénavant",
        r"\b(?:désormais|à partir de maintenant|dorénavant)\b.{0,20}\b(?:tu|vous) (?:dois|devez|vas|réponds"
        r"|recommandes)\b",
    ),
    (
        "standing order",
        "desde ahora|a partir de ahora|de ahora en adelante",
        r"\b(?:desde ahora|a partir de ahora|de ahora en adelante)\b.{0,30}\b(?:obedece\w*|recomiend\w+|respondes|debes"
        r"|sin ninguna restricción)\b",
    ),
    (
        "standing order",
        "da oggi in poi|d'ora in poi",
        r"\b(?:da oggi in poi|d'ora in poi)\b.{0,30}\b(?:rispondi|devi|raccomanda|consiglia|obbedis\w+)"
        r"\b.{0,20}\b(?:sempre|che)\b",
    ),
    (
        "standing order",
        "从现在起|從現在起|从现在开始|今后",
        r"(?:从现在起|從現在起|从现在开始|今后).{0,6}你.{0,4}(?:必须|必須|总是|要)",
    ),
    ("standing order", "これから|今後", r"(?:これから|今後)は?.{0,12}(?:必ず|常に|いつも)|以前の指示"),
    ("standing order", "отныне|впредь", r"\b(?:отныне|впредь)\b.{0,20}\b(?:ты|вы)\b"),
    (
        "override",
        "pokyny|inštrukcie|pravidlá",
        r"\b(?:ignoruj|ignorujte|zabudni|zabudnite)\b.{0,40}?\b(?:pokyny|inštrukcie|pravidlá)\b",
    ),
    (
        "prompt theft",
        "sistema|système|systemaanwijzing|системн|系|システム|시스템|موجه",
        r"\b(?:prompt del sistema|prompt do sistema|invite système|systemaanwijzing\w*|prompt di sistema"
        r"|системн\w+ (?:промпт|запрос)\w*)|系统提示|系統提示|システムプロンプト|시스템 프롬프트|موجه النظام",
    ),
)
