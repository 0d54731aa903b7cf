"""The vocabulary of a tokenizer of KerasHub, and the file that it is saved as."""

import os
from collections.abc import Iterable

import numpy as np
from keras.src.saving.serialization_lib import in_safe_mode

from keras_megatron.tokenization.vocabulary import Vocabulary, read_vocabulary

VOCABULARY_FILE = "vocabulary.txt"


class VocabularyAsset:
    """What a tokenizer has of its vocabulary; KerasHub's base class stands behind this."""

    _vocabulary: Vocabulary | None = None

    def set_vocabulary(self, vocabulary: str | os.PathLike | Iterable[str]) -> None:
        """Take the vocabulary from a file or from a list of pieces.

        Raises:
            ValueError: it cannot be read, is empty, repeats a piece or lacks a special token.
        """
        if not isinstance(vocabulary, str | os.PathLike):
            self._use(Vocabulary(vocabulary))
            return
        if in_safe_mode():  # a stored configuration may not name a file for us to read
            raise ValueError(
                f"a stored tokenizer names the vocabulary file {vocabulary}, outside of its own "
                "files: if you trust it, load with safe_mode=False"
            )
        self._use(read_vocabulary(vocabulary))

    def _use(self, vocabulary: Vocabulary) -> None:
        """Take a vocabulary; a hook."""
        self._vocabulary = vocabulary

    @property
    def vocabulary(self) -> list[str] | None:
        """The pieces in the order of their ids; None if there are none yet."""
        return None if self._vocabulary is None else list(self._vocabulary.pieces)

    @property
    def continuation_mask(self) -> np.ndarray:
        """Whether each piece continues a word ("##"), bool (vocabulary size,), read-only."""
        return self._checked_vocabulary().continuation_mask

    def get_vocabulary(self) -> list[str]:
        """Return the pieces in the order of their ids."""
        return list(self._checked_vocabulary().pieces)

    def vocabulary_size(self) -> int:
        """Return the number of pieces."""
        return len(self._checked_vocabulary().pieces)

    def id_to_token(self, id: int) -> str:
        """Return the piece of an id.

        Raises:
            ValueError: the vocabulary has no such id.
        """
        return self._checked_vocabulary().piece_of(id)

    def token_to_id(self, token: str) -> int:
        """Return the id of a piece.

        Raises:
            ValueError: the vocabulary has no such piece.
        """
        return self._checked_vocabulary().id_of(token)

    def _checked_vocabulary(self) -> Vocabulary:
        if self._vocabulary is None:
            raise ValueError("the tokenizer has no vocabulary yet: pass one to set_vocabulary")
        return self._vocabulary

    def save_assets(self, dir_path: str | os.PathLike) -> None:
        """Write `vocabulary.txt` into a directory."""
        path = os.path.join(dir_path, VOCABULARY_FILE)
        with open(path, "w", encoding="utf-8", newline="\n") as file:
            file.writelines(f"{piece}\n" for piece in self.get_vocabulary())

    def load_assets(self, dir_path: str | os.PathLike) -> None:
        """Read `vocabulary.txt` from a directory.

        Raises:
            ValueError: it cannot be read, is empty, repeats a piece or lacks a special token.
        """
        self._use(read_vocabulary(os.path.join(dir_path, VOCABULARY_FILE)))
