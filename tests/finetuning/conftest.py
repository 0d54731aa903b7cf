"""A preset that trains in seconds, and data files for each task."""

import json
import pathlib
import string

import pytest

from keras_megatron import (
    MegatronBertBackbone,
    MegatronBertMaskedLM,
    MegatronBertMaskedLMPreprocessor,
    MegatronBertTokenizer,
)

# Melville, Moby-Dick (1851), public domain. Names of people and places are marked by hand.
SENTENCES = (
    "Call me _Ishmael:PER_ . Some years ago I thought I would sail about a little .",
    "There now is your insular city of the _Manhattoes:LOC_ , belted round by wharves .",
    "Go from _Corlears:LOC Hook_ to _Coenties:LOC Slip_ , and from thence northward .",
    "Say you are in the country ; in some high land of lakes .",
    "Why did the old _Persians:MISC_ hold the sea holy ?",
    "It was _Queequeg:PER_ who came aboard the _Pequod:MISC_ in _Nantucket:LOC_ .",
    "So _Ahab:PER_ and _Starbuck:PER_ looked at the sea .",
    "What of it , if some old hunks of a captain orders me to sweep the decks ?",
)


def words_and_tags(sentence: str) -> list[tuple[str, str]]:
    """Read the marks of a sentence: `_First:LABEL second_` is a span."""
    rows, label = [], None
    for word in sentence.split():
        prefix = "I" if label else "B"
        if word.startswith("_"):
            label = word.strip("_").partition(":")[2]
        rows.append((word.strip("_").partition(":")[0], f"{prefix}-{label}" if label else "O"))
        if word.endswith("_"):
            label = None
    return rows


def texts() -> list[str]:
    return [" ".join(word for word, _ in words_and_tags(sentence)) for sentence in SENTENCES]


@pytest.fixture(scope="session")
def preset(tmp_path_factory) -> str:
    """A masked LM of a layer of 16 numbers, whose pieces are letters."""
    pieces = [
        *("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"),
        *(prefix + letter for letter in string.ascii_lowercase for prefix in ("", "##")),
        *string.punctuation,
    ]
    backbone = MegatronBertBackbone(
        vocabulary_size=len(pieces),
        num_layers=1,
        num_heads=2,
        hidden_dim=16,
        intermediate_dim=32,
        max_sequence_length=96,
    )
    tokenizer = MegatronBertTokenizer(pieces)
    preprocessor = MegatronBertMaskedLMPreprocessor(tokenizer, sequence_length=96)
    folder = tmp_path_factory.mktemp("presets") / "small"
    MegatronBertMaskedLM(backbone, preprocessor).save_to_preset(str(folder))
    return str(folder)


@pytest.fixture(scope="session")
def data(tmp_path_factory) -> pathlib.Path:
    """A folder with a data file for each task."""
    folder = tmp_path_factory.mktemp("data")
    sentences = texts()
    rows = [("train" if i < 6 else "dev", text) for i, text in enumerate(sentences)]

    def table(name, header, lines):
        content = "\n".join("\t".join(map(str, line)) for line in (header, *lines))
        (folder / name).write_text(content + "\n", "utf-8")

    names = [("split", "label", "text"), ("split", "label", "first", "second")]
    table("classes.tsv", names[0], [(s, ("sea", "land")["land" in t or "city" in t], t)
                                    for s, t in rows])  # fmt: skip
    table("numbers.tsv", names[0], [(s, len(t) / 100, t) for s, t in rows])
    pairs = [(s, i % 2, t[:30], (t[30:60], "no")[i % 2]) for i, (s, t) in enumerate(rows)]
    table("order.tsv", names[1], pairs)
    conll = ["".join(f"{word}\t{tag}\n" for word, tag in words_and_tags(s)) for s in SENTENCES]
    (folder / "entities.conll").write_text("\n".join(conll), "utf-8")
    choices = [
        {
            "split": split,
            "context": t[:20],
            "choices": [t[20:40], "a whale", "a sloop"][: 2 + i % 2],
        }
        for i, (split, t) in enumerate(rows)
    ]
    lines = [json.dumps({**choice, "label": 0}) for choice in choices]
    (folder / "choices.jsonl").write_text("\n".join(lines) + "\n", "utf-8")
    for split in ("train", "dev"):
        questions = [
            {
                "id": f"{split}-{i}",
                "question": f"What is word {i % 3}?",
                "answers": [{"text": t.split()[i % 3], "answer_start": t.index(t.split()[i % 3])}],
            }
            for i, (s, t) in enumerate(rows)
            if s == split
        ]
        paragraphs = [
            {"context": t, "qas": [question]}
            for question, t in zip(questions, [t for s, t in rows if s == split], strict=True)
        ]
        squad = {"version": "1.1", "data": [{"title": "Moby-Dick", "paragraphs": paragraphs}]}
        (folder / f"questions_{split}.json").write_text(json.dumps(squad), "utf-8")
    (folder / "texts.txt").write_text("\n".join(sentences[:2]) + "\n", "utf-8")
    return folder
