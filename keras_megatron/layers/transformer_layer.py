import keras
from keras import ops

from keras_megatron.layers import kernels
from keras_megatron.layers.attention import MultiHeadAttention
from keras_megatron.layers.common import (
    get_activation,
    normal_initializer,
    rematerialize,
    scaled_normal_initializer,
    seed_generators,
)
from keras_megatron.layers.kernels import apart, layer_norm, run


@keras.saving.register_keras_serializable(package="keras_megatron")
class MegatronBertLayer(keras.layers.Layer):
    """A transformer layer with LayerNorm before each block, as Megatron rearranges BERT.

    `x += dropout(attention(LN(x)))`, then `x += dropout(mlp(LN(x)))` (arXiv 1909.08053, section
    5.3, Figure 7 b); or BERT's own order, Figure 7 a.

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
        cross_attention: bool. Whether a block that attends to an encoder's hidden states follows
            self-attention: `x += dropout(attention(LN(x), encoder))`.
        apply_residual_connection_post_layernorm: bool. Add to what LayerNorm gave instead of what
            it was given: `x = LN(x)`, then `x += dropout(attention(x))`, and so on.
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
        cross_attention: bool = False,
        apply_residual_connection_post_layernorm: bool = False,
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
        self.apply_residual_connection_post_layernorm = apply_residual_connection_post_layernorm

        self.has_cross_attention = cross_attention
        self.is_compiled = False  # on PyTorch, for a GPU

        dtype = self.dtype_policy
        for name in ("self_attention", "cross_attention")[: 1 + cross_attention]:
            norm = layer_norm(layer_norm_epsilon, dtype, f"{name}_layer_norm")
            attention = MultiHeadAttention(
                num_heads=num_heads,
                head_dim=head_dim,
                num_layers=num_layers,
                dropout=attention_dropout,
                initializer_range=initializer_range,
                dtype=dtype,
                name=name,
            )
            drop = kernels.Dropout(dropout, dtype=dtype, name=f"{name}_dropout")
            setattr(self, f"{name}_layer_norm", norm)
            setattr(self, name, attention)
            setattr(self, f"{name}_dropout", drop)
        self.feedforward_layer_norm = layer_norm(
            layer_norm_epsilon, dtype, "feedforward_layer_norm"
        )
        self.feedforward_intermediate_dense = kernels.Dense(
            intermediate_dim,
            activation=get_activation(activation),
            kernel_initializer=normal_initializer(initializer_range),
            dtype=dtype,
            name="feedforward_intermediate_dense",
        )
        self.feedforward_dropout = kernels.Dropout(dropout, dtype=dtype, name="feedforward_dropout")

    def build(self, hidden_states_shape, attention_mask_shape=None):
        """Build the blocks for inputs of (batch, sequence, hidden)."""
        self.self_attention_layer_norm.build(hidden_states_shape)
        self.self_attention.build(hidden_states_shape)
        if self.has_cross_attention:
            self.cross_attention_layer_norm.build(hidden_states_shape)
            self.cross_attention.build(hidden_states_shape)
        self.feedforward_layer_norm.build(hidden_states_shape)
        self.feedforward_intermediate_dense.build(hidden_states_shape)
        self.feedforward_output_dense = kernels.Dense(
            hidden_states_shape[-1],
            kernel_initializer=scaled_normal_initializer(self.initializer_range, self.num_layers),
            dtype=self.dtype_policy,
            name="feedforward_output_dense",
        )
        self.feedforward_output_dense.build((*hidden_states_shape[:-1], self.intermediate_dim))
        self.built = True

    def call(
        self,
        hidden_states,
        attention_mask=None,
        encoder_hidden_states=None,
        encoder_mask=None,
        output_attentions=False,
        training=None,
    ):
        """Transform hidden states.

        Args:
            hidden_states: float (batch, sequence, hidden).
            attention_mask: bool, broadcast to (batch, heads, query, key), or None.
            encoder_hidden_states: float (batch, key, hidden), for a layer with cross-attention.
            encoder_mask: bool, broadcast to (batch, heads, query, key of the encoder), or None.
            output_attentions: whether to return attention probabilities too.
            training: whether to drop out.

        Returns:
            float (batch, sequence, hidden), or a tuple of this and a tuple of the probabilities of
            self-attention and, if there is one, cross-attention.
        """

        def blocks(hidden_states, encoder_hidden_states=None):
            hidden_states, attentions = self._blocks(
                hidden_states,
                attention_mask,
                encoder_hidden_states,
                encoder_mask,
                output_attentions,
                training,
            )
            return (hidden_states, attentions) if output_attentions else hidden_states

        tensors = [hidden_states]
        if self.has_cross_attention:
            tensors.append(encoder_hidden_states)
        if self.gradient_checkpointing and training:
            return rematerialize(blocks, seed_generators(self), *tensors)
        return blocks(*tensors)

    def _blocks(
        self, x, attention_mask, encoder_hidden_states, encoder_mask, output_attentions, training
    ):
        if self.is_compiled and not output_attentions:
            transformed = kernels.transform(self, x, attention_mask, training)
            if transformed is not None:
                return transformed, ()
        attentions = []

        def attend(name, x, mask, attended=None):
            normed = run(getattr(self, f"{name}_layer_norm"), x)
            output = run(
                getattr(self, name),
                normed,
                attention_mask=mask,
                encoder_hidden_states=attended,
                return_attention_scores=output_attentions,
                training=training,
            )
            if output_attentions:
                output, probabilities = output
                attentions.append(probabilities)
            return self._residual(x, normed) + self._dropped(f"{name}_dropout", output, training)

        x = attend("self_attention", apart(x), attention_mask)
        if self.has_cross_attention:
            x = attend("cross_attention", x, encoder_mask, encoder_hidden_states)
        return self._feed_forward(x, training), tuple(attentions)

    def _feed_forward(self, x, training=None):
        normed = run(self.feedforward_layer_norm, x)
        fed = run(self.feedforward_intermediate_dense, normed)
        fed = run(self.feedforward_output_dense, fed)
        return self._residual(x, normed) + self._dropped("feedforward_dropout", fed, training)

    def _residual(self, x, normed):
        return normed if self.apply_residual_connection_post_layernorm else x

    def _dropped(self, name: str, x, training):
        """Drop out in training; a call of a layer that does nothing takes time, too."""
        return getattr(self, name)(x, training=True) if training else x

    def decode(self, hidden_states, cache, index, attention_mask, encoder_mask=None):
        """Transform some positions of a sequence whose earlier keys and values are known.

        Args:
            hidden_states: float (batch, new positions, hidden).
            cache: dict of `key` and `value` (batch, length, heads, head_dim), and for a layer with
                cross-attention `cross_key` and `cross_value` of the encoder's positions.
            index: int, the position of the first new one.
            attention_mask: bool, broadcast to (batch, heads, new positions, length).
            encoder_mask: bool, broadcast to (batch, heads, new positions, encoder's length).

        Returns:
            A tuple of the new hidden states and the cache with the new keys and values.
        """
        normed = self.self_attention_layer_norm(hidden_states)
        key, value = self.self_attention.keys_and_values(normed)
        start = (0, index, 0, 0)
        cache = {
            **cache,
            "key": ops.slice_update(cache["key"], start, key),
            "value": ops.slice_update(cache["value"], start, value),
        }
        attended = self.self_attention.attend(normed, cache["key"], cache["value"], attention_mask)
        hidden_states = self._residual(hidden_states, normed) + attended
        if self.has_cross_attention:
            normed = self.cross_attention_layer_norm(hidden_states)
            attended = self.cross_attention.attend(
                normed, cache["cross_key"], cache["cross_value"], encoder_mask
            )
            hidden_states = self._residual(hidden_states, normed) + attended
        return self._feed_forward(hidden_states), cache

    def compute_output_spec(
        self,
        hidden_states,
        attention_mask=None,
        encoder_hidden_states=None,
        encoder_mask=None,
        output_attentions=False,
        training=None,
    ):
        """Return the shapes and types of what `call` returns."""
        spec = keras.KerasTensor(hidden_states.shape, self.compute_dtype)
        if not output_attentions:
            return spec
        batch, queries, _ = hidden_states.shape
        keys = [queries]
        if self.has_cross_attention:
            keys.append(encoder_hidden_states.shape[1])
        shapes = [(batch, self.num_heads, queries, count) for count in keys]
        return spec, tuple(keras.KerasTensor(shape, self.compute_dtype) for shape in shapes)

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
            "cross_attention": self.has_cross_attention,
            "apply_residual_connection_post_layernorm": (
                self.apply_residual_connection_post_layernorm
            ),
        }
