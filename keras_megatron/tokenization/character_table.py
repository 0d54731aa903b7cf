"""What BERT's normalizer and word splitter do with each Unicode character, as arrays."""

import unicodedata
from functools import lru_cache

import numpy as np
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer

from keras_megatron.tokenization.vocabulary import SPECIAL_TOKENS

PAGE = 256  # code points
WIDTH = 3  # the most that a code point becomes: the letters of a Hangul syllable, or " x "
NOTHING, ITSELF = 0, -1  # 0 is free, because U+0000 is dropped
# One character for each special token, to find it again behind the table. They are private-use
# characters, which BERT drops: those of a text itself are to be turned into `DROPPED` before.
STAND_INS = {token: chr(0x10FFF0 + index) for index, token in enumerate(SPECIAL_TOKENS)}
DROPPED = "\ufffd"

_PAGES = 0x110000 // PAGE
_SURROGATE_PAGES = range(0xD800 // PAGE, 0xE000 // PAGE)
_ALONE = (ord(" "), ITSELF, ord(" "))


@lru_cache(maxsize=2)
def character_table(lowercase: bool) -> tuple[np.ndarray, np.ndarray]:
    """Ask the `tokenizers` library what becomes of every character. This takes a second or two.

    Args:
        lowercase: lower-case and strip accents.

    Returns:
        For each run of 256 code points its page (4352,), and the rows of all pages
        (pages * 256, 3): each the code points that one becomes, with spaces where a word ends,
        `ITSELF` where it stays and `NOTHING` where there are fewer. Most runs share a page.
    """
    normalize = BertNormalizer(lowercase=lowercase).normalize_str
    split = BertPreTokenizer().pre_tokenize_str

    def words(text):
        return [word for word, _ in split(normalize(text))]

    table = np.full((_PAGES, PAGE, WIDTH), NOTHING, "int32")
    for page in set(range(_PAGES)) - set(_SURROGATE_PAGES):
        characters = [chr(code) for code in range(page * PAGE, (page + 1) * PAGE)]
        run = "".join(characters)
        if words(run) == [run]:
            table[page, :, 0] = ITSELF
        elif normalize(run):
            for row, character in zip(table[page], characters, strict=True):
                # Between two letters it shows whether the character joins them or parts them.
                becomes = " ".join(words(f"a{character}b"))[1:-1]
                codes = [ITSELF if new == character else ord(new) for new in becomes]
                row[: len(codes)] = codes
    for stand_in in STAND_INS.values():
        row = table[divmod(ord(stand_in), PAGE)]
        assert not row.any(), "a stand-in must be a character that BERT drops"
        row[:] = _ALONE
    pages, page_of = np.unique(table, axis=0, return_inverse=True)
    return page_of.astype("int32"), pages.reshape(-1, WIDTH)


@lru_cache(maxsize=1)
def canonical_classes() -> dict[str, int]:
    """Return the combining marks that survive lower-casing, and their canonical classes.

    Decomposition sorts the marks of a letter by class. BERT then drops most of them, but not the
    spacing ones, nor those newer than the library's table of non-spacing ones.
    """
    normalize = BertNormalizer(lowercase=True).normalize_str

    def is_sorted(mark):
        # The library's own classes may be of an older Unicode: see if it moves the mark at all.
        stem, tone = "\U0001d165", "\u302f"  # of classes 216 and 224
        pairs = (stem + mark, mark + stem, tone + mark, mark + tone)
        return any(normalize(pair) != pair for pair in pairs)

    marks = (chr(code) for code in range(0x110000) if unicodedata.combining(chr(code)))
    return {
        mark: unicodedata.combining(mark)
        for mark in marks
        if normalize(mark) == mark and is_sorted(mark)
    }
