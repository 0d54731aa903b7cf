"""Save a model on each backend and number of devices, and load it on each, as a table.

    python tools/checkpoint_matrix.py docs/checkpoint_matrix.md

A masked LM is trained for two steps and saved as a preset, as `.weights.h5` and as `.keras`. All
weights must come back bit by bit, and so must the optimizer's state, which the last two have.
"""

import argparse
import hashlib
import itertools
import json
import pathlib
import tempfile
from collections.abc import Iterable

import several_devices

# (data, model), by the number of devices.
MESHES = {1: (1, 1), 2: (1, 2), 4: (2, 2)}
PLACES = tuple(itertools.product(several_devices.BACKENDS, MESHES))
VOCABULARY, LENGTH, BATCH = 64, 12, 4
LIMIT = 1e-5  # of outputs, which are sums in another order


def build(seed: int):
    """Return a compiled masked LM with random weights."""
    import keras

    from keras_megatron import MegatronBertBackbone, MegatronBertMaskedLM
    from keras_megatron.finetuning import adamw

    keras.utils.set_random_seed(seed)
    backbone = MegatronBertBackbone(
        vocabulary_size=VOCABULARY,
        num_layers=2,
        num_heads=4,
        hidden_dim=16,
        intermediate_dim=32,
        max_sequence_length=LENGTH,
        initializer_range=0.2,
    )
    masked_lm = MegatronBertMaskedLM(backbone)
    masked_lm.compile(optimizer=adamw(1e-2, 10, warmup=0.0))
    return masked_lm


def batch() -> tuple:
    """Return random ids and labels of a batch."""
    import numpy as np

    rng = np.random.default_rng(0)
    x = {
        "token_ids": rng.integers(0, VOCABULARY, (BATCH, LENGTH)),
        "segment_ids": rng.integers(0, 2, (BATCH, LENGTH)),
        "padding_mask": np.ones((BATCH, LENGTH), "int32"),
        "mask_positions": rng.integers(0, LENGTH, (BATCH, 3)),
    }
    return x, rng.integers(0, VOCABULARY, (BATCH, 3))


def described(model) -> dict[str, str]:
    """Return digests of weights and optimizer's state."""
    return {"weights": digest(model.weights), "optimizer": digest(model.optimizer.variables)}


def outputs(model) -> list:
    """Return logits of a batch."""
    return model.predict_on_batch(batch()[0]).tolist()


def digest(variables: Iterable) -> str:
    """Return the SHA-256 of the whole values of variables, one after the other."""
    import numpy as np

    whole = hashlib.sha256()
    for variable in variables:
        value = variable.numpy()
        # How wide the count of steps is depends on the backend.
        kind = "<i8" if np.issubdtype(value.dtype, np.integer) else value.dtype
        whole.update(np.ascontiguousarray(value, kind).tobytes())
    return whole.hexdigest()


def save(folder: pathlib.Path) -> dict:
    """Train, save in each way, and return what was saved."""
    model = build(seed=1)
    for _ in range(2):
        model.train_on_batch(*batch())
    model.save_weights(folder / "model.weights.h5")
    model.save(folder / "model.keras")
    model.save_to_preset(str(folder / "preset"))
    return {**described(model), "outputs": outputs(model)}


def load(folder: pathlib.Path) -> dict:
    """Load in each way, and return what was loaded."""
    import keras

    from keras_megatron import MegatronBertMaskedLM

    weights = build(seed=2)
    weights.optimizer.build(weights.trainable_variables)
    weights.load_weights(folder / "model.weights.h5")
    model = keras.saving.load_model(folder / "model.keras")
    preset = MegatronBertMaskedLM.from_preset(str(folder / "preset"))
    return {
        ".weights.h5": described(weights),
        ".keras": described(model),
        "preset": {"weights": digest(preset.weights)},
        "outputs": outputs(model),
    }


def work(folder: pathlib.Path, what: str, devices: int, places: list[str]) -> None:
    """Save or load on the devices of this process, and write what was saved or loaded."""
    with several_devices.mesh(*MESHES[devices]):
        found = {place: globals()[what](folder / place) for place in places}
    if several_devices.is_first():
        for place, value in found.items():
            (folder / place / f"{what} {name_of_backend()} {devices}.json").write_text(
                json.dumps(value)
            )


def name_of_backend() -> str:
    """Return the active backend's name."""
    import keras

    return keras.backend.backend()


def run(folder: pathlib.Path, what: str, place: tuple[str, int], places: Iterable) -> None:
    """Start processes that save or load, on the devices of a place."""
    backend, devices = place
    names = [f"{backend} {devices}" for backend, devices in places]
    for name in names:
        (folder / name).mkdir(exist_ok=True)
    several_devices.run(
        __file__, backend, devices, str(folder), "--child", what, str(devices), *names
    )


def compare(folder: pathlib.Path, saver: tuple[str, int], loader: tuple[str, int]) -> dict:
    """Return what is equal, and the largest difference of outputs, of one cell of the matrix."""
    import numpy as np

    place = folder / f"{saver[0]} {saver[1]}"
    saved = json.loads((place / f"save {place.name}.json").read_text())
    loaded = json.loads((place / f"load {loader[0]} {loader[1]}.json").read_text())
    ways = [loaded[name] for name in (".weights.h5", ".keras", "preset")]
    return {
        "weights": all(way["weights"] == saved["weights"] for way in ways),
        "optimizer": all(way["optimizer"] == saved["optimizer"] for way in ways[:2]),
        "outputs": float(np.abs(np.subtract(loaded["outputs"], saved["outputs"])).max()),
    }


def table(cells: dict[tuple, dict]) -> str:
    """Return a Markdown table: savers by row, loaders by column."""
    names = [f"{backend}, {devices}" for backend, devices in PLACES]
    lines = [
        "# A masked LM saved on each backend and number of devices, and loaded on each",
        "",
        "Written by `tools/checkpoint_matrix.py`; 4 devices are a mesh of 2x2. A cell says what",
        "came back bit by bit, weights through a preset, `.weights.h5` and `.keras`, and AdamW's",
        "state through the last two; and the largest difference of logits to the saver's.",
        "",
        "| saved on | " + " | ".join(names) + " |",
        "|---" * (len(names) + 1) + "|",
    ]
    for saver, name in zip(PLACES, names, strict=True):
        row = [_cell(cells[saver, loader]) for loader in PLACES]
        lines.append(f"| {name} | " + " | ".join(row) + " |")
    return "\n".join(lines)


def _cell(cell: dict) -> str:
    words = [
        "weights" if cell["weights"] else "WEIGHTS DIFFER",
        "optimizer" if cell["optimizer"] else "OPTIMIZER DIFFERS",
        f"{cell['outputs']:.0e}" + ("" if cell["outputs"] <= LIMIT else " DIFFERS"),
    ]
    return ", ".join(words)


def main() -> int:
    """Save everywhere, load everything everywhere, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("output", type=pathlib.Path, help="Markdown file to write")
    parser.add_argument("--child", nargs="+", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        what, devices, *places = arguments.child
        work(arguments.output, what, int(devices), places)
        return 0
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        for place in PLACES:
            run(folder, "save", place, [place])
        for place in PLACES:
            run(folder, "load", place, PLACES)
        cells = {pair: compare(folder, *pair) for pair in itertools.product(PLACES, PLACES)}
    text = table(cells)
    print(text)
    arguments.output.write_text(text + "\n")
    good = all(c["weights"] and c["optimizer"] and c["outputs"] <= LIMIT for c in cells.values())
    return 0 if good else 1


if __name__ == "__main__":
    raise SystemExit(main())
