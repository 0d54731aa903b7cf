"""Train and measure on all backends and meshes, and draw README's figure.

    python tools/parallel_figures.py docs/parallel
    python tools/parallel_figures.py docs/parallel --redraw   # from docs/parallel.json

Masked-LM training, 30 steps of AdamW on real text without dropout from the same weights, whole
and split over 1x2 and 2x2 (data x model) devices of one CPU; and the bytes of weights and of the
optimizer's state that a device holds, by the number of devices that the model is split over.
Writes docs/parallel.png and docs/parallel.json.
"""

import argparse
import json
import pathlib
import tempfile

import several_devices

TEXTS = pathlib.Path(__file__).parent.parent / "tests" / "data" / "paragraphs.txt"
MESHES = {1: (1, 1), 2: (1, 2), 4: (2, 2)}  # (data, model), by the number of devices
DEVICES = {"jax": (1, 2, 4, 8), "torch": (1, 2, 4), "tensorflow": (1, 2, 4, 8)}
REFERENCE = ("torch", 1)
STEPS, BATCH, LENGTH = 30, 8, 64
VOCABULARY = 30_720  # of the model that is measured, BERT's; divisible by 8


def backbone(vocabulary: int, **sizes: int):
    """Return a backbone without dropout."""
    from keras_megatron import MegatronBertBackbone

    return MegatronBertBackbone(
        vocabulary_size=vocabulary,
        max_sequence_length=LENGTH,
        dropout=0.0,
        attention_dropout=0.0,
        **sizes,
    )


def compiled(arguments: dict):
    """Return a masked LM that is ready to be trained."""
    from keras_megatron import MegatronBertMaskedLM
    from keras_megatron.finetuning import adamw

    masked_lm = MegatronBertMaskedLM(backbone(**arguments))
    masked_lm.compile(optimizer=adamw(2e-3, STEPS, warmup=0.1))
    return masked_lm


def prepare(folder: pathlib.Path) -> None:
    """Write the weights that all runs start from, and the batches."""
    import keras
    import numpy as np

    from keras_megatron import MegatronBertMaskedLMPreprocessor

    keras.utils.set_random_seed(0)
    preprocessor = MegatronBertMaskedLMPreprocessor.from_preset(
        "megatron_bert_tiny_uncased", sequence_length=LENGTH, seed=0
    )
    texts = [text for text in TEXTS.read_text(encoding="utf-8").splitlines() if text.strip()]
    texts = [texts[index % len(texts)] for index in range(STEPS * BATCH)]
    x, y, weight = preprocessor(texts)
    np.savez(folder / "batches.npz", y=y, weight=weight, **x)
    rows = preprocessor.tokenizer.vocabulary_size()
    arguments = {
        "vocabulary": -(-rows // 4) * 4,
        "num_layers": 2,
        "num_heads": 4,
        "hidden_dim": 64,
        "intermediate_dim": 256,
    }
    (folder / "arguments.json").write_text(json.dumps(arguments))
    compiled(arguments).save_weights(folder / "start.weights.h5")


def losses(folder: pathlib.Path) -> list[float]:
    """Return the loss of each step."""
    import numpy as np

    masked_lm = compiled(json.loads((folder / "arguments.json").read_text()))
    masked_lm.load_weights(folder / "start.weights.h5")
    data = dict(np.load(folder / "batches.npz"))
    found = []
    for step in range(STEPS):
        x = {name: array[step * BATCH : (step + 1) * BATCH] for name, array in data.items()}
        y, weight = x.pop("y"), x.pop("weight")
        masked_lm.reset_metrics()  # train_on_batch answers with the mean since the last reset
        found.append(float(masked_lm.train_on_batch(x, y, weight)[0]))
    return found


def measured() -> dict[str, int]:
    """Return the bytes that a device holds of a model's weights and of the optimizer's state."""
    sizes = {"num_layers": 4, "num_heads": 8, "hidden_dim": 256, "intermediate_dim": 1024}
    masked_lm = compiled({"vocabulary": VOCABULARY, **sizes})
    masked_lm.optimizer.build(masked_lm.trainable_variables)
    return {
        "weights": sum(map(local_bytes, masked_lm.weights)),
        "optimizer": sum(map(local_bytes, masked_lm.optimizer.variables)),
    }


def local_bytes(variable) -> int:
    """Return the bytes of a variable's part on the first device of this process."""
    value = variable.value
    if hasattr(value, "addressable_shards"):  # JAX
        return value.addressable_shards[0].data.nbytes
    if hasattr(value, "to_local"):  # PyTorch
        return value.to_local().nbytes
    if hasattr(value, "parts"):  # TensorFlow
        return value.parts()[0].numpy().nbytes
    return variable.numpy().nbytes


def work(folder: pathlib.Path, backend: str, devices: int) -> None:
    """Train and measure on the devices of this process."""
    found = {}
    with several_devices.mesh(1, devices):
        found["bytes"] = measured()
    if devices in MESHES:
        with several_devices.mesh(*MESHES[devices]):
            found["losses"] = losses(folder)
    if several_devices.is_first():
        (folder / f"{backend} {devices}.json").write_text(json.dumps(found))


def collect() -> dict[str, dict]:
    """Run all, and return what each found, by "backend devices"."""
    found = {}
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        prepare(folder)
        for backend, counts in DEVICES.items():
            for devices in counts:
                child = [str(folder), "--child", backend, str(devices)]
                several_devices.run(__file__, backend, devices, *child)
                file = folder / f"{backend} {devices}.json"
                found[file.stem] = json.loads(file.read_text())
                print(file.stem, found[file.stem]["bytes"], flush=True)
    return found


def draw(found: dict[str, dict], path: pathlib.Path) -> None:
    """Draw losses, their differences, and bytes a device."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplot_mosaic(
        [["losses", "bytes"], ["differences", "bytes"]],
        figsize=(10, 5.2),
        layout="constrained",
        width_ratios=[1.25, 1],
        height_ratios=[1.4, 1],
    )
    draw_losses(found, axes["losses"], axes["differences"])
    draw_bytes(found, axes["bytes"])
    figure.savefig(path, dpi=120)


def draw_losses(found: dict[str, dict], above, below) -> None:
    """Draw nine curves of losses, and how far each is from the reference."""
    import numpy as np

    colors = dict(zip(several_devices.BACKENDS, ("C0", "C3", "C1"), strict=True))
    widths = dict(zip(several_devices.BACKENDS, (6, 3.5, 1.5), strict=True))  # to see them all
    styles = {1: "-", 2: "--", 4: ":"}
    steps = np.arange(1, STEPS + 1)
    reference = np.array(found["{} {}".format(*REFERENCE)]["losses"])
    for backend, color in colors.items():
        for devices, style in styles.items():
            values = np.array(found[f"{backend} {devices}"]["losses"])
            data, model = MESHES[devices]
            mesh = "one device" if devices == 1 else f"{data}x{model}"
            look = {"color": color, "linestyle": style}
            above.plot(steps, values, linewidth=widths[backend], label=f"{backend}, {mesh}", **look)
            if (backend, devices) != REFERENCE:
                difference = np.maximum(np.abs(values - reference), 1e-8)
                below.semilogy(steps, difference, **look)
    above.set(title="Masked LM: loss of each step, nine runs", ylabel="loss")
    above.legend(ncols=3, fontsize=7.5, loc="upper right")
    above.set_ylim(top=reference.max() + 0.4 * np.ptp(reference))  # room for the legend
    above.tick_params(labelbottom=False)
    below.set(
        xlabel="step", ylabel="absolute difference\nfrom PyTorch, one device", ylim=(5e-9, 2e-4)
    )


def draw_bytes(found: dict[str, dict], axes) -> None:
    """Draw bytes a device by the number of devices, next to what equal parts would be."""
    counts = DEVICES["jax"]
    markers = dict(zip(several_devices.BACKENDS, ("o", "x", "+"), strict=True))
    for kind, color, label in (("optimizer", "C2", "optimizer"), ("weights", "C4", "weights")):
        whole = found["jax 1"]["bytes"][kind] / 2**20
        equal = [whole / count for count in counts]
        axes.plot(counts, equal, color=color, linewidth=1, alpha=0.6)
        for backend, marker in markers.items():
            sizes = [found[f"{backend} {n}"]["bytes"][kind] / 2**20 for n in DEVICES[backend]]
            axes.plot(
                DEVICES[backend],
                sizes,
                marker,
                color=color,
                markersize={"o": 11, "x": 8, "+": 11}[marker],
                markerfacecolor="none",
                label=f"{label}, {backend}",
            )
    axes.plot([], [], color="0.5", linewidth=1, label="equal parts, nothing whole")
    axes.set_xscale("log", base=2)
    axes.set_yscale("log", base=2)
    axes.set_xticks(counts, [str(count) for count in counts])
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.set(
        title="Held by each device",
        xlabel="devices that the model is split over",
        ylabel="MiB",
    )
    axes.legend(fontsize=7.5)


def main() -> None:
    """Run everything, or take what was found before, and draw."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("output", type=pathlib.Path, help="where to write, without a suffix")
    parser.add_argument("--redraw", action="store_true", help="draw what was found before")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        backend, devices = arguments.child
        work(arguments.output, backend, int(devices))
        return
    file = arguments.output.with_suffix(".json")
    if not arguments.redraw:
        file.write_text(json.dumps(collect(), indent=1) + "\n")
    draw(json.loads(file.read_text()), arguments.output.with_suffix(".png"))


if __name__ == "__main__":
    main()
