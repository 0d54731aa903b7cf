import threading

import keras
import numpy as np

from keras_megatron.masking import MaskingScheme, mask_encoded
from keras_megatron.tasks.preprocessor import MegatronBertPreprocessor


class MaskingPreprocessor(MegatronBertPreprocessor):
    """What the two preprocessors that hide tokens share.

    A subclass sets `tokenizer`, `sequence_length`, `mask_selection_rate`, `mask_selection_length`,
    `mask_token_rate` and `random_token_rate`, then calls `init_masking`.
    """

    def init_masking(self, whole_word_masking: bool, max_ngram: int, seed: int | None) -> None:
        """Check the settings, and make the scheme and the source of randomness.

        Raises:
            ValueError: a rate or length is out of range.
        """
        for name, value, least in (
            ("sequence_length", self.sequence_length, 3),
            ("mask_selection_length", self.mask_selection_length, 1),
            ("seed", seed, 0),
        ):
            if value is not None and (not isinstance(value, int) or value < least):
                raise ValueError(f"{name} must be an integer of at least {least}, not {value!r}")
        self.scheme = MaskingScheme(
            selection_rate=self.mask_selection_rate,
            mask_rate=self.mask_token_rate,
            random_rate=self.random_token_rate,
            max_ngram=max_ngram,
            whole_words=whole_word_masking,
        )
        self.whole_word_masking = whole_word_masking
        self.max_ngram = max_ngram
        self.seed = seed
        self._rng = np.random.default_rng(seed)
        self._rng_lock = threading.Lock()

    def masked(self, columns: tuple, rng: np.random.Generator | None = None) -> tuple:
        """Encode texts, or a text, and hide tokens of them.

        Args:
            columns: texts, or two columns of them.
            rng: source of the masks; if None, the next ones that the seed gives are drawn.

        Returns:
            `(x, y, sample_weight)` as `MegatronBertMaskedLMPreprocessor` returns them.
        """
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

    def masked_in_graph(self, columns: tuple) -> tuple:
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
        config.pop("truncate", None)  # KerasHub's; here the longer text is cut first, always
        return {
            **config,
            "sequence_length": self.sequence_length,
            "mask_selection_rate": self.mask_selection_rate,
            "mask_selection_length": self.mask_selection_length,
            "mask_token_rate": self.mask_token_rate,
            "random_token_rate": self.random_token_rate,
            "whole_word_masking": self.whole_word_masking,
            "max_ngram": self.max_ngram,
            "seed": self.seed,
        }


def _as_sample(packed, token_ids, mask_positions, mask_ids, mask_weights):
    x = {**packed, "token_ids": token_ids, "mask_positions": mask_positions}
    return x, mask_ids, mask_weights
