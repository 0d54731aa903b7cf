"""Changes to files, from any byte to those of a format's own fields; each by a generator's seed."""

import copy
import io
import json
import struct
import zipfile

EXTREMES = (
    *(0, 1, 2, 127, 128, 255, 256, 32767, 65535, 65536, 2**24, 2**31 - 1, 2**31, 2**32 - 1),
    *(2**40, 2**53, 2**62, 2**63 - 8, 2**63 - 1, 2**63, 2**64 - 8, 2**64 - 1),
)
TEXTS = ("", "a\nb", "\0", "x" * 5000, "../../etc/passwd", "\ud800", "0" * 300, "__class__")


def integer(rng, size):
    """A number that readers may trip over, in so many bytes."""
    return (rng.choice(EXTREMES) % (1 << 8 * size)).to_bytes(size, rng.choice(("little", "big")))


# === Any bytes ===


def flip(rng, content):
    for _ in range(rng.randint(1, 4)):
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)


def replace(rng, content):
    for _ in range(rng.randint(1, 3)):
        content[rng.randrange(len(content))] = rng.choice((0, 255, 10, 46, rng.randrange(256)))


def truncate(rng, content):
    del content[rng.randrange(len(content)) :]


def remove(rng, content):
    start = rng.randrange(len(content))
    del content[start : start + rng.randint(1, 64)]


def duplicate(rng, content):
    start, place = rng.randrange(len(content)), rng.randrange(len(content))
    block = content[start : start + rng.choice((1, 4, 8, 64, 512))]
    content[place:place] = block * rng.choice((1, 1, 2, 9))


def move(rng, content):
    start, place = rng.randrange(len(content)), rng.randrange(len(content))
    size = rng.choice((1, 4, 8, 64, 512))
    content[place : place + size] = content[start : start + size]


def insert(rng, content):
    place = rng.randrange(len(content))
    content[place:place] = rng.randbytes(rng.randint(1, 32))


def extreme(rng, content):
    size = rng.choice((1, 2, 4, 8))
    place = rng.randrange(len(content))
    content[place : place + size] = integer(rng, size)


ANYWHERE = (flip, flip, replace, replace, truncate, remove, duplicate, move, insert, extreme)


def anywhere(rng, content):
    """Changes that know nothing of the format."""
    content = bytearray(content)
    for _ in range(rng.choice((1, 1, 2, 3))):
        if content:
            rng.choice(ANYWHERE)(rng, content)
    return bytes(content)


# === Zips ===

_CENTRAL = (("H", 6), ("H", 8), ("H", 10), ("I", 16), ("I", 20), ("I", 24), ("H", 28), ("H", 30),
            ("H", 32), ("H", 34), ("I", 38), ("I", 42))  # fmt: skip
_LOCAL = (("H", 6), ("H", 8), ("I", 14), ("I", 18), ("I", 22), ("H", 26), ("H", 28))
_END = (("H", 4), ("H", 8), ("H", 10), ("I", 12), ("I", 16), ("H", 20))
_RECORDS = ((b"PK\x01\x02", _CENTRAL), (b"PK\x01\x02", _CENTRAL), (b"PK\x03\x04", _LOCAL),
            (b"PK\x05\x06", _END))  # fmt: skip
_METHODS = (0, 1, 6, 8, 9, 12, 14, 93, 95, 99)


def zip_fields(rng, content):
    """Change fields of a zip's records."""
    content = bytearray(content)
    for _ in range(rng.choice((1, 1, 2))):
        magic, fields = rng.choice(_RECORDS)
        found = [at for at in _positions(content, magic) if at + 46 <= len(content)]
        if not found and magic == b"PK\x05\x06":
            found = [len(content) - 22]
        if not found:
            continue
        kind, offset = rng.choice(fields)
        place, size = rng.choice(found) + offset, struct.calcsize(kind)
        old = int.from_bytes(content[place : place + size], "little")
        new = rng.choice((old + 1, old - 1, old ^ 1, 2 * old, len(content), rng.choice(EXTREMES)))
        if offset in (8, 10) and rng.random() < 0.5:
            new = rng.choice(_METHODS)
        content[place : place + size] = (new % (1 << 8 * size)).to_bytes(size, "little")
    return bytes(content)


def _positions(content, magic):
    at = content.find(magic)
    while at >= 0:
        yield at
        at = content.find(magic, at + 1)


def zip_with(content, name, data, method=zipfile.ZIP_STORED):
    """The zip with another member of a name, whose checksum is right."""
    written = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(written, "w", method) as new:
        for member in old.infolist():
            # Names as they are, times fixed: what is made depends on the generator alone.
            info = zipfile.ZipInfo(member.filename)
            info.compress_type = method
            new.writestr(info, data if member.filename == name else old.read(member))
    return written.getvalue()


# === JSON ===

_VALUES = (None, True, [], {}, 0, -1, 1.5, 2**31, 2**53, 2**63, 2**70, 10**400, [[]], "F32", "F64")


def json_value(rng):
    value = rng.choice((*_VALUES, *TEXTS, float("nan"), [2**40] * 70, [0, 2**70], list(range(9))))
    value = copy.deepcopy(value)  # those of the table stay as they are
    return value if rng.random() < 0.8 else [value, value]


def json_text(rng, text):
    """Change values of a JSON text, or the text itself."""
    if rng.random() < 0.3:
        return anywhere(rng, text)
    if rng.random() < 0.1:
        place = rng.randrange(len(text))
        return text[:place] + rng.choice((b"[" * 9999, b'{"a":' * 999, b"9" * 5000)) + text[place:]
    top = json.loads(text)
    for _ in range(rng.choice((1, 1, 2, 3))):
        branch = top
        while branch:
            key = rng.choice(list(branch) if isinstance(branch, dict) else range(len(branch)))
            if isinstance(branch[key], dict | list) and branch[key] and rng.random() < 0.8:
                branch = branch[key]
                continue
            _change(rng, branch, key)
            break
    return json.dumps(top, separators=(",", ":")).encode()


def _change(rng, branch, key):
    """Change an entry of a dictionary or of a list."""
    kind = rng.randrange(4)
    if kind == 0:
        del branch[key]
    elif kind == 1 and isinstance(branch, dict):
        branch[rng.choice((*TEXTS, *branch))] = branch[key]
    elif kind == 2 and isinstance(branch[key], int):
        branch[key] += rng.choice((-8, -4, -1, 1, 4, 8))
    else:
        branch[key] = json_value(rng)


def safetensors(rng, content):
    """Change a safetensors file's header, its length, or the rest."""
    size = int.from_bytes(content[:8], "little")
    header, data = content[8 : 8 + size], content[8 + size :]
    kind = rng.randrange(6)
    if kind == 0:
        return anywhere(rng, content)
    if kind == 1:
        return integer(rng, 8) + header + data
    header = json_text(rng, header)
    length = len(header) if kind < 5 else max(0, len(header) + rng.randint(-9, 9))
    return length.to_bytes(8, "little") + header + data


# === Indexes of token files ===


def index(rng, content):
    """Change fields of an .idx: magic 9, version 8, type 1, sentences 8, bounds 8, then arrays."""
    if rng.random() < 0.3:
        return anywhere(rng, content)
    content = bytearray(content)
    sentences = int.from_bytes(content[18:26], "little")
    pointers = 34 + 4 * sentences
    documents = pointers + 8 * sentences
    fields = [(9, 8), (17, 1), (18, 8), (26, 8)]
    fields += [(34 + 4 * i, 4) for i in range(sentences)]
    fields += [(place, 8) for place in range(pointers, documents, 8)] * 2
    fields += [(place, 8) for place in range(documents, len(content), 8)] * 2
    for _ in range(rng.choice((1, 1, 2, 4, 6))):
        place, size = rng.choice(fields)
        old = int.from_bytes(content[place : place + size], "little")
        new = rng.choice(
            (old + 1, old - 1, old + 4, -1, rng.choice(EXTREMES), rng.choice(EXTREMES))
        )
        content[place : place + size] = (new % (1 << 8 * size)).to_bytes(size, "little")
    return bytes(content)
