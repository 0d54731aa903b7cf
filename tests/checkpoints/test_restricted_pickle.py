"""Nothing that a file contains is run: neither alone, nor inside of a checkpoint."""

import pickle
import time

import hostile
import pytest
from checkpoint_helpers import one_line_error

from keras_megatron.checkpoints.mapped_files import MappedFile
from keras_megatron.checkpoints.pickled_values import Arguments
from keras_megatron.checkpoints.torch_files import load_torch_file

pytestmark = pytest.mark.backend_independent
WRAPPINGS = [hostile.as_stream, hostile.as_archive]


def load(content):
    return load_torch_file(MappedFile(memoryview(content)))


@pytest.mark.parametrize("case", hostile.running_pickles(""))
def test_code_is_refused_and_does_not_run(case, tmp_path):
    marker = tmp_path / "it ran"
    pickled = hostile.running_pickles(marker)[case]
    for wrap in WRAPPINGS:
        with one_line_error("refused"):
            load(wrap(pickled))
    time.sleep(0.05)
    assert not marker.exists()


@pytest.mark.parametrize("case", hostile.running_pickles(""))
def test_the_same_code_runs_in_the_unpickler_of_python(case, tmp_path):
    marker = tmp_path / "it ran"
    pickled = hostile.running_pickles(marker)[case]
    try:
        result = pickle.loads(pickled)
    except Exception:  # what follows the call may fail
        result = None
    if hasattr(result, "wait"):
        result.wait()
    assert marker.exists()


@pytest.mark.parametrize("case", hostile.refused_pickles())
def test_tricks_are_refused_at_once(case):
    start = time.monotonic()
    for wrap in WRAPPINGS:
        with one_line_error():
            load(wrap(hostile.refused_pickles()[case]))
    assert time.monotonic() - start < 5


@pytest.mark.parametrize(
    ("module", "attribute"),
    [
        ("posix", "system"),
        ("nt", "system"),
        ("builtins", "getattr"),
        ("builtins", "exec"),
        ("builtins", "compile"),
        ("builtins", "open"),
        ("builtins", "object"),
        ("types", "FunctionType"),
        ("types", "CodeType"),
        ("operator", "methodcaller"),
        ("operator", "itemgetter"),
        ("copyreg", "add_extension"),
        ("copyreg", "__newobj_ex__"),
        ("timeit", "timeit"),
        ("pty", "spawn"),
        ("code", "InteractiveInterpreter"),
        ("ctypes", "CDLL"),
        ("shutil", "rmtree"),
        ("webbrowser", "open"),
        ("torch.jit._pickle", "build_intlist"),
        ("torch.package", "PackageImporter"),
        ("torch._dynamo", "optimize"),
        ("numpy.f2py", "compile"),
        ("keras.saving", "load_model"),
        ("builtins", "__import__"),
        ("importlib", "import_module"),
        ("functools", "partial"),
        ("operator", "attrgetter"),
        ("copyreg", "_reconstructor"),
        ("copy_reg", "_reconstructor"),
        ("pickle", "loads"),
        ("_pickle", "Unpickler"),
        ("marshal", "loads"),
        ("runpy", "run_path"),
        ("subprocess", "Popen"),
        ("socket", "socket"),
        ("torch", "load"),
        ("torch.storage", "_load_from_bytes"),
        ("torch.hub", "load"),
        ("torch.jit", "load"),
        ("torch._utils", "_rebuild_tensor_v2.__globals__"),
        ("torch._utils._rebuild_tensor_v2", "__globals__"),
        ("numpy", "load"),
        ("numpy.core.multiarray", "fromfile"),
        ("numpy._core.multiarray", "scalar.__class__"),
        ("argparse", "ArgumentParser"),
        ("collections", "OrderedDict.__init__"),
        ("fp16.fp16", "FP16_Optimizer"),
        ("keras_megatron.checkpoints.convert", "convert_checkpoint"),
    ],
)
def test_other_names_are_refused(module, attribute):
    named = hostile.name(module, attribute)
    stacked = hostile.text(module) + hostile.text(attribute) + b"\x93"
    for operations in (named, stacked, b"}" + hostile.text("model") + named + b"s"):
        for wrap in WRAPPINGS:
            with one_line_error("refused", f"'{module}.{attribute}'"):
                load(wrap(hostile.finish(operations)))


def test_a_pickle_that_would_grow_without_end_is_refused():
    with one_line_error("operations"):
        load(hostile.as_archive(hostile.finish(b"(" + b"}" * 3_100_000 + b"l")))


def test_attributes_of_arguments_are_entries_only():
    names = ("__class__", "__reduce__", "__setstate__", "__dict__", "values")
    state = b"}" + b"".join(hostile.text(name) + b"K\x01s" for name in names)
    made = hostile.name("argparse", "Namespace") + b")\x81" + state + b"b"
    for wrap in WRAPPINGS:
        arguments = load(wrap(hostile.finish(made)))
        assert type(arguments) is Arguments
        assert arguments.values == dict.fromkeys(names, 1)


def test_plain_values_are_what_pickle_says():
    value = {
        "numbers": [0, 255, 65535, -1, 2**31, 2**70, -(2**2000), 1.5, True, False, None],
        "texts": ["", "é", "x" * 300, "\N{GRINNING FACE}"],
        "bytes": [b"", b"a" * 300],
        "tuples": [(), (1,), (1, 2), (1, 2, 3), (1, 2, 3, 4)],
        3: {"shared": [1]},
    }
    value["again"] = value["texts"]
    for protocol in range(5):
        pickled = pickle.dumps(value, protocol)
        if protocol < 3:  # bytes are calls of _codecs.encode there, which has its own test
            pickled = pickle.dumps({**value, "bytes": []}, protocol)
        for wrap in WRAPPINGS:
            assert load(wrap(pickled)) == pickle.loads(pickled)


@pytest.mark.parametrize(
    ("module", "attribute"),
    [
        ("megatron.model.enums", "ModelType"),
        ("megatron.core.enums", "ModelType"),
        ("megatron.core.transformer.enums", "AttnBackend"),
        ("_io", "BytesIO"),
    ],
)
def test_values_that_say_nothing_about_weights_are_dropped(module, attribute):
    """Enumerations among Megatron-LM's arguments, buffers of Transformer Engine's extra state."""
    made = hostile.call(hostile.name(module, attribute), b"K\x01")
    for wrap in WRAPPINGS:
        content = load(wrap(hostile.finish(b"}" + hostile.text("model_type") + made + b"s")))
        assert list(content) == ["model_type"]
        assert type(content["model_type"]).__module__.startswith("keras_megatron.")
    with one_line_error("refused"):  # not what is inside of them
        load(hostile.as_archive(hostile.finish(hostile.name(module, f"{attribute}.__init__"))))
