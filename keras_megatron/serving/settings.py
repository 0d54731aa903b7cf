"""What an export can be asked for."""

import dataclasses

FORMATS = ("saved_model", "onnx", "openvino")
PRECISIONS = ("float32", "bfloat16", "int8")
TOP_K = 5  # unless asked otherwise

# What is only for SavedModels that answer to strings, and for which tasks.
_TASKS = {
    "top_k": ("MegatronBertMaskedLM", "MegatronBertPretrainer"),
    "pairs": ("MegatronBertTextClassifier",),
    "max_length": ("MegatronBertCausalLM",),
}


@dataclasses.dataclass(frozen=True)
class ExportSettings:
    """The choices of an export; see `keras_megatron.serving.export`.

    Raises:
        ValueError: one is out of range.
    """

    format: str = "saved_model"
    precision: str | None = None
    top_k: int | None = None
    pairs: bool = False
    max_length: int | None = None
    sampler: dict | None = None
    warmup: bool = True

    def __post_init__(self):
        choices = {"format": FORMATS, "precision": (None, *PRECISIONS)}
        for name, known in choices.items():
            if getattr(self, name) not in known:
                names = ", ".join(choice for choice in known if choice)
                raise ValueError(f"{name} must be one of {names}, not {getattr(self, name)!r}")
        for name, least in (("top_k", 1), ("max_length", 2)):
            value = getattr(self, name)
            if value is not None and (type(value) is not int or value < least):
                raise ValueError(f"{name} must be an integer of at least {least}, not {value!r}")

    def check_task(self, name: str) -> None:
        """Refuse a choice that means nothing to a task.

        Args:
            name: of the task's class.

        Raises:
            ValueError: as said.
        """
        for option, tasks in _TASKS.items():
            if not getattr(self, option):
                continue
            if self.format != "saved_model":
                raise ValueError(
                    f"{option} is for a SavedModel, which answers to texts: leave it out for "
                    f"{self.format}"
                )
            if name not in tasks:
                raise ValueError(f"{option} is for {' and '.join(tasks)}, not for {name}")
