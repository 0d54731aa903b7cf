"""Readers that do what none may, to see that it is noticed."""

import contextlib
import os
import warnings


def _run_pickle():
    import pickle

    pickle.loads(b"cos\nmkdir\n(Vit ran\ntR.")


def _several_lines():
    raise ValueError("one\ntwo")


def _long():
    raise ValueError("x" * 1000)


def _key_error():
    raise KeyError("x")


def _decode_error():
    b"\xff".decode("ascii")


def _exhaust():
    raise MemoryError


def _recursion():
    _recursion()


def _allocate():
    return bytearray(8 << 20)


def _reserve():
    return bytearray(1 << 30)


def _warn():
    warnings.warn("careful", stacklevel=1)


def _hang():
    while True:
        pass


def _write():
    with open("written", "w") as file:
        file.write("x")


def _import():
    import this  # noqa: F401


def _evaluate():
    eval("1 + 1")


def _call_system():
    os.system("true")


def _connect():
    import socket

    with contextlib.closing(socket.socket()) as made:
        made.connect(("127.0.0.1", 9))


def _refuse():
    raise ValueError("the file is damaged")


GOOD = {"good": lambda: bytearray(2000), "good refusal": _refuse}
CONTROLS = {
    "pickle": (_run_pickle, "os.mkdir"),
    "find class": (_run_pickle, "pickle.find_class"),
    "several lines": (_several_lines, "several lines"),
    "long": (_long, "1000 characters"),
    "key error": (_key_error, "KeyError"),
    "decode error": (_decode_error, "UnicodeDecodeError"),
    "memory error": (_exhaust, "MemoryError"),
    "recursion": (_recursion, "RecursionError"),
    "allocation": (_allocate, "bytes for a file"),
    "address space": (_reserve, "MemoryError"),
    "warning": (_warn, "careful"),
    "hang": (_hang, "more than"),
    "writing": (_write, "to write"),
    "import": (_import, "import"),
    "evaluation": (_evaluate, "compile"),
    "system": (_call_system, "os.system"),
    "socket": (_connect, "socket."),
}
