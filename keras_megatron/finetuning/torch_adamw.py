"""One pass over the weights for a step of AdamW on PyTorch: clipping, decay and update."""

import math

import torch
from torch.optim.adamw import adamw


def can_fuse(optimizer) -> bool:
    """Say whether the fused kernel can take all weights: float32 on one CPU or GPU, not sharded."""
    return not optimizer.amsgrad and all(
        type(variable.value.data) is torch.Tensor
        and variable.value.device.type in ("cpu", "cuda")
        and variable.value.dtype == torch.float32
        for variable in optimizer._trainable_variables
    )


@torch.compiler.disable  # one call, of numbers that change at each step
@torch.no_grad()
def update(optimizer, grads, variables, learning_rate) -> None:
    """Do a step, with weight decay and with gradients clipped to a global norm."""
    grads, scale = _clipped(list(grads), variables, optimizer.global_clipnorm)
    done = int(optimizer.iterations)
    decay = optimizer.weight_decay or 0.0
    decays = [optimizer._use_weight_decay(variable) and decay != 0 for variable in variables]
    moments = (optimizer._momentums, optimizer._velocities)
    rows = []
    for variable, grad in zip(variables, grads, strict=True):
        index = optimizer._get_variable_index(variable)
        rows.append((variable.value, grad, *(moment[index].value for moment in moments)))
    for wanted in set(decays):
        chosen = [row for row, is_decayed in zip(rows, decays, strict=True) if is_decayed == wanted]
        steps = torch.full((len(chosen),), float(done), device=chosen[0][0].device).unbind()
        adamw(
            *map(list, zip(*chosen, strict=True)),
            [],
            list(steps),
            fused=True,
            grad_scale=scale,
            amsgrad=False,
            beta1=optimizer.beta_1,
            beta2=optimizer.beta_2,
            lr=float(learning_rate),
            weight_decay=decay if wanted else 0.0,
            # PyTorch adds it after the correction of the second moment's bias, Keras before.
            eps=optimizer.epsilon / math.sqrt(1 - optimizer.beta_2 ** (done + 1)),
            maximize=False,
        )


def _clipped(grads: list, variables: list, limit: float | None) -> tuple[list, torch.Tensor | None]:
    """Return gradients, and what the kernel divides them by so that their norm is at most `limit`.

    The kernel writes what it divides: gradients that are not those of a backward pass are copied.
    """
    if not limit:
        return grads, None
    norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(grads)))
    if norm.device.type == "cpu" and not norm > limit:
        return grads, None
    pairs = zip(grads, variables, strict=True)
    if not all(grad is variable.value.grad for grad, variable in pairs):
        grads = [grad.clone() for grad in grads]
    return grads, torch.clamp(norm / limit, min=1.0)  # not asked for: a GPU would be waited for
