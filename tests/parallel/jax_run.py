"""Trains on eight virtual devices of one CPU, and prints what it sees as JSON: a child process."""

import collections
import json
import re
import tempfile

import jax
import keras
import numpy as np
from keras.src.backend.jax.trainer import _distribute_data
from sharded_models import (
    BATCH,
    TASKS,
    TEXTS,
    batch,
    build,
    compile_,
    continuations,
    data,
    multi_label_scores,
    tokenizer,
)

import keras_megatron
from keras_megatron import parallel

MESHES = ((1, 4), (2, 2), (1, 8), (2, 4))
COLLECTIVE = re.compile(
    r"= (.*?) (all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute)(?:-start)?\("
)


# What else a model may be built or trained with, on a mesh of data x model devices.
VARIANTS = {
    "accumulation": ({}, {"gradient_accumulation_steps": 2}, (2, 2)),
    "bfloat16": ({"dtype": "mixed_bfloat16"}, {}, (1, 4)),
    # Which units are dropped does not depend on the mesh: JAX draws for the whole array.
    "checkpointing and dropout": (
        {"gradient_checkpointing": True, "dropout": 0.2, "attention_dropout": 0.2},
        {},
        (2, 4),
    ),
}


def compiled(task: str, settings: dict | None = None, **arguments) -> keras.Model:
    """Return a task with one layer, unless the arguments say more."""
    model = build(task, **{"num_heads": 8, "num_layers": 1, **arguments})
    compile_(model, **settings or {})
    return model


def mesh(data_devices: int, model_devices: int, **arguments):
    """Return the context manager for a mesh of the first devices."""
    devices = keras.distribution.list_devices()[: data_devices * model_devices]
    return parallel.model_parallel(model_devices, data_devices, devices=devices, **arguments)


def differences(one: dict, other: dict) -> dict[str, float]:
    """Return the largest difference of each kind of number."""
    return {
        name: float(max(np.abs(a - b).max() for a, b in zip(one[name], other[name], strict=True)))
        for name in one
    }


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


def training(plain: dict) -> dict:
    """Compare training on meshes with that on one device."""
    seen = collections.defaultdict(dict)
    for sizes in MESHES:
        for task in TASKS:
            with mesh(*sizes):
                model = compiled(task)
                one = differences(train(model, task), plain[task])
                one["shares"] = shares(model)
                if task == "MaskedLM" and sizes == (1, 4):
                    one["sent"] = collectives(model, task)
                    deeper = compiled(task, num_layers=2)
                    deeper.train_on_batch(*batch(task))
                    one["sent by one more layer"] = collectives(deeper, task)
            seen[f"{sizes[0]}x{sizes[1]}"][task] = one
    return seen


def variants(plain: dict) -> dict:
    """Train in other ways, on a mesh and not."""
    seen = {}
    for name, (arguments, settings, sizes) in VARIANTS.items():
        expected = train(compiled("MaskedLM", settings, **arguments), "MaskedLM")
        with mesh(*sizes):
            found = train(compiled("MaskedLM", settings, **arguments), "MaskedLM")
        seen[name] = differences(found, expected)
    with mesh(1, 4, sequence_parallel=True):
        model = compiled("MaskedLM")
        seen["sequence parallel"] = differences(train(model, "MaskedLM"), plain["MaskedLM"])
        sent = collectives(model, "MaskedLM")
    return {"differences": seen, "sent with sequence parallelism": sent}


def moving() -> dict:
    """Save in the middle of a training on 1x4 devices; go on there, on 2x2, and on one."""

    def steps(model, places) -> list[float]:
        batches = [batch("MaskedLM", place) for place in places]
        return [float(model.train_on_batch(*b, return_dict=True)["loss"]) for b in batches]

    with tempfile.TemporaryDirectory() as folder:
        file = f"{folder}/model.keras"
        with mesh(1, 4):
            model = compiled("MaskedLM")
            steps(model, [0])
            model.save(file)
            slots = [variable.numpy() for variable in model.optimizer.variables]
            seen = {"there": steps(model, [1, 2])}
        with mesh(2, 2):
            loaded = keras.saving.load_model(file)
            pairs = zip(loaded.optimizer.variables, slots, strict=True)
            seen["slots are equal"] = all((v.numpy() == slot).all() for v, slot in pairs)
            seen["2x2"] = steps(loaded, [1, 2])
        seen["one device"] = steps(keras.saving.load_model(file), [1, 2])
        fresh = keras.saving.load_model(file)
        compile_(fresh)  # without the slots
        seen["new optimizer"] = steps(fresh, [1, 2])
    return seen


def any_number_of_rows() -> dict:
    """Predict numbers of rows that two devices do not divide."""
    rows = batch("TextClassifier")[0]
    ids = {name: array[:3] for name, array in rows.items()}
    with mesh(2, 4):
        model = compiled("TextClassifier", num_layers=1)
        whole = model.logits(rows)
        found = {
            "logits": model.logits({name: array[:1] for name, array in rows.items()}),
            "predict": model.predict(ids, batch_size=4, verbose=0),
            "odd steps": model.predict(rows, batch_size=3, verbose=0),
            "some steps": model.predict(rows, batch_size=1, steps=2, verbose=0),
            "a dataset": model.predict(_batches(rows, 3), verbose=0),
        }
        on_mesh = windows()
    rows = {
        name: [len(part), float(np.abs(part - whole[: len(part)]).max())]
        for name, part in found.items()
    }
    pairs = zip(on_mesh, windows(), strict=True)
    differences = [float(np.abs(np.array(a) - np.array(b)).max()) for a, b in pairs]
    return {**rows, "windows": [len(on_mesh[0]), max(differences)]}


def _batches(rows: dict, size: int):
    import tensorflow as tf

    return tf.data.Dataset.from_tensor_slices(rows).batch(size)


def windows() -> list[list]:
    """Predict questions whose contexts make an odd number of windows, in steps of several sizes."""
    preprocessor = keras_megatron.MegatronBertQuestionAnsweringPreprocessor(
        tokenizer(), sequence_length=24, doc_stride=4
    )
    model = build("QuestionAnswering", preprocessor=preprocessor, num_heads=8, num_layers=1)
    x = (["what was it"] * 3, [" ".join(TEXTS[:3]), TEXTS[3], " ".join(TEXTS[4:7])])
    return [model.predict(x, batch_size=size, verbose=0).tolist() for size in (1, 5, 32)]


def answers() -> dict:
    """Return areas under curves and continuations of prompts, on a mesh and not."""
    seen = {"plain": [multi_label_scores(), continuations()]}
    with mesh(2, 2):
        seen["mesh"] = [multi_label_scores(), continuations()]
    return seen


def errors() -> dict:
    """Return the messages of what must not run."""
    x, y, weight = data("MaskedLM")
    outside, messages = compiled("MaskedLM"), {}
    with mesh(2, 4):
        for name, call in {
            "outside": lambda: outside.fit(x, y, sample_weight=weight, verbose=0),
            "batch": lambda: compiled("MaskedLM").fit(x, y, batch_size=BATCH + 1, verbose=0),
            "last batch": lambda: compiled("TextClassifier").fit(
                *_first(data("TextClassifier")[:2], 11), batch_size=8, verbose=0
            ),
            "heads": lambda: build("MaskedLM", num_heads=2),
            "vocabulary": lambda: build("MaskedLM", vocabulary_size=57),
        }.items():
            messages[name] = _error(call)
    messages["devices"] = _error(lambda: parallel.model_parallel(model=3).__enter__())
    return messages


def _first(arrays, count: int):
    return keras.tree.map_structure(lambda array: np.asarray(array)[:count], arrays)


def _error(call) -> str:
    try:
        call()
    except ValueError as error:
        return str(error)
    return "none"


def main() -> None:
    plain = {task: train(compiled(task), task) for task in TASKS}
    seen = {
        "training": training(plain),
        "variants": variants(plain),
        "moving": moving(),
        "rows": any_number_of_rows(),
        "answers": answers(),
        "errors": errors(),
    }
    print(json.dumps(seen))


if __name__ == "__main__":
    main()
