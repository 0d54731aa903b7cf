"""Trains on several logical devices of one CPU, and prints what it sees as JSON: a child process.

`python tensorflow_run.py WHAT`, where WHAT is a function below.
"""

import json
import sys

import keras
import numpy as np
import tensorflow as tf
from keras.src.backend.tensorflow import numpy
from tensorflow.python.eager import context as eager_context

from keras_megatron.parallel.tensorflow_engine import make_cpu_devices

make_cpu_devices(4)
# Graphs that run a few times are sooner run than improved.
tf.config.optimizer.set_experimental_options({"disable_meta_optimizer": True})

from sharded_models import (  # noqa: E402, F401
    BATCH,
    STEPS,
    Kill,
    build,
    compile_,
    data,
    multi_label_scores,
)

from keras_megatron import parallel  # noqa: E402

DEVICES = [f"cpu:{index}" for index in range(4)]


def mesh(data_devices: int, model_devices: int, **arguments):
    """Return the context manager for a mesh of the first devices."""
    devices = DEVICES[: data_devices * model_devices]
    return parallel.model_parallel(model_devices, data_devices, devices=devices, **arguments)


def compiled(task: str, **arguments) -> keras.Model:
    """Return a task with one layer and dropout, unless the arguments say otherwise."""
    arguments = {"num_layers": 1, "dropout": 0.1, "attention_dropout": 0.2, **arguments}
    model = build(task, **arguments)
    compile_(model)
    return model


def batches(task: str) -> list:
    x, y, weight = data(task)

    def rows(step):
        part = slice(step * BATCH, (step + 1) * BATCH)
        return keras.tree.map_structure(lambda a: None if a is None else a[part], (x, y, weight))

    return [rows(step) for step in range(STEPS)]


def steps(model: keras.Model, task: str) -> list[float]:
    """Train on each batch, and return the losses."""
    return [float(model.train_on_batch(*b, return_dict=True)["loss"]) for b in batches(task)]


def train(model: keras.Model, task: str) -> dict[str, list[np.ndarray]]:
    """Train for three steps; return losses, the last step's clipped gradients, Adam's slots.

    No weights: where a gradient is a rounding error, as that of the key's bias is, Adam makes it as
    large as any other.
    """
    losses, momenta = [], []
    for batch in batches(task):
        losses.append(model.train_on_batch(*batch, return_dict=True)["loss"])
        momenta.append([slot.numpy() for slot in slots(model, "momentum")])
    rate = model.optimizer.beta_1
    pairs = zip(momenta[-2], momenta[-1], strict=True)
    return {
        "losses": np.array(losses),
        "gradients": [(after - rate * before) / (1 - rate) for before, after in pairs],
        "velocities": [slot.numpy() for slot in slots(model, "velocity")],
    }


def slots(model: keras.Model, kind: str) -> list:
    return [v for v in model.optimizer.variables if v.path.endswith(kind)]


def differences(one: dict, other: dict) -> dict[str, float]:
    """Return the largest difference of each kind of number."""
    return {
        kind: float(max(np.abs(a - b).max() for a, b in zip(one[kind], other[kind], strict=True)))
        for kind in one
    }


def on_one_device(model: keras.Model) -> keras.Model:
    """Have a model train with the norm of the gradients that other backends have.

    Keras on TensorFlow squares the rows of an embedding's gradient before it adds those of the same
    id up. It runs op by op instead of compiled, because that is sooner done.
    """
    model.run_eagerly = True
    apply = model.optimizer.apply

    def apply_dense(gradients, variables=None):
        gradients = [None if g is None else tf.convert_to_tensor(g) for g in gradients]
        return apply(gradients, variables)

    model.optimizer.apply = apply_dense
    return model


def parts(variables) -> dict[str, list]:
    """Return each variable's shape, and the shapes of what the devices have."""
    return {
        v.path: [list(v.shape), [part.shape.as_list() for part in v.value.parts()]]
        for v in variables
    }


def drifted(variables) -> list[str]:
    """Return which variables all devices should have alike, but do not."""
    replicas = [(v.path, v.value.parts()) for v in variables if not any(v._layout.axes)]
    return [
        path
        for path, (first, *others) in replicas
        if any((first.numpy() != other.numpy()).any() for other in others)
    ]


def collectives(call) -> list[list]:
    """Return (kind, shape) of what device 0 sends in a call, taken from the lowered graphs."""
    eager_context.enable_run_metadata()
    call()
    graphs = eager_context.export_run_metadata().function_graphs
    eager_context.disable_run_metadata()
    found = {}
    for graph in (graph for graphs in graphs for graph in graphs.partition_graphs):
        nodes = [*graph.node, *[n for f in graph.library.function for n in f.node_def]]
        for node in nodes:
            if node.op.startswith("Collective") and "CPU:0" in node.device:
                # On a CPU DTensor gathers by an all-reduce too, which only the name says.
                is_gather = "AllGather" in node.name or node.op != "CollectiveReduceV2"
                shape = [dim.size for dim in node.attr["_output_shapes"].list.shape[0].dim]
                found[node.name] = ["gather" if is_gather else "reduce", shape]
    return list(found.values())


def training() -> dict:
    """Compare sharded with unsharded training, for meshes of 2 and 4 devices."""
    tasks = ("MaskedLM", "TextClassifier", "Pretrainer")
    references = {task: train(on_one_device(compiled(task)), task) for task in tasks}
    seen = {}
    for data_devices, model_devices in ((1, 2), (2, 1), (1, 4), (2, 2)):
        for task in tasks:
            with mesh(data_devices, model_devices):
                model, result = compiled(task), {}
                sent = collectives(lambda m=model, r=result, t=task: r.update(train(m, t)))
                seen[f"{data_devices}x{model_devices} {task}"] = {
                    **differences(result, references[task]),
                    "parts": parts([*model.variables, *model.optimizer.variables]),
                    "drifted": drifted([*model.variables, *model.optimizer.variables]),
                    "sent": sent,
                }
    return seen


def communication() -> dict:
    """Count what is sent with another layer, and, as a control, by TensorFlow's own lookup."""
    seen, batch = {}, batches("MaskedLM")[0]
    with mesh(1, 4):
        model = compiled("MaskedLM", num_layers=2)
        seen["two layers"] = collectives(lambda: model.train_on_batch(*batch))
    with mesh(1, 2):
        numpy.take = numpy.take.__wrapped__
        model = compiled("MaskedLM")
        seen["control"] = collectives(lambda: model.predict_on_batch(batch[0]))
    return seen


def main(functions: dict) -> None:
    """Print what the functions return that the command line names."""
    print(json.dumps({name: functions[name]() for name in sys.argv[1:]}))


if __name__ == "__main__":
    main(globals())
