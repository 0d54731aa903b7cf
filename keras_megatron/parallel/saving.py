"""Files that are written once: by process 0, with weights that all processes put together."""

import contextlib
import functools
import inspect
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import keras
import keras_hub
from keras.src import callbacks
from keras.src.callbacks import backup_and_restore, model_checkpoint
from keras.src.saving import saving_lib
from keras.src.utils import file_utils

from keras_megatron.backbone import MegatronBertBackbone
from keras_megatron.finetuning import training_state
from keras_megatron.patching import patched
from keras_megatron.processes import one_of_several
from keras_megatron.tasks.task import MegatronBertTask

_discarding = False


@contextlib.contextmanager
def discarded_arrays(model: keras.Model) -> Iterator[None]:
    """Have an engine's `convert_to_numpy` give empty arrays for what is split over processes.

    The process still takes part in putting them together for another process. Where LoRA's changes
    are merged into quantized kernels Keras computes with them: there they are whole.
    """
    global _discarding
    _discarding = not any(
        getattr(layer, "lora_enabled", False) and layer.quantization_mode is not None
        for layer in model._flatten_layers()
    )
    try:
        yield
    finally:
        _discarding = False


def is_discarding() -> bool:
    """Say whether nobody looks at arrays that this process puts together."""
    return _discarding


# What writes a model: a function or method of (model, path, ...), and how the other processes take
# part in putting weights together. Exporting reshapes them, so they must be there.
_WRITERS = (
    (saving_lib, "save_model", discarded_arrays),
    (saving_lib, "save_weights_only", discarded_arrays),
    (training_state, "save_state", discarded_arrays),
    (keras_hub.models.Task, "save_to_preset", discarded_arrays),
    (keras_hub.models.Backbone, "save_to_preset", discarded_arrays),
    (MegatronBertTask, "export_to_transformers", contextlib.nullcontext),
    (MegatronBertBackbone, "export_to_transformers", contextlib.nullcontext),
    (MegatronBertTask, "export_to_megatron", contextlib.nullcontext),
)
# What writes by itself too, and must not run ahead of process 0.
_CALLBACKS = (
    (callbacks.BackupAndRestore, "_save_model"),
    (callbacks.BackupAndRestore, "on_train_end"),
    (callbacks.ModelCheckpoint, "_save_model"),
)


@contextlib.contextmanager
def files_written_once(process: int, barrier: Callable[[], None]) -> Iterator[None]:
    """Have models saved by process 0 alone; each process calls the method, as before.

    Args:
        process: which one this is.
        barrier: waits until every process has called it.
    """
    with contextlib.ExitStack() as stack:
        stack.enter_context(one_of_several(process, barrier))
        for owner, name, others in _WRITERS:
            write = _written_once(getattr(owner, name), others, process, barrier)
            stack.enter_context(patched(owner, **{name: write}))
        for owner, name in _CALLBACKS:
            write = _in_step(getattr(owner, name), barrier)
            stack.enter_context(patched(owner, **{name: write}))
        if process > 0:
            for module in (backup_and_restore, model_checkpoint):
                stack.enter_context(patched(module, file_utils=_ReadOnlyFiles()))
        yield


def _in_step(method: Callable, barrier: Callable[[], None]) -> Callable:
    @functools.wraps(method)
    def in_step(*args, **kwargs):
        result = method(*args, **kwargs)
        barrier()
        return result

    return in_step


_writing = False


def _written_once(
    write: Callable, others: Callable, process: int, barrier: Callable[[], None]
) -> Callable:
    """Have process 0 write and the others wait until it is done.

    A file appears when it is complete, so that a run that is killed leaves the one before.

    Args:
        write: a function of (model, path, ...).
        others: makes of the model the context in which other processes write, to a folder that is
            removed.
        process: as of `files_written_once`.
        barrier: as of `files_written_once`.
    """
    signature = inspect.signature(write)
    name = list(signature.parameters)[1]  # of the path

    @functools.wraps(write)
    def write_once(*args, **kwargs):
        global _writing
        call = signature.bind(*args, **kwargs)
        path = call.arguments[name]
        if _writing or not isinstance(path, str | os.PathLike):  # as part of something else
            write(*args, **kwargs)
            return

        def write_to(path) -> None:
            call.arguments[name] = str(path)
            write(*call.args, **call.kwargs)

        _writing = True
        try:
            if process > 0:
                with tempfile.TemporaryDirectory() as folder, others(call.args[0]):
                    write_to(Path(folder) / Path(path).name)
            elif os.path.isdir(path) or not Path(path).suffix or file_utils.is_remote_path(path):
                write_to(path)
            else:
                _write_then_move(write_to, Path(path))
        finally:
            _writing = False
        barrier()

    return write_once


def _write_then_move(write_to: Callable, path: Path) -> None:
    folder = Path(tempfile.mkdtemp(prefix=".saving-", dir=path.parent))
    try:
        write_to(folder / path.name)
        for written in folder.iterdir():  # several, if the weights are sharded
            os.replace(written, path.parent / written.name)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


class _ReadOnlyFiles:
    """Keras's `file_utils` for a process that is to leave files to another one."""

    def __getattr__(self, name: str):
        return getattr(file_utils, name)

    def File(self, path, mode="r"):
        return file_utils.File(path if "r" in mode else os.devnull, mode)

    def _nothing(self, *args, **kwargs) -> None:
        """Process 0 does it."""

    makedirs = copy = remove = rmtree = _nothing
