"""What is noted while a model trains: the callback that logs, evaluates and saves the state."""

import json
import math
import pathlib
import time
from collections.abc import Callable

import keras

from keras_megatron.finetuning.atomic import replace_text
from keras_megatron.finetuning.training_state import Progress, load_state, save_state


class TrainingLog(keras.callbacks.Callback):
    """Logs the loss, evaluates after each epoch, and saves the training's state.

    The log is a JSON Lines file, with two kinds of lines: after some steps `epoch` (from 1), `step`
    (from 1, in the epoch), `loss` (the mean since the last line) and `learning_rate`; and after
    each epoch `epoch`, `train` and `dev`, dicts of metrics.

    Args:
        folder: where `log.jsonl` and `state.safetensors` are written.
        progress: where the training goes on; kept up to date.
        samples: samples an epoch.
        batch_size: samples a step.
        schedule: the learning rate of a step, counted from 0.
        evaluate: returns the metrics of the development data.
        keep: is called after each epoch with its log line and all of them before it.
        log_every: steps a line of the log.
        save_every: steps until the next state.
    """

    STATE, LOG = "state.safetensors", "log.jsonl"

    def __init__(
        self,
        folder: pathlib.Path,
        progress: Progress,
        samples: int,
        batch_size: int,
        schedule: Callable,
        evaluate: Callable[[], dict[str, float]],
        keep: Callable[[dict, list[dict]], None],
        log_every: int = 10,
        save_every: int = 200,
    ):
        super().__init__()
        self.progress = progress
        self._folder = folder
        self._samples, self._batch_size = samples, batch_size
        self._schedule = schedule
        self._evaluate, self._keep = evaluate, keep
        self._log_every, self._save_every = log_every, save_every
        self._seen, self._total = 0, 0.0  # samples of this epoch in the log, sum of their losses

    def on_train_begin(self, logs=None):
        """Write the log as it was when the state was saved."""
        self._started = time.monotonic() - self.progress.seconds
        lines = "".join(json.dumps(line) + "\n" for line in self.progress.log)
        replace_text(self._folder / self.LOG, lines)
        self._resume = (self._folder / self.STATE).exists()

    def on_epoch_begin(self, epoch, logs=None):
        """Take up what the log has of this epoch."""
        self._offset, self._seen, self._total = self.progress.step, 0, 0.0
        for line in self.progress.log:
            if line["epoch"] == epoch + 1:  # unfinished: only lines of steps
                seen = self._samples_after(line["step"])
                self._total += line["loss"] * (seen - self._seen)
                self._seen = seen

    def on_train_batch_begin(self, batch, logs=None):
        """Go on from the state; now, as Keras has reset the metrics, and PyTorch drawn a seed."""
        if self._resume:
            self._resume = False
            load_state(self._folder / self.STATE, self.model)
            if not self.progress.step:
                self.model.reset_metrics()

    def on_train_batch_end(self, batch, logs=None):
        """Log and save every so many steps; what ends an epoch is saved after its evaluation."""
        self.progress.step = step = self._offset + batch + 1
        last = step * self._batch_size >= self._samples
        if step % self._log_every == 0 or last:
            seen = self._samples_after(step)
            total = self._finite(float(logs["loss"]), step) * seen  # of the epoch so far
            self._write(
                {
                    "epoch": self.progress.epoch + 1,
                    "step": step,
                    "loss": (total - self._total) / (seen - self._seen),
                    "learning_rate": self._rate_of_last_step(),
                }
            )
            self._seen, self._total = seen, total
        if step % self._save_every == 0 and not last:
            self._save()

    def on_epoch_end(self, epoch, logs=None):
        """Evaluate, and save the state."""
        train = {name: float(value) for name, value in logs.items()}
        line = {"epoch": epoch + 1, "train": train, "dev": self._evaluate()}
        logs.update({f"dev_{name}": value for name, value in line["dev"].items()})  # for the bar
        self._keep(line, self.progress.log)
        self._write(line)
        self.progress.epoch, self.progress.step = epoch + 1, 0
        self._save()

    def _finite(self, loss: float, step: int) -> float:
        if not math.isfinite(loss):
            raise ValueError(
                f"the loss is {loss} in step {step} of epoch {self.progress.epoch + 1}: give a "
                "lower learning rate, or another dtype"
            )
        return loss

    def _samples_after(self, steps: int) -> int:
        return min(steps * self._batch_size, self._samples)

    def _rate_of_last_step(self) -> float:
        steps_an_epoch = -(-self._samples // self._batch_size)
        done = self.progress.epoch * steps_an_epoch + self.progress.step
        return float(self._schedule(done - 1))

    def _write(self, line: dict) -> None:
        self.progress.log.append(line)
        with open(self._folder / self.LOG, "a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    def _save(self) -> None:
        self.progress.seconds = time.monotonic() - self._started
        save_state(self.model, self._folder / self.STATE, self.progress)
