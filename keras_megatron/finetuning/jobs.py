"""What `keras-megatron finetune` and `predict` have to know of a task."""

import os
from collections.abc import Sequence

from keras_megatron.finetuning.examples import Examples
from keras_megatron.finetuning.records import Record, check_column, read_records


class Job:
    """One task: how its files are read, and what its model answers.

    Attributes:
        name: as of the option `--task`.
        task_class: the model's.
    """

    name: str
    task_class: type

    def read(
        self,
        source: str | os.PathLike,
        columns: Sequence[str] | None = None,
        labelled: bool = True,
        label: str = "label",
    ) -> Examples:
        """Read samples from a data file.

        Args:
            source: a path, or `PATH:PART`; see `read_records`.
            columns: names of the text columns, where there may be others.
            labelled: whether labels are wanted.
            label: name of the column with the labels.

        Raises:
            ValueError: something is wrong with the file; the error says where.
        """
        records = read_records(source)
        if labelled and label != "label":
            records = [_with_label(record, label) for record in records]
        return self.examples(records, columns, labelled)

    def examples(self, records: Sequence[Record], columns, labelled: bool) -> Examples:
        """Make samples of the records of a file."""
        raise NotImplementedError

    def answers(self, model, examples: Examples, batch_size: int) -> list[dict]:
        """Return what a model answers, a dict of JSON values a sample."""
        raise NotImplementedError


class TrainableJob(Job):
    """A task that is fine-tuned on labelled samples.

    Attributes:
        metrics: names among those of `measure`. The epoch is kept in which the first of them that
            is measured is highest.
    """

    metrics: tuple[str, ...]

    def arguments(self, training: Examples) -> tuple[dict, dict]:
        """Return arguments for the model and for its preprocessor that the data decides."""
        return {}, {}

    def targets(self, model, examples: Examples) -> list:
        """Return labels as `fit` takes them.

        Raises:
            ValueError: a label is of no class that the model has.
        """
        return examples.labels

    def measure(self, model, examples: Examples, batch_size: int) -> dict[str, float]:
        """Return metrics of a model."""
        raise NotImplementedError


def _with_label(record: Record, name: str) -> Record:
    """Return a record whose label has the usual name."""
    check_column(record, name, "name that of the labels with --label")
    values = dict(record.values)
    label = values.pop(name)
    return Record(record.place, {**values, "label": label})
