"""Texts to token files: documents, their sentences, and the ids of these."""

import gzip
import itertools
import json
import lzma
import os
import pathlib
import zlib
from collections.abc import Iterable, Iterator

from keras_megatron.pretraining.token_files import write_token_files
from keras_megatron.tokenization.vocabulary import Vocabulary
from keras_megatron.tokenization.wordpiece import RustWordPiece

_AT_ONCE = 1000  # documents that are tokenized together


def write_corpus(
    sources: Iterable[str | os.PathLike],
    prefix: str | os.PathLike,
    tokenizer,
    key: str = "text",
    language: str = "en",
) -> dict[str, int]:
    """Write the documents of files as token files, which Megatron-LM reads too.

    What Megatron-LM's `tools/preprocess_data.py --split-sentences` does: documents to sentences,
    these to ids without special tokens: `[MASK]` in a text is three pieces. What has no tokens is
    left out.

    Args:
        sources: files of documents: JSON Lines (`.jsonl`, `.ndjson` or `.json`) with the text
            under `key`; or plain text with an empty line between documents, and sentences that end
            at the ends of lines at the latest. Either may be compressed (`.xz`, `.gz`).
        prefix: path of the token files without `.bin` and `.idx`.
        tokenizer: `MegatronBertTokenizer`.
        key: of the text in a line of JSON.
        language: ISO 639-1 code of the texts' language, by which sentences are split.

    Returns:
        How many `documents`, `sentences` and `tokens` there are.

    Raises:
        ValueError: a file cannot be read, a line of JSON has no such text, or there are no
            documents; nothing has been written then. Or a source is one of the token files.
    """
    _check_apart(sources := list(sources), prefix)
    counts = {"documents": 0, "sentences": 0, "tokens": 0}
    word_pieces = RustWordPiece(
        Vocabulary(tokenizer.get_vocabulary()), tokenizer.lowercase, special_tokens=False
    )

    def documents() -> Iterator[list[list[int]]]:
        texts = (text for source in sources for text in read_documents(source, key))
        while some := list(itertools.islice(texts, _AT_ONCE)):
            for document in _tokenize(some, word_pieces, language):
                counts["documents"] += 1
                counts["sentences"] += len(document)
                counts["tokens"] += sum(map(len, document))
                yield document

    write_token_files(prefix, documents(), tokenizer)
    return counts


def _check_apart(sources: list, prefix: str | os.PathLike) -> None:
    """Refuse to write token files over what they are made of."""
    written = {os.path.realpath(f"{prefix}{end}") for end in (".bin", ".idx", ".json")}
    for source in sources:
        if os.path.realpath(source) in written:
            raise ValueError(
                f"{source} would be overwritten by the token files: choose another "
                f"prefix than {prefix}"
            )


def read_documents(source: str | os.PathLike, key: str = "text") -> Iterator[str]:
    """Yield the texts of a file's documents; see `write_corpus`.

    Raises:
        ValueError: the file cannot be read, or a line of JSON has no such text.
    """
    path = pathlib.Path(source)
    opener = {".xz": lzma.open, ".gz": gzip.open}.get(path.suffix, open)
    ending = path.suffix if opener is open else path.with_suffix("").suffix
    try:
        with opener(path, "rt", encoding="utf-8-sig") as lines:
            if ending.lower() in (".jsonl", ".json", ".ndjson"):
                for number, line in enumerate(lines, 1):
                    if line.strip():
                        yield _text_of(line, key, f"{path}:{number}")
            else:
                for is_empty, group in itertools.groupby(lines, key=lambda line: not line.strip()):
                    if not is_empty:
                        yield "".join(group)
    except (OSError, UnicodeDecodeError, lzma.LZMAError, zlib.error, EOFError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ValueError(f"cannot read the documents in {path}: {reason}") from error


def _text_of(line: str, key: str, place: str) -> str:
    try:
        text = json.loads(line)[key]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"{place} is not a JSON object with {key!r}: give its key") from error
    if not isinstance(text, str):
        raise ValueError(f"{place} has {type(text).__name__} under {key!r}, not a text")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"{place} has half of a character, which is no text: {error}") from error
    return text


def _tokenize(
    texts: list[str], word_pieces: RustWordPiece, language: str
) -> Iterator[list[list[int]]]:
    """Yield the sentences' ids of each text that has some."""
    import sentencex

    sentences = [
        [
            sentence
            for line in text.splitlines()
            if line.strip()
            for sentence in sentencex.segment(language, line)
        ]
        for text in texts
    ]
    flat = [sentence for of_text in sentences for sentence in of_text]
    ids = iter(word_pieces.tokenize(flat))
    for of_text in sentences:
        document = [some for some in itertools.islice(ids, len(of_text)) if some]
        if document:
            yield document
