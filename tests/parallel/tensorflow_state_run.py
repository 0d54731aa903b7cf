"""Saves, drops out, fails and so on, on several logical devices: a child process.

`python tensorflow_state_run.py WHAT ...` prints what the functions return, as JSON.
"""

import os
import tempfile

import keras
import numpy as np
import tensorflow as tf
from keras.src.backend.tensorflow import core, distribution_lib
from keras.src.backend.tensorflow import numpy as backend_numpy
from keras.src.backend.tensorflow.trainer import TensorFlowTrainer
from keras.src.optimizers import base_optimizer
from tensorflow.experimental import dtensor
from tensorflow_run import (
    batches,
    build,
    compile_,
    compiled,
    data,
    main,
    mesh,
    on_one_device,
    parts,
    steps,
)

from keras_megatron.parallel.tensorflow_engine import make_cpu_devices
from keras_megatron.parallel.tensorflow_engine.steps import COMBINE_ALL_REDUCES
from keras_megatron.parallel.tensorflow_engine.tensors import split

TASK = "MaskedLM"


def fit(model: keras.Model, epochs: int, *callbacks) -> int:
    """Train on all batches; return how many epochs it took."""
    x, y, weight = data(TASK)
    settings = {"batch_size": 4, "epochs": epochs, "shuffle": False, "verbose": 0}
    history = model.fit(x, y, sample_weight=weight, callbacks=list(callbacks), **settings)
    return len(history.history["loss"])


def is_equal(variables, values) -> bool:
    return all((v.numpy() == value).all() for v, value in zip(variables, values, strict=True))


def saving() -> dict:
    """Save a model that is split over 2x2 devices; load it on one, and on 1x4."""
    seen = {}
    with tempfile.TemporaryDirectory() as folder:
        backup = folder + "/backup"
        with mesh(2, 2):
            model = compiled(TASK)
            fit(
                model,
                1,
                keras.callbacks.ModelCheckpoint(folder + "/checkpoint.keras"),
                keras.callbacks.BackupAndRestore(backup, delete_checkpoint=False),
            )
            model.save_weights(folder + "/m.weights.h5")
            model.save_to_preset(folder + "/preset")
        # Saving works outside too, but running does not.
        values = [weight.numpy() for weight in model.weights]
        state = [variable.numpy() for variable in model.optimizer.variables]
        seen["moved"] = float(max(np.abs(slot).max() for slot in state[1:]))
        seen["outside"] = _error(lambda: model.predict_on_batch(batches(TASK)[0][0]))

        def load():
            one = compiled(TASK, seed=1)
            one.optimizer.build(one.trainable_variables)
            one.load_weights(folder + "/m.weights.h5")
            others = [
                keras.saving.load_model(folder + "/checkpoint.keras"),
                type(one).from_preset(folder + "/preset"),
            ]
            equal = [is_equal(other.weights, values) for other in (one, *others)]
            return [*equal, is_equal(one.optimizer.variables, state)]

        seen["one device"] = load()
        with mesh(1, 4):
            seen["1x4"] = load()
            resumed = compiled(TASK, seed=1)
            seen["epochs"] = fit(resumed, 2, keras.callbacks.BackupAndRestore(backup))
    return seen


def dropout() -> dict:
    """Drop out on two devices: what is whole, what is split, and in a model."""
    seen = {}
    with mesh(1, 2) as distribution:
        devices = distribution.device_mesh.backend_mesh
        layer = keras.layers.Dropout(0.5, seed=1)
        function = tf.function(lambda x: layer(x, training=True), autograph=False)
        for name, axis in (("whole", dtensor.UNSHARDED), ("split", "model")):
            layout = dtensor.Layout([dtensor.UNSHARDED, axis], devices)
            ones = split(np.ones((8, 32), "float32"), layout)
            with dtensor.default_mesh(devices):
                first, second = [dtensor.unpack(function(ones)) for _ in range(2)]
            seen[name] = {
                "kept": float(np.mean(first[0].numpy() > 0)),
                "devices agree": bool((first[0].numpy() == first[1].numpy()).all()),
                "calls agree": bool((first[0].numpy() == second[0].numpy()).all()),
            }
        model = compiled(TASK, dropout=0.3, attention_dropout=0.3)
        seen["losses"] = steps(model, TASK)
    return seen


def _patched() -> list:
    names = [
        (core.Variable, "_initialize"),
        (TensorFlowTrainer, "make_train_function"),
        (TensorFlowTrainer, "make_test_function"),
        (TensorFlowTrainer, "make_predict_function"),
        (backend_numpy, "take"),
        (backend_numpy, "argmax"),
        (base_optimizer, "global_norm"),
        (distribution_lib, "_to_backend_mesh"),
        (distribution_lib, "distribute_tensor"),
    ]
    return [vars(owner).get(name) for owner, name in names]


def _error(call) -> str:
    try:
        call()
    except ValueError as error:
        return str(error)
    return "none"


def errors() -> dict:
    """Do what must fail, and return the messages."""
    before = _patched()
    outside, optimizer = compiled("TextClassifier"), keras.optimizers.Adam()
    metric = keras.metrics.SparseCategoricalAccuracy()
    x, y, _ = data("TextClassifier")
    seen = {"sequence": _error(lambda: mesh(1, 2, sequence_parallel=True).__enter__())}
    seen["restored after an error"] = _patched() == before
    with mesh(2, 2):
        changed = all(a is not b for a, b in zip(before, _patched(), strict=True))
        seen["outside"] = _error(lambda: outside.fit(x, y, verbose=0))
        model = compiled("TextClassifier")
        rest = keras.tree.map_structure(lambda array: array[:3], x)
        seen["batch"] = _error(lambda: model.predict(rest, verbose=0))
        model.compile(optimizer=optimizer)
        seen["optimizer"] = _error(lambda: model.fit(x, y, verbose=0))
        model.compile(metrics=[metric])
        seen["metric"] = _error(lambda: model.evaluate(x, y, verbose=0))
        os.environ[COMBINE_ALL_REDUCES] = "1"
        seen["environment"] = _error(lambda: compiled("TextClassifier").fit(x, y, verbose=0))
        os.environ[COMBINE_ALL_REDUCES] = "0"
        model.compile(run_eagerly=True)
        seen["eagerly"] = _error(lambda: model.fit(x, y, verbose=0))
    with mesh(2, 2):
        model = compiled("TextClassifier")
        model.backbone.quantize("int8")
        seen["int8"] = _error(lambda: model.predict_on_batch(x))
    seen["restored"] = changed and _patched() == before
    seen["devices"] = _error(lambda: make_cpu_devices(8))
    return seen


def variants() -> dict:
    """Train with LoRA, in bfloat16, with checkpointing and with accumulation, split and not."""

    def compiled_with(arguments=None, lora=False, **optimizer):
        model = build("TextClassifier", num_layers=1, **(arguments or {}))
        if lora:
            model.backbone.enable_lora(2)
        compile_(model, **optimizer)
        return model

    seen = {}
    for name, arguments in (
        ("lora", {"lora": True}),
        ("bfloat16", {"arguments": {"dtype": "mixed_bfloat16"}}),
        ("checkpointing", {"arguments": {"gradient_checkpointing": True}}),
        ("accumulation", {"gradient_accumulation_steps": 2}),
    ):
        plain = steps(on_one_device(compiled_with(**arguments)), "TextClassifier")
        with mesh(2, 2):
            model = compiled_with(**arguments)
            sharded = steps(model, "TextClassifier")
        shares = parts([v for v in model.variables if "lora" in v.path])
        seen[name] = {"plain": plain, "sharded": sharded, "parts": shares}
    return seen


if __name__ == "__main__":
    main(globals())
