from collections.abc import Mapping

import keras
import keras_hub
import numpy as np
from keras import ops

from keras_megatron.backbone import MegatronBertBackbone
from keras_megatron.layers.common import refuse_unknown
from keras_megatron.layers.encoder import causal_mask, key_mask
from keras_megatron.tasks.causal_lm_preprocessor import MegatronBertCausalLMPreprocessor
from keras_megatron.tasks.generation import check_prompt_mask, until_stop, with_certain_tokens
from keras_megatron.tasks.heads import masked_lm_head, token_cross_entropy
from keras_megatron.tasks.labels import check_range, check_shape
from keras_megatron.tasks.samples import positive
from keras_megatron.tasks.task import MegatronBertTask, check_tokenizer_fits


@keras.saving.register_keras_serializable(package="keras_megatron")
class MegatronBertCausalLM(MegatronBertTask, keras_hub.models.CausalLM):
    """Megatron BERT that predicts the next token: a decoder.

    The layers are the encoder's, but a position sees only itself and what is before it. Called on
    a dict of `token_ids`, `segment_ids` and `padding_mask` (batch, sequence), it returns logits
    (batch, sequence, vocabulary). With a preprocessor `fit` takes raw text; `generate` continues
    prompts, with a cache of keys and values. A model that was pretrained to fill masks has to be
    trained before what it generates makes sense.

    Args:
        backbone: `MegatronBertBackbone`. One with `cross_attention=True` makes a decoder for an
            encoder: the inputs then have `encoder_hidden_states` and `encoder_padding_mask`, too,
            whose length need not be that of `token_ids`.
        preprocessor: `MegatronBertCausalLMPreprocessor`, or None for inputs that are ids already.
        head_activation: str. Activation of the head's dense layer.

    Raises:
        ValueError: the tokenizer has more pieces than the backbone has rows.

    Example:
    ```python
    from keras_megatron import MegatronBertCausalLM

    causal_lm = MegatronBertCausalLM.from_preset("megatron_bert_tiny_uncased")
    causal_lm.fit(["Call me Ishmael.", "Some years ago, never mind how long."], batch_size=2)
    causal_lm.compile(sampler="greedy")
    causal_lm.generate("Call me", max_length=8)
    ```
    """

    backbone_cls = MegatronBertBackbone
    preprocessor_cls = MegatronBertCausalLMPreprocessor
    labels = "made"
    outputs_for = "tokens"
    causal = True
    default_learning_rate = 2e-5

    def __init__(
        self,
        backbone: MegatronBertBackbone,
        preprocessor: MegatronBertCausalLMPreprocessor | None = None,
        head_activation: str = "gelu",
        **kwargs,
    ):
        refuse_unknown(kwargs, {"name", "trainable", "compile"})
        check_tokenizer_fits(preprocessor, backbone)

        # === Layers ===
        mlm_head = masked_lm_head(backbone, head_activation)

        # === Functional Model ===
        inputs = backbone.input
        outputs = mlm_head(backbone(inputs, causal=True)["sequence_output"])
        self.backbone = backbone
        self.preprocessor = preprocessor
        super().__init__(inputs=inputs, outputs=outputs, **kwargs)

        # === Config ===
        self.mlm_head = mlm_head
        self.head_activation = head_activation

    def outputs_of(self, encoded, inputs, training=None):
        """Return logits (batch, sequence, vocabulary)."""
        return self.mlm_head(encoded["sequence_output"])

    def default_loss(self) -> keras.losses.Loss:
        """Return the mean cross entropy of the tokens that are there."""
        return token_cross_entropy()

    def default_metrics(self) -> dict:
        """Return the accuracy of the tokens that are there."""
        return {"weighted_metrics": [keras.metrics.SparseCategoricalAccuracy()]}

    def get_compile_config(self) -> dict:
        """Return the arguments of `compile` that a `.keras` file keeps."""
        config = super().get_compile_config()
        return {**config, "sampler": keras_hub.samplers.serialize(self.sampler)} if config else {}

    def label_limits(self, inputs: Mapping) -> tuple:
        """Return the least and the greatest token."""
        return 0, self.backbone.vocabulary_size - 1

    def check_label_arrays(self, y: np.ndarray, inputs: Mapping) -> None:
        """Refuse labels that are not a token of the vocabulary for each position.

        Raises:
            ValueError: as said.
        """
        check_shape(y, np.shape(inputs["token_ids"]))
        check_range(y, self.backbone.vocabulary_size)

    def generate(self, inputs, max_length: int | None = None, **kwargs):
        """Continue prompts; see `keras_hub.models.CausalLM.generate`.

        Args:
            inputs: a text or a list of texts; or, without a preprocessor, a dict of `token_ids` and
                `padding_mask` (batch, length), which is 1 for the prompt, at the start of each row,
                and 0 for what is to be generated. A decoder of an encoder takes a dict with
                `encoder_hidden_states` and `encoder_padding_mask` besides.
            max_length: tokens to make, prompt included; the preprocessor's `sequence_length` by
                default.
            **kwargs: `stop_token_ids` and `strip_prompt`.

        Raises:
            ValueError: the model has fewer positions than `max_length`, or a prompt fills it, is
                empty or does not begin its row.
        """
        if not isinstance(inputs, str | dict) and hasattr(inputs, "__len__") and not len(inputs):
            return []
        length = max_length = positive("max_length", max_length)
        if isinstance(inputs, dict):
            self.backbone.check_inputs(inputs)
            check_prompt_mask(inputs.get("padding_mask"))
            length = inputs["token_ids"].shape[-1]
        elif length is None and self.preprocessor is not None:
            length = self.preprocessor.sequence_length
        limit = self.backbone.max_sequence_length
        if length is not None and not 1 < length <= limit:
            raise ValueError(
                f"cannot generate up to {length} tokens with {limit} positions: give a max_length "
                f"from 2 to {limit}"
            )
        return super().generate(inputs, max_length=max_length, **kwargs)

    def generate_step(self, inputs: dict, stop_token_ids=None) -> dict:
        """Generate for one batch; KerasHub compiles this.

        Args:
            inputs: dict as of `generate`, of ids.
            stop_token_ids: ids at which a row is complete.

        Returns:
            Dict of `token_ids` and `padding_mask` (batch, length).
        """
        token_ids = ops.cast(inputs["token_ids"], "int32")
        padding_mask = ops.cast(inputs["padding_mask"], "bool")
        cache = self._empty_cache({**inputs, "token_ids": token_ids})
        cache["is_prompt"] = ops.cast(padding_mask, "int32")
        hidden_states, cache = self._states_with_cache(token_ids, cache, 0)

        def next_token(prompt, cache, index):
            last = ops.slice(prompt, [0, index - 1], [ops.shape(prompt)[0], 1])
            logits, hidden_states, cache = self.call_with_cache(last, cache, index - 1)
            logits = with_certain_tokens(
                ops.squeeze(logits, axis=1), prompt, cache["is_prompt"], index, stop_token_ids
            )
            return logits, ops.squeeze(hidden_states, axis=1), cache

        token_ids = self.sampler(
            next=next_token,
            prompt=token_ids,
            cache=cache,
            index=ops.min(ops.sum(ops.cast(padding_mask, "int32"), axis=-1)),
            mask=padding_mask,
            stop_token_ids=stop_token_ids,
            hidden_states=hidden_states,
            model=self,
        )
        return {
            "token_ids": token_ids,
            "padding_mask": until_stop(token_ids, padding_mask, stop_token_ids),
        }

    def call_with_cache(self, token_ids, cache: dict, cache_update_index) -> tuple:
        """Score the next token after some positions, given the keys and values before them.

        Args:
            token_ids: int (batch, new positions).
            cache: what the last call returned.
            cache_update_index: int, the position of the first new one.

        Returns:
            Logits (batch, new positions, vocabulary), hidden states (batch, new positions, hidden)
            and the cache with the new positions.
        """
        hidden_states, cache = self._states_with_cache(token_ids, cache, cache_update_index)
        return self._without_padding_rows(self.mlm_head(hidden_states)), hidden_states, cache

    def _states_with_cache(self, token_ids, cache: dict, index) -> tuple:
        """Return the hidden states and the cache as `call_with_cache` does, without scores."""
        backbone = self.backbone
        batch, new = ops.shape(token_ids)
        length = cache["segment_ids"].shape[1]
        hidden_states = backbone.embeddings(
            token_ids,
            ops.slice(cache["segment_ids"], [0, index], [batch, new]),
            position_ids=ops.expand_dims(ops.arange(new, dtype="int32") + index, 0),
        )
        mask = causal_mask(new, length, first_query=index)
        encoder_mask = key_mask(cache.get("encoder_mask"))
        layers = []
        for layer, layer_cache in zip(backbone.transformer_layers, cache["layers"], strict=True):
            hidden_states, layer_cache = layer.decode(
                hidden_states, layer_cache, index, mask, encoder_mask
            )
            layers.append(layer_cache)
        hidden_states = backbone.get_layer("final_layer_norm")(hidden_states)
        return hidden_states, {**cache, "layers": tuple(layers)}

    def _empty_cache(self, inputs: dict) -> dict:
        """Return a cache for as many positions as `token_ids` has.

        Everything in it has an axis for the batch first, which a beam search repeats.
        """
        backbone, token_ids = self.backbone, inputs["token_ids"]
        batch, length = ops.shape(token_ids)
        head_dim = backbone.head_dim or backbone.hidden_dim // backbone.num_heads
        empty = ops.zeros((batch, length, backbone.num_heads, head_dim), self.compute_dtype)
        segment_ids = inputs.get("segment_ids")
        if segment_ids is None:
            segment_ids = ops.zeros_like(token_ids)
        cache = {"segment_ids": ops.cast(segment_ids, "int32")}
        layers = [{"key": empty, "value": empty} for _ in backbone.transformer_layers]
        if backbone.cross_attention:
            states = ops.cast(inputs["encoder_hidden_states"], self.compute_dtype)
            cache["encoder_mask"] = ops.cast(inputs["encoder_padding_mask"], "int32")
            for layer, layer_cache in zip(backbone.transformer_layers, layers, strict=True):
                key, value = layer.cross_attention.keys_and_values(states)
                layer_cache |= {"cross_key": key, "cross_value": value}
        return {**cache, "layers": tuple(layers)}

    def _without_padding_rows(self, logits):
        """Rule out what is in the table for padding only, where the vocabulary is known."""
        if self.preprocessor is None:
            return logits
        pieces = self.preprocessor.tokenizer.vocabulary_size()
        is_piece = ops.arange(self.backbone.vocabulary_size) < pieces
        return ops.where(is_piece, logits, ops.cast(-1e4, logits.dtype))

    def get_config(self):
        """Return the arguments of the constructor."""
        return {**super().get_config(), "head_activation": self.head_activation}
