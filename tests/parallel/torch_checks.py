"""What each process of `torch_run.py` does: training; the tests look at what it returns."""

import concurrent.futures
import contextlib
import hashlib
import itertools
import math
import os

import keras
import numpy as np
import sharded_models as models
import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.debug import CommDebugMode

from keras_megatron import parallel
from keras_megatron.patching import patched


def equality(folder, data: str) -> dict:
    """Train each task sharded and unsharded; return the largest differences and shares."""
    results = {}
    for task in models.TASKS:
        alone = models.build(task)
        models.compile_(alone)
        expected = models.train(alone, task)
        slots = [variable.numpy() for variable in alone.optimizer.variables]
        with parallel.model_parallel(data=int(data)) as distribution:
            model = models.build(task)
            models.compile_(model)
            actual = models.train(model, task)
            gradients = [key for key in expected if key.startswith("gradient")]
            results[task] = {
                "same gradients": sorted(expected) == sorted(actual),
                "losses": _difference(actual["losses"], expected["losses"]),
                "gradients": max(_difference(actual[k], expected[k]) for k in gradients),
                "largest gradient": max(float(np.abs(expected[k]).max()) for k in gradients),
                "slots": max(
                    _difference(variable.numpy(), slot)
                    for variable, slot in zip(model.optimizer.variables, slots, strict=True)
                ),
                **_shares(model, distribution),
            }
            weights, predicted = [v.numpy() for v in model.weights], _predict(model, task)
        # From the same weights: those that were trained differ by what Adam makes of noise.
        alone.set_weights(weights)
        pairs = zip(predicted, _predict(alone, task), strict=True)
        results[task]["predictions"] = max(_difference(*pair) for pair in pairs)
    return results


def _difference(actual, expected) -> float:
    return float(np.abs(np.asarray(actual, "f8") - np.asarray(expected, "f8")).max())


def _predict(model, task: str) -> list:
    """Return what is predicted for all samples, for a rest of three, and for one alone."""
    x = models.data(task)[0]
    rest, one = (keras.tree.map_structure(lambda a, n=n: a[:n], x) for n in (3, 1))
    outputs = [model.predict(rows, batch_size=models.BATCH, verbose=0) for rows in (x, rest)]
    return keras.tree.flatten([*outputs, model.logits(one)])


def _shares(model, distribution) -> dict:
    """Return which variables are split, and those whose memory is not their share."""
    split, wrong = [], []
    for variable in [*model.weights, *model.optimizer.variables]:
        value = variable.value
        local = value.to_local() if isinstance(value, DTensor) else value
        axes = [axis for axis in variable._layout.axes if axis]
        if axes:
            split.append(variable.path)
        share = math.prod(variable.shape) // math.prod(map(distribution.axis_size, axes))
        if local.untyped_storage().nbytes() != share * local.itemsize:
            wrong.append(variable.path)
    return {"split": split, "wrong": wrong}


def variants(folder) -> dict:
    """Train in other ways, sharded and not; return the largest differences."""
    results = {}
    for name, task, build, compiled, scope in (
        ("checkpointing", "MaskedLM", {"gradient_checkpointing": True}, {}, {}),
        ("thread", "MaskedLM", {"gradient_checkpointing": True}, {}, {}),
        ("bfloat16", "MaskedLM", {"dtype": "mixed_bfloat16"}, {}, {}),
        ("lora", "TextClassifier", {}, {}, {}),
        ("accumulation", "MaskedLM", {}, {"gradient_accumulation_steps": 2}, {}),
        ("sequence", "MaskedLM", {}, {}, {"sequence_parallel": True}),
    ):

        def trained(name=name, task=task, build=build, compiled=compiled):
            model = models.build(task, **build)
            if name == "lora":
                model.backbone.enable_lora(2)
            models.compile_(model, **compiled)
            return models.train(model, task)

        expected = trained()
        backward = _in_a_thread(torch.Tensor.backward) if name == "thread" else None
        patch = patched(torch.Tensor, backward=backward) if backward else contextlib.nullcontext()
        with parallel.model_parallel(**scope), patch:
            actual = trained()
        assert actual.keys() == expected.keys()
        results[name] = {
            "losses": _difference(actual["losses"], expected["losses"]),
            "gradients": max(_difference(actual[key], expected[key]) for key in expected),
        }
    return results


def _in_a_thread(function):
    """Call a function as autograd goes backward on a GPU: in a thread that knows nothing."""

    def call(*args, **kwargs):
        with concurrent.futures.ThreadPoolExecutor(1) as threads:
            return threads.submit(function, *args, **kwargs).result()

    return call


def quantized(folder) -> dict:
    """Return how far quantized predictions are from one device's, and from what was saved."""
    inputs, results = models.data("MaskedLM")[0], {}
    for mode in ("int8", "int4"):
        alone = models.build("MaskedLM")
        exact = alone.logits(inputs)
        alone.quantize(mode)
        expected = alone.logits(inputs)
        results[mode] = {"quantization": _difference(expected, exact)}
        for data in (1, 2):
            with parallel.model_parallel(data=data):
                model = models.build("MaskedLM")
                model.quantize(mode)
                results[mode][str(data)] = _difference(model.logits(inputs), expected)
                model.backbone.enable_lora(2)
                path = folder / f"{mode}_{data}.keras"
                model.save(path)  # the adapter, which changes nothing yet, is merged
                loaded = keras.saving.load_model(path)
                results[mode][f"loaded {data}"] = _difference(loaded.logits(inputs), expected)
    return results


def answers(folder) -> dict:
    """Return areas under curves, and continuations of prompts: sharded ones and others."""
    seen = {"plain": [models.multi_label_scores(), models.continuations()]}
    for data in (1, 2):
        with parallel.model_parallel(data=data):
            seen[str(data)] = [models.multi_label_scores(), models.continuations()]
    return seen


class _WholeModel:
    """Stands for CommDebugMode's account by module, which Keras's modules lead astray."""

    def __init__(self):
        self.name, self.is_bw, self.activation_checkpointing = "Global", False, False
        self.module_parents_dict = {"Global": ()}

    def __enter__(self):
        return self

    def __exit__(self, *error):
        pass


def counts(folder, task: str, data: str) -> dict:
    """Return how often each collective is called in the parts of a training step."""
    marks, backward = [("batch and forward", {})], torch.Tensor.backward
    mode = CommDebugMode()
    mode.advanced_module_tracker = _WholeModel()

    def marked(function, begin: str, end: str):
        def call(*args, **kwargs):
            marks.append((begin, mode.get_comm_counts().copy()))
            result = function(*args, **kwargs)
            marks.append((end, mode.get_comm_counts().copy()))
            return result

        return call

    with parallel.model_parallel(data=int(data)):
        model = models.build(task)
        models.compile_(model)
        x, y, weight = models.batch(task)
        model.train_on_batch(x, y, sample_weight=weight)  # infers shapes, which is not counted
        model._compute_loss = marked(model._compute_loss, "loss", "between")
        model.optimizer.apply = marked(model.optimizer.apply, "optimizer", "metrics")
        torch.Tensor.backward = marked(backward, "backward", "between")
        try:
            with mode:
                model.train_on_batch(x, y, sample_weight=weight)
        finally:
            torch.Tensor.backward = backward
        variables = sum(v.value.grad is not None for v in model.trainable_variables)
    marks.append(("", mode.get_comm_counts()))
    counted = {
        part: {str(k).split(".")[-1]: n - before.get(k, 0) for k, n in after.items()}
        for (part, before), (_, after) in itertools.pairwise(marks)
    }
    counted = {part: {k: n for k, n in found.items() if n} for part, found in counted.items()}
    return {**counted, "variables": variables}


def dropout(folder, data: str) -> dict:
    """Return what each process dropped, of a tensor that is replicated and one that is split."""
    results = {}
    keras.utils.set_random_seed(dist.get_rank() if dist.is_initialized() else os.getpid())
    with parallel.model_parallel(data=int(data)) as distribution:
        drop = keras.layers.Dropout(0.5, name="drop")
        for name, axes in (("whole", (None, None)), ("split", ("model", None))):
            layout = keras.distribution.TensorLayout(axes, distribution.device_mesh)
            ones = keras.distribution.distribute_tensor(torch.ones(64, 64), layout)
            results[name] = [_hash(drop(ones, training=True).to_local()) for _ in range(2)]
        results["kept"] = float(drop(ones, training=True).to_local().count_nonzero()) / (
            ones.to_local().numel()
        )
        losses = []
        for checkpointing in (False, True):
            rates = {"dropout": 0.2, "attention_dropout": 0.2}
            model = models.build("MaskedLM", gradient_checkpointing=checkpointing, **rates)
            models.compile_(model)
            losses.append(models.train(model, "MaskedLM")["losses"])
        results["checkpointing"] = _difference(*losses)
        replicated = [v for v in model.weights if not any(v._layout.axes)]
        results["replicated"] = _hash(torch.cat([v.value.to_local().flatten() for v in replicated]))
    return results


def _hash(tensor: torch.Tensor) -> str:
    return hashlib.sha256(np.ascontiguousarray(tensor.detach().numpy())).hexdigest()
