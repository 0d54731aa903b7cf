"""The jobs by the name of their task, and by their model."""

import functools

from keras_megatron.finetuning.answering_jobs import FillMask, TextEmbedding, TextGeneration
from keras_megatron.finetuning.jobs import Job, TrainableJob
from keras_megatron.finetuning.span_jobs import QuestionAnswering, TokenClassification
from keras_megatron.finetuning.text_jobs import (
    MultipleChoice,
    NextSentence,
    TextClassification,
    TextRegression,
)


@functools.cache
def trainable_jobs() -> dict[str, TrainableJob]:
    """Return the tasks that can be fine-tuned, by name."""
    jobs = (
        *(TextClassification(), TextRegression(), NextSentence()),
        *(TokenClassification(), QuestionAnswering(), MultipleChoice()),
    )
    return {job.name: job for job in jobs}


def job_named(name: str) -> TrainableJob:
    """Return the job of an option `--task`.

    Raises:
        ValueError: there is none of this name.
    """
    jobs = trainable_jobs()
    if name not in jobs:
        raise ValueError(f"there is no task {name!r}: give one of {', '.join(jobs)}")
    return jobs[name]


def job_of(model_class: str, num_classes: int | None) -> Job | None:
    """Return the job of a model's class, by its name; None if there is none."""
    if model_class == TextRegression.task_class.__name__ and num_classes == 1:
        return trainable_jobs()[TextRegression.name]
    jobs = (*trainable_jobs().values(), FillMask(), TextEmbedding(), TextGeneration())
    return next((job for job in jobs if job.task_class.__name__ == model_class), None)
