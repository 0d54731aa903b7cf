"""Loading and tokenizing, side by side with the peers, in one run.

    make benchmark        (or: PYTHONPATH=tests python benchmarks/loading.py [--layers 24])

Prints conversion of a release zip and loading of a preset (seconds, peak memory) against
`transformers`, each in a process of its own and for each backend, and texts to model-ready arrays
against raw `tokenizers` and KerasHub's preprocessor. The model has the released shape and random
weights. Needs about 6 GB of disk and 8 GB of memory.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import keras

ROOT = Path(__file__).parent.parent
BACKENDS = ("jax", "torch", "tensorflow")

# Runs in a child: imports first, then what is timed, while a thread watches the memory.
CHILD = """
import json, sys, threading, time

def memory(kind):
    with open("/proc/self/status") as status:
        return int(dict(line.split(":") for line in status)[kind].split()[0]) / 1024

{imports}
base, peak, done = memory("RssAnon"), [0.0], threading.Event()

def watch():
    while not done.wait(0.01):
        peak[0] = max(peak[0], memory("RssAnon"))

watcher = threading.Thread(target=watch)
watcher.start()
start = time.perf_counter()
{work}
seconds = time.perf_counter() - start
done.set()
watcher.join()
print(json.dumps({{"seconds": seconds, "peak": peak[0] - base}}))
"""


def measure(imports: str, work: str, backend: str, runs: int = 3) -> dict[str, float]:
    """Run `work` in fresh processes; return the medians of seconds and of peak megabytes.

    Memory is private memory above that of the imports: pages of a mapped file do not count.
    """
    results = []
    for _ in range(runs):
        done = subprocess.run(
            [sys.executable, "-c", CHILD.format(imports=imports, work=work)],
            env={**os.environ, "KERAS_BACKEND": backend},
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            check=True,
        )
        results.append(json.loads(done.stdout.splitlines()[-1]))
    return {key: statistics.median(run[key] for run in results) for key in results[0]}


def loading(layers: int) -> None:
    """Print conversion and loading."""
    import release_format
    import transformers

    config = transformers.MegatronBertConfig(
        vocab_size=30592, num_hidden_layers=layers, layer_norm_eps=1e-5
    )
    model = transformers.MegatronBertForPreTraining(config)
    size = 4 * sum(p.numel() for p in model.parameters()) / 2**20
    print(f"\n{layers} layers, {size:.0f} MB in float32")
    print(f"{'':42} {'seconds':>8} {'peak MB':>8} {'x model':>8}")

    def row(what: str, result: dict) -> None:
        peak = result["peak"]
        print(f"{what:42} {result['seconds']:8.1f} {peak:8.0f} {peak / size:8.2f}", flush=True)

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        release_format.write_release_zip(folder / "release.zip", model)
        transformers.MegatronBertForMaskedLM(config).save_pretrained(folder / "huggingface")
        del model
        for backend in BACKENDS:
            convert = "from keras_megatron.checkpoints import convert_checkpoint"
            preset = folder / f"preset_{backend}"
            work = f"convert_checkpoint({str(folder / 'release.zip')!r}, {str(preset)!r})"
            row(f"convert the release zip, {backend}", measure(convert, work, backend, runs=1))
        ours = "from keras_megatron import MegatronBertMaskedLM"
        for backend in BACKENDS:
            preset = folder / f"preset_{backend}"
            work = f"model = MegatronBertMaskedLM.from_preset({str(preset)!r})"
            row(f"from_preset, {backend}", measure(ours, work, backend))
        for backend in BACKENDS:
            work = f"model = MegatronBertMaskedLM.from_preset({str(folder / 'huggingface')!r})"
            row(f"from_preset, Hugging Face folder, {backend}", measure(ours, work, backend))
        work = f"model = MegatronBertForMaskedLM.from_pretrained({str(folder / 'huggingface')!r})"
        work += "\nsum(p.sum().item() for p in model.parameters())  # read what was only mapped"
        theirs = "from transformers import MegatronBertForMaskedLM"
        row("transformers from_pretrained, read", measure(theirs, work, "torch"))
        work += "\n[p.data.t().contiguous() for p in model.parameters()]"  # in Keras's layout
        row("the same, in Keras's layout", measure(theirs, work, "torch"))


def tokenizing(repeats: int = 9) -> None:
    """Print texts a second, ours and the peers' in turn, the best turn of each.

    On a virtual machine some turns get one thread of the library's two.
    """
    import keras_hub
    import tokenizers

    from keras_megatron import MegatronBertTokenizer

    vocabulary = str(ROOT / "keras_megatron" / "presets" / "vocabularies" / "bert_uncased.txt")
    paragraphs = (ROOT / "tests" / "data" / "paragraphs.txt").read_text("utf-8").splitlines()
    sentences = [s for p in paragraphs for s in p.split(". ") if 20 < len(s) < 400]
    sentences = (sentences * (20_000 // len(sentences) + 1))[:20_000]

    raw = tokenizers.BertWordPieceTokenizer(vocabulary, lowercase=True)
    ours = MegatronBertTokenizer(vocabulary)
    hub = keras_hub.models.BertTextClassifierPreprocessor(
        keras_hub.models.BertTokenizer(vocabulary, lowercase=True), sequence_length=128
    )
    runs = {
        "tokenizers, encode_batch (no arrays)": lambda: raw.encode_batch(sentences),
        "keras_megatron, to padded arrays": lambda: ours.encode(sentences, sequence_length=128),
        "KerasHub, to padded arrays": lambda: hub(sentences[:4000]),
    }
    seconds = {name: [] for name in runs}
    for _ in range(repeats):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - start)
    pieces = sum(len(encoding.ids) for encoding in raw.encode_batch(sentences)) / len(sentences)
    print(f"\n20,000 sentences, {pieces:.0f} pieces each on average; best of {repeats}")
    base = min(seconds["tokenizers, encode_batch (no arrays)"]) / len(sentences)
    for name, times in seconds.items():
        each = min(times) / (4000 if name.startswith("KerasHub") else len(sentences))
        print(f"{name:42} {1 / each:10,.0f} sentences/s   {base / each:6.2f} x tokenizers")


def main() -> None:
    """Print everything."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, default=24)
    layers = parser.parse_args().layers
    versions = f"Python {platform.python_version()}, keras {keras.__version__}"
    print(f"{time.strftime('%Y-%m-%d')}, {os.cpu_count()} CPU cores, {versions}")
    tokenizing()
    loading(layers)


if __name__ == "__main__":
    main()
