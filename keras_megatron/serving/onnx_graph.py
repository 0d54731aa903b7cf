"""A graph of ONNX operations, made node by node and written to a file."""

import pathlib
from collections.abc import Sequence

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from keras_megatron.version import __version__

OPSET = 20  # the first with Gelu; onnxruntime reads it since 1.17
_IR_VERSION = 9  # what goes with that opset
_LARGEST_FILE = 2**31 - 2**24  # protobuf's limit, and room for the nodes
_PAGE = 4096  # weights that start on a page can be mapped instead of copied


class OnnxGraph:
    """Nodes, weights, inputs and outputs. A value is known by its name, a str.

    Args:
        int8: how the matrices of `linear` and `rows` are kept. None: float32. `"dynamic"`: in 8
            bits, and what they are multiplied by is rounded to 8 bits as it comes, in steps of its
            own range. `"stored"`: in 8 bits, and multiplied as float32.
    """

    def __init__(self, int8: str | None = None):
        self.int8 = int8
        self.nodes, self.inputs, self.outputs = [], [], []
        self.weights: dict[str, np.ndarray] = {}

    def node(self, operation: str, *inputs: str, outputs: int = 1, **attributes):
        """Add an operation.

        Returns:
            The name of its output, or a list of them if there are several.
        """
        name = f"{operation}_{len(self.nodes)}"
        names = [name, *(f"{name}_{index}" for index in range(1, outputs))]
        self.nodes.append(helper.make_node(operation, inputs, names, name, **attributes))
        return names if outputs > 1 else name

    def input(self, name: str, axes: Sequence[str | int], dtype: str) -> str:
        """Add an input; an axis that has a name may have any size."""
        kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
        self.inputs.append(helper.make_tensor_value_info(name, kind, axes))
        return name

    def output(self, name: str, value: str, axes: Sequence[str | int]) -> None:
        """Make a value an output, float32."""
        self.nodes.append(helper.make_node("Identity", [value], [name], f"output_{name}"))
        self.outputs.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, axes))

    def weight(self, name: str, array: np.ndarray) -> str:
        """Add an array; the same name again is the same array."""
        self.weights.setdefault(name, np.asarray(array, order="C"))
        return name

    def ints(self, *values: int) -> str:
        """Add a vector of int64."""
        return self.weight(f"ints{values}", np.array(values, "int64"))

    def number(self, value: float, dtype: str = "float32") -> str:
        """Add a scalar."""
        return self.weight(f"{dtype}({value})", np.array(value, dtype))

    def cast(self, value: str, dtype: str) -> str:
        """Change the type of a value."""
        return self.node("Cast", value, to=helper.np_dtype_to_tensor_dtype(np.dtype(dtype)))

    def sizes(self, value: str, start: int, end: int) -> str:
        """Return the sizes of the axes [start, end)."""
        return self.node("Shape", value, start=start, end=end)

    def linear(self, x: str, name: str, kernel: np.ndarray, bias: np.ndarray) -> str:
        """Multiply by a kernel (input, output), in 8 bits if the graph has them, and add a bias."""
        if self.int8:
            product = self._int8_product(x, *self._int8_weight(name, kernel, axis=0))
        else:
            product = self.node("MatMul", x, self.weight(f"{name}.kernel", kernel))
        return self.node("Add", product, self.weight(f"{name}.bias", bias))

    def float_linear(self, x: str, name: str, kernel: np.ndarray, bias: np.ndarray) -> str:
        """Do what `linear` does, in float32 whatever the graph has."""
        product = self.node("MatMul", x, self.weight(f"{name}.kernel", kernel))
        return self.node("Add", product, self.weight(f"{name}.bias", bias))

    def rows(self, ids: str, name: str, table: np.ndarray) -> str:
        """Return the rows (..., width) of a table, in 8 bits if the graph has them."""
        if not self.int8:
            return self.node("Gather", self.weight(name, table), ids)
        parts = self._int8_weight(name, table, axis=1)
        rows, scale = (self.node("Gather", part, ids) for part in parts)
        scale = self.node("Unsqueeze", scale, self.ints(-1))
        return self.node("Mul", self.cast(rows, "float32"), scale)

    def product_with_rows(self, x: str, name: str) -> str:
        """Multiply by each row of a table that `rows` has added; it is kept once."""
        if not self.int8:
            return self.node("MatMul", x, self.node("Transpose", name, perm=[1, 0]))
        columns = self.node("Transpose", f"{name}.int8", perm=[1, 0])
        return self._int8_product(x, columns, f"{name}.scale")

    def _int8_weight(self, name: str, array: np.ndarray, axis: int) -> tuple[str, str]:
        """Add a matrix in 8 bits, with a scale for each slice along `axis`.

        Symmetric and signed: zero points take onnxruntime nearly twice as long, for no less error.
        """
        scale = np.maximum(np.abs(array).max(axis) / 127, np.finfo("float32").tiny)
        steps = np.round(array / np.expand_dims(scale, axis)).astype("int8")
        return self.weight(f"{name}.int8", steps), self.weight(f"{name}.scale", scale)

    def _int8_product(self, x: str, kernel: str, scale: str) -> str:
        if self.int8 == "stored":
            return self.node("MatMul", x, self.node("DequantizeLinear", kernel, scale, axis=1))
        # onnxruntime makes one operation of these.
        steps, step, zero = self.node("DynamicQuantizeLinear", x, outputs=3)
        product = self.cast(self.node("MatMulInteger", steps, kernel, zero), "float32")
        return self.node("Mul", product, self.node("Mul", step, scale))

    def save(self, path: pathlib.Path) -> None:
        """Write the graph; above 2 GB its weights go to a file of its name with `.data` behind."""
        large = sum(array.nbytes for array in self.weights.values()) > _LARGEST_FILE
        data = path.with_name(path.name + ".data")
        tensors = _external(self.weights, data) if large else _internal(self.weights)
        graph = helper.make_graph(
            self.nodes, "keras_megatron", self.inputs, self.outputs, initializer=tensors
        )
        model = helper.make_model(
            graph,
            opset_imports=[helper.make_opsetid("", OPSET)],
            ir_version=_IR_VERSION,
            producer_name="keras_megatron",
            producer_version=__version__,
        )
        onnx.save_model(model, path)


def _internal(weights: dict[str, np.ndarray]) -> list[TensorProto]:
    return [numpy_helper.from_array(array, name) for name, array in weights.items()]


def _external(weights: dict[str, np.ndarray], path: pathlib.Path) -> list[TensorProto]:
    """Write what is larger than a page to a file, one array at a time."""
    tensors = []
    with open(path, "wb") as file:
        for name, array in weights.items():
            if array.nbytes < _PAGE:
                tensors += _internal({name: array})
                continue
            file.write(bytes(-file.tell() % _PAGE))
            place = {"location": path.name, "offset": file.tell(), "length": array.nbytes}
            file.write(memoryview(array).cast("B"))
            tensor = TensorProto(
                name=name,
                dims=array.shape,
                data_type=helper.np_dtype_to_tensor_dtype(array.dtype),
                data_location=TensorProto.EXTERNAL,
            )
            for key, value in place.items():
                tensor.external_data.add(key=key, value=str(value))
            tensors.append(tensor)
    return tensors
