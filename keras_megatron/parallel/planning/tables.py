"""Plans as tables."""

from collections.abc import Sequence

from keras_megatron.parallel.planning.plans import Plan
from keras_megatron.parallel.tables import amount, as_text, new_table

_MEMORY = (
    "Activations and total: from what arXiv 2205.05198's formula says to what JAX's program for "
    "CPUs keeps,\nwhich has random bits and broadcast means in memory, and computes 16-bit types "
    "in 32 bits."
)
_COMMUNICATION = (
    "The paper's: four all-reduces a layer, of batch x sequence x hidden (arXiv 1909.08053, "
    "section 3).\nOver data: gradients, once a step; those of the tied table twice."
)


def as_tables(plans: Sequence[Plan]) -> str:
    """Return tables of memory and communication of each model, and parts of what is sent.

    The parts are those of the plan with the most model devices, the last of several.
    """
    models = {}
    for plan in plans:
        models.setdefault(plan.workload.name, []).append(plan)
    texts = [_memory(group) for group in models.values()] + [_MEMORY]
    if any(plan.sent for plan in plans):
        texts += [_communication(group) for group in models.values()] + [_COMMUNICATION]
    most = max(plan.workload.model for plan in plans)
    if most > 1:
        texts.append(_parts([plan for plan in plans if plan.workload.model == most][-1]))
    return "\n\n".join(texts)


def _memory(plans: Sequence[Plan]) -> str:
    table = new_table(f"{plans[0].workload.name}: memory of each device")
    for name in ("mesh", "batch", "weights", "gradients", "optimizer", "activations", "total"):
        table.add_column(name, justify="right", no_wrap=True)
    for plan in plans:
        table.add_row(
            plan.workload.mesh,
            str(plan.workload.batch),
            amount(plan.parameters),
            amount(plan.gradients),
            amount(plan.optimizer),
            amount(plan.activations, plan.compiled_activations),
            amount(plan.total, plan.compiled_total),
        )
    return as_text(table)


def _communication(plans: Sequence[Plan]) -> str:
    table = new_table(f"{plans[0].workload.name}: arrays that each device sends, a step")
    for name in ("mesh", "batch", "in layers", "paper's", "table, head, loss", "over data"):
        table.add_column(name, justify="right", no_wrap=True)
    for plan in plans:
        table.add_row(
            plan.workload.mesh,
            str(plan.workload.batch),
            _arrays(*plan.sent_along("model", layers=True)),
            _arrays(*plan.expected),
            amount(plan.sent_along("model", layers=False)[1]),
            amount(plan.sent_along("data")[1]),
        )
    return as_text(table)


def _parts(plan: Plan) -> str:
    work = plan.workload
    table = new_table(f"{work.name} on {work.mesh}: what is sent, by part of the step")
    for name in ("part", "by", "over"):
        table.add_column(name, no_wrap=True)
    for name in ("sent", "paper's"):
        table.add_column(name, justify="right", no_wrap=True)
    arrays, size = plan.expected
    for sent in plan.sent:
        paper = _arrays(arrays // 4, size // 4) if sent.of_layers else ""
        table.add_row(sent.part, sent.kind, sent.axis, _arrays(sent.arrays, sent.bytes), paper)
    return as_text(table)


def _arrays(arrays: int, size: int) -> str:
    return f"{arrays:,} x {amount(round(size / arrays))}" if arrays else "-"
