from collections.abc import Mapping

import keras
import numpy as np

from keras_megatron.layers.token_inputs import OPTIONAL_INPUTS
from keras_megatron.tasks import packed_rows
from keras_megatron.tasks.quiet import quiet
from keras_megatron.tasks.raw_samples import RawSamples
from keras_megatron.tasks.samples import check_positive
from keras_megatron.tasks.streams import StreamedSamples
from keras_megatron.tasks.training import DefaultTraining


class MegatronBertTask(StreamedSamples, RawSamples, DefaultTraining):
    """What every task adds to its KerasHub base class, which stands behind it in the bases.

    Ids given as numpy arrays are checked before they reach a backend, and so are labels, unless
    `compile` was given a loss that may take others. Raw samples (a list, an array, or a tuple of
    lists) are checked, shuffled in `fit`, and preprocessed batch by batch.
    `export_to_transformers` comes from `keras_megatron.checkpoints`.
    """

    outputs_for = "documents"  # or "tokens", or "masks": what the model has an output for each of
    causal = False
    packs_training = True  # whether the loss does not look at padding

    def __call__(self, inputs, *args, **kwargs):
        """Run the model on ids, in rows of one text or, with `document_ids`, of several."""
        self.backbone.check_inputs(inputs)
        self.check_names(inputs)
        self._check_axes(inputs)
        return super().__call__(inputs, *args, **kwargs)

    @property
    def input_spec(self):
        """None: packed rows have other inputs than the functional model; `__call__` looks."""
        return None

    def _check_axes(self, inputs) -> None:
        """Refuse inputs with too few or too many axes.

        Raises:
            ValueError: as said.
        """
        if not isinstance(inputs, Mapping) or "document_ids" in inputs:
            return
        for name, expected in self.input.items():
            axes, given = len(expected.shape), getattr(inputs[name], "shape", expected.shape)
            if len(given) != axes:
                raise ValueError(f"{name} must have {axes} axes, but its shape is {tuple(given)}")

    def call(self, inputs, training=None, mask=None):
        """See `__call__`. What the functional model does not have is computed layer by layer."""
        if not isinstance(inputs, Mapping) or "document_ids" not in inputs:
            return super().call(inputs, training=training, mask=mask)
        known = {*self.backbone.input, *OPTIONAL_INPUTS}
        given = {name: array for name, array in inputs.items() if name in known}
        encoded = self.backbone(given, causal=self.causal, training=training)
        return self.outputs_of(encoded, inputs, training)

    def outputs_of(self, encoded, inputs, training=None):
        """Return the outputs for packed rows; a hook.

        Args:
            encoded: what the backbone returned.
            inputs: what the model is called on, `document_ids` among them.
            training: whether to drop out.
        """
        raise NotImplementedError

    def preprocess_samples(self, x, y=None, sample_weight=None):
        """Apply the preprocessor, if there is one, to a batch."""
        self.backbone.check_inputs(x)
        return super().preprocess_samples(x, y, sample_weight)

    def logits(self, inputs: dict[str, np.ndarray], batch_size: int = 32):
        """Return what the model makes of ids, without preprocessing, as NumPy arrays.

        Args:
            inputs: the model's inputs by name, each (rows, ...).
            batch_size: rows a step.

        Returns:
            The model's outputs for all rows, float32. Those for tokens may be 0 where there is
            padding: rows are packed if that saves work.

        Raises:
            ValueError: there are no rows, an input is missing or unknown, `batch_size` is not a
                positive integer, or an id has no place in the model.
        """
        check_positive("batch_size", batch_size)
        self.check_names(inputs)
        if not all(len(array) for array in inputs.values()):
            raise ValueError("there are no rows: give at least one")
        self.backbone.check_inputs(inputs)
        return packed_rows.run(self, inputs, batch_size)

    def save_to_preset(self, preset_dir, max_shard_size=10):
        """Save as a preset; see `keras_hub.models.Task.save_to_preset`.

        The state of the optimizer, two numbers a weight, is no part of a preset; KerasHub would
        store it there, and warn when the preset is loaded. `save("model.keras")` keeps it.
        """
        optimizer = getattr(self, "optimizer", None)
        if optimizer is None:
            return super().save_to_preset(preset_dir, max_shard_size=max_shard_size)
        self.optimizer = keras.optimizers.Adam()  # as new as the one from_preset compiles with
        try:
            return super().save_to_preset(preset_dir, max_shard_size=max_shard_size)
        finally:
            self.optimizer = optimizer

    def quantize(self, mode, config=None, **kwargs):
        """Quantize the backbone; see `keras.Model.quantize`. The small head keeps its precision."""
        with quiet():
            self.backbone.quantize(mode, config=config, **kwargs)
        self.train_function = self.test_function = self.predict_function = None


def check_tokenizer_fits(preprocessor, backbone) -> None:
    """Refuse a tokenizer with ids that the backbone's table does not have.

    Raises:
        ValueError: the vocabulary is larger than the table.
    """
    tokenizer = getattr(preprocessor, "tokenizer", None)
    if tokenizer is None or tokenizer.vocabulary is None:  # its assets are loaded later
        return
    pieces = tokenizer.vocabulary_size()
    if pieces > backbone.vocabulary_size:
        raise ValueError(
            f"the tokenizer has {pieces} pieces but the backbone's table only "
            f"{backbone.vocabulary_size} rows: use the vocabulary that the model was trained with"
        )
