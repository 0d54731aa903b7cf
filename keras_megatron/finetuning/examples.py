"""Records of a file to samples as a task's `fit` takes them, checked before anything is trained."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

from keras_megatron.finetuning.labels import integer_label
from keras_megatron.finetuning.records import Record, check_column
from keras_megatron.finetuning.squad_files import check_answers

NO_TEXT = ("split", "label", "id", "idx", "index", "guid")  # what the other columns of a table are


@dataclasses.dataclass(frozen=True)
class Examples:
    """Samples of one file.

    Attributes:
        columns: what `fit` takes as x: one list a column, each with a value a sample.
        labels: a label a sample as the file has it; None if the file has none.
        places: where each sample stands in the file, for error messages.
        ids: names of the samples, where the file gives them.
        names: what the columns are called, where tasks leave that to the file.
    """

    columns: tuple[list, ...]
    labels: list | None
    places: list[str]
    ids: list[str | int] | None = None
    names: list[str] | None = None

    def __len__(self) -> int:
        return len(self.places)


def text_examples(
    records: Sequence[Record],
    label: Callable[[Any], Any] | None = None,
    columns: Sequence[str] | None = None,
    sizes: tuple[int, ...] = (1, 2),
) -> Examples:
    """Make samples of one text, or of a pair of texts.

    Args:
        records: with `label`, and one or two other columns, which are the texts.
        label: what makes a label of a value and raises ValueError for what is none; None if no
            labels are wanted.
        columns: names of the text columns; by default all but those in `NO_TEXT`.
        sizes: how many text columns the task takes.

    Raises:
        ValueError: a column is missing, there are too many, or a value is no text or no label.
    """
    labels = _labels(records, label)
    names = list(columns or [name for name in records[0].values if name not in NO_TEXT])
    if len(names) not in sizes:
        wanted = " or ".join(map(str, sizes))
        raise ValueError(
            f"{records[0].place}: there are {len(names)} text columns ({', '.join(names)}) instead "
            f"of {wanted}: name those to read with --columns"
        )
    for name in names:
        check_column(records[0], name, "name those to read with --columns")
    texts = tuple([_value(record, name, str) for record in records] for name in names)
    return dataclasses.replace(_examples(records, texts, labels), names=names)


def word_examples(records: Sequence[Record], labelled: bool = True) -> Examples:
    """Make samples of words and their tags.

    Args:
        records: with `words` and `tags`, lists of str.
        labelled: whether tags are wanted.

    Raises:
        ValueError: a list is missing, or has no words, or there are other tags than words.
    """
    words, tags = [], []
    for record in records:
        words.append(_strings(record, "words"))
        if not words[-1]:
            raise ValueError(f"{record.place}: there are no words")
        if labelled:
            tags.append(_strings(record, "tags"))
            if len(tags[-1]) != len(words[-1]):
                raise ValueError(
                    f"{record.place}: there are {len(tags[-1])} tags for {len(words[-1])} words"
                )
    return _examples(records, (words,), tags if labelled else None)


def question_examples(records: Sequence[Record], labelled: bool = True) -> Examples:
    """Make samples of a question, a context and the answers in it.

    Args:
        records: with `question`, `context` and `answers`, a list of dicts of `text` and
            `answer_start` that is empty if the context has no answer; or one dict of two lists, as
            Hugging Face's copies of SQuAD have it.
        labelled: whether answers are wanted.

    Raises:
        ValueError: a value is missing, or an answer is not in its context at `answer_start`.
    """
    columns = tuple(
        [_value(record, name, str) for record in records] for name in ("question", "context")
    )
    answers = None
    if labelled:
        answers = [_answers(record) for record in records]
        for record, given, context in zip(records, answers, columns[1], strict=True):
            check_answers(given, context, record.place)
    return _examples(records, columns, answers)


def _answers(record: Record) -> list:
    answers = record.values.get("answers")
    if not isinstance(answers, dict):
        return _value(record, "answers", list)
    columns = [answers.get(name) for name in ("text", "answer_start")]
    if not all(isinstance(column, list) for column in columns) or len({*map(len, columns)}) > 1:
        raise ValueError(f"{record.place}: 'answers' must have lists text and answer_start, alike")
    return [{"text": text, "answer_start": start} for text, start in zip(*columns, strict=True)]


def choice_examples(records: Sequence[Record], labelled: bool = True) -> Examples:
    """Make samples of a context, its choices and the place of the right one.

    Args:
        records: with `context`, `choices` (a list of at least two str) and `label`, from 0.
        labelled: whether labels are wanted.

    Raises:
        ValueError: a value is missing, there are fewer than two choices, or a label is of none.
    """
    contexts = [_value(record, "context", str) for record in records]
    choices = [_strings(record, "choices") for record in records]
    labels = _labels(records, integer_label if labelled else None)
    for index, record in enumerate(records):
        count = len(choices[index])
        if count < 2:
            raise ValueError(f"{record.place}: there must be at least two choices, not {count}")
        if labels and not 0 <= labels[index] < count:
            raise ValueError(
                f"{record.place}: the label must be from 0 to {count - 1}, not {labels[index]}"
            )
    return _examples(records, (contexts, choices), labels)


# === Values of records ===


def _examples(records: Sequence[Record], columns: tuple[list, ...], labels) -> Examples:
    has_ids = all("id" in record.values for record in records)
    ids = [record.values["id"] for record in records] if has_ids else None
    ids = ids and [name if isinstance(name, str | int) else str(name) for name in ids]
    return Examples(columns, labels, [record.place for record in records], ids)


def _labels(records: Sequence[Record], label: Callable[[Any], Any] | None) -> list | None:
    if label is None:
        return None
    labels = []
    for record in records:
        value = _value(record, "label", object)
        try:
            labels.append(label(value))
        except ValueError as error:
            raise ValueError(f"{record.place}: {error}") from error
    return labels


def _value(record: Record, name: str, kind: type) -> Any:
    if name not in record.values or record.values[name] is None:
        has = ", ".join(record.values)
        raise ValueError(f"{record.place}: {name!r} is missing; there is {has}")
    value = record.values[name]
    if not isinstance(value, kind):
        raise ValueError(
            f"{record.place}: {name!r} must be of type {kind.__name__}, not {type(value).__name__}"
        )
    return value


def _strings(record: Record, name: str) -> list[str]:
    values = _value(record, name, list)
    for value in values:
        if not isinstance(value, str):
            raise ValueError(f"{record.place}: {name!r} must be a list of str, not of {value!r}")
    return values
