"""Reads data files of any format into records: the values of a sample, and where they stand."""

import csv
import dataclasses
import io
import json
import os
import pathlib
import re
import sys
from collections.abc import Iterator
from typing import Any

from keras_megatron.finetuning.squad_files import squad_records

_PERCENT = re.compile(r"(\d{1,3})-(\d{1,3})%")


@dataclasses.dataclass(frozen=True)
class Record:
    """One sample of a file.

    Attributes:
        place: where it stands, for error messages: `"dev.tsv, line 3"`.
        values: what it holds, by column or key.
    """

    place: str
    values: dict[str, Any]


def check_column(record: Record, name: str, remedy: str) -> None:
    """Refuse a file without a column.

    Raises:
        ValueError: as said; `remedy` is its end.
    """
    if name not in record.values:
        raise ValueError(
            f"{record.place}: there is no column {name!r}, only {', '.join(record.values)}: "
            f"{remedy}"
        )


def read_records(source: str | os.PathLike) -> list[Record]:
    """Read a data file, or a part of it.

    Formats, by the file's ending:
        .tsv: a header line, then tab-separated values; quotation marks are ordinary characters.
            An empty line is left out, unless there is one column: then it is an empty text.
        .csv: a header line, then values separated by commas, in double quotes where need be.
        .jsonl: a JSON object a line.
        .conll: a word a line and its tag in the last column, if there are tags (columns between
            them are left out); a blank line between sentences. Tabs or, without any, spaces
            separate columns. Lines of -DOCSTART- are left out.
        .json: SQuAD 1.1 or 2.0; or a list of objects.
        .txt: a text a line; an empty line is an empty text, but for those at the end.

    Args:
        source: a path, or a path with a part of the file: `reviews.tsv:train` is what has `train`
            in the column (or key) `split`, `entities.conll:0-80%` the first four fifths of the
            samples.

    Returns:
        A record a sample: the columns of a table; the keys of objects; `words` and `tags` of CoNLL;
        `id`, `question`, `context` and `answers` of SQuAD; `text` of a text file.

    Raises:
        ValueError: there is no such file or part, the format is unknown, the file is empty, is not
            UTF-8 or has a broken line, or it has splits and none is chosen.
    """
    path, part = locate(source)
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        raise ValueError(f"{path} is of an unknown format: give {', '.join(_READERS)}")
    records = [Record(place, values) for place, values in reader(path.name, _read_text(path))]
    if not records:
        raise ValueError(f"{path} is empty: there is no sample in it")
    return _select(records, part, path)


def locate(source: str | os.PathLike) -> tuple[pathlib.Path, str | None]:
    """Return the path of a file, and which part of it is meant.

    Raises:
        ValueError: there is no such file.
    """
    path = pathlib.Path(source)
    if path.is_file():
        return path, None
    before, colon, part = os.fspath(source).rpartition(":")
    if colon and pathlib.Path(before).is_file():
        return pathlib.Path(before), part
    raise ValueError(f"there is no file {source}")


def _read_text(path: pathlib.Path) -> str:
    content = path.read_bytes()
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ValueError(f"{path.name}, line {line}: this is not UTF-8") from error


def _select(records: list[Record], part: str | None, path: pathlib.Path) -> list[Record]:
    splits = sorted({str(r.values["split"]) for r in records if "split" in r.values})
    percent = _PERCENT.fullmatch(part or "")
    if percent:
        begin, end = map(int, percent.groups())
        selected = records[begin * len(records) // 100 : end * len(records) // 100]
        if end > 100 or not selected:
            raise ValueError(
                f"{path.name} has no samples in {part!r}, of {len(records)}: give a part within "
                "0-100% that is large enough"
            )
    elif part is None and splits:
        raise ValueError(
            f"{path.name} has the splits {', '.join(splits)}: choose one, as in {path}:{splits[0]}"
        )
    else:
        selected = [r for r in records if part is None or str(r.values.get("split")) == part]
    if not selected:
        parts = ", ".join([*splits, "0-80%"])
        raise ValueError(f"{path.name} has no samples in {part!r}: choose one of {parts}")
    return selected


# === Formats: each yields (place, values) ===


def _tsv_records(name: str, text: str) -> Iterator[tuple[str, dict]]:
    header = None
    for number, line in enumerate(_lines(text), 1):
        row, place = line.split("\t"), f"{name}, line {number}"
        if header is None:
            header = _header(row, place)
        elif line or len(header) == 1:
            yield place, _values(header, row, place)


def _csv_records(name: str, text: str) -> Iterator[tuple[str, dict]]:
    header, limit = None, csv.field_size_limit(sys.maxsize)  # texts may be long
    rows = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        for row in rows:
            place = f"{name}, line {rows.line_num}"
            if header is None:
                header = _header(row, place)
            elif row:  # an empty line is none
                yield place, _values(header, row, place)
    except csv.Error as error:
        raise ValueError(f"{name}, line {rows.line_num}: this is not CSV ({error})") from error
    finally:
        csv.field_size_limit(limit)


def _header(row: list[str], place: str) -> list[str]:
    if len(set(row)) < len(row) or not all(row):
        raise ValueError(f"{place}: the header must name each column once: {row}")
    return row


def _values(header: list[str], row: list[str], place: str) -> dict[str, str]:
    if len(row) != len(header):
        raise ValueError(f"{place}: there are {len(row)} values for {len(header)} columns")
    return dict(zip(header, row, strict=True))


def _lines(text: str) -> list[str]:
    """Return the lines of a file, without those at its end that are empty."""
    lines = [line.removesuffix("\r") for line in text.split("\n")]
    while lines and not lines[-1]:
        lines.pop()
    return lines


def _jsonl_records(name: str, text: str) -> Iterator[tuple[str, dict]]:
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            place = f"{name}, line {number}"
            yield place, _object(parse_json(line, place), place)


def _object(values, place: str) -> dict:
    if not isinstance(values, dict):
        raise ValueError(f"{place}: this is not a JSON object")
    return values


def _conll_records(name: str, text: str) -> Iterator[tuple[str, dict]]:
    words, tags, start, count = [], [], 1, None
    for number, line in enumerate([*text.split("\n"), ""], 1):
        line = line.strip(" \r")
        columns = line.split("\t") if "\t" in line else re.split(" +", line)
        if line and columns[0] != "-DOCSTART-":
            count = count or len(columns)
            if len(columns) != count or not all(columns):
                raise ValueError(
                    f"{name}, line {number}: there must be {count} columns, as before, and none "
                    f"empty: {line[:60]!r}"
                )
            words.append(columns[0])
            tags.append(columns[-1])
        else:
            if words:
                yield f"{name}, line {start}", {"words": words, "tags": tags if count > 1 else None}
            words, tags, start = [], [], number + 1


def _json_records(name: str, text: str) -> Iterator[tuple[str, dict]]:
    content = parse_json(text, name)
    if not isinstance(content, list):
        yield from squad_records(name, content)
        return
    for number, values in enumerate(content, 1):
        place = f"{name}, object {number}"
        yield place, _object(values, place)


def _text_records(name: str, text: str) -> Iterator[tuple[str, dict]]:
    for number, line in enumerate(_lines(text), 1):
        yield f"{name}, line {number}", {"text": line}


def parse_json(text: str, place: str) -> Any:
    """Parse JSON.

    Raises:
        ValueError: it is not JSON; the error says where.
    """
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        line = f", line {error.lineno}" if "line" not in place else ""
        raise ValueError(f"{place}{line}: this is not JSON ({error.msg})") from error
    except RecursionError as error:
        raise ValueError(f"{place}: this JSON is nested too deeply") from error


_READERS = {
    ".tsv": _tsv_records,
    ".csv": _csv_records,
    ".jsonl": _jsonl_records,
    ".conll": _conll_records,
    ".json": _json_records,
    ".txt": _text_records,
}
