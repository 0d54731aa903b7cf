"""What a task refuses of the samples and labels that it is given."""

from collections.abc import Mapping

import numpy as np

from keras_megatron.tasks.id_labels import labels_that_count, without_overflow
from keras_megatron.tasks.preprocessor import MegatronBertPreprocessor
from keras_megatron.tasks.samples import (
    as_columns,
    by_position,
    check_lengths,
    is_raw,
    refuse_table,
)

_NAMES_OF_OTHERS = (
    ". Hugging Face's input_ids, token_type_ids and attention_mask are token_ids, segment_ids and "
    "padding_mask"
)


class CheckedSamples:
    """Checks of samples, raw or ids, and of their labels, with the hooks that a head has."""

    labels = "required"  # "optional": y may be left out; "made": it is made from raw texts

    def checked(self, x, y=None, sample_weight=None, needs_labels=True) -> tuple:
        """Check samples, or ids, with their labels. Columns of other libraries become arrays.

        Returns:
            Whether `x` is raw samples; `x`; the labels, those of ids with 0 where the weight is 0
            and the head has no output for the label; and the weights.

        Raises:
            ValueError: an id or a label has no place in the model, labels are missing or needless,
                or there are other labels than samples.
        """
        x, y, sample_weight = by_position((x, y, sample_weight))
        self.backbone.check_inputs(x)
        raw = self._is_raw(x)
        if self.preprocessor is None or isinstance(self.preprocessor, MegatronBertPreprocessor):
            self.check_names(x)  # another preprocessor may take other names
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
        return raw, x, y, sample_weight

    def check_names(self, inputs) -> None:
        """Refuse a dict that lacks an input or has another: Keras would take one for another.

        Raises:
            ValueError: as said.
        """
        if not isinstance(inputs, Mapping) or "document_ids" in inputs:
            return
        known = set(self.input)
        if unknown := sorted(set(inputs) - known):
            raise ValueError(
                f"unknown input {unknown[0]!r}: {type(self).__name__} takes "
                f"{', '.join(sorted(known))}{_NAMES_OF_OTHERS if known.isdisjoint(inputs) else ''}"
            )
        if missing := sorted(known - set(inputs)):
            raise ValueError(f"the input {missing[0]!r} is missing")

    def _is_raw(self, x) -> bool:
        """Say whether `x` is raw samples that the preprocessor makes batches of.

        Raises:
            ValueError: it is a single sample or a table, there are none, or they would be too long
                for the model.
        """
        refuse_table(x)
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
