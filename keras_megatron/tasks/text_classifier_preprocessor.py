from collections.abc import Sequence

import keras
import keras_hub
import numpy as np

from keras_megatron.tasks.labels import check_class_names, label_array, label_tensor
from keras_megatron.tasks.text_preprocessor import MegatronBertTextPreprocessor
from keras_megatron.tokenization.packing import check_sequence_length
from keras_megatron.tokenizer import MegatronBertTokenizer


@keras.saving.register_keras_serializable(package="keras_megatron")
class MegatronBertTextClassifierPreprocessor(
    MegatronBertTextPreprocessor, keras_hub.models.TextClassifierPreprocessor
):
    """Turns texts, or pairs of texts, and their labels into what a text classifier takes.

    It tokenizes, adds [CLS] and [SEP], truncates the longer text of a pair first and pads to
    `sequence_length`. It works in `tf.data` too.

    Args:
        tokenizer: `MegatronBertTokenizer`.
        sequence_length: int. Tokens a sample.
        class_names: list of str. Names of the classes, in the order of their numbers; labels may
            then be names. They are saved with the model, whose answers have them.

    Call arguments:
        x: str, list of str, string array or tensor, or a tuple of two of these (pairs).
        y: labels: integers, class names, numbers (regression), or rows with a number a class; or
            None.
        sample_weight: weights, or None.

    Returns:
        `x`, `(x, y)` or `(x, y, sample_weight)`: x a dict of int32 arrays `token_ids`,
        `segment_ids`, `padding_mask` (batch, sequence); y int32 (batch,), or float32 (batch,) or
        (batch, classes).

    Raises:
        ValueError: an input is not text, a label is not one of the class names, or an argument is
            out of range.

    Example:
    ```python
    from keras_megatron import MegatronBertTextClassifierPreprocessor

    preprocessor = MegatronBertTextClassifierPreprocessor.from_preset(
        "megatron_bert_tiny_uncased", sequence_length=16, class_names=["bad", "good"]
    )
    x, y = preprocessor(["A fine film.", "What a bore."], ["good", "bad"])
    assert x["token_ids"].shape == (2, 16)
    assert y.tolist() == [1, 0]
    ```
    """

    def __init__(
        self,
        tokenizer: MegatronBertTokenizer,
        sequence_length: int = 512,
        class_names: Sequence[str] | None = None,
        **kwargs,
    ):
        check_sequence_length(sequence_length, pair=False)
        if "truncate" in kwargs:
            raise ValueError("truncate cannot be chosen: the longer text is always cut first")
        super().__init__(tokenizer, sequence_length=sequence_length, **kwargs)
        self.class_names = check_class_names(class_names)

    def prepare_labels(self, y) -> np.ndarray:
        """Return labels as an array, of names their numbers."""
        return label_array(y, self.class_names)

    def prepare_labels_in_graph(self, y):
        """Do what `prepare_labels` does with tensors."""
        return label_tensor(y, self.class_names)

    def get_config(self) -> dict:
        """Return the arguments of the constructor."""
        config = super().get_config()
        del config["truncate"]  # longest first, always
        return {**config, "class_names": self.class_names}
