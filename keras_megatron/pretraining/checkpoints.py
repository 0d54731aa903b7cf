"""The states of a pretraining run: the last few, each whole."""

import pathlib
import re

import keras

from keras_megatron.finetuning import training_state
from keras_megatron.finetuning.atomic import remove_partial
from keras_megatron.finetuning.training_state import Progress, load_progress

_NAME = re.compile(r"step_(\d{8})\.safetensors")


class Checkpoints:
    """States by their steps, in a folder.

    A state is written beside the others and moved to its place once it is on the disk; only then
    the oldest ones go. So a kill at any moment leaves the last states whole.

    Args:
        folder: where they are; it is made by `save`.
        keep: how many.

    Raises:
        ValueError: `keep` is not positive.
    """

    def __init__(self, folder: pathlib.Path, keep: int = 2):
        if keep < 1:
            raise ValueError(f"keep must be at least 1, not {keep}")
        self._folder, self._keep = folder, keep

    def paths(self) -> list[pathlib.Path]:
        """Return the states, the oldest first."""
        return sorted(path for path in self._folder.glob("step_*") if _NAME.fullmatch(path.name))

    def latest(self) -> tuple[pathlib.Path | None, Progress]:
        """Return the last state, and how far the training is in it.

        Raises:
            ValueError: it is damaged.
        """
        paths = self.paths()
        return (paths[-1], load_progress(paths[-1])) if paths else (None, Progress())

    def save(self, model: keras.Model, progress: Progress) -> None:
        """Write a model's state after a step, and remove what is older than the last few."""
        self._folder.mkdir(parents=True, exist_ok=True)
        path = self._folder / f"step_{progress.step:08d}.safetensors"
        training_state.save_state(model, path, progress)
        for old in self.paths()[: -self._keep]:
            old.unlink(missing_ok=True)

    def clean(self) -> None:
        """Remove what a killed process was writing."""
        remove_partial(self._folder)
