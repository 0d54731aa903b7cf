"""A small model of every task, and samples that are hard to serve: empty, long, of other letters.

The letters are those of a vocabulary with accents stripped; texts are from tests/tasks/small_tasks.
"""

import dataclasses
from typing import Any

import numpy as np
from models import randomize, small_backbone

import keras_megatron
from keras_megatron import MegatronBertTokenizer

# Dickens, A Tale of Two Cities (1859), public domain.
TEXTS = [
    "It was the best of times, it was the worst of times,",
    "it was the AGE of wisdom,\tit was the age of foolishness…",
    "it was the époch of belief, it was the epoch of 🙂 incredulity,",
    "",
    "[MASK] was the season of light [SEP] it was the season of darkness,",
]
WORDS = ["it", "was", "the", "best", "of", "times", "worst", "age", "wisdom", "epoch", "belief"]
SPECIAL_TOKENS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
PIECES = [*SPECIAL_TOKENS, ",", "##s", "##ness", "dark", "season", "light", "foolish", *WORDS]
LONG = " ".join(TEXTS)
OTHERS = [*TEXTS[1:], TEXTS[0]]
TAGS = ["O", "B-TIME", "I-TIME", "B-LIGHT", "I-LIGHT"]


@dataclasses.dataclass(frozen=True)
class Served:
    """A task: its samples, and the arguments of the task and of its preprocessor."""

    x: Any
    task: dict = dataclasses.field(default_factory=dict)
    preprocessor: dict = dataclasses.field(default_factory=dict)


CASES = {
    "TextClassifier": Served(
        [*TEXTS, LONG], {"num_classes": 2}, {"class_names": ["bad", "good"]}
    ),
    "TokenClassifier": Served(
        [*TEXTS, LONG, LONG * 3], {"num_classes": len(TAGS)}, {"class_names": TAGS}
    ),
    "QuestionAnswering": Served(
        (["was it?", "What was the worst of times, the age of wisdom?", "it", "was", "was it?"],
         [LONG, TEXTS[0], "", "épo ch", LONG * 3]),
    ),
    "MultipleChoice": Served(
        ([*TEXTS, LONG],
         [["wisdom", "light"], ["age", LONG, "season"], ["was", "it"], ["of", "the"],
          ["times", "age", "light", "belief"], ["it was", "the age"]]),
    ),
    "NextSentencePredictor": Served((TEXTS, OTHERS)),
    "TextEmbedder": Served([*TEXTS, LONG]),
    "MaskedLM": Served(
        ["it was the [MASK] of times", "[MASK]", "the [MASK] of [MASK], [MASK]", "age [MASK]es",
         "it was the age of " * 4 + "[MASK] and so on"]  # behind what is cut in training
    ),
    "CausalLM": Served(["it was", "the age of wisdom, it", "", "[MASK] epoch"]),
}  # fmt: skip
PRETRAINER = Served((TEXTS, OTHERS))  # which has no answers in Keras to compare with


def make(name: str, class_names: bool = True, **arguments):
    """Make a model with random weights, which cuts at 20 tokens."""
    case = {**CASES, "Pretrainer": PRETRAINER}[name]
    task = getattr(keras_megatron, f"MegatronBert{name}")
    preprocessor = task.preprocessor_cls(
        MegatronBertTokenizer(PIECES),
        sequence_length=20,
        **(case.preprocessor if class_names else {}),
    )
    sizes = {"vocabulary_size": 40, "num_layers": 1, "dropout": 0.0}
    model = task(small_backbone(**sizes), preprocessor=preprocessor, **{**case.task, **arguments})
    randomize(model)
    if name == "CausalLM":
        model.compile(sampler="greedy")
    return model


def random_inputs(rng, model, rows: int, length: int) -> dict[str, np.ndarray]:
    """Return ids for a model, with padding and two segments."""
    choices = (2,) if len(model.input["token_ids"].shape) == 3 else ()
    shape = (rows, *choices, length)
    inputs = {
        "token_ids": rng.integers(5, 20, shape),
        "segment_ids": rng.integers(0, 2, shape),
        "padding_mask": np.arange(length) < rng.integers(2, length, (rows, *choices, 1)),
        "mask_positions": rng.integers(0, length, (rows, 3)),
        "encoder_padding_mask": np.arange(5) < rng.integers(2, 5, (rows, 1)),
    }
    inputs = {name: inputs[name].astype("int32") for name in model.input if name in inputs}
    if "encoder_hidden_states" in model.input:
        width = model.input["encoder_hidden_states"].shape[-1]
        inputs["encoder_hidden_states"] = rng.normal(size=(rows, 5, width)).astype("float32")
    return inputs
