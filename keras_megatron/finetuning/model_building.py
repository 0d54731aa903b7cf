"""The model that is fine-tuned: a preset's backbone with a new head."""

import keras
import numpy as np

from keras_megatron.finetuning.examples import Examples
from keras_megatron.finetuning.jobs import TrainableJob
from keras_megatron.presets.stored_task import stored_task
from keras_megatron.tasks.quiet import heads_are_trained

_CHUNK = 1024  # samples that are tokenized at a time, to find the longest one


def build_model(job: TrainableJob, settings, training: Examples) -> keras.Model:
    """Load a preset as a job's task, with the head that the training data needs.

    A preset of this very task keeps its head and its classes if all labels are among them.

    Args:
        job: of the task.
        settings: `FinetuneSettings`.
        training: samples; they decide the classes and the sequence length.

    Returns:
        A model with a preprocessor, not compiled for training yet.

    Raises:
        ValueError: the preset cannot be used, or the sequence length is beyond its positions.
    """
    keras.utils.set_random_seed(settings.seed)
    model_arguments, preprocessor_arguments = _head_arguments(job, settings.preset, training)
    preprocessor = job.task_class.preprocessor_cls.from_preset(
        settings.preset, **preprocessor_arguments
    )
    with heads_are_trained():
        model = job.task_class.from_preset(
            settings.preset, preprocessor=preprocessor, dtype=settings.dtype, **model_arguments
        )
    limit = model.backbone.max_sequence_length
    if settings.sequence_length is None:
        preprocessor.sequence_length = limit
        preprocessor.sequence_length = longest_sample(preprocessor, training)
    elif settings.sequence_length <= limit:
        preprocessor.sequence_length = settings.sequence_length
    else:
        raise ValueError(
            f"sequence_length must be at most {limit}, the positions of {settings.preset}, not "
            f"{settings.sequence_length}"
        )
    if settings.lora_rank is not None:
        model.backbone.enable_lora(settings.lora_rank)
    return model


def _head_arguments(job: TrainableJob, preset: str, training: Examples) -> tuple[dict, dict]:
    """Return arguments for the model and its preprocessor; none where the preset's own fit."""
    model, preprocessor = job.arguments(training)
    stored = stored_task(preset)
    if "num_classes" not in model or stored is None or stored.name != job.task_class.__name__:
        return model, preprocessor
    if names := preprocessor.get("class_names"):
        fits = set(names) <= set(stored.class_names or ())
    else:
        fits = stored.num_classes == model["num_classes"]
    return ({}, {}) if fits and not stored.multi_label else (model, preprocessor)


def longest_sample(preprocessor, examples: Examples) -> int:
    """Return the tokens of the longest sample, rounded up to a multiple of 8.

    At most it is what the preprocessor's `sequence_length` allows now.
    """
    longest = 0
    for start in range(0, len(examples), _CHUNK):
        chunk = tuple(column[start : start + _CHUNK] for column in examples.columns)
        x = preprocessor.preprocess(chunk)
        longest = max(longest, int(np.max(x["padding_mask"].sum(axis=-1))))
    return min(-(-longest // 8) * 8, preprocessor.sequence_length)
