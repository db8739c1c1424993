"""Kinds of text that tokenizers have been seen to disagree on; two more, of special tokens, are made for each model."""
# ruff: noqa: RUF001

from __future__ import annotations

PROBE_TEXTS: dict[str, tuple[str, ...]] = {
    "plain": ("Hello, world! This is it: a test; isn't it? They'RE sure we'Ve 'told him.", "The quick brown fox."),
    "accents": ("Ça déjà vu, naïve café, Größe, Ærøskøbing, señor, žluťoučký kůň", "İstanbul ıŞıK ǅ ﬁne ſ"),
    "combining marks": ("cafe\u0301 n\u0303 a\u030a\u0323 Z\u0351\u036b\u0343", "\u0301start"),
    "emoji": ("👩‍👩‍👧‍👦 👍🏽 🏳️‍🌈 🇩🇪🇫🇷 ❤️ 🦙🦙", "a🚀b ✅(😶) ☃️"),
    "CJK": ("我想在apple工作1314151天～ 東京タワーへ行く。한국어 조사", "，。！？「」、…"),
    "right to left": ("مرحبا بالعالم، ١٢٣ شلום", "שלום עולם! \u200fabc\u200e العربية"),
    "other scripts": ("нещо на Български, Ελληνικά, ภาษาไทย", "ქართული Հայերեն አማርኛ"),
    "digits": ("3 33 333 3333 33333 333333 3.3 3..3 3,141,592 ٣٤٥ ½ Ⅷ ²³ 1a2b3c 007", "12345678901234567890"),
    "code": ("def f(x):\n\tif x:\n\t\treturn {'a': [1, 2]}  # ok\n\n\n", "\tfor(int i=0;i<10;++i){a[i]<<=2;}\r\n", "a_b->c::d"),
    "punctuation": ("------======= ''''''```````\"\"\"\"......!!!!!!?????? ~~~ @#$%^&*()_+[]{}|\\<>/", "«—» “x” ‘y’ … €£¥ §"),
    "runs of spaces": ("a  b   c    d        e", "  two", "end  ", "   ", "x \t y\t\tz", "a\u00a0b\u2003c\u3000d"),
    "runs of newlines": ("a\n\nb\n\n\nc\n", "\n \n\n \n\n\n \t \t\t \t\n  \n   \n    \n     \n🚀", "\n", "x \n y"),
    "line ends": ("one\r\ntwo\r\n\r\nthree\r\n", "old\rmac\r\rend", "a \r\n b"),
    "byte fallback": ("𓀀𓂀 ㍐ 𝕏 𠜎𠜱 \U000f0000 \ue000", "\u0378"),
    "control characters": ("a\x01b\x1fc\x7fd\x85e", "tab\tbell\x07esc\x1b[0m", "zero\u200bwidth\u2060\u00ad"),
    "byte order mark": ("\ufefftext", "te\ufeffxt"),
    "mixed": ("http://example.org/a?b=c&d=%20#x user@host.tld \\\\dir\\file.txt 10:30am £5.99/kg", "iPhone15Pro snake_case"),
    "very long word": ("a" * 90 + "Zebra" * 2, "x" * 1200, "1" * 400, "Donaudampfschifffahrtsgesellschaft" * 12),
    "empty": ("",),
}  # fmt: skip

# Conversations for a model with a chat template; those that it refuses (a system prompt, tools) are not compared.
CONVERSATIONS: dict[str, list[dict[str, object]]] = {
    "one turn": [{"role": "user", "content": "Hello! What's 12 × 34?"}],
    "system prompt": [
        {"role": "system", "content": "You answer in one sentence.\n"},
        {"role": "user", "content": "  Grüße aus 東京 👋🏽\n\n\tcode()  "},
    ],
    "several turns": [
        {"role": "user", "content": "Name a colour."},
        {"role": "assistant", "content": "Blue."},
        {"role": "user", "content": "<b>Another</b> & 'one', {{ please }}"},
        {"role": "assistant", "content": "Red!"},
        {"role": "user", "content": "2 more\r\n- first\r\n- second"},
    ],
    "answered": [{"role": "user", "content": "Yes?"}, {"role": "assistant", "content": "No.\n"}],
    "tool call": [
        {"role": "user", "content": "How warm is it?"},
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [
                {"type": "function", "id": "call00001", "function": {"name": "warmth", "arguments": {"room": "Küche"}}}
            ],
        },
        {"role": "tool", "name": "warmth", "tool_call_id": "call00001", "content": '{"degrees": 21.5}'},
    ],
}
TOOLS: list[dict[str, object]] = [
    {
        "type": "function",
        "function": {
            "name": "warmth",
            "description": "The temperature of a <room>, in °C.",
            "parameters": {
                "type": "object",
                "properties": {"room": {"type": "string", "description": "which one"}},
                "required": ["room"],
            },
        },
    }
]
