import threading

import keras
import keras_hub
import numpy as np

from keras_megatron.pretraining.masking import MaskingScheme, mask_encoded
from keras_megatron.tasks.preprocessor import MegatronBertPreprocessor
from keras_megatron.tokenizer import MegatronBertTokenizer


@keras.saving.register_keras_serializable(package="keras_megatron")
class MegatronBertMaskedLMPreprocessor(
    MegatronBertPreprocessor, keras_hub.models.MaskedLMPreprocessor
):
    """Turns raw text into masked-language-model samples, masked anew each time.

    Called with one text, a list of texts, or a tuple of two of either (a pair of segments), it
    tokenizes, adds [CLS] and [SEP], truncates the longer segment first, pads to `sequence_length`
    and hides tokens as `keras_megatron.pretraining.masking` describes.

    Args:
        tokenizer: `MegatronBertTokenizer`.
        sequence_length: int. Tokens a sample.
        mask_selection_rate: float. Share of the tokens that is predicted.
        mask_selection_length: int. Predictions a sample has room for; `mask_selection_rate` of
            `sequence_length` if None.
        mask_token_rate: float. Share of the predicted tokens that become [MASK].
        random_token_rate: float. Share of them that become a random token. The rest stay.
        whole_word_masking: bool. Hide all pieces of a word or none.
        max_ngram: int. Longest run of tokens (or words) hidden together; Megatron uses 3.
        seed: int. Makes the masks repeat from run to run. In `fit`, `evaluate` and `predict` on
            texts they are a function of the seed, the epoch and the sample's place, so that threads
            may prepare batches in any order; a direct call draws the next masks.

    Call arguments:
        x: str, list of str, string array or tensor, or a tuple of two of these.

    Returns:
        `(x, y, sample_weight)`: x a dict of int32 arrays `token_ids`, `segment_ids`, `padding_mask`
        (batch, sequence) and `mask_positions` (batch, masks); y int32 (batch, masks), the tokens
        that were hidden; sample_weight float32 (batch, masks), 0 where a sample has fewer masks.

    Raises:
        ValueError: a rate or length is out of range, or an input is not text.

    Example:
    ```python
    from keras_megatron import MegatronBertMaskedLMPreprocessor

    preprocessor = MegatronBertMaskedLMPreprocessor.from_preset(
        "megatron_bert_tiny_uncased", sequence_length=16, seed=0
    )
    x, y, sample_weight = preprocessor(["Call me Ishmael.", "Some years ago"])
    assert x["token_ids"].shape == (2, 16)
    ```
    """

    def __init__(
        self,
        tokenizer: MegatronBertTokenizer,
        sequence_length: int = 512,
        mask_selection_rate: float = 0.15,
        mask_selection_length: int | None = None,
        mask_token_rate: float = 0.8,
        random_token_rate: float = 0.1,
        whole_word_masking: bool = False,
        max_ngram: int = 1,
        seed: int | None = None,
        **kwargs,
    ):
        for name, value, least in (
            ("sequence_length", sequence_length, 3),
            ("mask_selection_length", mask_selection_length, 1),
            ("seed", seed, 0),
        ):
            if value is not None and (not isinstance(value, int) or value < least):
                raise ValueError(f"{name} must be an integer of at least {least}, not {value!r}")
        if "truncate" in kwargs:
            raise ValueError("truncate cannot be chosen: the longer text is always cut first")
        super().__init__(
            tokenizer,
            sequence_length=sequence_length,
            mask_selection_rate=mask_selection_rate,
            mask_selection_length=mask_selection_length,
            mask_token_rate=mask_token_rate,
            random_token_rate=random_token_rate,
            **kwargs,
        )
        self.scheme = MaskingScheme(
            selection_rate=mask_selection_rate,
            mask_rate=mask_token_rate,
            random_rate=random_token_rate,
            max_ngram=max_ngram,
            whole_words=whole_word_masking,
        )
        self.whole_word_masking = whole_word_masking
        self.max_ngram = max_ngram
        self.seed = seed
        self._rng = np.random.default_rng(seed)
        self._rng_lock = threading.Lock()

    def preprocess(self, columns: tuple, y=None, sample_weight=None, rng=None) -> tuple:
        """Return `(x, y, sample_weight)` for a text or texts, masked with `rng` if it is given.

        Raises:
            ValueError: there are labels, which are made here.
        """
        if y is not None or sample_weight is not None:
            raise ValueError("the labels are made from the texts: give no y and no sample_weight")
        packed = self.tokenizer.encode(*columns, sequence_length=self.sequence_length)
        if packed["token_ids"].ndim == 2:
            return _as_sample(packed, *self._mask(packed["token_ids"], rng))
        packed = {name: array[None] for name, array in packed.items()}
        sample = _as_sample(packed, *self._mask(packed["token_ids"], rng))
        return keras.tree.map_structure(lambda array: array[0], sample)

    def _mask(self, token_ids: np.ndarray, rng: np.random.Generator | None = None):
        if rng is None:
            with self._rng_lock:  # tf.data and Grain call from many threads
                rng = self._rng.spawn(1)[0]
        return mask_encoded(token_ids, self.tokenizer, self.scheme, rng, self.mask_selection_length)

    def preprocess_in_graph(self, columns: tuple, y=None, sample_weight=None) -> tuple:
        """Tokenize in the graph of tf.data, and hide tokens there by the same numpy code."""
        import tensorflow as tf

        packed = self.tokenizer.encode(*columns, sequence_length=self.sequence_length)
        token_ids = packed["token_ids"]
        batched = token_ids.shape.rank == 2
        matrix = token_ids if batched else token_ids[None]
        masked = tf.numpy_function(
            lambda ids: tuple(self._mask(ids)),
            [matrix],
            (tf.int32, tf.int32, tf.int32, tf.float32),
            stateful=True,
        )
        length = self.mask_selection_length
        length = self.scheme.length(self.sequence_length) if length is None else length
        masked[0].set_shape(matrix.shape)
        for tensor in masked[1:]:
            tensor.set_shape((matrix.shape[0], length))
        if not batched:
            masked = [tensor[0] for tensor in masked]
        return _as_sample(packed, *masked)

    def get_config(self):
        """Return the arguments of the constructor."""
        config = super().get_config()
        del config["truncate"]  # longest first, always
        return {
            **config,
            "whole_word_masking": self.whole_word_masking,
            "max_ngram": self.max_ngram,
            "seed": self.seed,
        }


def _as_sample(packed, token_ids, mask_positions, mask_ids, mask_weights):
    x = {**packed, "token_ids": token_ids, "mask_positions": mask_positions}
    return x, mask_ids, mask_weights
