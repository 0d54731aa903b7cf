"""What every layer of the model shares: activations, initializers, gradients' memory."""

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import keras
from keras.src.backend.common import global_state

from keras_megatron.pages import as_tensorflow, new_pages


@keras.saving.register_keras_serializable(package="keras_megatron")
def gelu_approximate(x):
    """GELU by its tanh approximation: Megatron's fused bias-GELU since 2020-09.

    `0.5 x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3)))`, Hendrycks and Gimpel (arXiv 1606.08415),
    section 2. Keras's `"gelu"` is the exact one, by the error function.
    """
    return keras.ops.gelu(x, approximate=True)


def get_activation(name: str | Callable) -> Callable:
    """Return the activation called `name`: `"gelu"`, `"gelu_approximate"` or any of Keras's.

    Raises:
        ValueError: there is no activation of this name.
    """
    if name == "gelu_approximate":
        return gelu_approximate
    try:
        return keras.activations.get(name)
    except ValueError:
        raise ValueError(
            f"unknown activation {name!r}: use 'gelu' (erf), 'gelu_approximate' (tanh) or the name "
            "of a Keras activation"
        ) from None


def refuse_unknown(arguments: Iterable[str], known: set[str]) -> None:
    """Refuse arguments that Keras's functional models would drop in silence.

    Raises:
        ValueError: an argument is not known.
    """
    unknown = sorted(set(arguments) - known)
    if unknown:
        raise ValueError(
            f"unknown argument {unknown[0]!r}; what shapes the backbone is given to the backbone: "
            "build it first, then the task with backbone=..."
        )


_zeros = ContextVar("zeros", default=None)  # while weights follow, those that there are by shape


@contextmanager
def weights_follow(all_of_them: bool) -> Iterator[None]:
    """Start kernels and tables that are made in this context as zeros: numbers are put in next.

    Random ones would take most of the time of loading, and on JAX as much memory again.

    Args:
        all_of_them: whether numbers are put into all; else they start at random as ever.
    """
    token = _zeros.set({} if all_of_them else None)
    try:
        yield
    finally:
        _zeros.reset(token)


def start_at_random(dense: keras.layers.Dense) -> None:
    """Give a layer that was made while weights follow the kernel that it would have had."""
    kernel = dense.kernel
    kernel.assign(dense.kernel_initializer(kernel.shape, kernel.dtype))


@keras.saving.register_keras_serializable(package="keras_megatron", name="Normal")
class _Normal(keras.initializers.RandomNormal):
    def __call__(self, shape, dtype=None):
        known = _zeros.get()
        if known is None:
            return super().__call__(shape, dtype)
        if keras.distribution.distribution():
            return keras.ops.zeros(shape, dtype)
        if keras.config.backend() == "torch":
            return keras.ops.empty(shape, dtype)  # takes no memory until written to
        key = tuple(shape), str(dtype)
        if key not in known:  # variables share one: they are replaced, not written to
            known[key] = _zeros_of(shape, dtype)
        return known[key]


def _zeros_of(shape, dtype):
    if keras.config.backend() != "tensorflow" or not all(shape):
        return keras.ops.zeros(shape, dtype)
    # TensorFlow would keep them when no variable has them any more.
    return as_tensorflow(new_pages(tuple(shape), dtype or keras.config.floatx()))


def normal_initializer(stddev: float) -> keras.initializers.Initializer:
    """N(0, stddev), the start of all kernels and tables (arXiv 1909.08053, section 4.2)."""
    return _Normal(stddev=stddev)


def scaled_normal_initializer(stddev: float, num_layers: int) -> keras.initializers.Initializer:
    """N(0, stddev / sqrt(2 num_layers)), for the two kernels that write to the residual stream.

    "we scale weights immediately before the residual layers by 1 / sqrt(2N) where N is the number
    of transformer layers" (arXiv 1909.08053, section 4.2).
    """
    return normal_initializer(stddev / math.sqrt(2.0 * num_layers))


def seed_generators(layer: keras.Layer) -> list[keras.random.SeedGenerator]:
    """List the seed generators of the dropouts in `layer` that drop anything."""
    dropouts = [x for x in layer._flatten_layers() if isinstance(x, keras.layers.Dropout)]
    return [x.seed_generator for x in dropouts if x.rate > 0]


_recomputed = ContextVar("recomputed", default=False)
_OF_THREAD = ("autocast_scope", "distribution")


def is_recomputed() -> bool:
    """Say whether what is computed now is computed again in the backward pass."""
    return _recomputed.get()


@contextmanager
def _replayed(generators: list, seeds: list) -> Iterator[None]:
    """Let each generator answer with a seed that was drawn before."""
    for generator, seed in zip(generators, seeds, strict=True):
        generator.next = lambda ordered=True, seed=seed: seed
    token = _recomputed.set(True)
    try:
        yield
    finally:
        _recomputed.reset(token)
        for generator in generators:
            del generator.next


@contextmanager
def _keras_state(state: dict) -> Iterator[None]:
    """Let Keras be as it was: PyTorch recomputes outside of the layer, or in another thread."""
    before = {name: global_state.get_global_attribute(name) for name in state}
    for name, value in state.items():
        global_state.set_global_attribute(name, value)
    try:
        yield
    finally:
        for name, value in before.items():
            global_state.set_global_attribute(name, value)


def rematerialize(function: Callable, generators: list, *tensors):
    """Call `function(*tensors)`, recomputing its activations in the backward pass.

    The seeds of its dropouts are drawn here, outside of what is recomputed: drawn inside, the
    second pass would drop other units than the first (TensorFlow) or leak a tracer (JAX).

    Args:
        function: a function of tensors.
        generators: the seed generators that `function` draws from, once each.
        *tensors: its arguments.

    Returns:
        What `function` returns.
    """
    seeds = [generator.next() for generator in generators]
    state = {name: global_state.get_global_attribute(name) for name in _OF_THREAD}

    def replay(*tensors):
        with _keras_state(state), _replayed(generators, seeds):
            return function(*tensors)

    return keras.remat(replay)(*tensors)
