"""The jobs of tasks on a text, or on a pair of texts."""

from keras_megatron.finetuning.examples import Examples, choice_examples, text_examples
from keras_megatron.finetuning.jobs import TrainableJob
from keras_megatron.finetuning.labels import (
    class_indices,
    class_names,
    name_label,
    number_label,
    order_label,
)
from keras_megatron.finetuning.metrics import classification_scores, regression_scores
from keras_megatron.tasks.multiple_choice import MegatronBertMultipleChoice
from keras_megatron.tasks.next_sentence_predictor import MegatronBertNextSentencePredictor
from keras_megatron.tasks.text_classifier import MegatronBertTextClassifier

# Of a new head, whatever the preset's has.
_ONE_LABEL = {"activation": None, "multi_label": False}


class TextClassification(TrainableJob):
    """One text, or a pair, to a class."""

    name, task_class = "text-classification", MegatronBertTextClassifier
    metrics = ("accuracy",)

    def examples(self, records, columns, labelled) -> Examples:
        """Read one or two text columns, and `label`."""
        return text_examples(records, name_label if labelled else None, columns)

    def arguments(self, training) -> tuple[dict, dict]:
        """Give the head as many classes as there are labels."""
        names = class_names(training.labels)
        return {"num_classes": len(names), **_ONE_LABEL}, {"class_names": names}

    def targets(self, model, examples) -> list:
        """Return the places of the labels among the class names."""
        return class_indices(examples.labels, model.preprocessor.class_names, examples.places)

    def measure(self, model, examples, batch_size) -> dict[str, float]:
        """Return accuracy, F1 and Matthews' correlation."""
        names = model.preprocessor.class_names
        answers = self.answers(model, examples, batch_size)
        predictions = [names.index(answer["label"]) for answer in answers]
        return classification_scores(self.targets(model, examples), predictions, len(names))

    def answers(self, model, examples, batch_size) -> list[dict]:
        """Return `label`, `score` and the `scores` of all classes."""
        return model.classify(_texts(examples), batch_size)


class TextRegression(TrainableJob):
    """One text, or a pair, to a number."""

    name, task_class, metrics = "text-regression", MegatronBertTextClassifier, ("pearson",)

    def examples(self, records, columns, labelled) -> Examples:
        """Read one or two text columns, and `label`, a number."""
        return text_examples(records, number_label if labelled else None, columns)

    def arguments(self, training) -> tuple[dict, dict]:
        """Give the head one output, without a name."""
        return {"num_classes": 1, **_ONE_LABEL}, {"class_names": None}

    def measure(self, model, examples, batch_size) -> dict[str, float]:
        """Return correlations and the mean squared error."""
        predictions = [answer["score"] for answer in self.answers(model, examples, batch_size)]
        return regression_scores(examples.labels, predictions)

    def answers(self, model, examples, batch_size) -> list[dict]:
        """Return `score`, the number."""
        return model.classify(_texts(examples), batch_size)


class NextSentence(TrainableJob):
    """A pair of texts: does the second follow the first?"""

    name, task_class = "next-sentence", MegatronBertNextSentencePredictor
    metrics = ("accuracy",)

    def examples(self, records, columns, labelled) -> Examples:
        """Read two text columns, and `label`: 0 if the second follows the first, 1 if not."""
        return text_examples(records, order_label if labelled else None, columns, sizes=(2,))

    def measure(self, model, examples, batch_size) -> dict[str, float]:
        """Return accuracy, F1 and Matthews' correlation."""
        predictions = [answer["label"] for answer in self.answers(model, examples, batch_size)]
        return classification_scores(examples.labels, predictions, num_classes=2)

    def answers(self, model, examples, batch_size) -> list[dict]:
        """Return `label` and `score`, its probability."""
        follows = model.follows(*examples.columns, batch_size).tolist()
        return [{"label": int(p < 0.5), "score": max(p, 1.0 - p)} for p in follows]


class MultipleChoice(TrainableJob):
    """Which of several texts fits."""

    name, task_class, metrics = "multiple-choice", MegatronBertMultipleChoice, ("accuracy",)

    def examples(self, records, columns, labelled) -> Examples:
        """Read contexts, choices and the places of the right ones."""
        return choice_examples(records, labelled)

    def measure(self, model, examples, batch_size) -> dict[str, float]:
        """Return the accuracy."""
        answers = self.answers(model, examples, batch_size)
        right = [a["choice"] == y for a, y in zip(answers, examples.labels, strict=True)]
        return {"accuracy": sum(right) / len(right)}

    def answers(self, model, examples, batch_size) -> list[dict]:
        """Return `choice`, its `text`, and the `scores` of all choices."""
        return model.choose(*examples.columns, batch_size)


def _texts(examples: Examples):
    """Return texts, or a pair of lists of texts, as `classify` takes them."""
    return examples.columns if len(examples.columns) == 2 else examples.columns[0]
