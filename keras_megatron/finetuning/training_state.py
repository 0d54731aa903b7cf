"""The state of a training, in one file, from which it goes on as if it had never been stopped.

Keras's `BackupAndRestore` does not do this: it writes its weights over the last ones and its epoch
to a second file, so that a kill in between leaves neither; after a kill in the middle of an epoch
it begins that epoch again, with weights that have seen half of it; and it forgets the metrics.
"""

import dataclasses
import json
import os
import pathlib

import keras
import numpy as np

from keras_megatron.finetuning.atomic import replace_file

_RNG = "rng/"


@dataclasses.dataclass
class Progress:
    """How far a training is.

    Attributes:
        epoch: epochs that are finished, and evaluated.
        step: steps done of the next one.
        log: what was logged so far, see `keras_megatron.finetuning.training_log`.
        seconds: time spent so far.
    """

    epoch: int = 0
    step: int = 0
    log: list[dict] = dataclasses.field(default_factory=list)
    seconds: float = 0.0


def save_state(model: keras.Model, path: str | os.PathLike, progress: Progress) -> None:
    """Write a compiled model's state: weights, seeds, the optimizer's and the metrics' variables.

    Args:
        model: in the middle of `fit`, or after it.
        path: a safetensors file. It is replaced at once: there is the old state or the new one.
        progress: goes into the file's header.

    Raises:
        ValueError: the file cannot be written.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import save_file

    if hasattr(model, "jax_state_sync"):  # during fit JAX's variables are not in the model
        model.jax_state_sync()
    arrays = {name: _as_array(variable) for name, variable in _variables(model).items()}
    arrays |= _generators()
    header = {"progress": json.dumps(dataclasses.asdict(progress))}
    try:
        replace_file(
            pathlib.Path(path), lambda partial: save_file(arrays, partial, metadata=header)
        )
    except SafetensorError as error:
        raise ValueError(f"cannot write {path}: {error}") from error


def load_progress(path: pathlib.Path) -> Progress:
    """Read how far the training of a state is.

    Raises:
        ValueError: the file is damaged.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="np") as file:
            return Progress(**json.loads(file.metadata()["progress"]))
    except (SafetensorError, TypeError, KeyError, ValueError) as error:
        raise ValueError(f"{path} is damaged: remove it to begin again") from error


def load_state(path: pathlib.Path, model: keras.Model) -> None:
    """Give a model, whose optimizer and metrics are built, the variables of a state.

    Args:
        path: the file.
        model: in `fit`, at the beginning of a step.

    Raises:
        ValueError: the state is of another model.
    """
    from safetensors import safe_open

    variables = _variables(model)
    with safe_open(path, framework="np") as file:
        names = [name for name in file.keys() if not name.startswith(_RNG)]  # noqa: SIM118
        shapes = {name: file.get_slice(name).get_shape() for name in names}
        expected = {name: list(variable.shape) for name, variable in variables.items()}
        if shapes != expected:
            raise ValueError(f"{path} is of another model: remove it to begin again")
        for name, variable in variables.items():
            variable.assign(file.get_tensor(name))
        _set_generators(file)


def _variables(model: keras.Model) -> dict[str, keras.Variable]:
    groups = {
        "model": model.variables,  # with the states of the seed generators
        "optimizer": model.optimizer.variables,
        "metrics": model.metrics_variables,
    }
    # By number: Keras counts the names of layers on in each process.
    return {
        f"{group}/{index:05d}": variable
        for group, variables in groups.items()
        for index, variable in enumerate(variables)
    }


def _generators() -> dict[str, np.ndarray]:
    """Return the states of PyTorch's own generators, which Keras's dropout draws from there."""
    if keras.backend.backend() != "torch":
        return {}
    import torch

    states = [torch.get_rng_state(), *torch.cuda.get_rng_state_all()]
    return {f"{_RNG}{index:05d}": state.numpy() for index, state in enumerate(states)}


def _set_generators(file) -> None:
    if keras.backend.backend() != "torch":
        return
    import torch

    stored = set(file.keys())
    for index, name in enumerate(_generators()):
        if name not in stored:  # there are more GPUs than there were: these draw anew
            continue
        state = torch.from_numpy(file.get_tensor(name))
        if index:
            torch.cuda.set_rng_state(state, index - 1)
        else:
            torch.set_rng_state(state)


def _as_array(variable: keras.Variable) -> np.ndarray:
    array = keras.ops.convert_to_numpy(variable)
    if array.dtype.name == "bfloat16":  # not one of NumPy's; float32 holds its values exactly
        array = array.astype("float32")
    return np.asarray(array, order="C")
