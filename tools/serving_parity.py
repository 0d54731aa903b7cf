"""Compare what SavedModels answer with what the Keras models answer, on real inputs.

    python tools/serving_parity.py DATA_FOLDER docs/serving_parity.md [--inputs 1000]

On each backend a model of each task is trained for a few steps from the embedded preset, answers
the inputs, and is exported; a process without this package then asks all the SavedModels.
DATA_FOLDER is that of examples/.
"""

import argparse
import json
import os
import pathlib
import subprocess
import sys
import tempfile

BACKENDS = ("jax", "torch", "tensorflow")
PRESET = "megatron_bert_tiny_uncased"
TESTS = pathlib.Path(__file__).parents[1] / "tests"
TRAINED_ON, BATCH = 96, 16
LIMIT = 1e-4


def main():
    """Compare and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=pathlib.Path, metavar="DATA_FOLDER")
    parser.add_argument("output", type=pathlib.Path, help="Markdown file to write")
    parser.add_argument("--inputs", type=int, default=1000)
    parser.add_argument("--backends", nargs="+", choices=BACKENDS, default=list(BACKENDS))
    parser.add_argument("--only", nargs="+", metavar="TASK", help="such as TextClassifier")
    parser.add_argument("--child", type=pathlib.Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    sys.path[:0] = [str(TESTS), str(TESTS / "serving")]
    if options.child:
        answer_all(options)
        return
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for backend in options.backends:
            child = pathlib.Path(folder, backend)
            environment = {**os.environ, "KERAS_BACKEND": backend}
            command = [sys.executable, __file__, *sys.argv[1:], "--child", str(child)]
            subprocess.run(command, env=environment, check=True)
            rows += [(backend, *row) for row in compare(child)]
            for row in rows[-len(list(child.glob("*.json"))) :]:
                print(*row, sep="\t", flush=True)
    options.output.write_text(page(rows))


# === In a process of one backend ===


def answer_all(options) -> None:
    """Train, ask and export a model of each task; `options.child` gets a file a task."""
    from comparing import inputs_of, keras_answers

    from keras_megatron import serving

    options.child.mkdir()
    for name, make in tasks(options.data).items():
        if options.only and name not in options.only:
            continue
        model, x = make(options.inputs)
        exported = serving.export(model, options.child / name, warmup=False)
        job = {
            "folder": str(exported.folder),
            "signature": "serving_default",
            "inputs": inputs_of(name, x),
            "batch": 32,
        }
        answers = keras_answers(name, model, x)
        content = {"name": name, "job": job, "x": x, "answers": answers}
        (options.child / f"{name}.json").write_text(json.dumps(content))


def tasks(data: pathlib.Path) -> dict:
    """Return for each task a function that trains a model and returns it with samples."""
    from keras_megatron.finetuning import examples as forms
    from keras_megatron.finetuning.labels import integer_label, name_label
    from keras_megatron.finetuning.records import read_records

    def read(name, count):
        records = read_records(f"{data / name}")
        return records[:TRAINED_ON], records[-count:]

    def classifier(count):
        train, test = (
            forms.text_examples(part, name_label) for part in read("sentiment.tsv:train", count)
        )
        model = trained("TextClassifier", train, num_classes=2, class_names=["neg", "pos"])
        return model, test.columns[0]

    def next_sentence(count):
        train, test = (
            forms.text_examples(part, integer_label) for part in read("pairs.tsv:train", count)
        )
        return trained("NextSentencePredictor", train), test.columns

    def choices(count):
        train, test = (forms.choice_examples(p) for p in read("multiple_choice.jsonl:train", count))
        return trained("MultipleChoice", train), test.columns

    def questions(count):
        train, test = (forms.question_examples(p) for p in read("questions_train.json", count))
        return trained("QuestionAnswering", train, sequence_length=64), test.columns

    def entities(count):
        train, test = (forms.word_examples(part) for part in read("entities.conll", count))
        tags = sorted({tag for part in (train, test) for tags in part.labels for tag in tags})
        model = trained("TokenClassifier", train, num_classes=len(tags), class_names=tags)
        return model, [" ".join(words) for words in test.columns[0]]

    def texts(count):
        train, test = (
            forms.text_examples(p, name_label) for p in read("sentiment.tsv:train", count)
        )
        return train.columns[0], test.columns[0]

    def masked_lm(count):
        train, test = texts(count)
        model = trained("MaskedLM", train)
        return model, [mask_a_word(text) for text in test]

    def embedder(count):
        return load("TextEmbedder"), texts(count)[1]

    def causal_lm(count):
        train, test = texts(count)
        model = trained("CausalLM", train, sequence_length=24)
        model.compile(sampler="greedy")
        return model, [" ".join(text.split()[:4]) for text in test]

    return {
        "TextClassifier": classifier,
        "NextSentencePredictor": next_sentence,
        "MultipleChoice": choices,
        "QuestionAnswering": questions,
        "TokenClassifier": entities,
        "MaskedLM": masked_lm,
        "TextEmbedder": embedder,
        "CausalLM": causal_lm,
    }


def mask_a_word(text: str) -> str:
    """Hide the word in the middle."""
    words = text.split()
    words[len(words) // 2] = "[MASK]"
    return " ".join(words)


def load(name: str, num_classes=None, class_names=None, sequence_length=48):
    """Load a task, with a new head where it has one."""
    import keras_megatron

    task = getattr(keras_megatron, f"MegatronBert{name}")
    names = {} if class_names is None else {"class_names": class_names}
    classes = {} if num_classes is None else {"num_classes": num_classes}
    preprocessor = task.preprocessor_cls.from_preset(
        PRESET, sequence_length=sequence_length, **names
    )
    return task.from_preset(PRESET, preprocessor=preprocessor, **classes)


def trained(name: str, examples, **arguments):
    """Load a task and train it on labelled `Examples`, or on a list of texts."""
    model = load(name, **arguments)
    if isinstance(examples, list):
        model.fit(examples, batch_size=BATCH, verbose=0)
        return model
    columns = examples.columns
    x = columns if len(columns) > 1 else columns[0]
    model.fit(x, examples.labels, batch_size=BATCH, verbose=0)
    return model


# === Next to what the SavedModels answer ===


def compare(folder: pathlib.Path) -> list[tuple]:
    """Return for each task its name, the inputs, and the largest difference of a number."""
    from comparing import ask_fresh_process, difference, served_answers

    rows = []
    for file in sorted(folder.glob("*.json")):
        content = json.loads(file.read_text())
        (outputs,) = ask_fresh_process([content["job"]])
        x = content["x"]
        x = tuple(x) if isinstance(x[0], list) else x
        served = json.loads(json.dumps(served_answers(content["name"], outputs, x)))
        differences = [difference(*pair) for pair in zip(served, content["answers"], strict=True)]
        same = sum(value < LIMIT for value in differences)
        worst = max((value for value in differences if value < LIMIT), default=0.0)
        rows.append((content["name"], len(served), same, worst))
    return rows


def page(rows: list[tuple]) -> str:
    """Return the table as Markdown."""
    lines = [
        "# What SavedModels answer, next to Keras",
        "",
        "Written by `tools/serving_parity.py`: models trained on each backend for a few steps from",
        f"`{PRESET}`, asked about real inputs; the SavedModels in a process without this",
        "package. The same: labels, tokens, spans and texts identical and all numbers within "
        f"{LIMIT}.",
        "",
        "| backend | task | inputs | the same | largest difference among these |",
        "|---|---|---|---|---|",
        *(f"| {b} | {n} | {count} | {same} | {worst:.1e} |" for b, n, count, same, worst in rows),
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
