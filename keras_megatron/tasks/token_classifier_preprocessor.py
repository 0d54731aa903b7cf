from collections.abc import Sequence

import keras
import keras_hub
import numpy as np

from keras_megatron.tasks.labels import check_class_names, class_numbers
from keras_megatron.tasks.preprocessor import MegatronBertPreprocessor
from keras_megatron.tasks.word_pieces import (
    WordPieces,
    check_words,
    pieces_of_texts,
    pieces_of_words,
)
from keras_megatron.tokenizer import MegatronBertTokenizer


@keras.saving.register_keras_serializable(package="keras_megatron")
class MegatronBertTokenClassifierPreprocessor(
    MegatronBertPreprocessor, keras_hub.models.Preprocessor
):
    """Turns words with tags into pieces with labels.

    A word's tag goes to its first piece (arXiv 1810.04805, section 5.3); its other pieces, [CLS],
    [SEP] and padding have weight 0, and so no part in loss and metrics. Words beyond
    `sequence_length` are cut; a word that has no piece, such as a zero-width space, has no label.

    Args:
        tokenizer: `MegatronBertTokenizer`.
        sequence_length: int. Pieces a sample, [CLS] and [SEP] included.
        class_names: list of str. What the tags are called, in the order of their labels. None if
            tags are integers.

    Call arguments:
        x: list of samples, each a list of words or each a text, whose words are then found by the
            tokenizer. Or one text.
        y: a list of tags a sample, one for each of its words: names or integers.
        sample_weight: a weight a sample, or None.

    Returns:
        x, or `(x, y, sample_weight)` if there are tags: x a dict of int32 arrays `token_ids`,
        `segment_ids`, `padding_mask` (batch, sequence); y int32 and sample_weight float32, both
        (batch, sequence), 0 where a piece has no label.

    Raises:
        ValueError: `sequence_length` or `class_names` is not possible; a sample has no words, or
            one that is not a str; there are other tags than words, or one is unknown.

    Example:
    ```python
    from keras_megatron import MegatronBertTokenClassifierPreprocessor

    preprocessor = MegatronBertTokenClassifierPreprocessor.from_preset(
        "megatron_bert_tiny_uncased", sequence_length=8, class_names=["O", "B-PER", "I-PER"]
    )
    x, y, sample_weight = preprocessor(
        [["Captain", "Ahab", "spoke"]], y=[["O", "B-PER", "O"]]
    )
    assert y[0, 2] == 1
    ```
    """

    def __init__(
        self,
        tokenizer: MegatronBertTokenizer,
        sequence_length: int = 512,
        class_names: Sequence[str] | None = None,
        **kwargs,
    ):
        if not isinstance(sequence_length, int) or sequence_length < 3:
            raise ValueError(
                f"sequence_length must be an integer of at least 3, not {sequence_length!r}"
            )
        super().__init__(**kwargs)
        self.tokenizer = tokenizer
        self.sequence_length = sequence_length
        self.class_names = check_class_names(class_names)

    def preprocess(self, columns: tuple, y=None, sample_weight=None, rng=None):
        """Return `x` or `(x, y, sample_weight)`; see the class."""
        if isinstance(columns[0], str):
            x, _ = self._encode([columns[0]])
            return {name: array[0] for name, array in x.items()}
        x, samples = self._encode(columns[0])
        if y is None:
            return x
        labels = np.zeros(x["token_ids"].shape, "int32")
        weights = np.zeros(labels.shape, "float32")
        for row, (sample, tags) in enumerate(zip(samples, y, strict=True)):
            for start, tag in zip(sample.starts, tags, strict=True):
                if start is not None and start < self.sequence_length - 2:
                    labels[row, 1 + start] = tag
                    weights[row, 1 + start] = 1.0
        if sample_weight is not None:
            weights *= np.asarray(sample_weight, "float32")[:, None]
        return x, labels, weights

    def _encode(self, samples: Sequence) -> tuple[dict[str, np.ndarray], list[WordPieces]]:
        samples = self.words(samples)
        ids = [sample.ids for sample in samples]
        return self.tokenizer.pack(ids, sequence_length=self.sequence_length), samples

    def words(self, samples: Sequence) -> list[WordPieces]:
        """Tokenize samples, lists of words or texts, and say where their words begin."""
        if len(samples) and isinstance(samples[0], str):
            return pieces_of_texts(self.tokenizer, samples)
        return pieces_of_words(self.tokenizer, samples)

    def check_samples(self, columns: tuple, y=None) -> None:
        """Refuse what is not words, and tags that are not theirs.

        Raises:
            ValueError: as the class says.
        """
        if len(columns) != 1:
            raise ValueError(f"give one list of lists of words (or of texts), not {len(columns)}")
        samples = [columns[0]] if isinstance(columns[0], str) else columns[0]
        check_words(samples)
        if y is None:
            return
        if len(samples) and isinstance(samples[0], str):
            raise ValueError("tags belong to words: give lists of words, not texts")
        if len(samples) != len(y):
            raise ValueError(f"there are {len(samples)} samples but {len(y)} lists of tags")
        for index, (words, tags) in enumerate(zip(samples, y, strict=True)):
            if isinstance(tags, list | tuple | np.ndarray) and len(words) != len(tags):
                raise ValueError(f"sample {index} has {len(words)} words but {len(tags)} tags")

    def check_call(self, columns: tuple, y=None) -> None:
        """Do what `check_samples` does, which takes a single text too."""
        self.check_samples(columns, y)

    def prepare_labels(self, y: Sequence) -> list[list[int]]:
        """Turn tags, names or integers, into labels.

        Raises:
            ValueError: a sample's tags are no list; or a tag is none of the `class_names`, or is
                neither a str nor an integer.
        """
        return [self._labels(tags, index) for index, tags in enumerate(y)]

    def _labels(self, tags: Sequence, index: int) -> list[int]:
        if not isinstance(tags, list | tuple | np.ndarray):
            raise ValueError(f"the tags of sample {index} must be a list, not {tags!r}")
        names = [tag for tag in tags if isinstance(tag, str)]
        numbers = class_numbers(names, self.class_names, lambda _: f"sample {index} has the tag")
        numbers = iter(numbers)
        return [
            next(numbers) if isinstance(tag, str) else self._integer(tag, index) for tag in tags
        ]

    def _integer(self, tag, index: int) -> int:
        if not isinstance(tag, int | np.integer) or isinstance(tag, bool):
            raise ValueError(f"sample {index} has a tag that is neither str nor integer: {tag!r}")
        if self.class_names:
            check_tag(tag, len(self.class_names), index)
        return int(tag)

    def get_config(self):
        """Return the arguments of the constructor."""
        return {
            **super().get_config(),
            "sequence_length": self.sequence_length,
            "class_names": self.class_names,
        }


def check_tag(tag: int, count: int, index: int) -> None:
    """Refuse a tag of a sample that is none of so many classes.

    Raises:
        ValueError: as said.
    """
    if not 0 <= tag < count:
        raise ValueError(
            f"sample {index} has the tag {tag}, but tags are from 0 to {count - 1} (num_classes="
            f"{count})"
        )
