import hashlib
import threading
from collections import Counter

import keras
import keras_hub
import numpy as np

from keras_megatron.backbone import MegatronBertBackbone
from keras_megatron.pretraining.masking import MaskingScheme, mask_tokens
from keras_megatron.tokenizer import MegatronBertTokenizer


@keras.saving.register_keras_serializable(package="keras_megatron")
class MegatronBertMaskedLMPreprocessor(keras_hub.models.MaskedLMPreprocessor):
    """Turns raw text into masked-language-model samples, masked anew at every call.

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
        seed: int. With a seed the masks are a function of the seed, of the batch, and of how often
            this batch was seen: the same in every run, different in every epoch, and indifferent to
            the order in which threads prepare batches (two equal batches may swap their masks).

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

    backbone_cls = MegatronBertBackbone
    tokenizer_cls = MegatronBertTokenizer

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
        self._visits = _Visits()

    def build(self, input_shape=None):
        """Build nothing: the tokenizer brings all that is needed."""
        self.built = True

    def call(self, x, y=None, sample_weight=None):
        """Tokenize, pack and mask; `y` and `sample_weight` are not used, the text is its label."""
        first, second = x if isinstance(x, tuple) and len(x) == 2 else (x, None)
        if isinstance(first, tuple):
            (first,) = first
        packed = self.tokenizer.encode(first, second, sequence_length=self.sequence_length)
        if self._use_tf_workflow():
            return self._mask_in_graph(packed)
        batched = packed["token_ids"].ndim == 2
        if not batched:
            packed = {name: array[None] for name, array in packed.items()}
        masked = self._mask(packed["token_ids"])
        outputs = _as_sample(packed, *masked)
        return outputs if batched else keras.tree.map_structure(lambda array: array[0], outputs)

    def _mask(self, token_ids):
        """Hide tokens of int32 (batch, sequence)."""
        special = np.array(self.tokenizer.special_token_ids)
        return mask_tokens(
            token_ids,
            ~np.isin(token_ids, special),
            self.scheme,
            self._rng(token_ids),
            mask_token_id=self.tokenizer.mask_token_id,
            vocabulary_size=self.tokenizer.vocabulary_size(),
            continuation=self.tokenizer.continuation_mask,
            length=self.mask_selection_length,
        )

    def _mask_in_graph(self, packed):
        """Hide tokens inside tf.data, by the same numpy code."""
        import tensorflow as tf

        token_ids = packed["token_ids"]
        batched = token_ids.shape.rank == 2
        matrix = token_ids if batched else token_ids[None]
        masked = tf.numpy_function(
            lambda ids: tuple(self._mask(ids)),
            [matrix],
            (tf.int32, tf.int32, tf.int32, tf.float32),
            stateful=True,
        )
        length = self.mask_selection_length or self.scheme.length(self.sequence_length)
        masked[0].set_shape(matrix.shape)
        for tensor in masked[1:]:
            tensor.set_shape((matrix.shape[0], length))
        if not batched:
            masked = [tensor[0] for tensor in masked]
        return _as_sample(packed, *masked)

    def _rng(self, token_ids: np.ndarray) -> np.random.Generator:
        """Return the generator for a batch (see `seed`)."""
        if self.seed is None:
            return np.random.default_rng()
        batch = int.from_bytes(
            hashlib.blake2b(token_ids.tobytes(), digest_size=8).digest(), "little"
        )
        return np.random.default_rng([self.seed, batch, self._visits.count(batch)])

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


class _Visits:
    """Counts how often each batch was seen, from any thread."""

    def __init__(self):
        self._counts = Counter()
        self._lock = threading.Lock()

    def count(self, batch: int) -> int:
        with self._lock:
            self._counts[batch] += 1
            return self._counts[batch]


def _as_sample(packed, token_ids, mask_positions, mask_ids, mask_weights):
    x = {**packed, "token_ids": token_ids, "mask_positions": mask_positions}
    return x, mask_ids, mask_weights
