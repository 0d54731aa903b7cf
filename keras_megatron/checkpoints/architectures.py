"""Hugging Face's architectures: which task each is here, and what its checkpoints hold."""

import dataclasses
from collections.abc import Mapping

from keras_megatron.checkpoints.huggingface_config import backbone_config, short

_MOST_CLASSES = 1 << 20


@dataclasses.dataclass(frozen=True)
class Architecture:
    """A class of transformers.

    Attributes:
        name: its name.
        parts: parts of the table of weight names that its checkpoints have beside the encoder.
    """

    name: str
    parts: frozenset[str]


def _architecture(name: str, *parts: str) -> Architecture:
    return Architecture(name, frozenset(parts))


# By the names of this package's classes.
ARCHITECTURES = {
    "MegatronBertBackbone": _architecture("MegatronBertModel", "pooler"),
    "MegatronBertTextEmbedder": _architecture("MegatronBertModel", "pooler"),
    "MegatronBertMaskedLM": _architecture("MegatronBertForMaskedLM", "mlm_head"),
    "MegatronBertCausalLM": _architecture("MegatronBertForCausalLM", "mlm_head"),
    "MegatronBertPretrainer": _architecture(
        "MegatronBertForPreTraining", "pooler", "mlm_head", "binary_head"
    ),
    "MegatronBertNextSentencePredictor": _architecture(
        "MegatronBertForNextSentencePrediction", "pooler", "binary_head"
    ),
    "MegatronBertTextClassifier": _architecture(
        "MegatronBertForSequenceClassification", "pooler", "classifier"
    ),
    "MegatronBertMultipleChoice": _architecture(
        "MegatronBertForMultipleChoice", "pooler", "classifier"
    ),
    "MegatronBertTokenClassifier": _architecture(
        "MegatronBertForTokenClassification", "classifier"
    ),
    "MegatronBertQuestionAnswering": _architecture(
        "MegatronBertForQuestionAnswering", "qa_outputs"
    ),
}


def architecture_of(cls: type) -> Architecture | None:
    """Return the architecture of a class of this package, or of one that is derived from it."""
    names = (parent.__name__ for parent in cls.__mro__)
    return next((ARCHITECTURES[name] for name in names if name in ARCHITECTURES), None)


def named_architectures(config: Mapping) -> set[str]:
    """Return the architectures that a configuration names; none, if it does not say.

    Raises:
        ValueError: they are no list of names.
    """
    names = config.get("architectures")
    if names is None:
        return set()
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError(f"config.json's architectures are no list of names: {short(names)}")
    return set(names)


def parts_of(task: str) -> frozenset[str]:
    """Return the parts of the table of weight names that a class has a place for, by its name."""
    return ARCHITECTURES[task].parts | {"backbone", "pooler"}


def promised_parts(config: Mapping) -> set[str]:
    """Return the parts that the weights of a configuration's architectures have.

    Raises:
        ValueError: its architectures are no list of names.
    """
    names = named_architectures(config)
    return {part for a in ARCHITECTURES.values() if a.name in names for part in a.parts}


def task_arguments(cls: type, config: Mapping) -> dict:
    """Return the arguments of a task that a Hugging Face configuration implies.

    Args:
        cls: class of the task.
        config: the content of config.json.

    Raises:
        ValueError: a value makes no sense.
    """
    architecture = architecture_of(cls)
    if architecture is None:
        return {}
    if "mlm_head" in architecture.parts:
        return {"head_activation": backbone_config(config)["activation"]}
    if "classifier" not in architecture.parts or "MultipleChoice" in architecture.name:
        return {}
    arguments = {"num_classes": len(class_names(config))}
    if architecture.name == "MegatronBertForSequenceClassification":
        arguments["multi_label"] = _is_multi_label(config, arguments["num_classes"])
    return arguments


def problem_type(num_classes: int, multi_label: bool) -> str:
    """Return the name that transformers has for what a text classifier learns."""
    if num_classes == 1:
        return "regression"
    return "multi_label_classification" if multi_label else "single_label_classification"


def _is_multi_label(config: Mapping, num_classes: int) -> bool:
    """Say whether a configuration's `problem_type` lets a text have several classes.

    Raises:
        ValueError: the type is unknown, or one that the text classifier has no loss for.
    """
    given = config.get("problem_type")
    if given is None:
        return False
    possible = [problem_type(num_classes, multi_label) for multi_label in (False, True)]
    if given not in possible:
        raise ValueError(
            f"config.json has problem_type={short(given)} with {num_classes} labels: "
            f"MegatronBertTextClassifier has only {' or '.join(dict.fromkeys(possible))} for so "
            "many (give num_classes to make a new head)"
        )
    return given == "multi_label_classification"


def class_names(config: Mapping) -> list[str]:
    """Return the names of a classifier's classes, in order; "LABEL_0" and so on if none are given.

    Raises:
        ValueError: `id2label` is not a table of names for 0, 1, 2, ...
    """
    table = config.get("id2label")
    if table is None:
        count = config.get("num_labels", 2)
        if type(count) is not int or not 0 < count <= _MOST_CLASSES:
            raise ValueError(f"config.json has num_labels={short(count)}, not a number of classes")
        return default_class_names(count)
    if isinstance(table, dict) and table:
        names = [table.get(str(index)) for index in range(len(table))]
        if all(isinstance(name, str) for name in names):
            return names
    raise ValueError(f"config.json's id2label has no names for 0, 1, 2, ...: {short(table)}")


def default_class_names(count: int) -> list[str]:
    """Return the names that transformers gives to classes without any."""
    return [f"LABEL_{index}" for index in range(count)]
