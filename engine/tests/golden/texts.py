"""The texts that the golden files are computed from."""

SMOLLM2 = [
    "The capital of France is",
    "a",
    "Tyrannosaurus rex 🦖 and the family 👩‍👩‍👧‍👦 didn't meet Björk in Reykjavík 🇮🇸!",
    "وُلد نجيب محفوظ في القاهرة عام ١٩١١ وحصل على جائزة نوبل.",
    # Decomposed accents, stacked marks, Devanagari vowel signs.
    "Ame\u0301lie Poulain a mange\u0301 au cafe\u0301; Z\u0337a\u0337l\u0337g\u0337o\u0337 लिखा नमस्ते.",
    "Flight 815 left at 16:42 on 2004-09-22, cost $1,234.50, sat in row 42½, chapter Ⅷ, room ٣٤.",
    "def  f(x):\n\tif x >= 10:\n\t\treturn {'a': x**2}  # it's 100%\r\n\n\n    return None\n",
    "東京タワーは1958年に完成した。  서울은 대한민국의 수도이다.\u00a0Москва — столица.",
    "The European Union moved quickly to confront Big Tech after the ruling in Luxembourg. Margrethe "
    "Vestager, the Danish politician who led the competition office from 2014 to 2024, had fined Google "
    "4.34 billion euros over Android; Apple was told to repay 13 billion euros to Ireland. In Brussels, "
    "officials of the European Commission compared the case with the antitrust trial of Microsoft in "
    "1998, while lawyers for Amazon and Meta Platforms said that the Digital Markets Act went further "
    "than anything in the United States. The writer Ursula K. Le Guin once told the National Book "
    "Foundation that any human power can be resisted and changed by human beings; Angela Merkel quoted "
    "her in Leipzig. Far from the courts, a team at the University of Alberta unearthed a skull of "
    "Albertosaurus near the Red Deer River, and the Royal Tyrrell Museum in Drumheller will show it "
    "next to the skeleton of Triceratops that visitors know from the television series.",
]

TINY_LLAMA3 = [
    "Albertosaurus lived in Alberta.",
    "Zoë's 12345 naïve cafés — 東京 🦖",
    "I'LL say it's 2024\n\n  and\tthat they've gone   ",
    "x",
    SMOLLM2[-1][:330],
]

TINY_QWEN = TINY_LLAMA3[:3] + [
    "x",
    # Composed before they are cut into tokens.
    "Ame\u0301lie au cafe\u0301, <tool_call> 한국",
]

# What the tiny checkpoints' tokenizers are trained on.
TINY_CORPUS = SMOLLM2[-1:] + [
    "Albertosaurus and Triceratops lived in what is now Alberta; they didn't meet the Beatles.",
    "In 2004 and in 2024 the museum said that it's open from 10 to 18, and they've said so before.",
    "The capital of France is Paris, the capital of Iceland is Reykjavík, and Tokyo is 東京.",
]

PRE_TOKENIZERS = [
    "Hello world, this isn't they'll THEY'LL we've I'M he'd DON'T 'tis rock'n'roll",
    "1 12 123 1234 12345678 a1b22c333 3.14159 1,000,000 x² ½ Ⅷ ٣٤٥ 一二三",
    "line one\nline two\r\nline three\n\n\n  indented\n \n\t\ttabs\n",
    "  leading spaces   inner   runs  and trailing   ",
    "\tTab first\t\tthen two \t mixed\u00a0no-break\u3000ideographic\u2009thin",
    "東京タワーは1958年に完成した。서울은 대한민국의 수도이다。",
    "🦖 👩‍👩‍👧‍👦🇮🇸!!! ok🙂ok 👍🏽",
    "Ame\u0301lie cafe\u0301 naïve Zoë नमस्ते Z\u0337a\u0337 שָׁלוֹם مُحَمَّد",
    "if (x >= 10 && y != 0) { return \"a'b\"; } // C++20 <T>::value\n#define A_B 1\n",
    "https://example.org/a?b=c&d=%20e#f user@mail.com $9.99 50% §3 C# #hashtag @name --flag ... …",
    "",
    " ",
    "\n",
    " \n a",
    "a  1  b",
]
