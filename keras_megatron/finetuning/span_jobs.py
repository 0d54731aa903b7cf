"""The jobs of tasks on parts of a text."""

import math

from keras_megatron.finetuning.examples import (
    Examples,
    question_examples,
    text_examples,
    word_examples,
)
from keras_megatron.finetuning.jobs import TrainableJob
from keras_megatron.finetuning.labels import class_indices, class_names
from keras_megatron.finetuning.metrics import tag_scores
from keras_megatron.finetuning.squad_metrics import squad_scores
from keras_megatron.tasks.question_answering import MegatronBertQuestionAnswering
from keras_megatron.tasks.tagging import marks_spans
from keras_megatron.tasks.token_classifier import MegatronBertTokenClassifier


class TokenClassification(TrainableJob):
    """A tag for each word."""

    name, task_class = "token-classification", MegatronBertTokenClassifier
    metrics = ("f1", "accuracy")  # f1 is of spans, if the tags are of any

    def examples(self, records, columns, labelled) -> Examples:
        """Read words and tags; for answers texts too."""
        if not labelled and "words" not in records[0].values:
            return text_examples(records, None, columns, sizes=(1,))
        return word_examples(records, labelled)

    def arguments(self, training) -> tuple[dict, dict]:
        """Give the head as many classes as there are tags."""
        names = class_names(training.labels)
        return {"num_classes": len(names)}, {"class_names": names}

    def targets(self, model, examples) -> list:
        """Return the places of the tags among the class names."""
        return class_indices(examples.labels, model.preprocessor.class_names, examples.places)

    def measure(self, model, examples, batch_size) -> dict[str, float]:
        """Return the accuracy of words, and F1, precision and recall of spans."""
        tags = model.tag(examples.columns[0], batch_size)
        of_spans = marks_spans(model.preprocessor.class_names)
        without = "O" if of_spans else ""  # of a word of which there is no piece
        tags = [[tag or without for tag in sentence] for sentence in tags]
        return tag_scores(examples.labels, tags, of_spans)

    def answers(self, model, examples, batch_size) -> list[dict]:
        """Return `words` and `tags`, or, for texts, `spans`."""
        samples = examples.columns[0]
        found = model.tag(samples, batch_size)
        if isinstance(samples[0], str):
            return [{"spans": spans} for spans in found]
        return [{"words": w, "tags": t} for w, t in zip(samples, found, strict=True)]


class QuestionAnswering(TrainableJob):
    """The answer to a question, in a context."""

    name, task_class = "question-answering", MegatronBertQuestionAnswering
    metrics = ("f1",)

    def examples(self, records, columns, labelled) -> Examples:
        """Read questions, contexts and answers."""
        return question_examples(records, labelled)

    def arguments(self, training) -> tuple[dict, dict]:
        """Have the model always answer if each question has an answer, as in SQuAD 1.1."""
        return {"null_threshold": 0.0 if not all(training.labels) else math.inf}, {}

    def measure(self, model, examples, batch_size) -> dict[str, float]:
        """Return exact match and F1 as SQuAD counts them."""
        found = model.answer(*examples.columns, batch_size=batch_size)
        right = [[answer["text"] for answer in given] for given in examples.labels]
        return squad_scores([answer["answer"] for answer in found], right)

    def answers(self, model, examples, batch_size) -> list[dict]:
        """Return `text`, "" if there is no answer, `start` and `end` in the context, `score`."""
        found = model.answer(*examples.columns, batch_size=batch_size)
        keys = {"text": "answer", "start": "start", "end": "end", "score": "score"}
        return [{name: answer[key] for name, key in keys.items()} for answer in found]
