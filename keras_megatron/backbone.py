import keras
import keras_hub
import numpy as np

from keras_megatron.garbage import no_collections
from keras_megatron.layers.common import (
    get_activation,
    normal_initializer,
    refuse_unknown,
)
from keras_megatron.layers.embeddings import MegatronBertEmbedding
from keras_megatron.layers.encoder import encode
from keras_megatron.layers.encoder_call import EncoderCall
from keras_megatron.layers.kernels import layer_norm
from keras_megatron.layers.quantized import mend_quantized
from keras_megatron.layers.token_inputs import ENCODER_INPUTS, INPUTS
from keras_megatron.layers.transformer_layer import MegatronBertLayer


@keras.saving.register_keras_serializable(package="keras_megatron")
class MegatronBertBackbone(EncoderCall, keras_hub.models.Backbone):
    """Megatron BERT: the encoder of Megatron-LM (arXiv 1909.08053), without a head.

    BERT with LayerNorm moved: none after the embeddings, one before each block, one after the last
    layer. The default settings give a randomly initialized encoder with any number of layers;
    `from_preset` loads released weights.

    Args:
        vocabulary_size: int. Rows of the token table. Released models pad it (30592 rows for 30522
            pieces), so it may exceed the tokenizer's vocabulary.
        num_layers: int. Transformer layers.
        num_heads: int. Attention heads a layer.
        hidden_dim: int. Width of the hidden states.
        intermediate_dim: int. Width of the feed-forward blocks.
        dropout: float. Dropout rate of embeddings and block outputs.
        attention_dropout: float. Dropout rate of the attention probabilities.
        max_sequence_length: int. Positions the model has embeddings for.
        num_segments: int. Kinds of segment ("token types").
        layer_norm_epsilon: float. 1e-5 in Megatron, 1e-12 in Hugging Face's default.
        activation: str. Of the feed-forward blocks: `"gelu"` (erf; the released 345M models),
            `"gelu_approximate"` (tanh; Megatron runs from after 2020-09) or one of Keras's.
        head_dim: int. Width of a head; `hidden_dim / num_heads` if None.
        initializer_range: float. Standard deviation of the initial kernels. Those that write to
            the residual stream are scaled by `1 / sqrt(2 num_layers)` (section 4.2).
        gradient_checkpointing: bool. Recompute each layer in the backward pass of training: memory
            for one layer's activations plus one hidden state a layer, at the price of about a
            third more computation. Can be set later, before `compile`.
        cross_attention: bool. Give each layer a block that attends to an encoder's hidden states,
            for a decoder (`MegatronBertCausalLM`). Adds the inputs `encoder_hidden_states`, float
            (batch, encoder sequence, hidden), and `encoder_padding_mask`, int (batch, encoder
            sequence); both sequences have any length.
        apply_residual_connection_post_layernorm: bool. BERT's own order of LayerNorm and residual
            connections, Megatron-LM's option of this name: the first LayerNorm is then that of the
            embeddings, and the sum after each block is normalized (Figure 7 a).
        dtype: str or `keras.DTypePolicy`. `"mixed_bfloat16"` trains in bfloat16 with float32
            weights; softmax and LayerNorm statistics stay in float32.

    Inputs are a dict of int arrays (batch, sequence): `token_ids`, `segment_ids`, and
    `padding_mask`, 1 for a token and 0 for padding. Outputs are a dict: `sequence_output`
    (batch, sequence, hidden) and `pooled_output` (batch, hidden), the tanh of a dense layer on the
    first position. `__call__` says what else can be given and asked for.

    Raises:
        ValueError: `hidden_dim` is not a multiple of `num_heads` and no `head_dim` is given, a size
            is not positive, or the activation is unknown.

    Example:
    ```python
    import numpy as np
    from keras_megatron import MegatronBertBackbone

    backbone = MegatronBertBackbone(
        vocabulary_size=128, num_layers=2, num_heads=2, hidden_dim=16, intermediate_dim=64
    )
    outputs = backbone(
        {
            "token_ids": np.array([[2, 45, 9, 3, 0]]),
            "segment_ids": np.zeros((1, 5), "int32"),
            "padding_mask": np.array([[1, 1, 1, 1, 0]]),
        }
    )
    assert outputs["sequence_output"].shape == (1, 5, 16)
    ```
    """

    def __init__(
        self,
        vocabulary_size: int,
        num_layers: int,
        num_heads: int,
        hidden_dim: int,
        intermediate_dim: int,
        dropout: float = 0.1,
        attention_dropout: float = 0.1,
        max_sequence_length: int = 512,
        num_segments: int = 2,
        layer_norm_epsilon: float = 1e-5,
        activation: str = "gelu",
        head_dim: int | None = None,
        initializer_range: float = 0.02,
        gradient_checkpointing: bool = False,
        cross_attention: bool = False,
        apply_residual_connection_post_layernorm: bool = False,
        dtype=None,
        **kwargs,
    ):
        refuse_unknown(kwargs, {"name", "trainable"})
        sizes = {
            "vocabulary_size": vocabulary_size,
            "num_layers": num_layers,
            "num_heads": num_heads,
            "hidden_dim": hidden_dim,
            "intermediate_dim": intermediate_dim,
            "max_sequence_length": max_sequence_length,
            "num_segments": num_segments,
            "head_dim": 1 if head_dim is None else head_dim,
        }
        for name, size in sizes.items():
            if not isinstance(size, int | np.integer) or size < 1:
                raise ValueError(f"{name} must be a positive integer, not {size!r}")
        if head_dim is None and hidden_dim % num_heads:
            raise ValueError(
                f"hidden_dim={hidden_dim} is not a multiple of num_heads={num_heads}: "
                "change one, or give head_dim"
            )
        get_activation(activation)  # refuses a name it does not know

        # === Layers ===
        embeddings = MegatronBertEmbedding(
            vocabulary_size=vocabulary_size,
            max_sequence_length=max_sequence_length,
            num_segments=num_segments,
            hidden_dim=hidden_dim,
            dropout=dropout,
            initializer_range=initializer_range,
            dtype=dtype,
            name="embeddings",
        )
        transformer_layers = [
            MegatronBertLayer(
                num_heads=num_heads,
                head_dim=head_dim or hidden_dim // num_heads,
                intermediate_dim=intermediate_dim,
                num_layers=num_layers,
                dropout=dropout,
                attention_dropout=attention_dropout,
                activation=activation,
                layer_norm_epsilon=layer_norm_epsilon,
                initializer_range=initializer_range,
                gradient_checkpointing=gradient_checkpointing,
                cross_attention=cross_attention,
                apply_residual_connection_post_layernorm=apply_residual_connection_post_layernorm,
                dtype=dtype,
                name=f"transformer_layer_{index}",
            )
            for index in range(num_layers)
        ]
        final_layer_norm = layer_norm(layer_norm_epsilon, dtype, "final_layer_norm")
        pooled_dense = keras.layers.Dense(
            hidden_dim,
            activation="tanh",
            kernel_initializer=normal_initializer(initializer_range),
            dtype=dtype,
            name="pooled_dense",
        )

        # === Functional Model ===
        inputs = {name: keras.Input(shape=(None,), dtype="int32", name=name) for name in INPUTS}
        if cross_attention:
            states, mask = ENCODER_INPUTS
            inputs[states] = keras.Input(shape=(None, hidden_dim), name=states)
            inputs[mask] = keras.Input(shape=(None,), dtype="int32", name=mask)
        layers = [embeddings, *transformer_layers, final_layer_norm, pooled_dense]
        layers = {layer.name: layer for layer in layers}
        outputs = encode(layers.__getitem__, num_layers, inputs)
        trainable = kwargs.pop("trainable", None)
        super().__init__(inputs=inputs, outputs=outputs, dtype=dtype, **kwargs)
        if trainable is not None:  # Keras would set it before it tracks the layers
            self.trainable = trainable

        # === Config ===
        self.vocabulary_size = vocabulary_size
        self.num_layers = num_layers
        self.num_heads = num_heads
        self.hidden_dim = hidden_dim
        self.intermediate_dim = intermediate_dim
        self.dropout = dropout
        self.attention_dropout = attention_dropout
        self.max_sequence_length = max_sequence_length
        self.num_segments = num_segments
        self.layer_norm_epsilon = layer_norm_epsilon
        self.activation = activation
        self.head_dim = head_dim
        self.initializer_range = initializer_range
        self.cross_attention = cross_attention
        self.apply_residual_connection_post_layernorm = apply_residual_connection_post_layernorm
        self.embeddings = embeddings
        self.token_embedding = embeddings.token_embedding
        self.transformer_layers = transformer_layers
        mend_quantized(self._flatten_layers(include_self=False))

    def enable_lora(self, rank: int, target_layer_names: list[str] | None = None) -> None:
        """Freeze the encoder, and train low-rank changes of query and value kernels instead.

        LoRA, arXiv 2106.09685, section 4; see `keras_hub.models.Backbone.enable_lora`. Biases are
        frozen too: KerasHub would train those beside an adapter, and not save them with it.

        Args:
            rank: the rank of the change of each kernel, at most `hidden_dim`.
            target_layer_names: names of the layers to change, `["query", "value"]` by default.

        A model that was trained before has to be compiled again: its optimizer does not know the
        new weights.

        Raises:
            ValueError: `rank` is out of range, or no layer has one of the names.
        """
        if isinstance(rank, bool) or not isinstance(rank, int) or not 1 <= rank <= self.hidden_dim:
            raise ValueError(f"rank must be an integer from 1 to {self.hidden_dim}, not {rank!r}")
        names = {layer.name for layer in self._flatten_layers(include_self=False)}
        if missing := [name for name in target_layer_names or () if name not in names]:
            raise ValueError(
                f"no layer is called {missing[0]!r}: give names such as query, value, key, "
                "attention_output, feedforward_intermediate or feedforward_output"
            )
        super().enable_lora(rank, target_layer_names)
        for layer in self._flatten_layers(include_self=False):
            if getattr(layer, "lora_enabled", False) and getattr(layer, "bias", None) is not None:
                layer.bias.trainable = False

    def quantize(self, mode, **kwargs) -> None:
        """Quantize the kernels and the table of tokens; see `keras.Model.quantize`."""
        with no_collections():
            super().quantize(mode, **kwargs)
        mend_quantized(self._flatten_layers(include_self=False))

    @property
    def gradient_checkpointing(self) -> bool:
        """Whether training recomputes each layer in the backward pass. Set it before `compile`."""
        return self.get_layer("transformer_layer_0").gradient_checkpointing

    @gradient_checkpointing.setter
    def gradient_checkpointing(self, value: bool):
        for index in range(self.num_layers):
            self.get_layer(f"transformer_layer_{index}").gradient_checkpointing = value

    def get_config(self):
        """Return the arguments of the constructor."""
        return {
            **super().get_config(),
            "vocabulary_size": self.vocabulary_size,
            "num_layers": self.num_layers,
            "num_heads": self.num_heads,
            "hidden_dim": self.hidden_dim,
            "intermediate_dim": self.intermediate_dim,
            "dropout": self.dropout,
            "attention_dropout": self.attention_dropout,
            "max_sequence_length": self.max_sequence_length,
            "num_segments": self.num_segments,
            "layer_norm_epsilon": self.layer_norm_epsilon,
            "activation": self.activation,
            "head_dim": self.head_dim,
            "initializer_range": self.initializer_range,
            "gradient_checkpointing": self.gradient_checkpointing,
            "cross_attention": self.cross_attention,
            "apply_residual_connection_post_layernorm": (
                self.apply_residual_connection_post_layernorm
            ),
        }
