"""Saves, drops out, fails and so on, on several logical devices: a child process.

`python tensorflow_state_run.py WHAT ...` prints what the functions return, as JSON.
"""

import os
import subprocess
import sys
import tempfile

import keras
import keras_hub
import numpy as np
import tensorflow as tf
from keras.src.backend.tensorflow import core, distribution_lib
from keras.src.backend.tensorflow import numpy as backend_numpy
from keras.src.backend.tensorflow import random as backend_random
from keras.src.backend.tensorflow.trainer import TensorFlowTrainer
from keras.src.optimizers import base_optimizer
from tensorflow.experimental import dtensor
from tensorflow_run import (
    DEVICES,
    Kill,
    batches,
    build,
    compile_,
    compiled,
    data,
    main,
    mesh,
    multi_label_scores,
    on_one_device,
    parts,
    steps,
)

from keras_megatron import parallel
from keras_megatron.parallel.tensorflow_engine import make_cpu_devices
from keras_megatron.parallel.tensorflow_engine.steps import COMBINE_ALL_REDUCES
from keras_megatron.parallel.tensorflow_engine.tensors import split
from keras_megatron.parallel.tensorflow_engine.variables import running

TASK = "MaskedLM"


def fit(model: keras.Model, epochs: int, *callbacks) -> keras.callbacks.History:
    """Train on all batches."""
    x, y, weight = data(TASK)
    settings = {"batch_size": 4, "epochs": epochs, "shuffle": False, "verbose": 0}
    return model.fit(x, y, sample_weight=weight, callbacks=list(callbacks), **settings)


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
            history = fit(resumed, 2, keras.callbacks.BackupAndRestore(backup))
            seen["epochs"] = len(history.epoch)
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
            with running(devices):
                first, second = [dtensor.unpack(function(ones)) for _ in range(2)]
            seen[name] = {
                "kept": float(np.mean(first[0].numpy() > 0)),
                "devices agree": bool((first[0].numpy() == first[1].numpy()).all()),
                "calls agree": bool((first[0].numpy() == second[0].numpy()).all()),
            }
    return seen


def _curve(folder: str, *callbacks) -> dict[int, float]:
    """Return the losses of those of four epochs that a backup in a folder does not have."""
    with mesh(2, 2):
        # No dropout: a backup has weights and optimizer, but not the state of random numbers.
        model = compiled(TASK, dropout=0.0, attention_dropout=0.0)
        backup = keras.callbacks.BackupAndRestore(folder, delete_checkpoint=False)
        history = fit(model, 4, backup, *callbacks)
    return dict(zip(history.epoch, history.history["loss"], strict=True))


def killed() -> dict:
    """Be killed; the environment names the folder of the backup."""
    return _curve(os.environ["BACKUP"], Kill(epoch=2, batch=1))


def resuming() -> dict:
    """Have a process killed, and go on where it was; train without being killed, too."""
    with tempfile.TemporaryDirectory() as folder:
        child = subprocess.run(
            [sys.executable, __file__, "killed"],
            env={**os.environ, "BACKUP": f"{folder}/killed"},
            capture_output=True,
        )
        curves = {name: _curve(f"{folder}/{name}") for name in ("killed", "whole")}
        return {"code": child.returncode, **curves}


def predictions() -> dict:
    """Predict for numbers of samples that two devices do not divide, and for ones they do."""
    x = data("TextClassifier")[0]
    one = compiled("TextClassifier")
    expected = one.predict_on_batch(keras.tree.map_structure(lambda array: array[:7], x))
    seen = {}
    with mesh(2, 1):
        model = compiled("TextClassifier")
        model.set_weights(one.get_weights())
        for count in (1, 4, 7):
            rows = keras.tree.map_structure(lambda array, n=count: array[:n], x)
            for name, predicted in (
                ("predict", model.predict(rows, batch_size=4, verbose=0)),
                ("logits", model.logits(rows, batch_size=4)),
            ):
                seen[f"{name} {count}"] = np.abs(predicted - expected[:count]).max().item()
    return seen


def metrics() -> dict:
    """Return areas under curves on a mesh and not."""
    seen = {"plain": multi_label_scores()}
    with mesh(2, 2):
        seen["mesh"] = multi_label_scores()
    return seen


def _patched() -> list:
    names = [
        (core.Variable, "_initialize"),
        (TensorFlowTrainer, "make_train_function"),
        (TensorFlowTrainer, "make_test_function"),
        (TensorFlowTrainer, "make_predict_function"),
        (backend_numpy, "take"),
        (backend_numpy, "argmax"),
        (backend_random, "dropout"),
        (keras.layers.Layer, "__call__"),
        (keras_hub.models.CausalLM, "make_generate_function"),
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
    too_few = parallel.model_parallel(model=3, devices=DEVICES)
    seen = {"number": _error(too_few.__enter__)}
    seen["restored after an error"] = _patched() == before
    with mesh(2, 2):
        changed = all(a is not b for a, b in zip(before, _patched(), strict=True))
        seen["outside"] = _error(lambda: outside.fit(x, y, verbose=0))
        model = compiled("TextClassifier")
        three = keras.tree.map_structure(lambda array: array[:3], (x, y))
        seen["batch"] = _error(lambda: model.evaluate(*three, verbose=0))
        seen["call"] = _error(lambda: model(three[0]))
        seen["layer"] = _error(lambda: model.backbone.embeddings(three[0]["token_ids"]))
        seen["graph"] = _error(lambda: tf.function(model)(three[0]))
        seen["generate"] = _error(lambda: build("CausalLM").generate(three[0]))
        model.compile(optimizer=optimizer)
        seen["optimizer"] = _error(lambda: model.fit(x, y, verbose=0))
        model.compile(metrics=[metric])
        seen["metric"] = _error(lambda: model.evaluate(x, y, verbose=0))
        os.environ[COMBINE_ALL_REDUCES] = "1"
        seen["environment"] = _error(lambda: compiled("TextClassifier").fit(x, y, verbose=0))
        os.environ[COMBINE_ALL_REDUCES] = "0"
        model.compile(run_eagerly=True)
        seen["eagerly"] = _error(lambda: model.fit(x, y, verbose=0))
        model.compile()
        tf.config.run_functions_eagerly(True)
        seen["all eagerly"] = _error(lambda: model.fit(x, y, verbose=0))
        tf.config.run_functions_eagerly(False)
    with mesh(2, 2, sequence_parallel=True):
        odd = {name: array[:, :23] for name, array in x.items()}
        seen["sequence"] = _error(lambda: compiled("TextClassifier").predict_on_batch(odd))
        model = compiled("TextClassifier")
        model.backbone.quantize("int8")
        seen["int8"] = _error(lambda: model.predict_on_batch(x))
    seen["restored"] = changed and _patched() == before
    seen["devices"] = _error(lambda: make_cpu_devices(8))
    return seen


def variants() -> dict:
    """Train in other ways, split and not."""

    def compiled_with(lora=False, optimizer=None, **arguments):
        model = build("TextClassifier", num_layers=1, dropout=0.1, **arguments)
        if lora:
            model.backbone.enable_lora(2)
        compile_(model, **(optimizer or {}))
        return model

    seen = {}
    for name, arguments in (
        ("lora", {"lora": True}),
        ("bfloat16", {"dtype": "mixed_bfloat16"}),
        ("checkpointing", {"gradient_checkpointing": True}),
        ("accumulation", {"optimizer": {"gradient_accumulation_steps": 2}}),
        ("sequence", {}),
    ):
        plain = steps(on_one_device(compiled_with(**arguments)), "TextClassifier")
        with mesh(2, 2, sequence_parallel=name == "sequence"):
            model = compiled_with(**arguments)
            sharded = steps(model, "TextClassifier")
        shares = parts([v for v in model.variables if "lora" in v.path])
        seen[name] = {"plain": plain, "sharded": sharded, "parts": shares}
    return seen


if __name__ == "__main__":
    main(globals())
