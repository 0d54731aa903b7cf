"""Pickles that run code when Python's unpickler reads them, and others that try what they can."""

import io
import marshal
import pickle
import struct
import zipfile

import numpy as np

STREAM_HEADER = [0x1950A86A20F9469CFC6C, 1001, {"protocol_version": 1001, "little_endian": True}]


def text(value):
    encoded = str(value).encode()
    return b"X" + struct.pack("<I", len(encoded)) + encoded


def data(content):
    return b"B" + struct.pack("<I", len(content)) + content


def name(module, attribute):
    return f"c{module}\n{attribute}\n".encode()


def call(function, *arguments):
    return function + b"(" + b"".join(arguments) + b"tR"


def finish(operations):
    return b"\x80\x04" + operations + b"."


class ObjectArray:
    """Pickles as a numpy array of objects, one of which is a call."""

    def __init__(self, function, argument):
        self.parts = function, argument

    def __reduce__(self):
        return self.parts[0], (self.parts[1],)


def running_pickles(marker):
    """Pickles that make the folder `marker` if Python's unpickler reads them."""
    mkdir, path = name("os", "mkdir"), text(marker)
    run = call(mkdir, path)
    array = np.empty(1, object)
    array[0] = ObjectArray(eval, f"__import__('os').mkdir({str(marker)!r})")
    imported = call(name("builtins", "__import__"), text("os"))
    got = call(name("builtins", "getattr"), imported, text("mkdir"))
    namespace = name("argparse", "Namespace") + b")\x81"
    return {
        "os.mkdir": finish(run),
        "os.system": finish(call(name("os", "system"), text(f"mkdir '{marker}'"))),
        "eval": finish(
            call(name("builtins", "eval"), text(f"__import__('os').mkdir({str(marker)!r})"))
        ),
        "stack global": finish(call(text("os") + text("mkdir") + b"\x93", path)),
        "dotted stack global": finish(call(text("argparse") + text("_os.mkdir") + b"\x93", path)),
        "getattr chain": finish(call(got, path)),
        "inst": f"(S'{marker}'\nios\nmkdir\n.".encode(),
        "obj": finish(b"(" + mkdir + path + b"o"),
        "build": finish(namespace + b"}" + text("__setstate__") + mkdir + b"sb" + path + b"b"),
        "nested in a checkpoint": finish(
            b"}"
            + text("model")
            + b"}s"
            + text("args")
            + namespace
            + b"}"
            + text("x")
            + run
            + b"sbs"
        ),
        "nested in an ordered dictionary": finish(
            name("collections", "OrderedDict") + b")R" + text("key") + run + b"s"
        ),
        "nested reduce": finish(call(name("_codecs", "encode"), run, text("latin1"))),
        "array of objects": pickle.dumps(array, 2),
        "pickle in a pickle": pickle.dumps(ObjectArray(pickle.loads, finish(run)), 2),
        "popped": finish(run + b"0}"),
        "memoized": finish(run + b"\x940h\x00"),
        "memoized function": finish(mkdir + b"r\xff\x00\x00\x000" + call(b"j\xff\0\0\0", path)),
        "text protocol": f"cos\nmkdir\np0\n(V{marker}\np1\ntp2\nRp3\n.".encode(),
        "key": finish(b"}" + run + b"Ns"),
        "persistent id": finish(run + b"Q"),
        "array of objects of numpy 1": pickle.dumps(array, 2).replace(
            b"numpy._core", b"numpy.core"
        ),
        **_by_way_of_others(marker),
    }


def _by_way_of_others(marker):
    """Those that reach a function by way of others."""
    mkdir, path, popen = name("os", "mkdir"), text(marker), name("subprocess", "Popen")
    run = call(mkdir, path)
    os_module = call(name("importlib", "import_module"), text("os"))
    attribute = call(name("operator", "attrgetter"), text("mkdir"))
    mapped = name("builtins", "map") + b"(" + mkdir + b"(" + path + b"lt\x81"
    keyword = b"}" + text("iterable") + mapped + b"s"
    enumerated = name("builtins", "enumerate") + b")" + keyword + b"\x92"
    slots = b"N}" + text("__setstate__") + mkdir + b"s\x86b"
    code = marshal.dumps(compile(f"__import__('os').mkdir({str(marker)!r})", "", "exec"))
    function = call(name("types", "FunctionType"), call(name("marshal", "loads"), data(code)), b"}")
    extension = call(name("copyreg", "add_extension"), text("os"), text("mkdir"), b"K\x7f")
    inner = as_stream(finish(run))
    return {
        "importlib and attrgetter": finish(call(call(attribute, os_module), path)),
        "methodcaller": finish(
            call(call(name("operator", "methodcaller"), text("mkdir"), path), os_module)
        ),
        "partial": finish(call(call(name("functools", "partial"), mkdir, path))),
        "copyreg's reconstructor": finish(
            call(
                name("copyreg", "_reconstructor"), popen, popen, b"(" + text("mkdir") + path + b"l"
            )
        ),
        "new object": finish(call(name("builtins", "list"), mapped)),
        "new object with keywords": finish(call(name("builtins", "list"), enumerated)),
        "state of slots": finish(name("argparse", "Namespace") + b")\x81" + slots + path + b"b"),
        "extension": finish(extension + b"0" + call(b"\x82\x7f", path)),
        "function of marshalled code": finish(call(function)),
        "exec": finish(
            call(name("builtins", "exec"), text(f"import os\nos.mkdir({str(marker)!r})"))
        ),
        "torch.storage": finish(call(name("torch.storage", "_load_from_bytes"), data(inner))),
    }


def refused_pickles():
    """Pickles that do not run code by themselves, but do what no checkpoint does."""
    namespace = name("argparse", "Namespace") + b")\x81"
    rebuild = name("torch._utils", "_rebuild_tensor_v2")
    opened = name("subprocess", "Popen")
    nested = b")" + b"\x85" * 100_000
    doubled = b"]\x94" + b"".join(
        b"]h" + bytes([i]) + b"ah" + bytes([i]) + b"a\x94" for i in range(99)
    )
    return {
        "new object": finish(opened + b")\x81"),
        "new object with keywords": finish(opened + b")}\x92"),
        "new object of a class": finish(name("builtins", "object") + b")\x81"),
        "copyreg": finish(call(name("copyreg", "__newobj__"), opened)),
        "persistent id as text": finish(b"Pmodule\n"),
        "persistent class": finish(b"(" + text("module") + namespace + b"NNtQ"),
        "persistent id that is a function": finish(rebuild + b"Q"),
        "persistent id that is a call": finish(call(name("torch", "Size"), b")") + b"Q"),
        "persistent id that is no tuple": finish(text("storage") + b"Q"),
        "storage of no known kind": finish(
            b"(" + text("storage") + namespace + text("0") + text("cpu") + b"K\x01tQ"
        ),
        "extension registry": finish(b"\x82\x01"),
        "extension registry of two bytes": finish(b"\x83\x01\x00"),
        "extension registry of four bytes": finish(b"\x84\x01\x00\x00\x00"),
        "state of a class": finish(name("argparse", "Namespace") + b"}b"),
        "call with a list": finish(name("torch", "Size") + b"]R"),
        "call of a class with a state": finish(name("numpy", "ndarray") + b")\x81}b"),
        "out-of-band buffer": finish(b"\x97"),
        "state of a function": finish(rebuild + b"}" + text("__defaults__") + b")sb"),
        "slots of a namespace": finish(namespace + b"N}" + text("__class__") + b"Ns\x86b"),
        "state of a dictionary": finish(b"}}b"),
        "call of a constant": finish(call(name("torch", "float16"))),
        "call of a text": finish(call(text("os.system"), text("true"))),
        "items of a namespace": finish(namespace + text("key") + b"Ns"),
        "append to a text": finish(text("a") + b"Na"),
        "append to a tuple": finish(b")Na"),
        "deep key": finish(b"}" + nested + b"Ns"),
        "dtype of objects": finish(call(name("numpy", "dtype"), text("O8"))),
        "dtype of fields": finish(call(name("numpy", "dtype"), b"]")),
        "other codec": finish(call(name("_codecs", "encode"), text("os"), text("zlib"))),
        "tensor of no storage": finish(call(rebuild, b"N", b"K\x00", b")", b")", b"\x89", b"N")),
        "device of doubled lists": finish(call(rebuild, call(name("torch", "device"), doubled))),
        **_doubled_tuples(rebuild),
        **_much_from_little(rebuild),
        "recursive rebuild": finish(
            call(
                name("torch._tensor", "_rebuild_from_type_v2"),
                name("torch._tensor", "_rebuild_from_type_v2"),
                *(b"N", b")", b"N"),
            )
        ),
        "empty stack": finish(b"0"),
        "no mark": finish(b"t"),
        "unknown memo": finish(b"h\x07"),
        "unknown operation": finish(b"\xff"),
        "too many values": finish(b"NN"),
    }


def _doubled_tuples(rebuild):
    """A tuple that holds itself twice over, 60 times, where an error could spell it out."""
    pairs = (b"0" + 2 * bytes([ord("h"), i]) + b"\x86\x94" for i in range(60))
    doubled = b")\x94" + b"".join(pairs)
    storage = name("torch", "FloatStorage")
    identifier = b"(" + text("storage") + storage + text("0") + text("cpu") + doubled + b"tQ"
    return {
        "name of doubled tuples": finish(text("os") + doubled + b"\x93"),
        "module of doubled tuples": finish(doubled + text("mkdir") + b"\x93"),
        "dtype of doubled tuples": finish(call(name("numpy", "dtype"), doubled)),
        "codec of doubled tuples": finish(call(name("_codecs", "encode"), text("os"), doubled)),
        "storage size of doubled tuples": finish(identifier),
        "shape of doubled tuples": finish(call(rebuild, b"N", b"K\x00", doubled, b")")),
    }


def _much_from_little(rebuild):
    """Short files whose calls would copy, search or multiply long values for hours."""
    many = b"(" + b"N" * 50_000 + b"l\x940"
    pairs = text("key") + b"N\x86\x940(" + b"h\x00" * 50_000 + b"l\x940"
    long = text("x" * 50_000) + b"\x940"
    state = (
        b"(K\x01(J"
        + struct.pack("<i", 50_000)
        + b"t"
        + call(name("numpy", "dtype"), text("u1"))
        + b"\x89h\x00t"
    )
    array = call(name("numpy.core.multiarray", "_reconstruct")) + state + b"b0"
    huge = b"\x8a\xf0" + b"\x7f" * 240
    identifier = b"((" + text("storage") + name("torch", "FloatStorage") + text("0") + b"NK\x01"
    view = identifier + b"N" * 50_000 + b"l\x940" + b"h\x00Q0" * 50_000

    def over_and_over(begin, operations):
        return finish(begin + operations * 50_000 + b"N")

    return {
        "set over and over": over_and_over(many, name("builtins", "set") + b"h\x00\x85R0"),
        "size over and over": over_and_over(many, name("torch", "Size") + b"h\x00\x85R0"),
        "dictionary over and over": over_and_over(
            pairs, name("collections", "OrderedDict") + b"h\x01\x85R0"
        ),
        "arguments over and over": over_and_over(many, name("torch", "device") + b"h\x00R0"),
        "text over and over": over_and_over(
            long, name("_codecs", "encode") + b"h\x00" + text("latin1") + b"\x86R0"
        ),
        "array over and over": over_and_over(long, array),
        "persistent id over and over": finish(view + b"N"),
        "shape of an array": finish(
            name("numpy", "ndarray")
            + call(name("numpy.core.multiarray", "_reconstruct"))
            + b"(K\x01("
            + huge * 20_000
            + b"t"
            + call(name("numpy", "dtype"), text("u1"))
            + b"\x89"
            + text("")
            + b"tb"
        ),
        "number of megabytes": finish(b"\x8b" + struct.pack("<i", 1 << 21) + b"\x7f" * (1 << 21)),
        "number of many digits": finish(b"I" + b"9" * 8000 + b"\n"),
        "text with quotes": finish(b"S'\\q'\n"),
    }


def as_stream(pickled):
    """A file of torch's older serialization with this pickle in it."""
    parts = [*(pickle.dumps(part, 2) for part in STREAM_HEADER), pickled, pickle.dumps([], 2)]
    return b"".join(parts)


def as_archive(pickled):
    """A file of torch's zip serialization with this pickle in it."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("archive/data.pkl", pickled)
        archive.writestr("archive/version", "3")
    return buffer.getvalue()
