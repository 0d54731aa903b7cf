import keras
from keras import ops

from keras_megatron.layers import kernels
from keras_megatron.layers.common import normal_initializer


@keras.saving.register_keras_serializable(package="keras_megatron")
class MegatronBertEmbedding(keras.layers.Layer):
    """Sum of token, position and segment embeddings, then dropout. No LayerNorm follows.

    BERT normalizes here; Megatron moves that LayerNorm into the first layer (arXiv 1909.08053,
    section 5.3 and Figure 7).

    Args:
        vocabulary_size: int. Rows of the token table, padding rows included.
        max_sequence_length: int. Rows of the position table.
        num_segments: int. Rows of the segment table ("token types").
        hidden_dim: int. Width of the embeddings.
        dropout: float. Rate of the dropout on the sum.
        initializer_range: float. Standard deviation of the tables at the start.
    """

    def __init__(
        self,
        vocabulary_size: int,
        max_sequence_length: int,
        num_segments: int,
        hidden_dim: int,
        dropout: float = 0.1,
        initializer_range: float = 0.02,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.vocabulary_size = vocabulary_size
        self.max_sequence_length = max_sequence_length
        self.num_segments = num_segments
        self.hidden_dim = hidden_dim
        self.dropout_rate = dropout
        self.initializer_range = initializer_range

        initializer = normal_initializer(initializer_range)
        self.token_embedding = keras.layers.ReversibleEmbedding(
            vocabulary_size,
            hidden_dim,
            tie_weights=True,
            embeddings_initializer=initializer,
            dtype=self.dtype_policy,
            name="token_embedding",
        )
        self.position_embedding = keras.layers.Embedding(
            max_sequence_length,
            hidden_dim,
            embeddings_initializer=initializer.clone(),
            dtype=self.dtype_policy,
            name="position_embedding",
        )
        self.segment_embedding = keras.layers.Embedding(
            num_segments,
            hidden_dim,
            embeddings_initializer=initializer.clone(),
            dtype=self.dtype_policy,
            name="segment_embedding",
        )
        self.dropout = kernels.Dropout(dropout, dtype=self.dtype_policy, name="dropout")

    def build(self, token_ids_shape, segment_ids_shape=None, position_ids_shape=None):
        """Build the three tables; the shapes of the ids do not matter to them."""
        self.token_embedding.build(token_ids_shape)
        self.position_embedding.build(token_ids_shape)
        self.segment_embedding.build(token_ids_shape)
        self.built = True

    def call(self, token_ids, segment_ids=None, position_ids=None, training=None):
        """Embed ids.

        Args:
            token_ids: int (batch, sequence).
            segment_ids: int (batch, sequence); segment 0 if None.
            position_ids: int (batch, sequence) or (1, sequence); 0, 1, 2, ... if None.
            training: whether to drop out.

        Returns:
            float (batch, sequence, hidden).

        Raises:
            ValueError: the sequence is longer than the position table.
        """
        embedded = kernels.look_up(self.token_embedding, token_ids)
        return self.add_to(embedded, segment_ids, position_ids, training)

    def add_to(self, embedded, segment_ids=None, position_ids=None, training=None):
        """Add position and segment embeddings to what stands for the tokens, and drop out.

        Args:
            embedded: float (batch, sequence, hidden).
            segment_ids: as of `call`.
            position_ids: as of `call`.
            training: as of `call`.

        Returns:
            float (batch, sequence, hidden).

        Raises:
            ValueError: the sequence is longer than the position table.
        """
        length = embedded.shape[1]
        if position_ids is None:
            if length is not None and length > self.max_sequence_length:
                raise ValueError(
                    f"the sequence has {length} tokens but the model has "
                    f"{self.max_sequence_length} positions: truncate it (the preprocessors do)"
                )
            position_ids = ops.expand_dims(ops.arange(ops.shape(embedded)[1], dtype="int32"), 0)
        if segment_ids is None:
            segment_ids = ops.zeros(ops.shape(embedded)[:2], dtype="int32")
        embedded = embedded + kernels.look_up(self.segment_embedding, segment_ids)
        embedded = embedded + kernels.look_up(self.position_embedding, position_ids)
        return self.dropout(embedded, training=training)

    def compute_output_shape(
        self, token_ids_shape, segment_ids_shape=None, position_ids_shape=None
    ):
        """Return (batch, sequence, hidden)."""
        return (*token_ids_shape, self.hidden_dim)

    def get_config(self):
        """Return the arguments of the constructor."""
        return {
            **super().get_config(),
            "vocabulary_size": self.vocabulary_size,
            "max_sequence_length": self.max_sequence_length,
            "num_segments": self.num_segments,
            "hidden_dim": self.hidden_dim,
            "dropout": self.dropout_rate,
            "initializer_range": self.initializer_range,
        }
