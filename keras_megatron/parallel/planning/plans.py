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

from keras_megatron.parallel.planning import formulas
from keras_megatron.parallel.planning.collectives import Sent
from keras_megatron.parallel.planning.workload import Workload

# The layers are alike, so two depths are compiled, and what depends on the depth does so linearly.
# Not one layer, which XLA treats in ways of its own.
DEPTHS = (2, 3)


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
            16-bit types in 32 bits. What an accelerator keeps should be between both numbers, but
            has not been measured.
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
        {**dataclasses.asdict(workload), "config": {**workload.config, "num_layers": depth}}
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
