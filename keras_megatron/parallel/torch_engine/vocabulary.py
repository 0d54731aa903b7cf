"""The vocabulary's split table and logits, computed on each process's share of them.

DTensor would gather the logits, and the table's gradient, or move them between layouts.
"""

import torch
import torch.distributed as dist
from keras.src.backend.torch.core import convert_to_tensor
from torch.distributed.tensor import DTensor, Partial, Replicate

from keras_megatron.parallel.torch_engine.devices import Layout, distribute_data_input, from_share

IGNORED = -100  # the label that torch.nn.functional.cross_entropy leaves out


def split_axis(tensor, axis: int) -> int | None:
    """Return the mesh's only axis that splits an axis of a tensor, or None."""
    if not isinstance(tensor, DTensor):
        return None
    found = [i for i, p in enumerate(tensor.placements) if p.is_shard(axis % tensor.ndim)]
    return found[0] if len(found) == 1 else None


def _without(tensor: DTensor, axis: int, keepdims: bool = False) -> Layout:
    """Return the layout of what is reduced over a split axis: whole on the axis of the mesh."""
    placements = []
    for placement in tensor.placements:
        if not placement.is_shard() or placement.dim == axis:
            placement = Replicate()
        elif placement.dim > axis and not keepdims:
            placement = type(placement)(placement.dim - 1)
        placements.append(placement)
    return Layout(tensor.device_mesh, tuple(placements))


def summed(tensor: DTensor) -> DTensor:
    """Return a tensor with no axis of the mesh left to sum over."""
    if not any(placement.is_partial() for placement in tensor.placements):
        return tensor
    return tensor.redistribute(
        placements=[Replicate() if p.is_partial() else p for p in tensor.placements]
    )


def split_cross_entropy(target, logits: DTensor, axis: int, split: int) -> DTensor:
    """Return the cross entropy of logits whose classes are split, without gathering them."""
    logits = summed(logits)
    layout = _without(logits, axis)
    if isinstance(target, DTensor):
        target = target.redistribute(layout.mesh, layout.placements)
    else:
        target = distribute_data_input(convert_to_tensor(target), layout)
    share = logits.to_local().movedim(axis, -1)
    first = layout.mesh.get_local_rank(split) * share.shape[-1]
    group = layout.mesh.get_group(split)
    return from_share(
        _SplitCrossEntropy.apply(share, target.to_local().long(), first, logits.shape[axis], group),
        layout,
    )


class _SplitCrossEntropy(torch.autograd.Function):
    """Cross entropy of a share of the classes (arXiv 1909.08053, section 3): two all-reduces."""

    @staticmethod
    def forward(ctx, logits, target, first, classes, group):
        counts = target != IGNORED
        torch._assert_async(
            (~counts | ((target >= 0) & (target < classes))).all(), "a label is out of range"
        )
        highest = logits.float().amax(dim=-1, keepdim=True)
        dist.all_reduce(highest, dist.ReduceOp.MAX, group=group)
        shifted = logits.float() - highest
        own = (target >= first) & (target < first + logits.shape[-1])
        index = torch.where(own, target - first, 0).unsqueeze(-1)
        of_label = torch.where(own, shifted.gather(-1, index).squeeze(-1), 0.0)
        exponentials = shifted.exp_()
        sums = torch.stack([exponentials.sum(-1), of_label])
        dist.all_reduce(sums, group=group)
        ctx.save_for_backward(exponentials.div_(sums[0].unsqueeze(-1)), index, own, counts)
        ctx.dtype = logits.dtype
        return torch.where(counts, sums[0].log() - sums[1], 0.0).to(logits.dtype)

    @staticmethod
    def backward(ctx, gradient):
        probabilities, index, own, counts = ctx.saved_tensors
        gradient = torch.where(counts, gradient.float(), 0.0).unsqueeze(-1)
        result = probabilities * gradient
        result.scatter_add_(-1, index, -gradient * own.unsqueeze(-1))
        return result.to(ctx.dtype), None, None, None, None


def split_lookup(table: DTensor, indices, split: int) -> DTensor:
    """Look rows up in a table that is split by rows: one all-reduce, none for the gradient."""
    mesh = table.device_mesh
    indices = convert_to_tensor(indices)
    if not isinstance(indices, DTensor):
        indices = from_share(indices, Layout(mesh, (Replicate(),) * mesh.ndim))
    layout = _without(indices, indices.ndim)
    gradient = [
        Partial() if placement.is_shard() else Replicate() for placement in layout.placements
    ]
    gradient[split] = table.placements[split]
    share = table.to_local(grad_placements=gradient)
    first = mesh.get_local_rank(split) * share.shape[0]
    rows = _SplitLookup.apply(
        share, indices.to_local().long(), first, table.shape[0], mesh.get_group(split)
    )
    return from_share(rows, layout)


class _SplitLookup(torch.autograd.Function):
    """Rows of a share of a table, zeros for those of others, summed over the processes."""

    @staticmethod
    def forward(ctx, table, indices, first, size, group):
        indices = torch.where(indices < 0, indices + size, indices)  # as Keras does
        torch._assert_async(
            ((indices >= 0) & (indices < size)).all(), "an id has no row in the table"
        )
        own = (indices >= first) & (indices < first + table.shape[0])
        local = torch.where(own, indices - first, 0)
        rows = torch.where(own.unsqueeze(-1), table[local], 0.0)
        dist.all_reduce(rows, group=group)
        ctx.save_for_backward(local, own)
        ctx.rows = table.shape[0]
        return rows

    @staticmethod
    def backward(ctx, gradient):
        local, own = ctx.saved_tensors
        gradient = torch.where(own.unsqueeze(-1), gradient, 0.0)
        gradient = torch.ops.aten.embedding_dense_backward(gradient, local, ctx.rows, -1, False)
        return gradient, None, None, None, None


def split_argmax(x: DTensor, axis: int, split: int, keepdims: bool) -> DTensor:
    """Return where a split axis is highest, first if several are: two all-reduces."""
    x = summed(x)
    layout = _without(x, axis, keepdims)
    group = layout.mesh.get_group(split)
    own, index = x.detach().to_local().max(dim=axis, keepdim=keepdims)
    highest = own.clone()
    dist.all_reduce(highest, dist.ReduceOp.MAX, group=group)
    size = x.shape[axis] // layout.mesh.size(split)
    index = index + layout.mesh.get_local_rank(split) * size
    index = torch.where(own == highest, index, x.shape[axis] - 1)
    dist.all_reduce(index, dist.ReduceOp.MIN, group=group)
    return from_share(index.to(torch.int32), layout)
