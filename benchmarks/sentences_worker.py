"""A way to run a classifier over real sentences, which `sentences.py` times.

python sentences_worker.py make LAYERS FOLDER
python sentences_worker.py FORM PRECISION FOLDER
"""

import pathlib
import sys

import numpy as np
import serving_worker
from serving_worker import OURS, THEIRS

BATCH = 32


def make(layers: int, folder: pathlib.Path) -> None:
    """Write a classifier of the 345M shape, of so many layers, for both packages."""
    model = serving_worker.classifier(layers)
    model.save_to_preset(folder / "preset")
    model.export_to_transformers(folder / "transformers")
    serving_worker.write_transformers(serving_worker.hugging_face(folder, "float32"), folder)


def sentences(folder: pathlib.Path) -> dict[str, np.ndarray]:
    """Return the ids of the sentences, padded to the longest."""
    with np.load(folder / "sentences.npz") as arrays:
        return {name: arrays[name] for name in OURS}


# === The forms: each a function of ids that returns logits ===


def transformers(folder, precision, in_order=None):
    return _padded(serving_worker.transformers(folder, precision), in_order)


def transformers_sorted(folder, precision):
    return transformers(folder, precision, in_order=_by_length)


def transformers_openvino(folder, precision):
    answer = serving_worker._openvino(folder / "transformers.xml", THEIRS, "int64", precision)
    return _padded(answer)


def keras_megatron(folder, precision):
    from keras_megatron import MegatronBertTextClassifier

    dtype = "float32" if precision == "float32" else "bfloat16"
    model = MegatronBertTextClassifier.from_preset(
        str(folder / "preset"), preprocessor=None, dtype=dtype
    )
    return lambda inputs: model.logits(inputs, batch_size=BATCH)


def _padded(answer, in_order=None):
    """Run batches, each padded to its longest row."""

    def run(inputs):
        lengths = inputs["padding_mask"].sum(axis=1)
        order = np.arange(len(lengths)) if in_order is None else in_order(lengths)
        logits = [None] * len(order)
        for start in range(0, len(order), BATCH):
            rows = order[start : start + BATCH]
            longest = lengths[rows].max()
            batch = {name: array[rows, :longest] for name, array in inputs.items()}
            for row, of_row in zip(rows, answer(batch), strict=True):
                logits[row] = of_row
        return np.stack(logits)

    return run


def _by_length(lengths):
    return np.argsort(lengths, kind="stable")


if __name__ == "__main__":
    if sys.argv[1] == "make":
        make(int(sys.argv[2]), pathlib.Path(sys.argv[3]))
    else:
        form, precision, folder = sys.argv[1:]
        folder = pathlib.Path(folder)
        ids = sentences(folder)
        serving_worker.serve(globals()[form](folder, precision), lambda: ids)
