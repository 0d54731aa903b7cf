"""What a SavedModel answers, next to what the Keras model answers, for each task."""

import json
import pathlib
import subprocess
import sys

import numpy as np

FRESH = pathlib.Path(__file__).with_name("fresh_process.py")


def ask_fresh_process(jobs: list[dict]) -> list[dict[str, list]]:
    """Run jobs of `fresh_process.py` in one process."""
    done = subprocess.run(
        [sys.executable, str(FRESH)], input=json.dumps(jobs), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


def inputs_of(name: str, x) -> dict[str, list]:
    """Turn raw samples of a task into what its signature `serving_default` takes."""
    if name == "QuestionAnswering":
        return {"question": x[0], "context": x[1]}
    if name == "MultipleChoice":
        most = max(map(len, x[1]))
        return {"context": x[0], "choices": [[*row, *[""] * (most - len(row))] for row in x[1]]}
    if isinstance(x, tuple):
        return {"first": x[0], "second": x[1]}
    return {"prompt" if name == "CausalLM" else "text": x}


def keras_answers(name: str, model, x) -> list:
    """Return a list of what `served_answers` makes of the signature's outputs, by the model."""
    if name == "TextClassifier":
        answers = model.classify(x)
        if model.num_classes == 1:
            return [(answer["score"],) for answer in answers]
        if model.multi_label:
            return [(answer["labels"], *answer["scores"].values()) for answer in answers]
        return [(str(a["label"]), a["score"], *a["scores"].values()) for a in answers]
    if name == "TokenClassifier":
        return [[_span(span) for span in spans] for spans in model.tag(x)]
    if name == "QuestionAnswering":
        return [(a["answer"], a["start"], a["end"], a["score"]) for a in model.answer(*x)]
    if name == "MultipleChoice":
        return [(a["choice"], a["text"], *a["scores"]) for a in model.choose(*x)]
    if name == "MaskedLM":
        return [
            [[(t["token_str"], t["token"], t["score"]) for t in mask] for mask in masks]
            for masks in model.fill_mask(x)
        ]
    if name == "NextSentencePredictor":
        return [(float(p),) for p in model.follows(*x)]
    if name == "TextEmbedder":
        return [tuple(row) for row in model.encode_text(x).tolist()]
    assert name == "CausalLM", name
    return model.generate(x)


def _span(span: dict) -> tuple:
    return str(span["label"]), span["text"], span["start"], span["end"], span["score"]


def served_answers(name: str, outputs: dict, x) -> list:
    """Return the outputs of a signature in the form of `keras_answers`."""
    rows = [dict(zip(outputs, row, strict=True)) for row in zip(*outputs.values(), strict=True)]
    if name == "TextClassifier":
        if "labels" not in outputs:
            return [(row["score"],) for row in rows]
        if "chosen" in outputs:
            return [([n for n, c in zip(r["labels"], r["chosen"], strict=True) if c], *r["scores"]) for r in rows]  # fmt: skip
        return [(row["label"], row["score"], *row["scores"]) for row in rows]
    if name == "TokenClassifier":
        fields = ("labels", "texts", "starts", "ends", "scores")
        return [
            list(zip(*(row[field][: row["spans"]] for field in fields), strict=True))
            for row in rows
        ]
    if name == "QuestionAnswering":
        return [(row["answer"], row["start"], row["end"], row["score"]) for row in rows]
    if name == "MultipleChoice":
        return [
            (row["choice"], row["text"], *row["scores"][: len(choices)])
            for row, choices in zip(rows, x[1], strict=True)
        ]
    if name in ("MaskedLM", "Pretrainer"):
        fields = ("tokens", "token_ids", "scores")
        return [
            [list(zip(*mask, strict=True)) for mask in zip(*(row[f][: row["masks"]] for f in fields), strict=True)]
            for row in rows
        ]  # fmt: skip
    if name == "NextSentencePredictor":
        return [(row["follows"],) for row in rows]
    if name == "TextEmbedder":
        return [tuple(row["embedding"]) for row in rows]
    return [row["text"] for row in rows]


def difference(first, second) -> float:
    """Return the largest difference of two structures' numbers; infinite if the rest differs."""
    if isinstance(first, list | tuple):
        if not isinstance(second, list | tuple) or len(first) != len(second):
            return np.inf
        return max(map(difference, first, second), default=0.0)
    if isinstance(first, float) and isinstance(second, float):
        return abs(first - second)
    return 0.0 if first == second else np.inf
