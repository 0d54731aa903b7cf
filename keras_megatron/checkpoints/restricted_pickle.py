"""Reads pickles without Python's unpickler: nothing that a file names can be imported or called.

This machine carries out the operations that saved tensors need, and no others. A name in the stream
is only looked up in a fixed table of our own functions; every other name, and every operation that
could reach beyond the table, is a ValueError.
Format: https://github.com/python/cpython/blob/3.11/Lib/pickletools.py
"""

import dataclasses
from collections.abc import Callable, Iterable, Mapping

from keras_megatron.checkpoints.mapped_files import MappedFile
from keras_megatron.checkpoints.one_line import one_line
from keras_megatron.checkpoints.pickle_operations import NAMES, operations

# What calls take may be copied or searched by them: as much as the file has, but for short things.
_SHORT = 16
_ALLOWANCE = 1 << 16

# Without LONG4, whose numbers have megabytes, and STRING, which Python 2 wrote as text.
_LITERALS = {
    *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "FLOAT", "BINFLOAT"),
    *("BINSTRING", "SHORT_BINSTRING"),
    *("UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
    *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8"),
}
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
_EMPTY = {"EMPTY_LIST": list, "EMPTY_DICT": dict, "EMPTY_SET": list}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_KEYS = (str, int, float, bytes, type(None))


@dataclasses.dataclass(frozen=True)
class Global:
    """What stands for one name of a pickle: a constant, or a function of ours that it calls."""

    name: str
    function: Callable | None = None


class Buildable:
    """A value whose state a pickle sets after making it.

    Attributes:
        as_key: Whether a pickle may use it as a dictionary's key; it is one by its identity.
    """

    as_key = False

    def set_state(self, state) -> None:
        """Take the state, or raise ValueError."""
        raise NotImplementedError


def _no_persistent_ids(identifier):
    raise ValueError("refused: it refers to an object outside the pickle")


def load_pickle(
    file: MappedFile,
    known: Mapping[str, Global],
    persistent_load: Callable = _no_persistent_ids,
):
    """Read the pickle at the file's position and leave the position behind it.

    Args:
        file: The file.
        known: What answers each allowed global, keyed `"module.name"`.
        persistent_load: Called with each persistent id.

    Returns:
        Plain Python values, and what the functions of `known` return. Sets come as lists.

    Raises:
        ValueError: the pickle is damaged, or asks for anything else. Nothing was run.
    """
    try:
        return _Machine(known, persistent_load, len(file)).run(file)
    except ValueError as error:
        raise ValueError(one_line(error)) from error
    except (LookupError, TypeError, AttributeError, ArithmeticError, RecursionError) as error:
        raise ValueError(f"the pickle is damaged ({type(error).__name__})") from error


class _Machine:
    def __init__(self, known: Mapping[str, Global], persistent_load: Callable, size: int):
        self.known = known
        self.persistent_load = persistent_load
        self.allowance = 2 * size + _ALLOWANCE
        self.stack: list = []
        self.below: list[list] = []  # the stacks under each mark
        self.memo: dict[int, object] = {}

    def run(self, file: MappedFile):
        for name, argument in operations(file, _SUPPORTED):
            self.step(name, argument)
        (result,) = self.stack
        return result

    def step(self, name: str, argument) -> None:
        if name in _LITERALS:
            self.stack.append(argument)
        elif name in _CONSTANTS:
            self.stack.append(_CONSTANTS[name])
        elif name in _EMPTY:
            self.stack.append(_EMPTY[name]())
        elif name in _TUPLES:
            items = [self.stack.pop() for _ in range(_TUPLES[name])]
            self.stack.append(tuple(reversed(items)))
        else:
            getattr(self, f"do_{name.lower()}")(argument)

    def pop_to_mark(self) -> list:
        items, self.stack = self.stack, self.below.pop()
        return items

    def charge(self, values: Iterable) -> None:
        """Refuse what has a call work on the same long value again and again."""
        sizes = (len(v) for v in values if isinstance(v, str | bytes | list | tuple | dict))
        self.allowance -= sum(size for size in sizes if size > _SHORT)
        if self.allowance < 0:
            raise ValueError("refused: its pickle uses long values over and over")

    # === Structure ===

    def do_stop(self, _):
        pass

    def do_proto(self, _):
        pass

    def do_frame(self, _):
        pass

    def do_mark(self, _):
        self.below.append(self.stack)
        self.stack = []

    def do_pop(self, _):
        self.stack.pop()

    def do_pop_mark(self, _):
        self.pop_to_mark()

    def do_tuple(self, _):
        items = self.pop_to_mark()
        self.stack.append(tuple(items))

    def do_list(self, _):
        items = self.pop_to_mark()
        self.stack.append(items)

    def do_dict(self, _):
        items = self.pop_to_mark()
        self.stack.append({})
        self.set_items(items)

    def do_append(self, _):
        item = self.stack.pop()
        self.extend([item])

    def do_appends(self, _):
        self.extend(self.pop_to_mark())

    do_additems = do_appends

    def extend(self, items: list) -> None:
        target = self.stack[-1]
        if type(target) is not list:
            raise ValueError(f"refused: its pickle appends to a {type(target).__name__}")
        target.extend(items)

    def do_setitem(self, _):
        value, key = self.stack.pop(), self.stack.pop()
        self.set_items([key, value])

    def do_setitems(self, _):
        self.set_items(self.pop_to_mark())

    def set_items(self, items: list) -> None:
        target = self.stack[-1]
        if not isinstance(target, dict):
            raise ValueError(f"refused: its pickle sets items of a {type(target).__name__}")
        for key, value in zip(items[::2], items[1::2], strict=True):
            if not isinstance(key, _KEYS) and not (isinstance(key, Buildable) and key.as_key):
                raise ValueError(f"refused: its pickle has a {type(key).__name__} as key")
            target[key] = value

    # === Memory ===

    def do_memoize(self, _):
        self.memo[len(self.memo)] = self.stack[-1]

    def do_put(self, index):
        self.memo[index] = self.stack[-1]

    do_binput = do_long_binput = do_put

    def do_get(self, index):
        self.stack.append(self.memo[index])

    do_binget = do_long_binget = do_get

    # === Names, and calls of what they stand for ===

    def do_global(self, name):
        self.push_global(*name.split(" ", 1))

    def do_stack_global(self, _):
        name, module = self.stack.pop(), self.stack.pop()
        self.push_global(module, name)

    def push_global(self, module: str, name: str) -> None:
        # Types first, here and elsewhere: a message must not spell out tuples nested in tuples.
        if not isinstance(module, str) or not isinstance(name, str):
            raise ValueError("refused: its pickle names something by what is no text")
        full_name = f"{module}.{name}"
        if full_name not in self.known:
            raise ValueError(
                f"refused: its pickle names {full_name[:100]!r}, which the format does not have; "
                "nothing was run. Save the weights again without it"
            )
        self.stack.append(self.known[full_name])

    def do_reduce(self, _):
        arguments, function = self.stack.pop(), self.stack.pop()
        if not isinstance(function, Global) or not function.function:
            raise ValueError("refused: its pickle calls what is not a function of the format")
        if type(arguments) is not tuple:
            raise ValueError(f"refused: its pickle calls with a {type(arguments).__name__}")
        self.charge(arguments)
        self.stack.append(function.function(*arguments))

    do_newobj = do_reduce

    def do_build(self, _):
        state, target = self.stack.pop(), self.stack[-1]
        if not isinstance(target, Buildable):
            raise ValueError(f"refused: its pickle sets the state of a {type(target).__name__}")
        self.charge(state if type(state) is tuple else ())
        target.set_state(state)

    def do_binpersid(self, _):
        identifier = self.stack.pop()
        self.charge([identifier])
        self.stack.append(self.persistent_load(identifier))


_SUPPORTED = {
    *(*_LITERALS, *_CONSTANTS, *_EMPTY, *_TUPLES),
    *(name for name in NAMES if hasattr(_Machine, f"do_{name.lower()}")),
}
