"""Trains on eight virtual devices of one CPU, and prints what it sees as JSON: a child process."""

import collections
import json
import re

import jax
import keras
import numpy as np
from keras.src.backend.jax.trainer import _distribute_data
from sharded_models import BATCH, TASKS, batch, build, compile_, data

from keras_megatron import parallel

MESHES = ((1, 4), (2, 2), (2, 4))
COLLECTIVE = re.compile(
    r"= (.*?) (all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute)(?:-start)?\("
)


def compiled(task: str, **arguments) -> keras.Model:
    model = build(task, num_heads=8, **arguments)
    compile_(model)
    return model


def train(model: keras.Model, task: str) -> dict[str, list]:
    """Train for three steps; return losses, and the last step's clipped gradients, by Adam's slots.

    No weights: where a gradient is a rounding error, as that of the key's bias is, Adam makes it as
    large as any other.
    """
    losses, slots = [], []
    for step in range(3):
        losses.append(model.train_on_batch(*batch(task, step), return_dict=True)["loss"])
        moments = [v for v in model.optimizer.variables if v.path.endswith("momentum")]
        slots.append([np.array(moment.value) for moment in moments])
    rate = model.optimizer.beta_1
    pairs = zip(slots[-2], slots[-1], strict=True)
    gradients = [(after - rate * before) / (1 - rate) for before, after in pairs]
    return {"losses": losses, "gradients": gradients}


def shares(model: keras.Model) -> dict[str, tuple]:
    """Return the shape of each variable and slot, and of its part on each device."""
    return {
        v.path: (v.shape, [shard.data.shape for shard in v.value.addressable_shards])
        for v in (*model.trainable_variables, *model.optimizer.variables)
    }


def collectives(model: keras.Model, task: str) -> list[tuple[str, str]]:
    """Return kind and shapes of what the compiled training step sends."""
    state = model._get_jax_state(
        trainable_variables=True,
        non_trainable_variables=True,
        optimizer_variables=True,
        metrics_variables=True,
    )
    step = jax.jit(model.train_step).lower(state, _distribute_data(batch(task)))
    found = COLLECTIVE.findall(step.compile().as_text())
    return [(kind, shapes) for shapes, kind in found]


def main() -> None:
    plain = {task: train(compiled(task), task) for task in TASKS}
    seen = collections.defaultdict(dict)
    for data_devices, model_devices in MESHES:
        devices = keras.distribution.list_devices()[: data_devices * model_devices]
        for task in TASKS:
            with parallel.model_parallel(model_devices, data_devices, devices=devices):
                model = compiled(task)
                found = train(model, task)
                one = {
                    name: max(
                        np.abs(a - b).max() for a, b in zip(values, plain[task][name], strict=True)
                    )
                    for name, values in found.items()
                }
                one = {name: float(value) for name, value in one.items()}
                one["shares"] = shares(model)
                if task == "MaskedLM" and data_devices == 1:
                    one["sent"] = collectives(model, task)
                    deeper = compiled(task, num_layers=3)
                    deeper.train_on_batch(*batch(task))
                    one["sent by one more layer"] = collectives(deeper, task)
            seen[f"{data_devices}x{model_devices}"][task] = one
    x, y, weight = data("MaskedLM")
    outside, errors = compiled("MaskedLM"), {}
    with parallel.model_parallel(model=4, data=2):
        for name, call in {
            "outside": lambda: outside.fit(x, y, sample_weight=weight, verbose=0),
            "batch": lambda: compiled("MaskedLM").fit(x, y, batch_size=BATCH + 1, verbose=0),
            "heads": lambda: build("MaskedLM", num_heads=2),
            "vocabulary": lambda: build("MaskedLM", vocabulary_size=57),
        }.items():
            try:
                call()
            except ValueError as error:
                errors[name] = str(error)
    try:
        with parallel.model_parallel(model=3):
            pass
    except ValueError as error:
        errors["devices"] = str(error)
    print(json.dumps({"training": seen, "errors": errors}))


if __name__ == "__main__":
    main()
