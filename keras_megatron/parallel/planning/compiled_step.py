"""A training step compiled for a mesh without allocating the model: its bytes, and what it sends.

JAX compiles ahead of time for devices that exist in name only. As their number is fixed when JAX
starts, `keras_megatron.parallel.planning.plans` runs this in a process of its own: requests come on
stdin as JSON, and each result goes to stdout, a line each.
"""

import dataclasses
import json
import math
import sys

import jax
import keras

from keras_megatron.backbone import MegatronBertBackbone
from keras_megatron.parallel.context import model_parallel
from keras_megatron.parallel.planning.collectives import collectives
from keras_megatron.parallel.planning.formulas import masks
from keras_megatron.parallel.planning.workload import Workload
from keras_megatron.tasks.masked_lm import MegatronBertMaskedLM

# The code is never run, so it need not be fast. All-reduces are not put together, which would hide
# the ones that are of 16 bits.
_OPTIONS = {
    "xla_backend_optimization_level": 0,
    "xla_disable_hlo_passes": "all-reduce-combiner,cpu-all-reduce-combiner",
}
# XLA on CPUs keeps less with these; a version of JAX that lacks them does without.
_SPARING = {
    "xla_cpu_experimental_ynn_fusion_type": "",
    "xla_cpu_scheduler_type": "CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED",
}


def compile_step(workload: Workload) -> dict:
    """Compile a training step of the masked LM, and return what it needs on each device.

    The step is forward, backward, clipping to a global norm, and AdamW. It returns the gradients
    too, so that they have memory of their own for all of the step, as in Megatron-LM.

    Args:
        workload: what to train; all of its layers are compiled.

    Returns:
        Bytes a device of `parameters`, `gradients`, `optimizer` and `activations` (what else the
        program keeps at its peak), and `sent`, a list of `Sent` as dicts.
    """
    data, model = workload.data, workload.model
    devices = keras.distribution.list_devices()[: data * model]
    with model_parallel(model, data, workload.sequence_parallel, devices) as distribution:
        task, optimizer = _abstract_model({**workload.config, "dtype": workload.dtype})
        kinds = (task.trainable_variables, task.non_trainable_variables, optimizer.variables)
        state = [[_struct(variable) for variable in variables] for variables in kinds]
        inputs = _inputs(distribution, workload.batch, workload.sequence)
        step = jax.jit(_training_step(task, optimizer), donate_argnums=0)
        program = _compile(step.lower(state, *inputs))
    return {
        "parameters": sum(_local_bytes(_struct(weight)) for weight in task.weights),
        "gradients": sum(map(_local_bytes, state[0])),
        "optimizer": sum(map(_local_bytes, state[2])),
        "activations": program.memory_analysis().temp_size_in_bytes,
        "sent": [dataclasses.asdict(s) for s in collectives(program.as_text(), data, model)],
    }


def _abstract_model(config: dict):
    """Build a masked LM and its optimizer while JAX traces: nothing is allocated."""
    made = []

    def make():
        backbone = MegatronBertBackbone(**config)
        task = MegatronBertMaskedLM(backbone, preprocessor=None, compile=False)
        optimizer = keras.optimizers.AdamW(1e-4, global_clipnorm=1.0)
        optimizer.build(task.trainable_variables)
        made.extend((task, optimizer))
        return 0

    jax.eval_shape(make)
    return made


def _struct(variable) -> jax.ShapeDtypeStruct:
    sharding = variable._layout.backend_layout
    return jax.ShapeDtypeStruct(variable.shape, variable.dtype, sharding=sharding)


def _local_bytes(struct: jax.ShapeDtypeStruct) -> int:
    return math.prod(struct.sharding.shard_shape(struct.shape)) * struct.dtype.itemsize


def _inputs(distribution, batch: int, sequence: int) -> tuple:
    def array(length: int, dtype: str = "int32") -> jax.ShapeDtypeStruct:
        layout = distribution.get_data_layout((batch, length)).backend_layout
        return jax.ShapeDtypeStruct((batch, length), dtype, sharding=layout)

    predicted = masks(sequence)
    x = {name: array(sequence) for name in ("token_ids", "segment_ids", "padding_mask")}
    x["mask_positions"] = array(predicted)
    return x, array(predicted), array(predicted, "float32")


def _training_step(task, optimizer):
    """Return the step as a function of variables and a batch."""
    cross_entropy = task.default_loss()

    def step(state, x, y, sample_weight):
        trainable, others, slots = state

        def loss(trainable):
            logits, rest = task.stateless_call(trainable, others, x, training=True)
            return cross_entropy(y, logits, sample_weight), rest

        (value, rest), gradients = jax.value_and_grad(loss, has_aux=True)(trainable)
        trainable, slots = optimizer.stateless_apply(slots, gradients, trainable)
        return value, gradients, [trainable, rest, slots]

    return step


def _compile(lowered: jax.stages.Lowered) -> jax.stages.Compiled:
    try:
        return lowered.compile(compiler_options={**_OPTIONS, **_SPARING})
    except jax.errors.JaxRuntimeError:
        return lowered.compile(compiler_options=_OPTIONS)


if __name__ == "__main__":
    for request in json.load(sys.stdin):
        print(json.dumps(compile_step(Workload(**request))), flush=True)
