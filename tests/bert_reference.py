"""The reference tokenizer, and the texts that tokenizers get wrong."""

from functools import cache
from pathlib import Path

import tokenizers

from keras_megatron import MegatronBertTokenizer

ROOT = Path(__file__).parents[1]
VOCABULARIES = {
    casing: ROOT / f"keras_megatron/presets/vocabularies/bert_{casing}.txt"
    for casing in ("uncased", "cased")
}
SPECIAL_TOKENS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
PIECES = [*SPECIAL_TOKENS, "the", "cafe", "##s", "open", "a", "##a"]
PAD, UNK, CLS, SEP, MASK, THE, CAFE, S, OPEN, A, AA = range(len(PIECES))

# Each has a reason: a place where another BERT tokenizer, or TensorFlow's ops, give other ids.
HARD_TEXTS = [
    "",
    " \t\r\n ",
    "Café cafe\u0301 CAFÉ naïve Ångström",  # composed and decomposed accents
    "Straße STRASSE ẞ ß",  # sharp s: no case folding
    "İstanbul ISTANBUL ıspanak I\u0307",  # dotted capital I
    "ΣΊΣΥΦΟΣ σίσυφος",  # final sigma: lower-cased letter by letter
    "ﬁn ofﬁce ½ ² Ⅷ",  # compatibility characters stay
    "日本語 中文字 한국어 한글 かな 豈 \U00020000\U0002f800",  # CJK ideographs, Hangul
    "👩‍👩‍👧‍👦 👍🏽 🇩🇪 ❤️ smile 😀!",  # emoji with joiners, skin tones, flags, selectors
    "no\u00a0break thin\u2009space ideographic\u3000space line\u2028end",
    "zero\u200bwidth joi\u200dner soft\u00adhyphen \ufeffmark word\u2060joiner",
    "nul\x00 bell\x07 escape\x1b next\x85line vertical\x0btab form\x0cfeed delete\x7f",
    "replace\ufffdment private\ue000use \U0010fff0 last\U0010ffff non\ufdd0character",
    "«Quoted» “curly” ‘single’ – en — em … ¿qué? ¡sí! 、。 $ € ^ ` ~ | + <tag>",
    "a" * 99 + " " + "a" * 100 + " " + "a" * 101,
    "é" * 50 + " " + "é" * 51 + " " + "é" * 100 + " " + "é" * 101,  # the limit is on characters
    "e\u0301" * 100 + " " + "e\u0301" * 101,
    "\U0001d400" * 100 + " " + "\U0001d400" * 101,
    "[MASK] [mask] x[MASK]y [MASK][SEP] [[CLS]] [PAD]\u0301 [UNK]. [MA\ue000SK] [MA SK] [ MASK ]",
    "##ing # ## un##able [unused1]",
    "don't U.S.A. e-mail@example.com 3.14 1,000 C++ --flag /path/to",
    "न्\u200dयाय ไทย العَرَبِيَّة עִבְרִית",  # marks that are dropped, and marks that stay
    "ᬓ᭄ 𑂚 𝅘𝅥𝅮 \u1b44\u302e\u302f\u1b44 \U0001d165\U0001d172\U00016ff0",  # marks that are sorted
]  # fmt: skip


@cache
def reference(casing: str) -> tokenizers.BertWordPieceTokenizer:
    """The reference with its own reading of the vocabulary file."""
    return tokenizers.BertWordPieceTokenizer(
        str(VOCABULARIES[casing]), lowercase=casing == "uncased"
    )


@cache
def tokenizer(casing: str) -> MegatronBertTokenizer:
    return MegatronBertTokenizer(VOCABULARIES[casing])


def reference_ids(casing: str, texts: list[str]) -> list[list[int]]:
    encodings = reference(casing).encode_batch(texts, add_special_tokens=False)
    return [encoding.ids for encoding in encodings]


def paragraphs() -> list[str]:
    """Real text; tests/data/README.md says from where."""
    return (ROOT / "tests/data/paragraphs.txt").read_text(encoding="utf-8").splitlines()
