"""Fine-tuning from data files to a preset, its metrics and a picture, in a folder of their own."""

import dataclasses
import os

import keras

from keras_megatron.finetuning.examples import Examples
from keras_megatron.finetuning.job_table import job_named
from keras_megatron.finetuning.jobs import TrainableJob
from keras_megatron.finetuning.model_building import build_model
from keras_megatron.finetuning.plot import plot_training
from keras_megatron.finetuning.records import locate
from keras_megatron.finetuning.run_folder import PLOT, RunFolder, data_digest
from keras_megatron.finetuning.settings import FinetuneSettings
from keras_megatron.finetuning.training_log import TrainingLog
from keras_megatron.finetuning.training_state import Progress


def finetune(
    settings: FinetuneSettings,
    output: str | os.PathLike,
    verbose: str | int = "auto",
    log_every: int = 10,
    save_every: int = 200,
    jit_compile: bool | str = "auto",
) -> dict:
    """Fine-tune a model, or go on where a run was stopped.

    After each epoch the model is measured on the development data; the best one is kept. A run that
    was killed goes on from its last saved state, with the losses that it would have had: the order
    of the data depends on the seed and the epoch alone.

    Args:
        settings: of the run.
        output: folder to make, or of this very run. It gets `preset`, the best model;
            `metrics.json`; `training.png`, loss and metric over epochs; `log.jsonl`; `run.json`,
            the settings.
        verbose: of `keras.Model.fit`.
        log_every: steps a line of `log.jsonl`.
        save_every: steps until the state is saved again.
        jit_compile: of the task's `compile`.

    Returns:
        What `metrics.json` has: `task`, `metric` (the name of the one that decides), `best_epoch`,
        `dev` and, if there is test data, `test`: metrics of the best epoch; `epochs`, a list of
        `epoch`, `train` and `dev`; `seconds`.

    Raises:
        ValueError: a setting, a file or the folder cannot be used; nothing has been written then.
    """
    settings = settings.resolved()
    for name, value in (("log_every", log_every), ("save_every", save_every)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, not {value}")
    job = job_named(settings.task)
    folder = RunFolder(output, _facts(settings))
    if folder.metrics:
        print(f"{output} is finished: there is nothing left to do")
        return folder.metrics
    training = job.read(settings.train, settings.columns, label=settings.label)
    development, test = (  # with the same columns in the same order
        source and job.read(source, training.names, label=settings.label)
        for source in (settings.dev, settings.test)
    )
    model = build_model(job, settings, training)
    batches = _batches(job, model, training, settings)
    for examples in filter(None, (development, test)):
        job.targets(model, examples)  # refuses labels that the training data does not have

    with folder.alone():
        progress = folder.begin()
        run = _Run(job, settings, folder, model, development, training.names)
        logs = {"log_every": log_every, "save_every": save_every}
        run.fit(batches, progress, verbose, jit_compile, **logs)
        return run.finish(progress, test)


def _facts(settings: FinetuneSettings) -> dict:
    """Return what has to be the same for a run to go on, however its paths are spelled."""
    facts = dataclasses.asdict(settings)
    for name in ("train", "dev", "test"):
        facts[f"{name}_sha256"] = data_digest(facts[name])
        if facts[name] is not None:
            path, part = locate(facts[name])
            facts[name] = os.path.realpath(path) + (f":{part}" if part else "")
    if os.path.isdir(settings.preset):
        facts["preset"] = os.path.realpath(settings.preset)
    return {**facts, "backend": keras.backend.backend()}


def _batches(job: TrainableJob, model, training: Examples, settings: FinetuneSettings):
    """Return one epoch of batches; what is wrong with a sample is said now."""
    x = training.columns if len(training.columns) > 1 else training.columns[0]
    y = job.targets(model, training)
    model.preprocessor.seed = settings.seed
    return model.batches(x, y, batch_size=settings.batch_size, shuffle=True)


# Inputs with an entry a sample, the most special one first: packed choices have each one of these.
_OF_SAMPLES = ("choice_documents", "cls_positions", "token_ids")


class _Run:
    """The training of a model in its folder."""

    def __init__(self, job: TrainableJob, settings, folder: RunFolder, model, development, columns):
        self._job, self._settings, self._folder = job, settings, folder
        self._model, self._development, self._columns = model, development, columns

    def fit(self, batches, progress: Progress, verbose, jit_compile, **log_arguments) -> None:
        """Train for the epochs that are left."""
        settings = self._settings
        steps = len(batches)
        total_steps = steps * settings.epochs
        recipe = settings.as_recipe()
        self._model.compile(optimizer=recipe.optimizer(total_steps), jit_compile=jit_compile)
        log = TrainingLog(
            self._folder.path,
            progress,
            samples=(steps - 1) * settings.batch_size + _rows(batches[steps - 1]),
            batch_size=settings.batch_size,
            schedule=recipe.schedule(total_steps),
            evaluate=self._evaluate,
            keep=self._keep,
            **log_arguments,
        )
        every = batches.repeat(settings.epochs)
        if progress.step:
            done = f"{progress.step} of {steps} steps of epoch {progress.epoch + 1}"
            print(f"going on after {done}", flush=True)
        # TensorFlow makes the variables that the state has at the first step.
        if progress.epoch or progress.step:
            self._model.optimizer.build(self._model.trainable_variables)
            self._model.evaluate(batches[:1], verbose=0)
        while progress.epoch < settings.epochs:
            first = progress.epoch * steps + progress.step
            # The rest of an epoch that was begun, or all epochs that are left.
            last_epoch = progress.epoch + 1 if progress.step else settings.epochs
            self._model.fit(
                every[first : last_epoch * steps],
                initial_epoch=progress.epoch,
                epochs=last_epoch,
                steps_per_epoch=steps - progress.step,
                callbacks=[log],
                shuffle=False,  # it is done
                verbose=verbose,
            )

    def _evaluate(self) -> dict[str, float]:
        check_weights(self._model)
        return self._job.measure(self._model, self._development, self._settings.batch_size)

    def _keep(self, line: dict, earlier: list[dict]) -> None:
        """Save the model as the preset if this epoch is the best one so far."""
        is_best = best_epoch(self._job, [*earlier, line]) is line
        if is_best or not self._folder.preset.exists():
            self._folder.save_preset(self._model, self._columns)

    def finish(self, progress: Progress, test: Examples | None) -> dict:
        """Measure the best model on the test data, and write metrics and picture."""
        best = best_epoch(self._job, progress.log)
        metric = deciding_metric(self._job, best["dev"])
        metrics = {
            "task": self._job.name,
            "metric": metric,
            "best_epoch": best["epoch"],
            "dev": best["dev"],
            "epochs": [line for line in progress.log if "dev" in line],
            "seconds": round(progress.seconds, 1),
        }
        if test:
            preset = str(self._folder.preset)
            model = self._job.task_class.from_preset(preset, dtype=self._settings.dtype)
            metrics["test"] = self._job.measure(model, test, self._settings.batch_size)
        title = f"{self._settings.task}, {os.path.basename(self._settings.preset)}"
        plot_training(self._folder.path / PLOT, progress.log, metric, title)
        self._folder.finish(metrics)
        return metrics


def check_weights(model: keras.Model) -> None:
    """Refuse weights that are not numbers any more, as an update too large makes them.

    Raises:
        ValueError: as said; a weight is named.
    """
    for weight in model.trainable_weights:
        if not bool(keras.ops.all(keras.ops.isfinite(weight))):
            raise ValueError(
                f"{weight.path} is no longer finite: give a lower learning rate, less weight "
                "decay, or another dtype"
            )


def deciding_metric(job: TrainableJob, scores: dict[str, float]) -> str:
    """Return the name of the metric that decides which epoch is best."""
    return next(name for name in job.metrics if name in scores)


def best_epoch(job: TrainableJob, log: list[dict]) -> dict | None:
    """Return the log's line of the best epoch, the first one of several; None if there is none."""
    epochs = [line for line in log if "dev" in line]
    return max(epochs, key=lambda e: e["dev"][deciding_metric(job, e["dev"])], default=None)


def _rows(batch) -> int:
    """Return how many samples a batch has, packed or not."""
    x, *_ = batch
    return len(next(x[name] for name in _OF_SAMPLES if name in x))
