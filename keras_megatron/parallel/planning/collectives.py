"""What a compiled program sends between devices, read from its text (XLA's HLO)."""

import dataclasses
import math
import re

import numpy as np

_BYTES = {"f64": 8, "s64": 8, "f32": 4, "s32": 4, "u32": 4, "bf16": 2, "f16": 2, "s8": 1, "u8": 1}
_BYTES["pred"] = 1
_INSTRUCTION = re.compile(
    r"= (?P<type>.*?) (?P<kind>all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute)"
    r"\((?P<rest>.*)"
)
_ARRAY = re.compile(rf"\b({'|'.join(_BYTES)})\[([\d,]*)\]")
# The three ways in which XLA writes which devices a collective is among.
_LISTED = re.compile(r"(?:replica_groups|source_target_pairs)=\{\{([\d,]+)\}")
_COUNTED = re.compile(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?")
_ON_MESH = re.compile(
    r"replica_groups=mesh\[(.*?)\](?:, device_ids=\(\[([\d,]+)\](?:T\(([\d,]+)\))?\))? \{(.*?)\}"
)
_BLOCK = re.compile(r"transformer_layer_\d+/(self_attention|feedforward)")
_OTHER_PARTS = {
    "token_embedding/jit(_take)": "embedding",
    "crossentropy": "loss",
    "mlm_head": "head",
    "adam": "clipping",
}


@dataclasses.dataclass(frozen=True)
class Sent:
    """Collectives of a program that are alike.

    Attributes:
        part: of the model, such as `"attention, backward"`.
        kind: XLA's name, such as `"all-reduce"`.
        axis: of the mesh that they are along: `"model"`, `"data"`, or `"both"`.
        arrays: how many a step; XLA may send several together.
        bytes: of these arrays, whole, a step. An all-reduce sends each byte up to twice, the other
            kinds once.
    """

    part: str
    kind: str
    axis: str
    arrays: int
    bytes: int

    @property
    def of_layers(self) -> bool:
        """Whether a transformer layer sends it, where the paper has four all-reduces."""
        return self.part.startswith(("attention", "feed-forward"))


def collectives(program: str, data: int, model: int) -> list[Sent]:
    """List what a device of a mesh of (data, model) devices sends and receives.

    Args:
        program: a compiled module, one instruction a line.
        data: devices along the first axis of the mesh.
        model: devices along the second axis.

    Raises:
        ValueError: the program says which devices take part in a way that is not known here.
    """
    found: dict[tuple[str, str, str], list[int]] = {}
    for line in program.splitlines():
        if not (match := _INSTRUCTION.search(line)):
            continue
        group = _first_group(match["rest"])
        if len(group) < 2:
            continue
        axis = _axis(group, data, model)
        sums = found.setdefault((_part(line, axis), match["kind"], axis), [0, 0])
        sizes = _sizes(match)
        sums[0] += 1 if match["kind"] == "all-to-all" else len(sizes)  # its tuple is of pieces
        sums[1] += sum(sizes) * (len(group) if match["kind"] == "reduce-scatter" else 1)
    return [Sent(*key, *sums) for key, sums in found.items()]


def _sizes(match: re.Match) -> list[int]:
    """Return the bytes of each array that an instruction results in."""
    # XLA on CPUs adds 16-bit numbers up in 32 bits, and says so in the function's name. An
    # accelerator sends the 16.
    most = 2 if "_promoted" in match["rest"] else 8
    return [
        min(_BYTES[dtype], most) * math.prod(map(int, filter(None, shape.split(","))))
        for dtype, shape in _ARRAY.findall(match["type"])
    ]


def _first_group(text: str) -> list[int]:
    """Return the devices that one collective is among: those of its first group."""
    if match := _LISTED.search(text):
        return _numbers(match[1])
    if match := _COUNTED.search(text):
        return _iota(match[2], match[3]).reshape(_numbers(match[1]))[0].tolist()
    if match := _ON_MESH.search(text):
        names, sizes = zip(*re.findall(r"'(\w+)'=(\d+)", match[1]), strict=True)
        sizes = ",".join(sizes)
        devices = _iota(match[2] or sizes, match[3]).reshape(_numbers(sizes))
        along = re.findall(r"'(\w+)'", match[4])
        return devices[tuple(slice(None) if n in along else 0 for n in names)].ravel().tolist()
    raise ValueError(f"which devices take part is not known: {text[:200]}")


def _iota(sizes: str, order: str | None) -> np.ndarray:
    devices = np.arange(math.prod(_numbers(sizes))).reshape(_numbers(sizes))
    return devices.transpose(_numbers(order)) if order else devices


def _numbers(text: str) -> list[int]:
    return [int(number) for number in text.split(",")]


def _axis(group: list[int], data: int, model: int) -> str:
    """Return the axis of the mesh along which devices lie; they are numbered row by row."""
    rows, columns = {device // model for device in group}, {device % model for device in group}
    if len(rows) == 1:
        return "model"
    return "data" if len(columns) == 1 else "both"


def _part(line: str, axis: str) -> str:
    """Return what a collective belongs to, by the name that Keras gave its operation."""
    match = re.search(r'op_name="([^"]*)"', line)
    name = match[1] if match else ""
    if axis != "model":
        return "gradients and loss"
    if block := _BLOCK.search(name):
        direction = "backward" if "transpose(" in name else "forward"
        return f"{'attention' if block[1] == 'self_attention' else 'feed-forward'}, {direction}"
    return next((part for text, part in _OTHER_PARTS.items() if text in name), "other")
