import keras
from keras import ops

from keras_megatron.layers.common import normal_initializer, scaled_normal_initializer

# Axes, as suffixes of names: B batch, Q query position, K key position, N head, H head dim.


@keras.saving.register_keras_serializable(package="keras_megatron")
class SelfAttention(keras.layers.Layer):
    """Multi-head self-attention with one kernel each for query, key, value and output.

    Megatron stores query, key and value fused; kept apart, each is a kernel of shape
    (hidden, heads, head_dim) that is sharded over the heads by one rule, takes LoRA by name, and
    needs no split along a sharded axis. Scores, mask and softmax are computed in float32.

    Args:
        num_heads: int. Number of heads.
        head_dim: int. Width of a head.
        num_layers: int. Depth of the model, which scales the output kernel at the start.
        dropout: float. Rate of the dropout on the attention probabilities.
        initializer_range: float. Standard deviation of the kernels at the start.
    """

    def __init__(
        self,
        num_heads: int,
        head_dim: int,
        num_layers: int = 1,
        dropout: float = 0.1,
        initializer_range: float = 0.02,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.num_heads = num_heads
        self.head_dim = head_dim
        self.num_layers = num_layers
        self.dropout_rate = dropout
        self.initializer_range = initializer_range
        self.dropout = keras.layers.Dropout(dropout, dtype=self.dtype_policy, name="dropout")

    def build(self, hidden_states_shape, attention_mask_shape=None):
        """Build the four projections for inputs of (batch, sequence, hidden)."""
        hidden_dim = hidden_states_shape[-1]
        for name in ("query", "key", "value"):
            projection = keras.layers.EinsumDense(
                "abc,cde->abde",
                output_shape=(None, self.num_heads, self.head_dim),
                bias_axes="de",
                kernel_initializer=normal_initializer(self.initializer_range),
                dtype=self.dtype_policy,
                name=name,
            )
            projection.build(hidden_states_shape)
            setattr(self, name, projection)
        self.attention_output = keras.layers.EinsumDense(
            "abde,dec->abc",
            output_shape=(None, hidden_dim),
            bias_axes="c",
            kernel_initializer=scaled_normal_initializer(self.initializer_range, self.num_layers),
            dtype=self.dtype_policy,
            name="attention_output",
        )
        self.attention_output.build((*hidden_states_shape[:2], self.num_heads, self.head_dim))
        self.built = True

    def call(self, hidden_states, attention_mask=None, training=None):
        """Attend.

        Args:
            hidden_states: float (batch, sequence, hidden).
            attention_mask: bool, broadcast to (batch, heads, query, key): True where the query may
                attend to the key. None lets all attend to all.
            training: whether to drop out attention probabilities.

        Returns:
            float (batch, sequence, hidden).
        """
        query_BQNH = self.query(hidden_states) * (self.head_dim**-0.5)
        key_BKNH = self.key(hidden_states)
        value_BKNH = self.value(hidden_states)

        scores_BNQK = ops.cast(ops.einsum("bqnh,bknh->bnqk", query_BQNH, key_BKNH), "float32")
        if attention_mask is not None:
            # Finite, so that a row with nothing to attend to is uniform instead of NaN.
            scores_BNQK = ops.where(attention_mask, scores_BNQK, float("-3.4e38"))
        probabilities_BNQK = ops.cast(ops.softmax(scores_BNQK, axis=-1), self.compute_dtype)
        probabilities_BNQK = self.dropout(probabilities_BNQK, training=training)

        context_BQNH = ops.einsum("bnqk,bknh->bqnh", probabilities_BNQK, value_BKNH)
        return self.attention_output(context_BQNH)

    def compute_output_shape(self, hidden_states_shape, attention_mask_shape=None):
        """Return (batch, sequence, hidden)."""
        return hidden_states_shape

    def get_config(self):
        """Return the arguments of the constructor."""
        return {
            **super().get_config(),
            "num_heads": self.num_heads,
            "head_dim": self.head_dim,
            "num_layers": self.num_layers,
            "dropout": self.dropout_rate,
            "initializer_range": self.initializer_range,
        }
