import keras
from keras import ops

from keras_megatron.layers.encoder import same_document, take_tokens

POOLINGS = ("mean", "cls", "max")


@keras.saving.register_keras_serializable(package="keras_megatron")
class TextPooling(keras.layers.Layer):
    """Makes one vector of a sequence, or of each document of one; padding has no part in it.

    Args:
        pooling: str. `"mean"` or `"max"` of the tokens' hidden states, or `"cls"`, the first one.
        normalize: bool. Divide the vector by its length.

    Raises:
        ValueError: there is no such pooling.
    """

    def __init__(self, pooling: str = "mean", normalize: bool = True, **kwargs):
        super().__init__(**kwargs)
        if pooling not in POOLINGS:
            raise ValueError(f"pooling must be one of {', '.join(POOLINGS)}, not {pooling!r}")
        self.pooling = pooling
        self.normalize = normalize

    def call(self, sequence_output, padding_mask, document_ids=None, cls_positions=None):
        """Pool, in float32.

        Args:
            sequence_output: float (batch, sequence, hidden).
            padding_mask: int (batch, sequence), 1 for a token.
            document_ids: int (batch, sequence), if rows are packed; see `packing.PackedRows`.
            cls_positions: int (documents,), where documents begin.

        Returns:
            float (batch, hidden), for packed rows (documents, hidden); zeros for one without any
            token, if the pooling is not "cls".
        """
        states = ops.cast(sequence_output, "float32")
        if document_ids is not None:
            return self._finish(self._pool_documents(states, document_ids, cls_positions))
        is_token = ops.expand_dims(ops.not_equal(padding_mask, 0), axis=-1)
        if self.pooling == "cls":
            pooled = states[:, 0, :]
        elif self.pooling == "mean":
            count = ops.sum(ops.cast(is_token, "float32"), axis=1)
            pooled = ops.sum(ops.where(is_token, states, 0.0), axis=1) / ops.maximum(count, 1.0)
        else:
            pooled = ops.max(ops.where(is_token, states, float("-3.4e38")), axis=1)
            pooled = ops.where(ops.any(is_token, axis=1), pooled, 0.0)
        return self._finish(pooled)

    def _finish(self, pooled):
        if self.normalize:
            pooled = ops.normalize(pooled, axis=-1)
        return ops.cast(pooled, self.compute_dtype)

    def _pool_documents(self, states, document_ids, cls_positions):
        if self.pooling == "cls":
            return take_tokens(states, cls_positions)
        _, first = same_document(document_ids)
        rows, length = ops.shape(first)
        first = first + ops.expand_dims(ops.arange(rows, dtype="int32") * length, axis=-1)
        of_document = ops.equal(
            ops.expand_dims(cls_positions, axis=-1), ops.reshape(first, (1, -1))
        )  # (documents, tokens); padding may be one of the given documents, nobody asks for it
        states = ops.reshape(states, (-1, ops.shape(states)[-1]))
        if self.pooling == "mean":
            share = ops.cast(of_document, "float32")
            share = share / ops.maximum(ops.sum(share, axis=-1, keepdims=True), 1.0)
            return ops.matmul(share, states)
        number = ops.argmax(ops.cast(of_document, "int32"), axis=0)
        asked = ops.any(of_document, axis=0)
        states = ops.where(ops.expand_dims(asked, axis=-1), states, float("-3.4e38"))
        return ops.segment_max(states, number, num_segments=ops.shape(cls_positions)[0])

    def compute_output_shape(
        self,
        sequence_output_shape,
        padding_mask_shape,
        document_ids_shape=None,
        cls_positions_shape=None,
    ):
        """Return (batch, hidden), or (documents, hidden)."""
        batch = cls_positions_shape or sequence_output_shape[:1]
        return (*batch, sequence_output_shape[-1])

    def get_config(self):
        """Return the arguments of the constructor."""
        return {
            **super().get_config(),
            "pooling": self.pooling,
            "normalize": self.normalize,
        }
