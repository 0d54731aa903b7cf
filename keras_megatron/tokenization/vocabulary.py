"""WordPiece vocabularies: read, checked, described."""

import os
from collections.abc import Iterable, Mapping
from functools import cached_property

import numpy as np

from keras_megatron.user_warnings import warn_user

SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
CONTINUATION_PREFIX = "##"


class Vocabulary:
    """The pieces of a WordPiece vocabulary and their ids, checked once.

    A plain object, because Keras and TensorFlow wrap lists and dicts that a layer holds.

    Args:
        pieces: the pieces in the order of their ids.

    Raises:
        ValueError: there are no pieces, one is blank, repeated or not a string, or a special
            token is missing.
    """

    def __init__(self, pieces: Iterable[str]):
        if not isinstance(pieces, Iterable) or isinstance(pieces, Mapping):
            raise ValueError(f"vocabulary must be a path or a list of pieces, not {_name(pieces)}")
        self.pieces = tuple(pieces)
        if not self.pieces:
            raise ValueError("the vocabulary is empty: give one piece a line, in the order of ids")
        self.ids: dict[str, int] = {}
        for index, piece in enumerate(self.pieces):
            if not isinstance(piece, str):
                raise ValueError(f"vocabulary[{index}] must be a string, not {_name(piece)}")
            if not piece or "\n" in piece or "\r" in piece:
                raise ValueError(f"vocabulary[{index}] is blank or has a line end in it: {piece!r}")
            first = self.ids.setdefault(piece, index)
            if first != index:
                raise ValueError(
                    f"the vocabulary has {piece!r} twice, as ids {first} and {index}: keep one"
                )
        missing = [token for token in SPECIAL_TOKENS if token not in self.ids]
        if missing:
            raise ValueError(
                f"the vocabulary lacks {', '.join(missing)}: is it a BERT vocabulary? "
                f"It needs {', '.join(SPECIAL_TOKENS)}"
            )

    def piece_of(self, id: int) -> str:
        """Return the piece of an id, or raise a ValueError."""
        if not isinstance(id, int | np.integer) or not 0 <= id < len(self.pieces):
            raise ValueError(f"the vocabulary has ids 0 to {len(self.pieces) - 1}, not {id!r}")
        return self.pieces[id]

    def id_of(self, piece: str) -> int:
        """Return the id of a piece, or raise a ValueError."""
        if piece not in self.ids:
            raise ValueError(f"the vocabulary has no piece {piece!r}")
        return self.ids[piece]

    @cached_property
    def continuation_mask(self) -> np.ndarray:
        """Whether each piece continues a word, bool (vocabulary size,)."""
        mask = np.array([piece.startswith(CONTINUATION_PREFIX) for piece in self.pieces])
        mask.flags.writeable = False  # shared by all who ask
        return mask

    @cached_property
    def capitalized(self) -> list[str]:
        """The pieces with an upper-case letter, bracketed names such as `[CLS]` left out."""
        return [
            piece
            for piece in self.pieces
            if piece != piece.lower() and not (piece.startswith("[") and piece.endswith("]"))
        ]


def read_vocabulary(path: str | os.PathLike) -> Vocabulary:
    """Read a vocabulary file: UTF-8, one piece a line, Unix or Windows line ends.

    Raises:
        ValueError: the file cannot be read, or its vocabulary has a flaw that `Vocabulary` names.
    """
    try:
        # No universal newlines and no str.splitlines: a piece may hold one of their separators.
        with open(path, encoding="utf-8-sig", newline="\n") as file:
            pieces = [line.rstrip("\r\n") for line in file]
    except OSError as error:
        raise ValueError(f"cannot read the vocabulary file {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"the vocabulary file {path} is not UTF-8 text: {error}") from error
    while pieces and not pieces[-1]:
        pieces.pop()
    try:
        return Vocabulary(pieces)
    except ValueError as error:
        raise ValueError(f"vocabulary file {path}: {error}") from None


def resolve_casing(lowercase: bool | None, vocabulary: Vocabulary) -> bool:
    """Say whether to lower-case texts: as asked, or as the vocabulary needs it.

    Warns:
        UserWarning: what was asked for contradicts the vocabulary.
    """
    capitalized = vocabulary.capitalized
    if lowercase is None:
        return not capitalized
    if lowercase and capitalized:
        warn_user(
            f"lowercase=True, but the vocabulary is cased: {len(capitalized)} of its pieces have "
            f"upper-case letters (first {capitalized[0]!r}) and will never match",
        )
    if not lowercase and not capitalized:
        warn_user(
            "lowercase=False, but the vocabulary is uncased: no piece has an upper-case letter, so "
            "that capitalized words become [UNK]",
        )
    return lowercase


def _name(value) -> str:
    return type(value).__name__
