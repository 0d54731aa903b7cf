"""One pass over the weights for a step of AdamW, on PyTorch on a CPU."""

import math

import torch
from torch.optim.adamw import adamw


def can_fuse(optimizer, variables) -> bool:
    """Say whether the fused kernel can take these: float32 on the CPU, not sharded."""
    return not optimizer.amsgrad and all(
        type(variable.value.data) is torch.Tensor
        and variable.value.device.type == "cpu"
        and variable.value.dtype == torch.float32
        for variable in variables
    )


@torch.no_grad()
def clip(grads: list, limit: float) -> list:
    """Return gradients scaled so that their global norm is at most `limit`."""
    there = [grad for grad in grads if grad is not None]
    norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(there)))
    if not norm > limit:
        return grads
    scaled = iter(torch._foreach_mul(there, limit / norm))
    return [None if grad is None else next(scaled) for grad in grads]


@torch.no_grad()
def update(optimizer, grads, variables, learning_rate) -> None:
    """Do a step. Weight decay is done before, by Keras."""
    indices = [optimizer._get_variable_index(variable) for variable in variables]
    done = int(optimizer.iterations)
    # PyTorch adds epsilon after the correction of the second moment's bias, Keras before it.
    epsilon = optimizer.epsilon / math.sqrt(1 - optimizer.beta_2 ** (done + 1))
    adamw(
        [variable.value for variable in variables],
        list(grads),
        [optimizer._momentums[index].value for index in indices],
        [optimizer._velocities[index].value for index in indices],
        [],
        [torch.tensor(float(done)) for _ in variables],
        fused=True,
        amsgrad=False,
        beta1=optimizer.beta_1,
        beta2=optimizer.beta_2,
        lr=float(learning_rate),
        weight_decay=0.0,
        eps=epsilon,
        maximize=False,
    )
