"""What is noted while a model pretrains: the callback that logs, measures and saves checkpoints."""

import contextlib
import json
import math
import pathlib
import sys
import time
from collections.abc import Iterator

import keras
import rich.console
import rich.progress

from keras_megatron.finetuning.atomic import replace_text
from keras_megatron.finetuning.training_state import load_state
from keras_megatron.pretraining.checkpoints import Checkpoints
from keras_megatron.pretraining.settings import PretrainSettings
from keras_megatron.pretraining.throughput import device_name, peak_flops, training_flops
from keras_megatron.processes import is_first

LOG, TENSORBOARD = "log.jsonl", "tensorboard"
_PARTS = ("mlm", "nsp")


class PretrainingLog(keras.callbacks.Callback):
    """Logs, measures and saves; an epoch of Keras is the steps of one line of the log.

    A line of `log.jsonl` has `step` (from 1, the last one that it is about); the means since the
    line before of `mlm_loss`, over batches, and over all hidden tokens or pairs of `nsp_loss`,
    `mlm_accuracy` and `nsp_accuracy`, and `loss`, the sum of the first two;
    `learning_rate` of the step; `tokens_per_second`; on a device whose peak is known
    `model_flop_utilisation`; and where it was measured `held_out`, a dict of metrics. TensorBoard
    gets the same.

    Args:
        folder: of the run.
        checkpoints: where states are saved, and gone on from.
        settings: of the run.
        held_out: batches to measure on, or None.
        every: steps until the next `"save"`, `"log"` and `"evaluate"`, which may be None.
        verbose: whether to show a progress bar.

    Raises:
        ValueError: the last checkpoint is damaged, or within a line of the log.
    """

    def __init__(
        self,
        folder: pathlib.Path,
        checkpoints: Checkpoints,
        settings: PretrainSettings,
        held_out,
        every: dict[str, int | None],
        verbose: bool,
    ):
        super().__init__()
        self._folder, self._checkpoints, self._settings = folder, checkpoints, settings
        self._held_out, self._every = held_out, every
        self._state, self.progress = checkpoints.latest()
        if self.progress.step % every["log"]:
            raise ValueError(
                f"{folder} is at step {self.progress.step}, which is no multiple of "
                f"log_every={every['log']}: give a divisor of it"
            )
        self._schedule = settings.schedule()
        self._bar = _Bar(settings.steps, verbose and is_first())

    def on_train_begin(self, logs=None):
        """Take the log back to the checkpoint."""
        self._peak = peak_flops(device_name())
        self._bar.start(self.progress.step)
        self._started = time.monotonic()
        if is_first():
            self._open_log(self.progress.step)

    def _open_log(self, done: int) -> None:
        import tensorboardX

        path = self._folder / LOG
        lines = path.read_text("utf-8", errors="replace").splitlines() if path.exists() else []
        kept = [line for line in lines if _is_until(line, done)]
        replace_text(path, "".join(line + "\n" for line in kept))
        self._writer = tensorboardX.SummaryWriter(
            str(self._folder / TENSORBOARD), purge_step=done + 1, flush_secs=10
        )

    def on_train_batch_begin(self, batch, logs=None):
        """Go on from the checkpoint; now, as Keras has reset metrics and PyTorch drawn a seed."""
        self.restore(self.model)

    def restore(self, model: keras.Model) -> None:
        """Give a model the state of the checkpoint, once; it is compiled, and built in all parts.

        Raises:
            ValueError: the state is of another model.
        """
        if self._state is not None:
            load_state(self._state, model)
            model.reset_metrics()
            self._state = None

    def on_epoch_end(self, epoch, logs=None):
        """Log, and measure and save every so many steps."""
        before, step = self.progress.step, (epoch + 1) * self._every["log"]
        seconds = time.monotonic() - self._started
        line = {"step": step, **_means(logs)}
        if not math.isfinite(line["loss"]):
            raise ValueError(
                f"the loss is {line['loss']} before step {step}: give a lower learning_rate, or "
                "another dtype"
            )
        line["learning_rate"] = float(self._schedule(step - 1))
        line |= self._speed(step - before, seconds)
        self.progress.step, self.progress.seconds = step, self.progress.seconds + seconds
        last = step == self._settings.steps
        if self._held_out is not None and (last or self._is_due("evaluate")):
            line["held_out"] = self._measure()
        if is_first():
            self._write(line)
        if last or self._is_due("save"):
            self._checkpoints.save(self.model, self.progress)
        self._started = time.monotonic()

    def on_train_end(self, logs=None):
        """Close what is open."""
        if is_first():
            self._writer.close()
        self._bar.stop()

    def metrics(self) -> dict:
        """Return what a finished run comes to."""
        steps, settings = self.progress.step, self._settings
        metrics = {
            "steps": steps,
            "tokens": steps * settings.batch_size * settings.sequence_length,
            "seconds": round(self.progress.seconds, 1),
        }
        lines = (self._folder / LOG).read_text("utf-8").splitlines()
        held_out = json.loads(lines[-1]).get("held_out") if lines else None
        return {**metrics, "held_out": held_out} if held_out else metrics

    def _is_due(self, what: str) -> bool:
        return bool(self._every[what]) and self.progress.step % self._every[what] == 0

    def _speed(self, steps: int, seconds: float) -> dict[str, float]:
        """Return tokens a second, places of padding among them, and the part of the peak used."""
        settings = self._settings
        tokens = steps * settings.batch_size * settings.sequence_length
        speed = {"tokens_per_second": round(tokens / seconds, 1)}
        if self._peak:
            masks = round(tokens * settings.selection_rate)
            flops = training_flops(self.model.backbone, tokens, settings.sequence_length, masks)
            split = keras.distribution.distribution()
            devices = split.device_mesh.devices.size if split is not None else 1
            speed["model_flop_utilisation"] = round(flops / seconds / self._peak / devices, 4)
        return speed

    def _measure(self) -> dict[str, float]:
        with _generators_kept():
            found = self.model.evaluate(self._held_out, verbose=0, return_dict=True)
        return _means(found)

    def _write(self, line: dict) -> None:
        with open(self._folder / LOG, "a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        for name, value in line.items():
            values = value if isinstance(value, dict) else {"": value}
            for part, number in values.items():
                tag = f"{name}/{part}" if part else name
                if tag != "step":
                    self._writer.add_scalar(tag, number, line["step"])
        self._bar.show(line)


def pretraining_metrics() -> dict[str, list[keras.metrics.Metric]]:
    """Return `weighted_metrics` for `compile`.

    Keras takes the mean of the batches' losses, in which one without a pair counts as a loss of 0.
    """
    metrics = {part: [keras.metrics.SparseCategoricalAccuracy(name="accuracy")] for part in _PARTS}
    of_pairs = keras.metrics.SparseCategoricalCrossentropy(name="cross_entropy", from_logits=True)
    metrics["nsp"].append(of_pairs)
    return metrics


def _means(logs: dict) -> dict[str, float]:
    losses = {"mlm_loss": float(logs["mlm_loss"]), "nsp_loss": float(logs["nsp_cross_entropy"])}
    accuracies = {name: float(logs[name]) for name in (f"{part}_accuracy" for part in _PARTS)}
    return {"loss": sum(losses.values()), **losses, **accuracies}


@contextlib.contextmanager
def _generators_kept() -> Iterator[None]:
    """Leave PyTorch's generators, which dropout draws from, as they are: Keras's data draws too."""
    if keras.config.backend() != "torch":
        yield
        return
    import torch

    with torch.random.fork_rng():
        yield


class _Bar:
    """A progress bar on a terminal; elsewhere now and then a line."""

    def __init__(self, steps: int, verbose: bool):
        self._steps, self._verbose = steps, verbose
        console = rich.console.Console(file=sys.stdout)
        self._lines_only = verbose and not console.is_terminal
        self._bar = rich.progress.Progress(
            rich.progress.MofNCompleteColumn(),
            rich.progress.BarColumn(),
            rich.progress.TimeRemainingColumn(),
            rich.progress.TextColumn("{task.description}"),
            console=console,
            disable=not verbose or self._lines_only,
        )
        self._shown = float("-inf")

    def start(self, done: int) -> None:
        if done and self._verbose:
            print(f"going on after step {done} of {self._steps}", flush=True)
        self._task = self._bar.add_task("", total=self._steps, completed=done)
        self._bar.start()

    def show(self, line: dict) -> None:
        text = f"loss {line['loss']:.4f}  {line['tokens_per_second']:,.0f} tokens/s"
        if "model_flop_utilisation" in line:
            text += f"  {line['model_flop_utilisation']:.1%} of the peak"
        if "held_out" in line:
            text += f"  held out {line['held_out']['mlm_accuracy']:.2%}"
        self._bar.update(self._task, completed=line["step"], description=text)
        is_news = "held_out" in line or time.monotonic() - self._shown > 10
        if self._lines_only and (is_news or line["step"] == self._steps):
            self._shown = time.monotonic()
            print(f"step {line['step']} of {self._steps}: {text}", flush=True)

    def stop(self) -> None:
        self._bar.stop()


def _is_until(line: str, step: int) -> bool:
    """Say whether a line of the log, which a kill may have cut, is of a step until this one."""
    try:
        return json.loads(line)["step"] <= step
    except (ValueError, KeyError, TypeError):
        return False
