"""Words and the pieces that a tokenizer makes of them."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from keras_megatron.tokenizer import MegatronBertTokenizer


@dataclasses.dataclass(frozen=True)
class WordPieces:
    """A text's pieces, and where its words begin among them.

    Attributes:
        ids: the pieces, without [CLS] and [SEP].
        starts: of each word the place of its first piece in `ids`; None if it has no piece, such as
            a zero-width space.
        spans: of each word its (start, end) in the text, if there is a text.
    """

    ids: list[int]
    starts: list[int | None]
    spans: list[tuple[int, int]] | None = None


def pieces_of_words(
    tokenizer: MegatronBertTokenizer, samples: Sequence[Sequence[str]]
) -> list[WordPieces]:
    """Tokenize words one by one, as the `tokenizers` library does with `is_pretokenized`."""
    pieces = iter(tokenizer.tokenize([word for words in samples for word in words]))
    result = []
    for words in samples:
        ids, starts = [], []
        for _ in words:
            of_word = next(pieces)
            starts.append(len(ids) if of_word else None)
            ids += of_word
        result.append(WordPieces(ids, starts))
    return result


def pieces_of_texts(tokenizer: MegatronBertTokenizer, texts: Sequence[str]) -> list[WordPieces]:
    """Tokenize texts; their words are those of the tokenizer, so punctuation stands alone."""
    result = []
    for ids, offsets in zip(*tokenizer.tokenize_with_offsets(list(texts)), strict=True):
        starts = np.flatnonzero(~tokenizer.continuation_mask[ids]).tolist() if ids else []
        ends = [*starts[1:], len(ids)]
        spans = [
            (offsets[start][0], offsets[end - 1][1])
            for start, end in zip(starts, ends[: len(starts)], strict=True)
        ]
        result.append(WordPieces(ids, starts, spans))
    return result


def check_words(samples: Sequence) -> None:
    """Refuse what is neither texts nor lists of words.

    Raises:
        ValueError: a sample is of another type than str or list, or than the first sample; it has
            no words, or one that is not a str.
    """
    for index, words in enumerate(samples):
        if isinstance(words, str) and isinstance(samples[0], str):
            continue
        if not isinstance(words, list | tuple | np.ndarray) or isinstance(samples[0], str):
            kind = "a text" if isinstance(samples[0], str) else "a list of words"
            raise ValueError(
                f"sample {index} must be {kind}, as the others, not {type(words).__name__}: "
                f"{str(words)[:60]!r}"
            )
        if not len(words):
            raise ValueError(f"sample {index} has no words: leave it out")
        for word in words:
            if not isinstance(word, str):
                raise ValueError(f"sample {index} has a word that is not a str: {word!r}")
