"""Products of DTensors that need no data of another process, as Megatron's all are.

DTensor would bring them to the form of a batched matrix product first, and plan each of the steps:
seconds for each new shape on a mesh of two axes.
"""

import torch
from torch.distributed.tensor import DTensor, Partial, Placement, Replicate, Shard

from keras_megatron.parallel.torch_engine.devices import Layout, from_share


def split_einsum(subscripts: str, *operands) -> DTensor | None:
    """Return the product of two DTensors, or None if it is not one of what each process has.

    Args:
        subscripts: as of `torch.einsum`.
        *operands: what is multiplied.
    """
    if len(operands) != 2 or not all(isinstance(x, DTensor) for x in operands):
        return None
    left, right, output = subscripts.replace("->", ",").replace(" ", "").split(",")
    if "." in subscripts or operands[0].device_mesh != operands[1].device_mesh:
        return None
    mesh, axes = operands[0].device_mesh, []
    for axis in range(mesh.ndim):
        labels = [_label(x, names, axis) for x, names in zip(operands, (left, right), strict=True)]
        placements = _placements(labels, (left, right), output)
        if placements is None:
            return None
        axes.append(placements)
    result, *gradients = zip(*axes, strict=True)
    shares = [
        operand.to_local(grad_placements=gradient)
        for operand, gradient in zip(operands, gradients, strict=True)
    ]
    if not all(share.is_floating_point() for share in shares):  # int8 would overflow
        shares = [share.to(torch.int32) for share in shares]
    return from_share(torch.einsum(subscripts, *shares), Layout(mesh, result))


def _label(operand: DTensor, names: str, axis: int) -> str | None:
    """Return which label an axis of the mesh splits; "" if none, None if not in equal parts."""
    placement = operand.placements[axis]
    if placement.is_replicate():
        return ""
    if type(placement) is not Shard or operand.shape[placement.dim] % operand.device_mesh.size(
        axis
    ):
        return None
    return names[placement.dim]


def _placements(labels: list, names: tuple[str, str], output: str) -> list[Placement] | None:
    """Return the placements on one axis of the mesh: of the result and of both gradients.

    Args:
        labels: which label of each operand is split, "" for none.
        names: labels of each operand.
        output: labels of the result.
    """
    if None in labels:
        return None
    split = max(labels)
    if not split:
        return [Replicate()] * 3
    # What one operand has a part of, the other has the same part of, or not at all.
    if any(label not in ("", split) for label in labels):
        return None
    if any(not label and split in own for label, own in zip(labels, names, strict=True)):
        return None
    result = Shard(output.index(split)) if split in output else Partial()
    gradients = [
        Shard(own.index(split)) if label else Partial()
        for label, own in zip(labels, names, strict=True)
    ]
    return [result, *gradients]
