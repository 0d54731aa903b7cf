from collections.abc import Mapping
from typing import Any

import numpy as np

from keras_megatron.tasks import packed_rows
from keras_megatron.tasks.class_weights import class_weights
from keras_megatron.tasks.id_labels import labels_that_count, without_overflow
from keras_megatron.tasks.packed_training import pack_batches
from keras_megatron.tasks.preprocessor import MegatronBertPreprocessor
from keras_megatron.tasks.quiet import quiet
from keras_megatron.tasks.samples import (
    as_columns,
    by_position,
    check_lengths,
    first_samples,
    ids_as_arrays,
    is_raw,
    positive,
    shuffled_batches,
    split,
)


class RawSamples:
    """Training, measuring and predicting on raw samples, beside the ids that Keras takes."""

    labels = "required"  # "optional": y may be left out; "made": it is made from raw texts

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
        x, y, sample_weight = by_position((x, y, sample_weight))
        validation_data = by_position(validation_data)
        # Ids are checked here too: KerasHub takes an error in `preprocess_samples` for a hint to
        # try tf.data, whose tensors nobody checks.
        raw, y = self._check_data(x, y, sample_weight)
        arrays = None if raw else ids_as_arrays(x, y, sample_weight)
        if arrays:
            x, y, sample_weight = arrays
        if (raw or arrays) and validation_split and validation_data is None:
            made = raw and self.labels == "made"
            given = x if made else (x, y, sample_weight)
            given, validation_data = split(given, validation_split)
            x, y, sample_weight = (given, None, None) if made else given
            validation_split = None
        validation_data = self._validation_batches(validation_data, batch_size)
        if raw:
            shuffle = kwargs.pop("shuffle", True)
            x = self.batches(x, y, sample_weight, batch_size or 32, shuffle)
            y = sample_weight = batch_size = None
            kwargs["shuffle"] = False  # it is done
        elif kwargs.get("shuffle", True) and arrays:
            # KerasHub would take the rows in their order.
            parts = (x,) if y is None else (x, y)
            parts = parts if sample_weight is None else (x, y, sample_weight)
            x = shuffled_batches(parts, batch_size or 32)
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

    def _validation_batches(self, data, batch_size: int | None):
        """Return batches of validation data that is raw, and other data with checked labels."""
        if not isinstance(data, tuple | list | np.ndarray):
            return data
        parts = (data,)
        if self.labels != "made" or isinstance(data[0], Mapping):
            parts = tuple(data)
        raw, y = self._check_data(*parts)
        if raw:
            return self.batches(*parts, batch_size=batch_size or 32)
        return data if y is None else (parts[0], y, *parts[2:])

    def evaluate(self, x=None, y=None, batch_size=None, sample_weight=None, **kwargs):
        """Measure loss and metrics; see `keras.Model.evaluate`."""
        batch_size = positive("batch_size", batch_size)
        x, y, sample_weight = by_position((x, y, sample_weight))
        raw, y = self._check_data(x, y, sample_weight)
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
        x = by_position(x)
        self.backbone.check_inputs(x)
        if self._is_raw(x):
            batch_size = batch_size or 32
            if steps := positive("steps", kwargs.pop("steps", None)):
                x = first_samples(x, steps * batch_size)
            with quiet():
                return packed_rows.predict(self, x, batch_size, **kwargs)
        with quiet():
            return super().predict(x, batch_size=batch_size, **kwargs)

    def train_on_batch(self, x, y=None, sample_weight=None, class_weight=None, **kwargs):
        """Train on one batch; see `keras.Model.train_on_batch`, and `fit` for `class_weight`."""
        x, y, sample_weight = by_position((x, y, sample_weight))
        _, y = self._check_data(x, y, sample_weight)
        weights = {"sample_weight": sample_weight}
        if class_weight:
            weights["class_weight"] = class_weights(self, class_weight)
        return super().train_on_batch(x, y, **weights, **kwargs)

    def test_on_batch(self, x, y=None, sample_weight=None, **kwargs):
        """Measure loss and metrics of one batch; see `keras.Model.test_on_batch`."""
        x, y, sample_weight = by_position((x, y, sample_weight))
        _, y = self._check_data(x, y, sample_weight)
        return super().test_on_batch(x, y, sample_weight=sample_weight, **kwargs)

    def _check_data(self, x, y=None, sample_weight=None, needs_labels=True) -> tuple[bool, Any]:
        """Check samples, or ids, with their labels.

        Returns:
            Whether `x` is raw samples; and the labels, those of ids with 0 where the weight is 0
            and the head has no output for the label.

        Raises:
            ValueError: an id or a label has no place in the model, labels are missing or needless,
                or there are other labels than samples.
        """
        self.backbone.check_inputs(x)
        raw = self._is_raw(x)
        ids = isinstance(x, Mapping) and set(x) >= set(self.input) and self.has_usual_loss()
        if y is None and needs_labels and self.labels == "required" and (raw or ids):
            raise ValueError(
                f"{type(self).__name__} learns from labels: give y, a label for each sample (in "
                "validation_data too)"
            )
        if raw:
            if self.labels == "made" and (y is not None or sample_weight is not None):
                raise ValueError(
                    f"{type(self).__name__} makes its labels from the texts: give no y"
                )
            if y is not None and self.has_usual_loss():
                self.check_labels(y)
            check_lengths(as_columns(x), y, sample_weight)
        elif ids and y is not None:
            usable = labels_that_count(y, sample_weight)
            if isinstance(usable, np.ndarray | Mapping):
                self.check_label_arrays(usable, x)
            y = labels_that_count(y, sample_weight, self.label_limits(x))
        else:
            y = without_overflow(y)
        return raw, y

    def _is_raw(self, x) -> bool:
        """Say whether `x` is raw samples that the preprocessor makes batches of.

        Raises:
            ValueError: it is a single sample, there are none, or they would be too long for the
                model.
        """
        if not isinstance(self.preprocessor, MegatronBertPreprocessor):
            return False
        if any(isinstance(column, str) for column in as_columns(x)):
            raise ValueError(
                "give a list of texts (or a tuple of two lists, for pairs), not a text"
            )
        if not is_raw(x):
            return False
        check_lengths(as_columns(x))
        self.check_length()
        return True

    def check_length(self) -> None:
        """Refuse a preprocessor that makes more tokens than the model has positions.

        Raises:
            ValueError: as said.
        """
        length, limit = self.preprocessor.sequence_length, self.backbone.max_sequence_length
        if length > limit:
            raise ValueError(
                f"the preprocessor makes {length} tokens but the model has {limit} positions: set "
                f"preprocessor.sequence_length = {limit}"
            )

    def has_classes(self) -> bool:
        """Say whether labels are one class a sample, so that classes may have weights; a hook."""
        return False

    def label_limits(self, inputs: Mapping):
        """Return the least and the greatest label beside ids; a hook.

        Args:
            inputs: the ids, by name.

        Returns:
            Two numbers, or a dict of two numbers by the names of the outputs.
        """
        return 0, np.inf

    def check_labels(self, y) -> None:
        """Refuse labels of raw samples that the head has no output for; a hook.

        Raises:
            ValueError: a label is out of range.
        """

    def check_label_arrays(self, y, inputs: Mapping) -> None:
        """Refuse labels beside ids that the head has no output for; a hook.

        Tensors are not looked at: they may live on a device.

        Args:
            y: an array, where labels of weight 0 are 0; or a dict.
            inputs: the ids, by name.

        Raises:
            ValueError: a label is out of range, or labels are of another shape.
        """
