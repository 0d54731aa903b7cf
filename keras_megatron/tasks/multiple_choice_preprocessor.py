import functools
from itertools import chain

import grain
import keras
import keras_hub
import numpy as np

from keras_megatron.tasks.answers import as_batch
from keras_megatron.tasks.labels import label_array
from keras_megatron.tasks.preprocessor import MegatronBertPreprocessor
from keras_megatron.tasks.samples import as_columns, batches, by_position
from keras_megatron.tasks.text_preprocessor import check_texts
from keras_megatron.tokenization.packing import check_sequence_length
from keras_megatron.tokenizer import MegatronBertTokenizer


@keras.saving.register_keras_serializable(package="keras_megatron")
class MegatronBertMultipleChoicePreprocessor(
    MegatronBertPreprocessor, keras_hub.models.Preprocessor
):
    """Turns contexts, each with its choices, into what a multiple-choice model takes.

    Each choice makes a row `[CLS] context [SEP] choice [SEP]`, of which the longer text is
    truncated first. Where samples have different numbers of choices, the missing ones are rows of
    padding: all of `padding_mask` is 0.

    Args:
        tokenizer: `MegatronBertTokenizer`.
        sequence_length: int. Tokens a choice, with its context.

    Call arguments:
        x: a tuple `(contexts, choices)`: a list of str, and a list of lists of str, at least two
            each. Or a str and a list of str.
        y: for each context the place of the right choice, from 0; or None.
        sample_weight: weights, or None.

    Returns:
        `x`, `(x, y)` or `(x, y, sample_weight)`: x a dict of int32 arrays `token_ids`,
        `segment_ids`, `padding_mask` (batch, choices, sequence), as many choices as the sample with
        the most has; y int32 (batch,).

    Raises:
        ValueError: something is not text, a context has fewer than two choices, a label is none of
            its context's choices, or `sequence_length` has no room for a pair.

    Example:
    ```python
    from keras_megatron import MegatronBertMultipleChoicePreprocessor

    preprocessor = MegatronBertMultipleChoicePreprocessor.from_preset(
        "megatron_bert_tiny_uncased", sequence_length=16
    )
    contexts = ["He went to sea.", "The bank was steep."]
    choices = [["a body of water", "to look"], ["sloping land", "a place for money", "a row"]]
    x, y = preprocessor((contexts, choices), [0, 0])
    assert x["token_ids"].shape == (2, 3, 16)
    assert not x["padding_mask"][0, 2].any()
    ```
    """

    def __init__(self, tokenizer: MegatronBertTokenizer, sequence_length: int = 512, **kwargs):
        check_sequence_length(sequence_length, pair=True)
        super().__init__(**kwargs)
        self.tokenizer = tokenizer
        self.sequence_length = sequence_length

    def dataset(
        self, x, y=None, sample_weight=None, batch_size: int = 32, shuffle: bool = False
    ) -> grain.MapDataset:
        """Return one epoch of batches, each with as many choices as the sample with the most.

        See `MegatronBertPreprocessor.dataset`.
        """
        x, y, sample_weight = by_position((x, y, sample_weight))
        columns = as_columns(x)
        self.check_samples(columns, y)
        y = None if y is None else self.prepare_labels(y)
        prepare = functools.partial(self.preprocess, num_choices=most_choices(columns))
        return batches(prepare, columns, y, sample_weight, batch_size, shuffle, self.seed)

    def preprocess(
        self, columns: tuple, y=None, sample_weight=None, rng=None, num_choices: int | None = None
    ):
        """Return the ids of a batch of samples, or of a single one.

        Args:
            columns: contexts and choices.
            y: labels, or None.
            sample_weight: weights, or None.
            rng: not used; nothing is drawn.
            num_choices: choices to make room for; those of the sample with the most if None.

        Returns:
            As of a call.
        """
        single = isinstance(columns[0], str)
        if single:
            columns, y = as_batch(columns), None if y is None else [y]
        contexts, choices = columns
        counts = np.array([len(row) for row in choices])
        encoded = self.tokenizer.encode(
            [text for text, count in zip(contexts, counts, strict=True) for _ in range(count)],
            list(chain.from_iterable(choices)),
            self.sequence_length,
        )
        shape = (len(counts), num_choices or most_choices(columns), self.sequence_length)
        is_there = np.arange(shape[1]) < counts[:, None]
        x = {}
        for name, array in encoded.items():
            padding = self.tokenizer.pad_token_id if name == "token_ids" else 0
            x[name] = np.full(shape, padding, array.dtype)
            x[name][is_there] = array
        y = None if y is None else np.asarray(y)
        if single:
            x, y = {name: array[0] for name, array in x.items()}, None if y is None else y[0]
        return keras.utils.pack_x_y_sample_weight(x, y, sample_weight)

    def prepare_labels(self, y) -> np.ndarray:
        """Return labels as an array."""
        return label_array(y)

    def check_call(self, columns: tuple, y=None) -> None:
        """Do what `check_samples` does, also for a single context with its choices."""
        if isinstance(columns[0], str):
            columns, y = as_batch(columns), None if y is None else [y]
        self.check_samples(columns, y)

    def check_samples(self, columns: tuple, y=None) -> None:
        """Refuse what is not a context with choices, and labels that are no choice.

        Raises:
            ValueError: as the class says; it names the place.
        """
        if len(columns) != 2:
            raise ValueError(f"x must be a tuple (contexts, choices), not of {len(columns)}")
        contexts, choices = columns
        check_texts(contexts, "context")
        for index, row in enumerate(choices):
            if not isinstance(row, list | tuple | np.ndarray):
                raise ValueError(f"choices {index} must be a list of str, not {row!r}"[:200])
            if len(row) < 2:
                raise ValueError(f"choices {index} must be at least two, not {list(row)}"[:200])
            check_texts(row, f"choices {index}: choice")
        if y is None:
            return
        for index, (label, row) in enumerate(zip(label_array(y).tolist(), choices, strict=False)):
            if label not in range(len(row)):
                raise ValueError(
                    f"label {index} must be an integer from 0 to {len(row) - 1}, the last of its "
                    f"choices, not {label}"
                )

    def get_config(self) -> dict:
        """Return the arguments of the constructor."""
        return {**super().get_config(), "sequence_length": self.sequence_length}


def most_choices(columns: tuple) -> int:
    """Return how many choices the sample with the most has, of columns (contexts, choices)."""
    # What has no length is refused where samples are checked.
    return max((len(row) for row in columns[1] if hasattr(row, "__len__")), default=0)
