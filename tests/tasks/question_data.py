"""Real questions; tests/data/README.md says from where."""

import json
import re
from pathlib import Path

DATA = Path(__file__).parents[1] / "data" / "questions.json"


def read_questions() -> tuple[list[str], list[str], list[list[dict]]]:
    """Return questions, their contexts and the answers of each."""
    paragraphs = json.loads(DATA.read_text(encoding="utf-8"))["data"][0]["paragraphs"]
    rows = [
        (question["question"], paragraph["context"], question["answers"])
        for paragraph in paragraphs
        for question in paragraph["qas"]
    ]
    return tuple(list(column) for column in zip(*rows, strict=True))


def pieces_of(texts: list[str]) -> list[str]:
    """Return a vocabulary: the special tokens, and the words and punctuation of the texts."""
    words = {word for text in texts for word in re.findall(r"\w+|[^\w\s]", text.lower())}
    return ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *sorted(words)]
