"""Token files in Megatron's own format: `PREFIX.bin` and `PREFIX.idx`.

The `.bin` has the ids of all sentences, one behind the other; the `.idx` says where each begins and
which of them make a document (`megatron.core.datasets.indexed_dataset`). Here a third file, that
Megatron does not read, says which vocabulary they were made with: `PREFIX.json`.
"""

import contextlib
import dataclasses
import hashlib
import json
import os
import pathlib
import struct
import tempfile
from collections.abc import Iterable, Sequence

import numpy as np

from keras_megatron.finetuning.atomic import read_object

MAGIC, VERSION = b"MMIDIDX\x00\x00", 1
# Types of ids by the format's numbers; 6 and 7 are floating-point types, which ids are not.
TYPES = {1: "uint8", 2: "int8", 3: "int16", 4: "int32", 5: "int64", 8: "uint16"}
_HEADER = struct.Struct("<9sQBQQ")


@dataclasses.dataclass(frozen=True)
class TokenFiles:
    """Sentences of documents, mapped into memory.

    Attributes:
        tokens: ids of all sentences, one behind the other.
        starts: int64 (sentences,), where each begins in `tokens`.
        lengths: int32 (sentences,).
        documents: int64 (documents + 1,): document d has sentences `documents[d]` to
            `documents[d + 1]`, without the latter.
        about: what `PREFIX.json` says; empty without it.
        prefix: path of the files without `.bin` and `.idx`.
    """

    tokens: np.ndarray
    starts: np.ndarray
    lengths: np.ndarray
    documents: np.ndarray
    about: dict
    prefix: str

    @classmethod
    def open(cls, prefix: str | os.PathLike, tokenizer=None) -> "TokenFiles":
        """Map a pair of files.

        Args:
            prefix: their path without `.bin` and `.idx`.
            tokenizer: `MegatronBertTokenizer` that the files have to be made with, as far as they
                say with which; or None.

        Raises:
            ValueError: a file is missing, truncated or none of this format, the two do not fit each
                other, or they were made with another vocabulary.
        """
        index_path, token_path = (pathlib.Path(f"{prefix}{end}") for end in (".idx", ".bin"))
        index = _mapped(index_path, "uint8")
        dtype, sentences, bounds = _read_header(index, index_path)
        sizes = (4 * sentences, 8 * sentences, 8 * bounds)
        if _HEADER.size + sum(sizes) > len(index):
            raise ValueError(
                f"{index_path} is truncated: what it says of {sentences} sentences and {bounds} "
                f"bounds of documents takes more than its {len(index)} bytes"
            )
        places = np.cumsum([_HEADER.size, *sizes])
        lengths, pointers, documents = (
            index[start:end].view(kind)
            for start, end, kind in zip(places, places[1:], ("<i4", "<i8", "<i8"), strict=False)
        )
        tokens = _mapped(token_path, dtype)
        _check_index(index_path, lengths, pointers, documents, tokens)
        note = pathlib.Path(f"{prefix}.json")
        about = read_object(note) if note.exists() else {}
        if tokenizer is not None:
            _check_vocabulary(prefix, about, tokenizer)
            if "vocabulary_sha256" not in about:
                _check_ids(token_path, tokens, tokenizer.vocabulary_size())
        # Views of the maps as plain arrays, whose slices are made faster.
        tokens, lengths, documents = map(np.asarray, (tokens, lengths, documents))
        starts = np.asarray(pointers) // tokens.itemsize
        return cls(tokens, starts, lengths, documents, about, str(prefix))

    def __reduce__(self):
        """Have another process map the files itself."""
        return _open, (self.prefix,)

    def __len__(self) -> int:
        """Return the number of documents."""
        return len(self.documents) - 1

    def document(self, index: int) -> list[np.ndarray]:
        """Return the sentences of a document, as views of the mapped file."""
        return [
            self.tokens[self.starts[i] : self.starts[i] + self.lengths[i]]
            for i in range(self.documents[index], self.documents[index + 1])
        ]


def _open(prefix: str) -> TokenFiles:
    return TokenFiles.open(prefix)


def write_token_files(
    prefix: str | os.PathLike, documents: Iterable[Sequence], tokenizer, dtype: str | None = None
) -> None:
    """Write documents; whole, or nothing.

    Args:
        prefix: path of the files without `.bin` and `.idx`; files of this name are replaced.
        documents: each a list of sentences, which are lists of ids.
        tokenizer: `MegatronBertTokenizer` that made the ids; its vocabulary is noted.
        dtype: of ids in the file; by default the smaller of uint16 and int32 that holds them all,
            as Megatron chooses it.

    Raises:
        ValueError: a document or a sentence is empty, an id is not of the vocabulary, there are no
            documents, or the files cannot be written.
    """
    pieces = tokenizer.vocabulary_size()
    dtype = dtype or ("uint16" if pieces < 65500 else "int32")
    if dtype not in TYPES.values():
        raise ValueError(f"dtype must be one of {', '.join(TYPES.values())}, not {dtype!r}")
    if pieces - 1 > np.iinfo(dtype).max:
        raise ValueError(f"{dtype} does not hold the ids of {pieces} pieces: use int32")
    if not os.path.basename(prefix):
        raise ValueError(f"the prefix of token files must end with a name, not {str(prefix)!r}")
    prefix = pathlib.Path(prefix)
    try:
        prefix.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{prefix.name}.", dir=prefix.parent) as scratch:
            staged = pathlib.Path(scratch, "tokens")
            with open(f"{staged}.bin", "wb") as file:
                lengths, bounds = _write_tokens(file, documents, pieces, dtype)
            _write_index(pathlib.Path(f"{staged}.idx"), lengths, bounds, dtype)
            about = {**vocabulary_of(tokenizer), "documents": len(bounds) - 1, "dtype": dtype}
            pathlib.Path(f"{staged}.json").write_text(json.dumps(about, indent=1) + "\n")
            with contextlib.suppress(FileNotFoundError):
                os.unlink(f"{prefix}.idx")  # what there is from now on is no pair until it is ours
            for end in (".bin", ".json", ".idx"):
                os.replace(f"{staged}{end}", f"{prefix}{end}")
    except OSError as error:
        raise ValueError(f"cannot write {prefix}.bin: {error.strerror or error}") from error


def vocabulary_of(tokenizer) -> dict:
    """Return what tells a tokenizer from others: pieces, their SHA-256, and casing."""
    vocabulary = tokenizer.get_vocabulary()
    digest = hashlib.sha256("\n".join(vocabulary).encode()).hexdigest()
    return {
        "vocabulary_size": len(vocabulary),
        "vocabulary_sha256": digest,
        "lowercase": tokenizer.lowercase,
    }


def _mapped(path: pathlib.Path, dtype: str) -> np.ndarray:
    try:
        size = path.stat().st_size
        if not path.is_file() or not size:
            raise ValueError(f"{path} is empty, or no file")
        if size % np.dtype(dtype).itemsize:
            raise ValueError(
                f"{path} is truncated: its {size} bytes are no whole number of {dtype}"
            )
        return np.memmap(path, dtype, "r")
    except OSError as error:
        raise ValueError(
            f"cannot read {path}: {error.strerror or error} (give the path without .bin and .idx)"
        ) from error


def _read_header(index: np.ndarray, path: pathlib.Path) -> tuple[str, int, int]:
    """Return the type of ids, how many sentences there are, and how many bounds of documents."""
    if len(index) < _HEADER.size or bytes(index[:9]) != MAGIC:
        raise ValueError(f"{path} is no index of Megatron's: it does not begin with {MAGIC!r}")
    _, version, code, sentences, bounds = _HEADER.unpack(bytes(index[: _HEADER.size]))
    if version != VERSION:
        raise ValueError(f"{path} is of version {version}; only version {VERSION} is known")
    if code not in TYPES:
        raise ValueError(f"{path} has ids of type {code}; those known are {sorted(TYPES)}")
    return TYPES[code], sentences, bounds


def _check_index(path, lengths, pointers, documents, tokens) -> None:
    """Refuse an index that does not fit itself or the tokens; nothing is read beyond them later."""
    if len(documents) < 2 or documents[0] != 0 or documents[-1] != len(lengths):
        raise ValueError(f"{path} is damaged: its documents are not those of its sentences")
    # Compared, not subtracted or added: the difference of two extremes wraps around.
    falls = (documents[1:] < documents[:-1]).any()
    if falls or (lengths < 0).any() or (pointers < 0).any():
        raise ValueError(
            f"{path} is damaged: a length, a place or the size of a document is negative"
        )
    size = tokens.itemsize
    if (pointers % size).any():
        raise ValueError(f"{path} is damaged: a sentence begins within an id")
    sizes = lengths.astype("int64") * size
    beyond = pointers > tokens.nbytes - sizes
    if beyond.any():
        first = int(beyond.argmax())
        end = int(pointers[first]) + int(sizes[first])
        raise ValueError(
            f"{path.with_suffix('.bin')} is truncated, or of another index: its sentence {first} "
            f"ends at byte {end}, and it has {tokens.nbytes}"
        )


def _check_vocabulary(prefix, about: dict, tokenizer) -> None:
    """Refuse files that say that they were made with another vocabulary."""
    own = vocabulary_of(tokenizer)
    for name, value in own.items():
        stored = about.get(name, value)
        if stored != value:
            shown = stored if isinstance(stored, str | int) else type(stored).__name__
            raise ValueError(
                f"{prefix}.bin was made with another tokenizer: its {name} is {shown!r:.80}, "
                f"this one's {value!r}; give the one it was made with, or make the file anew"
            )


def _check_ids(path: pathlib.Path, tokens: np.ndarray, pieces: int) -> None:
    """Refuse ids that a vocabulary does not have, where nothing says which one it was."""
    least, most = int(tokens.min()), int(tokens.max())
    if least < 0 or most >= pieces:
        raise ValueError(
            f"{path} has ids from {least} to {most}, and the vocabulary {pieces} pieces: give the "
            "one that it was made with"
        )


def _write_tokens(file, documents: Iterable, pieces: int, dtype: str) -> tuple[list, list]:
    """Write ids; return the sentences' lengths and the documents' bounds."""
    lengths, bounds = [], [0]
    for number, document in enumerate(documents):
        if not len(document):
            raise ValueError(f"document {number} is empty: leave it out")
        for sentence in document:
            ids = np.asarray(sentence)
            if ids.ndim != 1 or not len(ids) or ids.dtype.kind not in "iu":
                raise ValueError(f"document {number} has a sentence without ids: leave it out")
            if ids.min() < 0 or ids.max() >= pieces:
                raise ValueError(
                    f"document {number} has an id outside of the vocabulary of {pieces} pieces"
                )
            file.write(ids.astype(np.dtype(dtype).newbyteorder("<")).tobytes())
            lengths.append(len(ids))
        bounds.append(len(lengths))
    if not lengths:
        raise ValueError("there are no documents to write")
    return lengths, bounds


def _write_index(path: pathlib.Path, lengths: list, bounds: list, dtype: str) -> None:
    code = next(code for code, name in TYPES.items() if name == dtype)
    lengths = np.array(lengths, "<i4")
    ends = np.cumsum(lengths, dtype="<i8") * np.dtype(dtype).itemsize
    pointers = np.concatenate([[0], ends[:-1]]).astype("<i8")
    with open(path, "wb") as file:
        file.write(_HEADER.pack(MAGIC, VERSION, code, len(lengths), len(bounds)))
        for array in (lengths, pointers, np.array(bounds, "<i8")):
            file.write(array.tobytes())
