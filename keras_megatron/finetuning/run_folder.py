"""The folder of a run: what it holds, and whether it may be gone on with."""

import contextlib
import hashlib
import json
import os
import pathlib
import shutil
from collections.abc import Iterator, Sequence
from typing import Any

import filelock
import keras

from keras_megatron.finetuning.atomic import PARTIAL, read_object, remove_partial, replace_json
from keras_megatron.finetuning.columns import save_columns
from keras_megatron.finetuning.records import locate
from keras_megatron.finetuning.training_log import TrainingLog
from keras_megatron.finetuning.training_state import Progress, load_progress
from keras_megatron.processes import is_first

RUN, METRICS, PLOT, PRESET = "run.json", "metrics.json", "training.png", "preset"
LOCK = ".lock"


class RunFolder:
    """A folder that one run writes.

    While a fine-tuning goes on it has `run.json` (the settings), `log.jsonl`, `state.safetensors`
    and `preset`, the best one so far. A finished run has `metrics.json` and `training.png` too, and
    no state.

    Args:
        path: the folder; it is made by `begin`.
        settings: of the run, JSON values by name. A folder with others is refused.

    Raises:
        ValueError: the folder has something else, or a run with other settings.
    """

    def __init__(self, path: str | os.PathLike, settings: dict[str, Any]):
        self.path = pathlib.Path(path)
        self.settings = json.loads(json.dumps(settings))
        if not self.path.exists():
            return
        run = self.path / RUN
        if not self.path.is_dir() or (not run.is_file() and _has_files(self.path)):
            raise ValueError(f"{path} exists and is not of a run: choose another place")
        if run.is_file():
            self._compare(read_object(run))

    def _compare(self, others: dict) -> None:
        differences = [
            f"{name} = {others.get(name)!r}, not {self.settings.get(name)!r}"
            for name in {**self.settings, **others}
            if self.settings.get(name) != others.get(name)
        ]
        if differences:
            raise ValueError(
                f"{self.path} has a run with {'; '.join(differences)}: give that, or choose "
                "another place"
            )

    @property
    def metrics(self) -> dict | None:
        """What a finished run measured; None if it is not finished."""
        path = self.path / METRICS
        return read_object(path) if path.exists() else None

    @property
    def preset(self) -> pathlib.Path:
        """Where the best model so far is."""
        return self.path / PRESET

    def create(self) -> None:
        """Make the folder if need be.

        Raises:
            ValueError: it cannot be made.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ValueError(f"cannot write {self.path}: {error.strerror}") from error

    def make(self) -> None:
        """Make the folder if need be, and remove what a killed process was writing there.

        Raises:
            ValueError: the folder cannot be made.
        """
        self.create()
        remove_partial(self.path)
        if not (self.path / RUN).exists():
            replace_json(self.path / RUN, self.settings)

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """Make the folder, and keep other runs out of it; the first of several processes does.

        Raises:
            ValueError: there is another run in it, or it cannot be made.
        """
        if not is_first():
            yield
            return
        self.create()
        try:
            with filelock.FileLock(self.path / LOCK, blocking=False):
                self.make()
                yield
        except filelock.Timeout as error:
            raise ValueError(
                f"another process is training in {self.path}: wait for it, or choose another place"
            ) from error

    def begin(self) -> Progress:
        """Say how far the fine-tuning is.

        Raises:
            ValueError: its state is damaged.
        """
        state = self.path / TrainingLog.STATE
        return load_progress(state) if state.exists() else Progress()

    def save_preset(self, model: keras.Model, columns: Sequence[str] | None = None) -> None:
        """Write the model as the preset, in place of the one before.

        Where several processes have a part of it each, all must call this.

        Args:
            model: a task.
            columns: names of the text columns that it is trained on, if they are the file's.
        """
        partial = self.path / (PRESET + PARTIAL)
        model.save_to_preset(str(partial))
        if not is_first():
            return
        if columns:
            save_columns(partial, columns)
        if self.preset.exists():
            outdated = self.path / (f"{PRESET}.old{PARTIAL}")
            os.replace(self.preset, outdated)
            os.replace(partial, self.preset)
            shutil.rmtree(outdated)
        else:
            os.replace(partial, self.preset)

    def finish(self, metrics: dict) -> None:
        """Write the metrics; the run is finished, and its state is removed."""
        replace_json(self.path / METRICS, metrics)
        (self.path / TrainingLog.STATE).unlink(missing_ok=True)


def data_digest(source: str | os.PathLike | None) -> str | None:
    """Return the SHA-256 of a data file, so that a run does not go on with other data."""
    if source is None:
        return None
    with open(locate(source)[0], "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _has_files(folder: pathlib.Path) -> bool:
    """Say whether there are files, but for a lock, or a run.json that was being written."""
    others = (path.name for path in folder.iterdir() if path.name != LOCK)
    return any(not name.endswith(PARTIAL) for name in others)
