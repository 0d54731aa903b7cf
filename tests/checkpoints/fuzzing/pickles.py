"""Changes to pickles, one operation at a time."""

import pickletools

from fuzzing.mutations import EXTREMES


def short_text(value):
    return b"\x8c" + bytes([len(value)]) + value.encode()


def called(module, name, *arguments):
    return f"c{module}\n{name}\n(".encode() + b"".join(map(short_text, arguments)) + b"tR"


# Operations that no checkpoint has, or has elsewhere, with what they need.
FRAGMENTS = (
    *(bytes([code]) for code in b"()0122NQR]abdelostu}\x81\x85\x86\x87\x88\x92\x93\x94\x97\x98"),
    *(called("os", "mkdir", "it ran"), called("builtins", "eval", "__import__('os').mkdir('r')")),
    *(b"cos\nsystem\n", b"ibuiltins\nexec\n", b"Pid\n", b"\x82\x01", b"\x84\xff\xff\xff\x7f"),
    *(b"cargparse\nNamespace\n)\x81", b"ccollections\nOrderedDict\n)R", b"c__builtin__\nset\n"),
    *(
        b"cnumpy\nndarray\n",
        b"cnumpy\ndtype\n\x8c\x02O8\x85R",
        b"ctorch\nSize\n",
        b"ctorch\ndevice\n",
    ),
    *(b"h\x00", b"h\x01", b"h\x05", b"q\x00", b"q\x05", b"j\xff\xff\xff\xff", b"g0\n", b"p1\n"),
    *(
        b"I-1\n",
        b"I" + b"9" * 4000 + b"\n",
        b"L5L\n",
        b"F1e999\n",
        b"Fnan\n",
        b"I01\n",
        b"Vx\\ud800\n",
    ),
    *(b"S'\\q\\x41'\n", b"S'" + b"x" * 3000 + b"'\n", b"Sx\n", b"U\x05ab", b"T\xff\xff\xff\xff"),
    *(
        b"\x8a\xff" + b"\xff" * 255,
        b"\x8b\xff\xff\xff\x7f",
        b"\x8b\x00\x01\x00\x00" + b"\x7f" * 256,
    ),
    *(b"\x8d" + b"\xff" * 8, b"\x8e" + b"\x7f" * 8, b"\x95" + b"\xff" * 8, b"X\xff\xff\xff\xff"),
    *(
        b"X\x02\x00\x00\x00\xff\xfe",
        b"\x80\x05",
        b"\x96" + b"\x01" + bytes(7) + b"a",
        b"G" + b"\x7f" * 8,
    ),
)
_NUMBERS = {"BININT", "BININT1", "BININT2", "LONG1"}


def operations(content):
    """Where each operation of a pickle begins and ends, and its number if it is one."""
    ops = list(pickletools.genops(content))
    ends = [position for _, _, position in ops[1:]] + [ops[-1][2] + 1]
    return [
        (start, end, op.name in _NUMBERS) for (op, _, start), end in zip(ops, ends, strict=True)
    ]


def pickled(rng, content, ops):
    """Change some operations of a pickle; `ops` is what `operations` says of it."""
    parts = [content[start:end] for start, end, _ in ops]
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        place = rng.randrange(len(parts))
        kind = rng.randrange(7)
        if kind == 0:
            parts[place] = b""
        elif kind == 1:
            parts[place] = rng.choice(FRAGMENTS)
        elif kind == 2:
            parts[place] += rng.choice(FRAGMENTS)
        elif kind == 3:
            other = rng.randrange(len(parts))
            parts[place], parts[other] = parts[other], parts[place]
        elif kind == 4:
            run = b"".join(parts[place : place + rng.choice((1, 3, 10, 40))])
            parts[place] += run * rng.choice((1, 2, 8))
        else:
            numbers = [index for index, op in enumerate(ops) if op[2]]
            place = rng.choice(numbers) if numbers else place
            parts[place] = number(rng)
    return b"".join(parts)


def number(rng):
    value = rng.choice((-1, 1)) * rng.choice((*EXTREMES, 3, 7, 2**200, 2**2000))
    encoded = value.to_bytes((value.bit_length() + 8) // 8, "little", signed=True)
    return b"\x8a" + bytes([len(encoded)]) + encoded
