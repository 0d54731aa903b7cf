"""A small model of every task, with samples. test_every_task tests each one that is in `CASES`.

The samples are always those four texts in rows of 20 tokens, and models are run eagerly where they
are run once: on JAX each operation is compiled for each shape, and tasks of one shape share that.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import keras
import keras_hub
import numpy as np
from models import randomize, small_backbone

import keras_megatron
from keras_megatron import MegatronBertTokenizer

# Dickens, A Tale of Two Cities (1859), public domain.
TEXTS = [
    "it was the best of times, it was the worst of times,",
    "it was the age of wisdom, it was the age of foolishness,",
    "it was the epoch of belief, it was the epoch of incredulity,",
    "it was the season of light, it was the season of darkness,",
]
WORDS = sorted({word.strip(",") for text in TEXTS for word in text.split()})
PIECES = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", ",", "##s", *WORDS]
PAIRS = (TEXTS, TEXTS[1:] + TEXTS[:1])
SENTENCES = [text.replace(",", " ,").split() for text in TEXTS]
NOUNS = ("times", "age", "wisdom", "foolishness", "epoch", "belief", "season", "light")
CHOICES = (TEXTS, [["wisdom", "light"], ["age", "epoch", "season"], ["was", "it"], ["of", "the"]])


@dataclasses.dataclass(frozen=True)
class Case:
    """A task.

    Attributes:
        name: of its class, without "MegatronBert".
        x: raw samples.
        y: their labels; None if the task makes its own.
        answer: what gives the model's answers to samples.
        arguments: of the task.
        preprocessor: arguments of its preprocessor.
        base: the class of KerasHub that finds it in a preset.
        learns: whether it has a loss of its own.
        gives_logits: whether `answer` is only `predict`.
    """

    name: str
    x: Any
    y: Any
    answer: Callable[[Any], Any]
    arguments: dict = dataclasses.field(default_factory=dict)
    preprocessor: dict = dataclasses.field(default_factory=dict)
    base: type | None = None
    learns: bool = True
    gives_logits: bool = False

    @property
    def task(self) -> type:
        return getattr(keras_megatron, f"MegatronBert{self.name}")

    def make(self, seed: int | None = None, **backbone) -> keras_hub.models.Task:
        """Make the model, with random biases and LayerNorms too if a seed is given."""
        preprocessor = self.task.preprocessor_cls(
            MegatronBertTokenizer(PIECES), sequence_length=20, **self.preprocessor
        )
        backbone = small_backbone(
            **{"vocabulary_size": 40, "num_layers": 1, "dropout": 0.0, **backbone}
        )
        task = self.task(backbone, preprocessor=preprocessor, **self.arguments)
        if seed is not None:
            randomize(task, seed)
        return task

    def answers(self, task: keras_hub.models.Task) -> np.ndarray:
        """Return the probabilities or vectors in the model's answers to the samples, in one row."""
        task.run_eagerly, task.predict_function = True, None  # compiling takes longer than running
        leaves = keras.tree.flatten(self.answer(task))
        return np.concatenate([np.ravel(x) for x in leaves if not isinstance(x, str | int)])

    def fit(self, task: keras_hub.models.Task, **arguments) -> list[float]:
        """Train on the samples, and return the loss of each epoch."""
        labels = {} if self.y is None else {"y": self.y}
        arguments = {"batch_size": len(TEXTS), "verbose": 0, **labels, **arguments}
        return task.fit(self.x, **arguments).history["loss"]


CASES = [
    Case(
        "TextClassifier",
        TEXTS,
        ["good", "bad", "good", "bad"],
        lambda task: task.classify(TEXTS),
        arguments={"num_classes": 2},
        preprocessor={"class_names": ["bad", "good"]},
        base=keras_hub.models.TextClassifier,
    ),
    Case(
        "MultipleChoice",
        CHOICES,
        [0, 2, 1, 1],
        lambda task: [answer["scores"] for answer in task.choose(*CHOICES)],
    ),
    Case(
        "CausalLM",
        TEXTS,
        None,
        lambda task: task.predict(TEXTS, verbose=0),
        base=keras_hub.models.CausalLM,
        gives_logits=True,
    ),
    Case("NextSentencePredictor", PAIRS, [0, 0, 1, 1], lambda task: task.follows(*PAIRS)),
    Case(
        "TextEmbedder",
        TEXTS,
        None,
        lambda task: task.encode_text(TEXTS),
        base=keras_hub.models.TextEmbedder,
        learns=False,
    ),
    Case(
        "MaskedLM",
        TEXTS,
        None,
        lambda task: task.fill_mask([text.replace("was", "[MASK]") for text in TEXTS]),
        preprocessor={"seed": 1},
        base=keras_hub.models.MaskedLM,
    ),
    Case(
        "TokenClassifier",
        SENTENCES,
        [["noun" if word in NOUNS else "other" for word in words] for words in SENTENCES],
        lambda task: task.tag(TEXTS),
        arguments={"num_classes": 2},
        preprocessor={"class_names": ["other", "noun"]},
    ),
    Case(
        "Pretrainer",
        PAIRS,
        [0, 0, 1, 1],
        lambda task: task.predict(PAIRS, verbose=0),
        preprocessor={"mask_selection_rate": 0.0},
        gives_logits=True,
    ),
]
