"""What a plan is made of, and whether it can be split."""

import dataclasses

import keras

from keras_megatron.padding import padded_vocabulary_size

MOST_DEVICES = 1024
_SIZES = {"float32": 4, "bfloat16": 2, "float16": 2}  # bytes of a number to train with


@dataclasses.dataclass(frozen=True)
class Workload:
    """A model and what it is trained on.

    Attributes:
        name: of the model, for people.
        config: arguments of `MegatronBertBackbone`.
        data: devices that the batch is split over.
        model: devices that the kernels are split over.
        batch: sequences a step, over all devices.
        sequence: tokens a sequence.
        dtype: the model's dtype policy.
        sequence_parallel: see `MegatronBertBackbone.get_layout_map`.
    """

    name: str
    config: dict
    data: int
    model: int
    batch: int
    sequence: int
    dtype: str = "float32"
    sequence_parallel: bool = False

    def check(self) -> None:
        """Refuse what cannot be split, before anything is compiled.

        Raises:
            ValueError: as said, with the numbers.
        """
        for name in ("data", "model", "batch", "sequence"):
            if not 1 <= getattr(self, name) < 2**31:
                raise ValueError(f"{name} must be from 1 to 2**31 - 1, not {getattr(self, name)}")
        if self.data * self.model > MOST_DEVICES:
            raise ValueError(f"a mesh of {self.mesh} is more than {MOST_DEVICES} devices")
        remedies = dict.fromkeys(("num_heads", "intermediate_dim"), "use fewer devices for it")
        padded = padded_vocabulary_size(self.config["vocabulary_size"], self.model)
        remedies["vocabulary_size"] = f"pad it to {padded}"
        for name, remedy in remedies.items():
            if self.config[name] % self.model:
                raise ValueError(
                    f"{name}={self.config[name]} of {self.name} cannot be split over the "
                    f"{self.model} model devices of mesh {self.mesh}: {remedy}"
                )
        if self.batch % self.data:
            raise ValueError(
                f"a batch of {self.batch} cannot be split over the {self.data} data devices of "
                f"mesh {self.mesh}: give a multiple of {self.data}"
            )
        positions = self.config["max_sequence_length"]
        if self.sequence > positions:
            raise ValueError(
                f"a sequence of {self.sequence} tokens is longer than the {positions} positions of "
                f"{self.name}"
            )
        policy = keras.dtype_policies.get(self.dtype)  # refuses what is no policy
        if policy.quantization_mode or policy.compute_dtype not in _SIZES:
            raise ValueError(f"dtype must be one to train in, such as bfloat16, not {self.dtype!r}")

    @property
    def mesh(self) -> str:
        """The mesh as it is given to the command."""
        return f"{self.data}x{self.model}"

    @property
    def element_size(self) -> int:
        """Bytes of a number that is computed with."""
        return _SIZES[keras.dtype_policies.get(self.dtype).compute_dtype]
