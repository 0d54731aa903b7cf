from collections.abc import Mapping

import numpy as np

from keras_megatron.tasks import packed_rows
from keras_megatron.tasks.checked_samples import CheckedSamples
from keras_megatron.tasks.class_weights import class_weights
from keras_megatron.tasks.packed_training import pack_batches
from keras_megatron.tasks.quiet import quiet
from keras_megatron.tasks.samples import (
    batches_of_arrays,
    by_position,
    first_samples,
    from_epoch,
    ids_as_arrays,
    positive,
    split,
)


class RawSamples(CheckedSamples):
    """Training, measuring and predicting on raw samples, beside the ids that Keras takes."""

    def fit(
        self,
        x=None,
        y=None,
        batch_size=None,
        sample_weight=None,
        validation_data=None,
        validation_split=None,
        **kwargs,
    ):
        """Train; see `keras.Model.fit`.

        With a preprocessor `x` may be raw samples. They are shuffled anew in each epoch (unless
        `shuffle=False`), and what is drawn at random is drawn anew. Those of a batch are laid into
        packed rows, where the loss allows it, so that no work is done on padding. Keys of
        `class_weight` may be names of classes.
        """
        batch_size = positive("batch_size", batch_size)
        # Ids are checked here too: KerasHub takes an error in `preprocess_samples` for a hint to
        # try tf.data, whose tensors nobody checks.
        raw, x, y, sample_weight = self.checked(x, y, sample_weight)
        arrays = None if raw else ids_as_arrays(x, y, sample_weight)
        if arrays:
            x, y, sample_weight = arrays
        if (raw or arrays) and validation_split and validation_data is None:
            made = raw and self.labels == "made"
            given = x if made else (x, y, sample_weight)
            given, validation_data = split(given, validation_split)
            x, y, sample_weight = (given, None, None) if made else given
            validation_split = None
        validation_data = self._validation_batches(validation_data, batch_size, kwargs)
        if raw:
            shuffle = kwargs.pop("shuffle", True)
            batches = self.batches(x, y, sample_weight, batch_size or 32, shuffle)
            x = from_epoch(batches, kwargs)
            y = sample_weight = batch_size = None
            kwargs["shuffle"] = False  # it is done
        elif kwargs.get("shuffle", True) and arrays:
            # KerasHub would take the rows in their order.
            parts = (x,) if y is None else (x, y)
            parts = parts if sample_weight is None else (x, y, sample_weight)
            x = from_epoch(batches_of_arrays(parts, batch_size or 32), kwargs)
            y = sample_weight = batch_size = None
            kwargs["shuffle"] = False
        with quiet():
            return super().fit(
                x,
                y,
                batch_size=batch_size,
                sample_weight=sample_weight,
                validation_data=validation_data,
                validation_split=validation_split,
                **kwargs,
            )

    def batches(self, x, y=None, sample_weight=None, batch_size: int = 32, shuffle: bool = False):
        """Return what `fit` trains on: the preprocessor's `dataset`, in packed rows if it gains."""
        made = self.preprocessor.dataset(x, y, sample_weight, batch_size, shuffle)
        return pack_batches(self, made)

    def _validation_batches(self, data, batch_size: int | None, arguments: dict):
        """Return batches of validation data that is raw, and other data with checked labels."""
        data = by_position(data)
        if not isinstance(data, tuple | list | np.ndarray):
            return data
        size = positive("validation_batch_size", arguments.get("validation_batch_size"))
        parts = (data,)
        if isinstance(data, list) and not all(isinstance(text, str) for text in data):
            data = tuple(data)  # as Keras takes it
        if isinstance(data, tuple) and (self.labels != "made" or isinstance(data[0], Mapping)):
            parts = data
        if not 1 <= len(parts) <= 3:
            raise ValueError(
                f"validation_data must be (x, y) or (x, y, sample_weight), not {len(parts)} parts"
            )
        raw, *checked = self.checked(*parts)
        if raw:
            return self.batches(*checked, batch_size=size or batch_size or 32)
        arrays = ids_as_arrays(*checked) if size else None
        if arrays:
            return batches_of_arrays(arrays[: len(parts)], size, shuffle=False)
        return tuple(checked[: len(parts)])

    def evaluate(self, x=None, y=None, batch_size=None, sample_weight=None, **kwargs):
        """Measure loss and metrics; see `keras.Model.evaluate`."""
        batch_size = positive("batch_size", batch_size)
        raw, x, y, sample_weight = self.checked(x, y, sample_weight)
        if raw:
            x = self.batches(x, y, sample_weight, batch_size or 32)
            y = sample_weight = batch_size = None
        weights = {"sample_weight": sample_weight}
        with quiet():
            return super().evaluate(x, y, batch_size=batch_size, **weights, **kwargs)

    def predict(self, x=None, batch_size=None, **kwargs):
        """Return logits; see `keras.Model.predict`.

        Raw samples are packed, several to a row, so that no work is done on padding; a step has as
        many rows as `batch_size` samples fill, and what is returned is in the samples' order.
        Outputs for tokens may be 0 where there is padding.
        """
        batch_size = positive("batch_size", batch_size)
        raw, x, *_ = self.checked(x, needs_labels=False)
        if raw:
            batch_size = batch_size or 32
            if steps := positive("steps", kwargs.pop("steps", None)):
                x = first_samples(x, steps * batch_size)
            with quiet():
                return packed_rows.predict(self, x, batch_size, **kwargs)
        with quiet():
            return super().predict(x, batch_size=batch_size, **kwargs)

    def train_on_batch(self, x, y=None, sample_weight=None, class_weight=None, **kwargs):
        """Train on one batch; see `keras.Model.train_on_batch`, and `fit` for `class_weight`."""
        self.check_can_train()
        _, x, y, sample_weight = self.checked(x, y, sample_weight)
        weights = {"sample_weight": sample_weight}
        if class_weight is not None:
            weights["class_weight"] = class_weights(self, class_weight)
        return super().train_on_batch(x, y, **weights, **kwargs)

    def test_on_batch(self, x, y=None, sample_weight=None, **kwargs):
        """Measure loss and metrics of one batch; see `keras.Model.test_on_batch`."""
        _, x, y, sample_weight = self.checked(x, y, sample_weight)
        return super().test_on_batch(x, y, sample_weight=sample_weight, **kwargs)
