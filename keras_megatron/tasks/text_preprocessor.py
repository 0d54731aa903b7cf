import keras
import numpy as np

from keras_megatron.tasks.labels import label_array
from keras_megatron.tasks.preprocessor import MegatronBertPreprocessor
from keras_megatron.tokenization.packing import check_sequence_length


class MegatronBertTextPreprocessor(MegatronBertPreprocessor):
    """What the preprocessors of tasks on one text, or on a pair of texts, share.

    They tokenize, add [CLS] and [SEP], truncate the longer text first and pad.
    """

    sizes = (1, 2)  # how many texts a sample may have

    def preprocess(self, columns: tuple, y=None, sample_weight=None, rng=None):
        """Return the ids of a batch of texts or pairs, or of a single one, with its labels."""
        self._check_size(columns)
        x = self.tokenizer.encode(*columns, sequence_length=self.sequence_length)
        y = None if y is None else np.asarray(y)
        return keras.utils.pack_x_y_sample_weight(x, y, sample_weight)

    def preprocess_in_graph(self, columns: tuple, y=None, sample_weight=None):
        """Do what `preprocess` does with string tensors."""
        self._check_size(columns)
        x = self.tokenizer.encode(*columns, sequence_length=self.sequence_length)
        y = None if y is None else self.prepare_labels_in_graph(y)
        return keras.utils.pack_x_y_sample_weight(x, y, sample_weight)

    def check_samples(self, columns: tuple, y=None) -> None:
        """Refuse what is not text, and tuples of more columns than a sample has texts.

        Raises:
            ValueError: as said; it names the place.
        """
        self._check_size(columns)
        check_sequence_length(self.sequence_length, pair=len(columns) == 2)
        for name, column in zip(("text", "second text"), columns, strict=False):
            check_texts(column, name)

    def _check_size(self, columns: tuple) -> None:
        if len(columns) not in self.sizes:
            forms = {1: "a list of texts", 2: "a tuple of two lists of texts, for pairs"}
            wanted = " or ".join(forms[size] for size in self.sizes)
            raise ValueError(f"x must be {wanted}, but it has {len(columns)} column(s)")

    def prepare_labels(self, y) -> np.ndarray:
        """Return labels as an array."""
        return label_array(y)

    # === Hook ===

    def prepare_labels_in_graph(self, y):
        """Do what `prepare_labels` does with tensors."""
        return y


def check_texts(texts, name: str) -> None:
    """Refuse what is not text.

    Args:
        texts: a list or an array.
        name: what to call one of them in an error.

    Raises:
        ValueError: one is neither a str nor bytes; it is named by its place.
    """
    for index, text in enumerate(texts):
        if not isinstance(text, str | bytes):
            raise ValueError(
                f"{name} {index} must be a str, not {type(text).__name__}: {str(text)[:60]}"
            )
