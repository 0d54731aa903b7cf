import keras

from keras_megatron.layers.attention import SelfAttention
from keras_megatron.layers.common import (
    get_activation,
    layer_norm,
    normal_initializer,
    rematerialize,
    scaled_normal_initializer,
    seed_generators,
)


@keras.saving.register_keras_serializable(package="keras_megatron")
class MegatronBertLayer(keras.layers.Layer):
    """A transformer layer with LayerNorm before each block, as Megatron rearranges BERT.

    `x += dropout(attention(LN(x)))`, then `x += dropout(mlp(LN(x)))` (arXiv 1909.08053, section
    5.3, Figure 7 b).

    Args:
        num_heads: int. Attention heads.
        head_dim: int. Width of a head.
        intermediate_dim: int. Width of the feed-forward block.
        num_layers: int. Depth of the model, which scales the output kernels at the start.
        dropout: float. Rate of the dropout on the output of both blocks.
        attention_dropout: float. Rate of the dropout on the attention probabilities.
        activation: str. Activation of the feed-forward block.
        layer_norm_epsilon: float. Added to the variance in both LayerNorms.
        initializer_range: float. Standard deviation of the kernels at the start.
        gradient_checkpointing: bool. Recompute the layer in the backward pass of training instead
            of keeping its activations.
    """

    def __init__(
        self,
        num_heads: int,
        head_dim: int,
        intermediate_dim: int,
        num_layers: int = 1,
        dropout: float = 0.1,
        attention_dropout: float = 0.1,
        activation: str = "gelu",
        layer_norm_epsilon: float = 1e-5,
        initializer_range: float = 0.02,
        gradient_checkpointing: bool = False,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.num_heads = num_heads
        self.head_dim = head_dim
        self.intermediate_dim = intermediate_dim
        self.num_layers = num_layers
        self.dropout_rate = dropout
        self.attention_dropout = attention_dropout
        self.activation = activation
        self.layer_norm_epsilon = layer_norm_epsilon
        self.initializer_range = initializer_range
        self.gradient_checkpointing = gradient_checkpointing

        dtype = self.dtype_policy
        self.self_attention_layer_norm = layer_norm(
            layer_norm_epsilon, dtype, "self_attention_layer_norm"
        )
        self.self_attention = SelfAttention(
            num_heads=num_heads,
            head_dim=head_dim,
            num_layers=num_layers,
            dropout=attention_dropout,
            initializer_range=initializer_range,
            dtype=dtype,
            name="self_attention",
        )
        self.self_attention_dropout = keras.layers.Dropout(
            dropout, dtype=dtype, name="self_attention_dropout"
        )
        self.feedforward_layer_norm = layer_norm(
            layer_norm_epsilon, dtype, "feedforward_layer_norm"
        )
        self.feedforward_intermediate_dense = keras.layers.Dense(
            intermediate_dim,
            activation=get_activation(activation),
            kernel_initializer=normal_initializer(initializer_range),
            dtype=dtype,
            name="feedforward_intermediate_dense",
        )
        self.feedforward_dropout = keras.layers.Dropout(
            dropout, dtype=dtype, name="feedforward_dropout"
        )

    def build(self, hidden_states_shape, attention_mask_shape=None):
        """Build the blocks for inputs of (batch, sequence, hidden)."""
        self.self_attention_layer_norm.build(hidden_states_shape)
        self.self_attention.build(hidden_states_shape)
        self.feedforward_layer_norm.build(hidden_states_shape)
        self.feedforward_intermediate_dense.build(hidden_states_shape)
        self.feedforward_output_dense = keras.layers.Dense(
            hidden_states_shape[-1],
            kernel_initializer=scaled_normal_initializer(self.initializer_range, self.num_layers),
            dtype=self.dtype_policy,
            name="feedforward_output_dense",
        )
        self.feedforward_output_dense.build((*hidden_states_shape[:-1], self.intermediate_dim))
        self.built = True

    def call(self, hidden_states, attention_mask=None, training=None):
        """Transform hidden states.

        Args:
            hidden_states: float (batch, sequence, hidden).
            attention_mask: bool, broadcast to (batch, heads, query, key), or None.
            training: whether to drop out.

        Returns:
            float (batch, sequence, hidden).
        """
        if not (self.gradient_checkpointing and training):
            return self._blocks(hidden_states, attention_mask, training)

        def blocks(hidden_states):
            return self._blocks(hidden_states, attention_mask, training)

        return rematerialize(blocks, seed_generators(self), hidden_states)

    def _blocks(self, x, attention_mask, training):
        attended = self.self_attention(
            self.self_attention_layer_norm(x), attention_mask=attention_mask, training=training
        )
        x = x + self.self_attention_dropout(attended, training=training)
        fed = self.feedforward_intermediate_dense(self.feedforward_layer_norm(x))
        fed = self.feedforward_output_dense(fed)
        return x + self.feedforward_dropout(fed, training=training)

    def compute_output_shape(self, hidden_states_shape, attention_mask_shape=None):
        """Return (batch, sequence, hidden)."""
        return hidden_states_shape

    def get_config(self):
        """Return the arguments of the constructor."""
        return {
            **super().get_config(),
            "num_heads": self.num_heads,
            "head_dim": self.head_dim,
            "intermediate_dim": self.intermediate_dim,
            "num_layers": self.num_layers,
            "dropout": self.dropout_rate,
            "attention_dropout": self.attention_dropout,
            "activation": self.activation,
            "layer_norm_epsilon": self.layer_norm_epsilon,
            "initializer_range": self.initializer_range,
            "gradient_checkpointing": self.gradient_checkpointing,
        }
