"""What each device holds of a model, and why."""

import dataclasses
import math
import re

import keras
import ml_dtypes  # noqa: F401  (tells NumPy the name bfloat16)
import numpy as np

from keras_megatron.parallel.context import batch_axis
from keras_megatron.parallel.engines import engine
from keras_megatron.parallel.reasons import reason
from keras_megatron.parallel.tables import amount, as_text, new_table

OUTSIDE = "made outside of model_parallel(...)"
_NUMBERED = re.compile(r"transformer_layer_(\d+)")


@dataclasses.dataclass(frozen=True)
class VariableReport:
    """A variable on the devices of a mesh.

    Attributes:
        path: the variable's path.
        kind: `"weight"`, `"optimizer"`, or `"state"` (random states, metrics).
        shape: of all of it.
        dtype: what it is stored as.
        layout: of each axis, the axis of the mesh that it is split over, or None.
        bytes: of all of it.
        bytes_a_device: that a device holds, measured.
        reason: why it is split so, or whole.
    """

    path: str
    kind: str
    shape: tuple[int, ...]
    dtype: str
    layout: tuple[str | None, ...]
    bytes: int
    bytes_a_device: int
    reason: str


@dataclasses.dataclass(frozen=True)
class ModelReport:
    """What `describe` returns; printed, a table.

    Attributes:
        model: the model's name.
        mesh: devices by axis; empty for a model that was made outside of `model_parallel`.
        model_devices: devices that a variable can be split over.
        variables: all of the model's and its optimizer's.
    """

    model: str
    mesh: dict[str, int]
    model_devices: int
    variables: tuple[VariableReport, ...]

    def bytes(self, kind: str | None = None) -> int:
        """Return the bytes of all variables, or of those of a kind, each counted once."""
        return sum(v.bytes for v in self.variables if kind in (None, v.kind))

    def bytes_a_device(self, kind: str | None = None) -> int:
        """Return the bytes that each device holds of all variables, or of those of a kind."""
        return sum(v.bytes_a_device for v in self.variables if kind in (None, v.kind))

    @property
    def ideal(self) -> float:
        """The share of a device if everything were split."""
        return 1 / self.model_devices

    @property
    def share(self) -> float:
        """The share of all bytes that a device holds."""
        return self.bytes_a_device() / max(1, self.bytes())

    def to_dict(self) -> dict:
        """Return the report as JSON takes it."""
        return {
            **dataclasses.asdict(self),
            "bytes": self.bytes(),
            "bytes_a_device": self.bytes_a_device(),
            "share": self.share,
            "ideal": self.ideal,
        }

    def __str__(self) -> str:
        return as_text(self._table(), least_width=156)  # a row a variable

    def _table(self):
        mesh = " x ".join(f"{size} ({axis})" for axis, size in self.mesh.items())
        where = f"a mesh of {mesh} devices" if mesh else "one device"
        table = new_table(f"{self.model} on {where}")
        table.add_column("Variable", no_wrap=True)
        table.add_column("Shape/axis", no_wrap=True)
        for name in ("All", "A device"):
            table.add_column(name, justify="right", no_wrap=True)
        table.add_column("How it is split, or why not", overflow="fold")
        groups = self._groups()
        for is_split in (True, False):
            for alike in groups:
                if any(alike[0].layout) == is_split:
                    all_bytes = sum(v.bytes for v in alike)
                    a_device = sum(v.bytes_a_device for v in alike)
                    sizes = (amount(all_bytes), amount(a_device))
                    table.add_row(_name(alike), _shape(alike[0]), *sizes, alike[0].reason)
            table.add_section()
        for kind, name in (("weight", "weights"), ("optimizer", "optimizer"), ("state", "state")):
            if whole := self.bytes(kind):
                table.add_row(name, "", amount(whole), amount(self.bytes_a_device(kind)))
        sizes = map(amount, (self.bytes(), self.bytes_a_device()))
        share = f"{self.share:.1%} of all on a device; {self.ideal:.1%} if all were split"
        table.add_row("total", "", *sizes, share)
        return table

    def _groups(self) -> list[list[VariableReport]]:
        """Return weights, those that only differ in the layer together; the rest is in sums."""
        groups = {}
        for variable in self.variables:
            if variable.kind == "weight":
                path = _NUMBERED.sub("", variable.path)
                key = (path, variable.shape, variable.layout, variable.dtype, variable.reason)
                groups.setdefault(key, []).append(variable)
        return list(groups.values())


def _name(alike: list[VariableReport]) -> str:
    """Return the path that variables share, with the numbers of their layers."""
    numbers = [match[1] for v in alike if (match := _NUMBERED.search(v.path))]
    span = "..".join(dict.fromkeys((*numbers[:1], *numbers[-1:])))
    return _NUMBERED.sub(f"layer_{span}", alike[0].path)


def _shape(variable: VariableReport) -> str:
    """Return a shape with the mesh's axes that split it, such as `32 x 4/model x 8`."""
    axes = zip(variable.shape, variable.layout, strict=True)
    return " x ".join(f"{size}/{axis}" if axis else str(size) for size, axis in axes)


def describe(model: keras.Model) -> ModelReport:
    """Report each variable of a model: its layout, its bytes on a device, and why.

    It can be asked inside of `model_parallel(...)` and afterwards. On PyTorch it tells what the
    process's own device holds, and each process may ask for itself.

    Args:
        model: any model; what it has of an optimizer is reported too, once that is built.

    Returns:
        A report to print; `to_dict()` has it as data.

    Example:
    ```python
    from keras_megatron import MegatronBertMaskedLM, parallel

    with parallel.model_parallel(model=1):
        masked_lm = MegatronBertMaskedLM.from_preset("megatron_bert_tiny_uncased")
    report = parallel.describe(masked_lm)
    print(report)
    assert report.share == 1.0  # of one device
    ```
    """
    weights = {id(variable) for variable in model.weights}
    variables = [
        _describe(variable, "weight" if id(variable) in weights else "state")
        for variable in model.variables
    ]
    optimizer = getattr(model, "optimizer", None)
    variables += [
        _describe(variable, "optimizer") for variable in getattr(optimizer, "variables", ())
    ]
    mesh = next((v._layout.device_mesh for v in model.weights if _layout(v)), None)
    if mesh is None:
        return ModelReport(model.name, {}, 1, tuple(variables))
    sizes = dict(zip(mesh.axis_names, mesh.shape, strict=True))
    others = (size for axis, size in sizes.items() if axis != batch_axis(mesh))
    return ModelReport(model.name, sizes, math.prod(others), tuple(variables))


def _layout(variable):
    return getattr(variable, "_layout", None)


def _describe(variable, kind: str) -> VariableReport:
    shape, dtype = tuple(variable.shape), keras.backend.standardize_dtype(variable.dtype)
    local = tuple(engine().local_shape(variable))
    layout = _layout(variable)
    axes = tuple(layout.axes) if layout else (None,) * len(shape)
    if layout is None:
        why = OUTSIDE
    elif kind == "optimizer":
        why = "as the variable that it belongs to" if shape else "one number"
    else:
        why = reason(variable.path, shape, dtype, axes, is_split=local != shape)
    size = np.dtype(dtype).itemsize
    sizes = (math.prod(shape) * size, math.prod(local) * size)
    return VariableReport(variable.path, kind, shape, dtype, axes, *sizes, why)
