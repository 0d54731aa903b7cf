"""Asks SavedModels in a process that has TensorFlow and TensorFlow Text, and not this package.

    echo JOBS | python fresh_process.py

JOBS is JSON: a list of objects with a `folder`, a `signature` and `inputs`, a list of rows by name,
and a `batch`, rows a call. It prints a list of the outputs as JSON, a list of rows by name each;
rows of different batches may be padded to different lengths.
"""

import json
import sys

sys.modules["keras_hub"] = sys.modules["keras_megatron"] = None

import tensorflow as tf  # noqa: E402
import tensorflow_text  # noqa: E402, F401  its operations
from comparing import as_json  # noqa: E402


def ask(job: dict) -> dict[str, list]:
    loaded = tf.saved_model.load(job["folder"])
    signature = loaded.signatures[job["signature"]]
    specs = signature.structured_input_signature[1]
    outputs = {}
    rows = len(next(iter(job["inputs"].values())))
    for start in range(0, rows, job["batch"]):
        part = slice(start, start + job["batch"])
        inputs = {n: tf.constant(v[part], specs[n].dtype) for n, v in job["inputs"].items()}
        for name, array in signature(**inputs).items():
            outputs.setdefault(name, []).extend(as_json(array.numpy().tolist()))
    return outputs


if __name__ == "__main__":
    answers = [ask(job) for job in json.load(sys.stdin)]
    assert not {name.partition(".")[0] for name, module in sys.modules.items() if module} & {
        "keras_hub",
        "keras_megatron",
    }
    json.dump(answers, sys.stdout)
