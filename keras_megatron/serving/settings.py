"""What an export can be asked for."""

import dataclasses

FORMATS = ("saved_model", "onnx", "openvino")
PRECISIONS = ("float32", "bfloat16", "int8")


@dataclasses.dataclass(frozen=True)
class ExportSettings:
    """The choices of an export; see `keras_megatron.serving.export`.

    Raises:
        ValueError: one is out of range.
    """

    format: str = "saved_model"
    precision: str | None = None
    top_k: int = 5
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
