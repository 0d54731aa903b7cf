import keras
from keras import ops

from keras_megatron.layers.common import get_activation, normal_initializer
from keras_megatron.layers.encoder import take_tokens
from keras_megatron.layers.kernels import layer_norm, score_words


@keras.saving.register_keras_serializable(package="keras_megatron")
class MaskedLMHead(keras.layers.Layer):
    """Scores every vocabulary entry at the masked positions.

    Dense, activation, LayerNorm, then the product with the word embeddings, to which the head is
    tied, plus a bias. Only masked positions are computed, so the logits are never
    (batch, sequence, vocabulary).

    Args:
        token_embedding: the backbone's `keras.layers.ReversibleEmbedding`.
        activation: str. Megatron uses the exact GELU here whatever the feed-forward uses.
        layer_norm_epsilon: float. Added to the variance.
        initializer_range: float. Standard deviation of the kernel at the start.
    """

    def __init__(
        self,
        token_embedding: keras.layers.ReversibleEmbedding,
        activation: str = "gelu",
        layer_norm_epsilon: float = 1e-5,
        initializer_range: float = 0.02,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.token_embedding = token_embedding
        self.activation = activation
        self.layer_norm_epsilon = layer_norm_epsilon
        self.initializer_range = initializer_range
        self.dense = keras.layers.Dense(
            token_embedding.output_dim,
            activation=get_activation(activation),
            kernel_initializer=normal_initializer(initializer_range),
            dtype=self.dtype_policy,
            name="dense",
        )
        self.layer_norm = layer_norm(layer_norm_epsilon, self.dtype_policy, "layer_norm")

    def build(self, sequence_output_shape, mask_positions_shape=None):
        """Build the dense layer, the LayerNorm and the vocabulary bias."""
        self.dense.build(sequence_output_shape)
        self.layer_norm.build(sequence_output_shape)
        self.bias = self.add_weight(
            shape=(self.token_embedding.input_dim,), initializer="zeros", name="bias"
        )
        self.built = True

    def call(self, sequence_output, mask_positions=None):
        """Score the vocabulary.

        Args:
            sequence_output: float (batch, sequence, hidden).
            mask_positions: int (batch, masks), positions in the sequence; all of them if None. Or
                int (masks,), positions in packed rows that are laid one behind the other.

        Returns:
            Logits, float (batch, masks, vocabulary) or (masks, vocabulary).
        """
        scored = sequence_output
        if mask_positions is not None and len(mask_positions.shape) == 1:
            scored = take_tokens(sequence_output, mask_positions)
        elif mask_positions is not None:
            positions = ops.expand_dims(mask_positions, axis=-1)
            scored = ops.take_along_axis(sequence_output, positions, axis=1)
        scored = self.layer_norm(self.dense(scored))
        logits = score_words(self.token_embedding, scored)
        # TensorFlow multiplies by the table in float32, whatever the precision of the rest.
        return ops.cast(logits, self.compute_dtype) + self.bias

    def compute_output_shape(self, sequence_output_shape, mask_positions_shape=None):
        """Return (batch, masks, vocabulary), or (masks, vocabulary)."""
        return (
            *(mask_positions_shape or sequence_output_shape[:2]),
            self.token_embedding.input_dim,
        )

    def get_config(self):
        """Return the arguments of the constructor."""
        return {
            **super().get_config(),
            "token_embedding": keras.layers.serialize(self.token_embedding),
            "activation": self.activation,
            "layer_norm_epsilon": self.layer_norm_epsilon,
            "initializer_range": self.initializer_range,
        }

    @classmethod
    def from_config(cls, config):
        """Rebuild the layer; the embedding comes back as a layer of its own."""
        config = {**config, "token_embedding": keras.layers.deserialize(config["token_embedding"])}
        return cls(**config)
