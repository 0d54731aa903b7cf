"""What a training step needs on each device, before there is such a device."""

import dataclasses
import importlib.util
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence

import keras

from keras_megatron.parallel.distribution import padded_vocabulary_size
from keras_megatron.parallel.planning import formulas
from keras_megatron.parallel.planning.collectives import Sent

# The layers are alike, so two depths are compiled, and what depends on the depth does so linearly.
# Not one layer, which XLA treats in ways of its own.
DEPTHS = (2, 3)
MOST_DEVICES = 1024


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
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
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
        if policy.quantization_mode or "float" not in policy.compute_dtype:
            raise ValueError(f"dtype must be one to train in, such as bfloat16, not {self.dtype!r}")

    @property
    def mesh(self) -> str:
        """The mesh as it is given to the command."""
        return f"{self.data}x{self.model}"

    @property
    def element_size(self) -> int:
        """Bytes of a number that is computed with."""
        return 4 if keras.dtype_policies.get(self.dtype).compute_dtype == "float32" else 2


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a training step of a masked LM needs; numbers are bytes a device.

    Attributes:
        workload: what it is the plan of.
        parameters: of the weights.
        gradients: of the gradients.
        optimizer: of AdamW's moments.
        activations: what the forward pass keeps, by `formulas.activation_bytes`: as kernels do that
            keep no more than the backward pass needs.
        compiled_activations: what JAX's program for CPUs has at its peak beside these three. It
            keeps random numbers and broadcast means that accelerators need not keep, and computes
            16-bit types in 32 bits, so that an accelerator's need is between both numbers.
        sent: what goes between devices in the compiled step.
    """

    workload: Workload
    parameters: int
    gradients: int
    optimizer: int
    activations: int
    compiled_activations: int
    sent: tuple[Sent, ...]

    @property
    def total(self) -> int:
        """All bytes a device, with the formula's activations."""
        return self.parameters + self.gradients + self.optimizer + self.activations

    @property
    def compiled_total(self) -> int:
        """All bytes a device, with the compiled program's activations."""
        return self.total - self.activations + self.compiled_activations

    def sent_along(self, axis: str, layers: bool | None = None) -> tuple[int, int]:
        """Return arrays and bytes a step along an axis of the mesh.

        Args:
            axis: `"model"`, or `"data"`, which has what goes along both too.
            layers: count those of the layers' blocks only, or only the others.
        """
        chosen = [
            sent
            for sent in self.sent
            if (sent.axis == "model") == (axis == "model") and layers in (None, sent.of_layers)
        ]
        return sum(sent.arrays for sent in chosen), sum(sent.bytes for sent in chosen)

    @property
    def expected(self) -> tuple[int, int]:
        """All-reduces of the layers a step, and their bytes, as the paper has them."""
        work = self.workload
        if work.model == 1:
            return 0, 0
        batch = work.batch // work.data
        return formulas.all_reduces(work.config, batch, work.sequence, work.element_size)

    def to_dict(self) -> dict:
        """Return the plan as JSON takes it."""
        arrays, size = self.expected
        totals = {"total": self.total, "compiled_total": self.compiled_total}
        return {
            **dataclasses.asdict(self),
            **totals,
            "paper": {"all_reduces": arrays, "bytes": size},
        }


def make_plans(
    workloads: Sequence[Workload], progress: Callable[[int, int], None] = lambda done, of: None
) -> list[Plan]:
    """Compile a training step for each workload, on devices that are there in name only.

    A step is compiled at two small depths, and what follows for the model's depth is returned;
    nothing of its size is allocated. It takes some ten seconds a workload.

    Args:
        workloads: what to plan.
        progress: called with how many of how many programs are compiled.

    Raises:
        ValueError: a size cannot be split, the sequence is too long, or JAX is not installed.
    """
    for workload in workloads:
        workload.check()
    requests = [
        {
            **{k: v for k, v in dataclasses.asdict(workload).items() if k != "name"},
            "config": {**workload.config, "num_layers": depth},
        }
        for workload in workloads
        for depth in DEPTHS
    ]
    steps = []
    for step in _compiled(requests, max(work.data * work.model for work in workloads)):
        steps.append(step)
        progress(len(steps), len(requests))
    return [_plan(*three) for three in zip(workloads, steps[::2], steps[1::2], strict=True)]


def _compiled(requests: list[dict], devices: int) -> Iterator[dict]:
    """Compile in a new process whose JAX has as many devices.

    Raises:
        ValueError: JAX is not installed, or the process failed; with the error that it reports.
    """
    if importlib.util.find_spec("jax") is None:
        raise ValueError(
            "plans are compiled by JAX, which is not installed: pip install 'keras-megatron[jax]'"
        )
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    environment |= {"KERAS_BACKEND": "jax", "JAX_PLATFORMS": "cpu"}
    environment["JAX_NUM_CPU_DEVICES"] = str(devices)
    with tempfile.TemporaryFile("w+") as stdin, tempfile.TemporaryFile("w+") as stderr:
        json.dump(requests, stdin)
        stdin.seek(0)
        with subprocess.Popen(
            [sys.executable, "-m", "keras_megatron.parallel.planning.compiled_step"],
            env=environment,
            stdin=stdin,
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
        ) as process:
            yield from map(json.loads, process.stdout)
        if process.returncode:
            stderr.seek(0)
            lines = stderr.read().splitlines()
            said = [line for line in lines if re.match(r"[\w.]+(Error|Exception): ", line)]
            why = said[-1] if said else "it did not say why"
            raise ValueError(f"the step could not be compiled: {why}")


def _plan(workload: Workload, fewer: dict, more: dict) -> Plan:
    """Continue the line through two depths."""
    depth = workload.config["num_layers"]

    def line(low: int, high: int) -> int:
        return low + (high - low) * (depth - DEPTHS[0]) // (DEPTHS[1] - DEPTHS[0])

    def by_kind(step: dict) -> dict:
        return {(s["part"], s["kind"], s["axis"]): (s["arrays"], s["bytes"]) for s in step["sent"]}

    low, high = by_kind(fewer), by_kind(more)
    sent = tuple(
        Sent(*key, *map(line, low.get(key, (0, 0)), high.get(key, (0, 0))))
        for key in {**low, **high}
    )
    sizes = {
        name: line(fewer[name], more[name])
        for name in ("parameters", "gradients", "optimizer", "activations")
    }
    sizes["compiled_activations"] = sizes.pop("activations")
    batch = workload.batch // workload.data
    activations = formulas.activation_bytes(
        workload.config,
        workload.model,
        batch,
        workload.sequence,
        workload.element_size,
        workload.sequence_parallel,
    )
    return Plan(workload, activations=activations, sent=sent, **sizes)
