"""What a call of the backbone takes and gives beyond its functional model."""

import keras

from keras_megatron.layers.encoder import encode
from keras_megatron.layers.token_inputs import (
    OPTIONAL_INPUTS,
    check_input_names,
    check_token_inputs,
)


class EncoderCall:
    """How `MegatronBertBackbone`, a functional model behind this in the bases, is called.

    A call that asks for nothing beyond the functional model runs it; any other goes through the
    same layers one by one. Ids that are NumPy arrays are checked first.
    """

    def __call__(
        self,
        inputs,
        *args,
        causal: bool = False,
        output_hidden_states: bool = False,
        output_attentions: bool = False,
        **kwargs,
    ):
        """Encode.

        Args:
            inputs: dict of the arrays that the class names. It may also have `position_ids`, int
                (batch, sequence); `attention_mask`, (batch, query, key), 1 where a query may attend
                to a key, with `padding_mask` or instead of it; and, instead of `token_ids`,
                `token_embeddings`, float (batch, sequence, hidden). With one of these
                `segment_ids` (then 0) and `padding_mask` (then 1) may be left out. Several
                documents, that is texts or pairs, may share a row: `document_ids`, int (batch,
                sequence), number the document that a token belongs to, 0 for padding. Tokens attend
                to their own document, and its positions begin at 0. `cls_positions`, int
                (documents,), have each one's first position, in the rows laid one behind the other;
                `pooled_output` is then (documents, hidden). `keras_megatron.packing` makes both.
            *args: of `keras.Model.__call__`.
            causal: whether a position attends only to itself and to what is before it.
            output_hidden_states: whether to return all hidden states.
            output_attentions: whether to return attention probabilities.
            **kwargs: of `keras.Model.__call__`.

        Returns:
            The outputs that the class names. If asked for, also `hidden_states`, a tuple of the sum
            of the embeddings, each layer's output but the last, and `sequence_output`, each
            (batch, sequence, hidden); and `attentions`, a tuple of each layer's probabilities
            (batch, heads, query, key), with those of cross-attention in `cross_attentions`.

        Raises:
            ValueError: an id has no embedding, the sequence is too long, or an input is unknown,
                missing, or given in two ways.
        """
        self.check_inputs(inputs)
        check_input_names(inputs, self.cross_attention)
        asked = {
            "causal": causal,
            "output_hidden_states": output_hidden_states,
            "output_attentions": output_attentions,
        }
        asked = {name: value for name, value in asked.items() if value}
        return super().__call__(inputs, *args, **asked, **kwargs)

    def call(
        self,
        inputs,
        training=None,
        mask=None,
        causal=False,
        output_hidden_states=False,
        output_attentions=False,
    ):
        """See `__call__`. What the functional model does not have is computed layer by layer."""
        extras = (causal, output_hidden_states, output_attentions)
        if not any(extras) and not set(inputs).intersection(OPTIONAL_INPUTS):
            return super().call(inputs, training=training, mask=mask)
        return encode(self.get_layer, self.num_layers, inputs, *extras, training=training)

    def compute_output_spec(self, inputs, training=None, mask=None, causal=False, **asked):
        """Return the shapes and types of what `__call__` returns.

        Raises:
            ValueError: hidden states or attentions are asked for: Keras takes it for granted that a
                functional model has the outputs that it was made with.
        """
        if any(asked.values()):
            raise ValueError(
                "hidden states and attentions cannot be outputs of a keras.Input: call the "
                "backbone on arrays, or in the call method of a layer or model of yours"
            )
        if not set(inputs).intersection(OPTIONAL_INPUTS):
            return super().compute_output_spec(inputs, training=training, mask=mask)
        outputs = encode(self.get_layer, self.num_layers, inputs)  # causality changes no shape
        return keras.tree.map_structure(lambda x: keras.KerasTensor(x.shape, x.dtype), outputs)

    @property
    def input_spec(self):
        """None: what may be left out depends on what else is given; `check_inputs` looks."""
        return None

    def check_inputs(self, inputs) -> None:
        """Refuse numpy ids that the tables have no row for, and too long sequences.

        Raises:
            ValueError: an id is negative or too large, or the sequence is too long.
        """
        check_token_inputs(
            inputs, self.vocabulary_size, self.num_segments, self.max_sequence_length
        )
