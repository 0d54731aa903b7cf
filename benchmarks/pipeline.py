"""Speed of what pretraining is fed with, and what packing gains on documents of real lengths.

    KERAS_BACKEND=torch python benchmarks/pipeline.py DATA_FOLDER benchmarks/results

DATA_FOLDER holds corpus/postgres.txt.xz, the PostgreSQL manual with an empty line between
documents. Samples a second are measured in this process and with worker processes, next to what a
345M model trains at on an H200. A step of pretraining, of a few layers of the 345M shape, is
measured with samples in rows of their own, and packed. Writes a CSV with the machine in its name.
"""

import argparse
import os
import pathlib
import statistics
import tempfile
import time

import keras
import numpy as np
from turns import shape_345m, write

LENGTHS, BATCH, SECONDS = (128, 512), 32, 5.0
H200_FLOPS, USED = 989e12, 0.5  # dense bfloat16, and a part of it that few trainings reach


def main():
    from keras_megatron import MegatronBertTokenizer
    from keras_megatron.pretraining.corpus import write_corpus
    from keras_megatron.pretraining.token_files import TokenFiles

    options = parse_options()
    tokenizer = MegatronBertTokenizer.from_preset("megatron_bert_tiny_uncased")
    with tempfile.TemporaryDirectory() as folder:
        prefix = pathlib.Path(folder) / "corpus"
        start = time.perf_counter()
        counts = write_corpus([options.data / "corpus" / "postgres.txt.xz"], prefix, tokenizer)
        seconds = time.perf_counter() - start
        rows = [row("texts to token files", "tokens_per_second", counts["tokens"] / seconds)]
        files = TokenFiles.open(prefix, tokenizer)
        rows += samples_a_second(files, tokenizer, options.workers)
        rows += steps_a_second(files, tokenizer, options)
    for line in rows:
        print(*line.values(), sep="\t")
    write(rows, options.output, f"pipeline_{keras.config.backend()}_{os.cpu_count()}_cpus")


def row(what: str, unit: str, value: float) -> dict:
    return {"what": what, "unit": unit, "value": float(f"{value:.4g}")}


def samples_a_second(files, tokenizer, workers: list[int]) -> list[dict]:
    """Time batches that nobody waits for, after the first few."""
    from keras_megatron.pretraining.sentence_pairs import prefetched, pretraining_batches
    from keras_megatron.pretraining.throughput import training_flops

    rows = []
    for length in LENGTHS:
        flops = training_flops(shape_345m(), length, length, round(0.15 * length))
        needed = H200_FLOPS * USED / flops
        rows.append(row(f"345M on an H200 at {USED:.0%}, {length} tokens", "samples", needed))
        for count in workers:
            batches = iter(
                prefetched(pretraining_batches(files, tokenizer, BATCH, length).repeat(), count)
            )
            for _ in range(2 + 8 * count):  # what is ahead
                next(batches)
            start, made = time.perf_counter(), 0
            while time.perf_counter() - start < SECONDS:
                next(batches)
                made += BATCH
            rate = made / (time.perf_counter() - start)
            how = f"{count} worker processes" if count else "this process"
            rows.append(row(f"samples of {length} tokens, {how}", "samples_per_second", rate))
    return rows


def steps_a_second(files, tokenizer, options) -> list[dict]:
    """Time steps of training on the same samples, in rows of their own and packed, in turns."""
    from keras_megatron import MegatronBertBackbone, MegatronBertPretrainer
    from keras_megatron.pretraining.sentence_pairs import pretraining_batches
    from keras_megatron.tasks.packed_training import pack_batches

    keras.utils.set_random_seed(0)
    backbone = MegatronBertBackbone(30_592, options.layers, 16, 1024, 4096)
    model = MegatronBertPretrainer(backbone)
    model.compile()
    batches = pretraining_batches(files, tokenizer, 8, 512)
    ways = {"rows of their own": batches, "packed": pack_batches(model, batches)}
    seconds = {name: [] for name in ways}
    places = dict.fromkeys(ways, 0)
    for turn in range(-2, options.rounds):
        for name, made in ways.items():
            x, y, weight = made[turn % len(made)]
            start = time.perf_counter()
            float(np.ravel(model.train_on_batch(x, y, weight))[0])
            if turn >= 0:  # shapes are compiled before, or now and then: the median leaves that out
                seconds[name].append(time.perf_counter() - start)
                places[name] += x["token_ids"].size
    what = f"training of {options.layers} layers, 8 samples of up to 512 tokens, "
    rows = []
    for name in ways:
        rate = 1 / statistics.median(seconds[name])
        rows.append(row(f"{what}{name}", "steps_per_second", rate))
        rows.append(row(f"{what}{name}", "places_a_step", places[name] / options.rounds))
    first, second = map(statistics.median, seconds.values())
    return [*rows, row(f"{what}packed", "times_faster", first / second)]


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=pathlib.Path, metavar="DATA_FOLDER")
    parser.add_argument("output", type=pathlib.Path, help="folder")
    parser.add_argument("--layers", type=int, default=4, help="of the 345M shape")
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--workers", type=int, nargs="+", default=[0, os.cpu_count()])
    return parser.parse_args()


if __name__ == "__main__":
    main()
