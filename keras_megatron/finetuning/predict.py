"""What a fine-tuned preset answers to the samples of a file."""

import math
import os
from collections.abc import Sequence

import keras

from keras_megatron.finetuning.columns import stored_columns
from keras_megatron.finetuning.job_table import job_of
from keras_megatron.finetuning.jobs import Job
from keras_megatron.finetuning.records import locate
from keras_megatron.presets.stored_task import stored_task


def predict(
    preset: str,
    source: str | os.PathLike,
    batch_size: int = 32,
    columns: Sequence[str] | None = None,
    dtype: str = "float32",
) -> list[dict]:
    """Have a preset's task answer each sample of a data file.

    Args:
        preset: folder or name of a preset that was saved from a task, or a Hugging Face folder.
        source: `PATH` or `PATH:PART`; see `read_records`. Labels are not needed.
        batch_size: samples a step.
        columns: names of the text columns; by default those that `finetune` trained on, whatever
            their order in the file, or all that the file has if the preset does not say.
        dtype: the dtype policy to answer in, whatever the model was trained in.

    Returns:
        A dict of JSON values a sample, in the file's order, with its `id` if the file has ids:
        text classification: `label`, `score` and the `scores` of all classes; regression: `score`;
        next sentence: `label` (0: it follows) and `score`; token classification: `words` and
        `tags`, or for texts `spans`; question answering: `text`, `start`, `end` and `score`;
        multiple choice: `choice`, `text` and `scores`; masked LM: `masks`, a list of tokens each;
        causal LM: `text`; embedder: `embedding`.

    Raises:
        ValueError: the preset has no task, the file is not one of its task, or an answer is not
            finite.
    """
    job = job_of_preset(preset)
    examples = job.read(source, columns or _trained_columns(preset, source), labelled=False)
    model = job.task_class.from_preset(preset, dtype=dtype)
    answers = job.answers(model, examples, batch_size)
    numbers = (leaf for leaf in keras.tree.flatten(answers) if isinstance(leaf, float))
    if not all(map(math.isfinite, numbers)):
        raise ValueError(
            f"{preset} answers with numbers that are not finite: its weights are damaged, or too "
            f"large for {dtype}"
        )
    if examples.ids is None:
        return answers
    return [{"id": name, **answer} for name, answer in zip(examples.ids, answers, strict=True)]


def _trained_columns(preset: str, source: str | os.PathLike) -> list[str] | None:
    names = stored_columns(preset)
    is_nameless = locate(source)[0].suffix.lower() == ".txt"
    return None if is_nameless and names and len(names) == 1 else names


def job_of_preset(preset: str) -> Job:
    """Return the job of the task that a preset was saved from.

    Raises:
        ValueError: it was saved from none, or from one that answers nothing.
    """
    task = stored_task(preset)
    if task is None:
        raise ValueError(f"{preset} has a backbone but no task to predict with: fine-tune it first")
    job = job_of(task.name, task.num_classes)
    if job is None:
        raise ValueError(f"{preset} has a {task.name}, which predicts nothing from files")
    return job
