"""What a SavedModel answers, next to what the Keras model answers, for each task."""

import json
import pathlib
import subprocess
import sys

import numpy as np
import tensorflow as tf

FRESH = pathlib.Path(__file__).with_name("fresh_process.py")


def ask_fresh_process(jobs: list[dict]) -> list[dict[str, list]]:
    """Run jobs of `fresh_process.py` in one process."""
    done = subprocess.run(
        [sys.executable, str(FRESH)], input=json.dumps(jobs), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


def ask(folder, signature: str = "serving_default", **inputs) -> dict:
    """Ask a SavedModel in this process; return tensors."""
    loaded = tf.saved_model.load(str(folder))  # its weights go with it
    return loaded.signatures[signature](**{name: tf.constant(v) for name, v in inputs.items()})


def as_json(value):
    """Turn bytes, in lists, into text."""
    if isinstance(value, list):
        return [as_json(item) for item in value]
    return value.decode() if isinstance(value, bytes) else value


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


# === By the Keras model ===


def _classes(model, x) -> list:
    answers = model.classify(x)
    if model.num_classes == 1:
        return [(answer["score"],) for answer in answers]
    if model.multi_label:
        return [(list(map(str, a["labels"])), *a["scores"].values()) for a in answers]
    return [(str(a["label"]), a["score"], *a["scores"].values()) for a in answers]


def _tokens(model, x) -> list:
    return [
        [[(t["token_str"], t["token"], t["score"]) for t in mask] for mask in masks]
        for masks in model.fill_mask(x)
    ]


def _spans(model, x) -> list:
    fields = ("text", "start", "end", "score")
    return [[(str(s["label"]), *(s[f] for f in fields)) for s in spans] for spans in model.tag(x)]


_KERAS = {
    "CausalLM": lambda model, x: model.generate(x),
    "MaskedLM": _tokens,
    "MultipleChoice": lambda model, x: [
        (answer["choice"], answer["text"], *answer["scores"]) for answer in model.choose(*x)
    ],
    "NextSentencePredictor": lambda model, x: [(float(p),) for p in model.follows(*x)],
    "QuestionAnswering": lambda model, x: [
        (answer["answer"], answer["start"], answer["end"], answer["score"])
        for answer in model.answer(*x)
    ],
    "TextClassifier": _classes,
    "TextEmbedder": lambda model, x: [tuple(row) for row in model.encode_text(x).tolist()],
    "TokenClassifier": _spans,
}


def keras_answers(name: str, model, x) -> list:
    """Return what the model answers, a tuple or list a sample; compare with `difference`."""
    return _KERAS[name](model, x)


# === By the SavedModel ===


def _served_classes(row: dict, x) -> tuple:
    if "labels" not in row:
        return (row["score"],)
    if "chosen" in row:
        pairs = zip(row["labels"], row["chosen"], strict=True)
        return [name for name, chosen in pairs if chosen], *row["scores"]
    return row["label"], row["score"], *row["scores"]


def _served_tokens(row: dict, x) -> list:
    fields = (row[name][: row["masks"]] for name in ("tokens", "token_ids", "scores"))
    return [list(zip(*mask, strict=True)) for mask in zip(*fields, strict=True)]


def _served_spans(row: dict, x) -> list:
    fields = ("labels", "texts", "starts", "ends", "scores")
    return list(zip(*(row[field][: row["spans"]] for field in fields), strict=True))


_SERVED = {
    "CausalLM": lambda row, x: row["text"],
    "MaskedLM": _served_tokens,
    "MultipleChoice": lambda row, x: (row["choice"], row["text"], *row["scores"][: len(x[1])]),
    "NextSentencePredictor": lambda row, x: (row["follows"],),
    "QuestionAnswering": lambda row, x: tuple(row[n] for n in ("answer", "start", "end", "score")),
    "TextClassifier": _served_classes,
    "TextEmbedder": lambda row, x: tuple(row["embedding"]),
    "TokenClassifier": _served_spans,
}


def served_answers(name: str, outputs: dict, x) -> list:
    """Return the outputs of a signature in the form of `keras_answers`."""
    rows = [dict(zip(outputs, row, strict=True)) for row in zip(*outputs.values(), strict=True)]
    samples = zip(*x, strict=True) if isinstance(x, tuple) else x
    return [_SERVED[name](row, sample) for row, sample in zip(rows, samples, strict=True)]


def difference(first, second) -> float:
    """Return the largest difference of two structures' numbers; infinite if the rest differs."""
    if isinstance(first, list | tuple):
        if not isinstance(second, list | tuple) or len(first) != len(second):
            return np.inf
        return max(map(difference, first, second), default=0.0)
    if isinstance(first, float) and isinstance(second, float):
        return abs(first - second)
    return 0.0 if first == second else np.inf
