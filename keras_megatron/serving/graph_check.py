"""What is inside a SavedModel: only operations that TensorFlow Serving has, and no path."""

import os
import pathlib
import sys
import tempfile

from tensorflow.core.protobuf.saved_model_pb2 import SavedModel
from tensorflow.python.framework import op_def_registry

# TensorFlow Serving is built without a Python to call back, and compiles by XLA only if it is told
# to: operations that need that ("Xla..." by name) fail at a request (tensorflow/serving#2217).
_REFUSED = {"PyFunc", "PyFuncStateless", "EagerPyFunc"}
# Of TensorFlow Text, whose operations TensorFlow Serving links in.
_TEXT = {"FastWordpieceTokenizeWithOffsets"}


def check_graph(folder: pathlib.Path) -> list[str]:
    """Return the names of the operations in a SavedModel.

    Args:
        folder: with a saved_model.pb.

    Raises:
        ValueError: TensorFlow Serving does not have one, or there is a path of this machine.
    """
    operations = graph_operations(folder)
    strange = [name for name in operations if not _is_servable(name)]
    if strange:
        raise ValueError(
            f"the graph has operations that TensorFlow Serving lacks: {', '.join(strange)}; this "
            "is an error of keras_megatron, please report it"
        )
    paths = paths_in(folder)
    if paths:
        raise ValueError(
            f"the graph has a path of this machine, {paths[0]}; this is an error of "
            "keras_megatron, please report it"
        )
    return operations


def graph_operations(folder: pathlib.Path) -> list[str]:
    """Return the names of the operations in all graphs and functions, sorted."""
    saved = SavedModel.FromString((folder / "saved_model.pb").read_bytes())
    names = set()
    for meta_graph in saved.meta_graphs:
        graph = meta_graph.graph_def
        functions = {function.signature.name for function in graph.library.function}
        nodes = list(graph.node)
        for function in graph.library.function:
            nodes += function.node_def
        names |= {node.op for node in nodes} - functions
    return sorted(names)


def paths_in(folder: pathlib.Path) -> list[str]:
    """Return the paths of this machine that stand in any file of a folder but the weights."""
    places = {sys.prefix, sys.base_prefix, os.getcwd(), tempfile.gettempdir()}
    places |= {str(pathlib.Path.home()), str(pathlib.Path(__file__).parents[2]), str(folder)}
    # One below "/" could be part of an operation's name, "classifier/MatMul".
    places = {place for place in places if len(pathlib.Path(place).parts) > 2}
    found = []
    for file in sorted(folder.rglob("*")):
        if file.is_file() and ".data-" not in file.name:
            content = file.read_bytes()
            found += [place for place in sorted(places) if place.encode() in content]
    return found


def _is_servable(name: str) -> bool:
    # What is registered beside TensorFlow's own operations has a prefix "Library>", by convention.
    known = name in _TEXT or (">" not in name and op_def_registry.get(name) is not None)
    return known and name not in _REFUSED and not name.startswith("Xla")
