import keras
from keras import ops

from keras_megatron.layers import kernels
from keras_megatron.layers.common import normal_initializer, scaled_normal_initializer
from keras_megatron.layers.kernels import run

# Axes, as suffixes of names: B batch, Q query position, K key position, N head, H head dim.


@keras.saving.register_keras_serializable(package="keras_megatron")
class MultiHeadAttention(keras.layers.Layer):
    """Multi-head attention with one kernel each for query, key, value and output.

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
        self.dropout = kernels.Dropout(dropout, dtype=self.dtype_policy, name="dropout")

    def build(self, hidden_states_shape, attention_mask_shape=None):
        """Build the four projections for inputs of (batch, sequence, hidden)."""
        hidden_dim = hidden_states_shape[-1]
        for name in ("query", "key", "value"):
            projection = kernels.EinsumDense(
                "abc,cde->abde",
                output_shape=(None, self.num_heads, self.head_dim),
                bias_axes="de",
                kernel_initializer=normal_initializer(self.initializer_range),
                dtype=self.dtype_policy,
                name=name,
            )
            projection.build(hidden_states_shape)
            setattr(self, name, projection)
        self.attention_output = kernels.EinsumDense(
            "abde,dec->abc",
            output_shape=(None, hidden_dim),
            bias_axes="c",
            kernel_initializer=scaled_normal_initializer(self.initializer_range, self.num_layers),
            dtype=self.dtype_policy,
            name="attention_output",
        )
        self.attention_output.build((*hidden_states_shape[:2], self.num_heads, self.head_dim))
        self.built = True

    def call(
        self,
        hidden_states,
        attention_mask=None,
        encoder_hidden_states=None,
        return_attention_scores=False,
        training=None,
    ):
        """Attend, to the hidden states themselves or to those of an encoder.

        Args:
            hidden_states: float (batch, query, hidden).
            attention_mask: bool, broadcast to (batch, heads, query, key): True where the query may
                attend to the key. None lets all attend to all.
            encoder_hidden_states: float (batch, key, hidden), what cross-attention attends to.
            return_attention_scores: whether to return the probabilities too.
            training: whether to drop out attention probabilities.

        Returns:
            float (batch, query, hidden), or a tuple of this and the probabilities (batch, heads,
            query, key) after dropout.
        """
        attended = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        keys_and_values = self.keys_and_values(attended)
        if not return_attention_scores:
            return self.attend(hidden_states, *keys_and_values, attention_mask, training)
        query_BQNH = run(self.query, hidden_states)
        return self._attend_with_scores(query_BQNH, *keys_and_values, attention_mask, training)

    def keys_and_values(self, states):
        """Project what is attended to: (batch, key, hidden) to twice (batch, key, heads, dim)."""
        return run(self.key, states), run(self.value, states)

    def attend(self, hidden_states, key_BKNH, value_BKNH, attention_mask=None, training=None):
        """Attend to keys and values that are there already: (batch, query, hidden); see `call`."""
        query_BQNH = run(self.query, hidden_states)
        tensors = query_BQNH, key_BKNH, value_BKNH, attention_mask
        context_BQNH = kernels.attend(*tensors, dropout=self.dropout.rate if training else 0.0)
        if context_BQNH is None:
            return self._attend_with_scores(*tensors, training)[0]
        return run(self.attention_output, context_BQNH)

    def _attend_with_scores(self, query_BQNH, key_BKNH, value_BKNH, attention_mask, training):
        query_BQNH = query_BQNH * (self.head_dim**-0.5)
        scores_BNQK = ops.cast(ops.einsum("bqnh,bknh->bnqk", query_BQNH, key_BKNH), "float32")
        if attention_mask is not None:
            # Finite, so that a row with nothing to attend to is uniform instead of NaN.
            scores_BNQK = ops.where(attention_mask, scores_BNQK, float("-3.4e38"))
        probabilities_BNQK = ops.cast(ops.softmax(scores_BNQK, axis=-1), self.compute_dtype)
        if training:
            probabilities_BNQK = self.dropout(probabilities_BNQK, training=True)
        context_BQNH = ops.einsum("bnqk,bknh->bqnh", probabilities_BNQK, value_BKNH)
        return run(self.attention_output, context_BQNH), probabilities_BNQK

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
