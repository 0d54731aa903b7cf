"""A small model of three tasks, with batches of real text, for the tests of all engines."""

import os
import pathlib
import re
import signal
import time

import keras
import numpy as np

import keras_megatron
from keras_megatron.finetuning.recipe import adamw

# Dickens, A Tale of Two Cities (1859), public domain.
TEXTS = [
    "it was the best of times, it was the worst of times,",
    "it was the age of wisdom, it was the age of foolishness,",
    "it was the epoch of belief, it was the epoch of incredulity,",
    "it was the season of light, it was the season of darkness,",
    "it was the spring of hope, it was the winter of despair,",
    "we had everything before us, we had nothing before us,",
    "we were all going direct to heaven, we were all going direct the other way",
    "in short, the period was so far like the present period",
]
WORDS = sorted({word.strip(",") for text in TEXTS for word in text.split()})
PIECES = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", ",", *WORDS]
VOCABULARY, LAYERS, BATCH, STEPS = 56, 2, 4, 3
TASKS = ("MaskedLM", "TextClassifier", "Pretrainer")


def build(task: str, seed: int = 0, preprocessor=None, **arguments) -> keras.Model:
    """Return a task on a small backbone, without dropout unless the arguments say so."""
    keras.utils.set_random_seed(seed)
    backbone = keras_megatron.MegatronBertBackbone(
        **{
            "vocabulary_size": VOCABULARY,
            "num_layers": LAYERS,
            "num_heads": 4,
            "hidden_dim": 16,
            "intermediate_dim": 32,
            "max_sequence_length": 24,
            "dropout": 0.0,
            "attention_dropout": 0.0,
            "initializer_range": 0.2,
            **arguments,
        }
    )
    own = {"num_classes": 3} if task == "TextClassifier" else {}
    return getattr(keras_megatron, f"MegatronBert{task}")(
        backbone, preprocessor=preprocessor, **own
    )


def tokenizer() -> keras_megatron.MegatronBertTokenizer:
    """Return a tokenizer of the texts."""
    return keras_megatron.MegatronBertTokenizer(vocabulary=PIECES)


def data(task: str) -> tuple:
    """Return (x, y, sample_weight) of `STEPS` batches of text."""
    texts = [text for _ in range(2) for text in TEXTS][: STEPS * BATCH]
    first, second = texts, texts[1:] + texts[:1]
    arguments = {"tokenizer": tokenizer(), "sequence_length": 24}
    if task == "TextClassifier":
        make = keras_megatron.MegatronBertTextClassifierPreprocessor(**arguments)
        x, y, weight = make(first), np.arange(len(texts)) % 3, None
        return x, y, weight
    arguments |= {"seed": 0, "mask_selection_length": 5}
    make = getattr(keras_megatron, f"MegatronBert{task}Preprocessor")(**arguments)
    batch = (
        make((first, second), np.arange(len(texts)) % 2) if task == "Pretrainer" else make(first)
    )
    return keras.utils.unpack_x_y_sample_weight(batch)


def multi_label_scores() -> dict[str, list]:
    """Train a classifier of several labels; return its losses and areas under curves by epoch."""
    backbone = build("TextClassifier").backbone
    keras.utils.set_random_seed(1)
    model = keras_megatron.MegatronBertTextClassifier(
        backbone, num_classes=3, multi_label=True, preprocessor=None
    )
    model.compile(
        optimizer=keras.optimizers.SGD(0.1),
        metrics=[*model.default_metrics()["metrics"], keras.metrics.Precision(thresholds=0.0)],
    )
    x, y, _ = data("TextClassifier")
    labels = np.stack([y == 0, y == 1, np.arange(len(y)) % 2 == 0], axis=1).astype("float32")
    fitted = model.fit(x, labels, batch_size=BATCH, epochs=2, verbose=0, shuffle=False)
    return {re.sub(r"_\d+$", "", name): values for name, values in fitted.history.items()}


def continuations() -> list:
    """Return what a model makes of prompts of several lengths and numbers, the most probable."""
    preprocessor = keras_megatron.MegatronBertCausalLMPreprocessor(tokenizer(), sequence_length=24)
    model = build("CausalLM", preprocessor=preprocessor)
    model.compile(sampler="greedy")
    prompts = ["it was the", "we had everything before us", "in"]
    options = {"max_length": 12, "stop_token_ids": None}
    of_ids = build("CausalLM")  # with the same weights
    of_ids.compile(sampler="greedy")
    ids = preprocessor.generate_preprocess(prompts, sequence_length=12)
    made = of_ids.generate(ids, stop_token_ids=None)["token_ids"]
    return [
        *(model.generate(prompts[:count], **options) for count in (1, 2, 3)),
        [model.generate(prompts[0], **options)],
        keras.ops.convert_to_numpy(made).tolist(),
    ]


def batch(task: str, index: int = 0) -> tuple:
    """Return one batch of the data."""
    rows = slice(index * BATCH, (index + 1) * BATCH)
    return keras.tree.map_structure(
        lambda array: None if array is None else np.asarray(array)[rows], data(task)
    )


def compile_(model: keras.Model, **arguments) -> None:
    """Compile with the recipe's optimizer, its gradients clipped to a global norm of 1."""
    optimizer = adamw(1e-3, 100, warmup=0.0)
    for name, value in arguments.items():
        setattr(optimizer, name, value)
    model.compile(optimizer=optimizer)


class Losses(keras.callbacks.Callback):
    """Notes the loss of each step: the mean so far, as Keras has it."""

    def __init__(self):
        super().__init__()
        self.values = []

    def on_train_batch_end(self, batch, logs=None):
        self.values.append(float(logs["loss"]))


def train(model: keras.Model, task: str) -> dict[str, np.ndarray]:
    """Train for three steps, and return losses and gradients, by step and variable."""
    noted, apply = {}, model.optimizer.apply

    def note(gradients, variables=None):
        step = sum(key.startswith("step") for key in noted)
        noted[f"step {step}"] = np.zeros(())
        for gradient, variable in zip(gradients, variables, strict=True):
            if gradient is not None:  # the pooler has none in masked LM
                noted[f"gradient {step} {variable.path}"] = keras.ops.convert_to_numpy(gradient)
        return apply(gradients, variables)

    model.optimizer.apply = note
    losses = Losses()
    x, y, weight = data(task)
    model.fit(
        x, y, sample_weight=weight, batch_size=BATCH, shuffle=False, verbose=0, callbacks=[losses]
    )
    del model.optimizer.apply
    noted["losses"] = np.array(losses.values)
    return noted


class Kill(keras.callbacks.Callback):
    """Kills this process after a batch of an epoch, both counted from 0.

    Args:
        epoch: -1 for never.
        batch: of the epoch.
        folder: where the time is noted as `killed_at`; None notes nothing.
    """

    def __init__(self, epoch: int, batch: int, folder: pathlib.Path | None = None):
        super().__init__()
        self.place, self.folder, self.epoch = (epoch, batch), folder, 0

    def on_epoch_begin(self, epoch, logs=None):
        self.epoch = epoch

    def on_train_batch_end(self, batch, logs=None):
        if (self.epoch, batch) == self.place:
            if self.folder:
                (self.folder / "killed_at").write_text(str(time.time()))
            os.kill(os.getpid(), signal.SIGKILL)
