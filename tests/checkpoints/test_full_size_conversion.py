"""The 345M shape, once a backend: time, memory and parity of the conversion."""

import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest
import release_format
import torch
import transformers
from checkpoint_helpers import masked_lm_logits, reference_outputs

from keras_megatron import MegatronBertMaskedLM

pytestmark = pytest.mark.full_size
ROOT = pathlib.Path(__file__).parents[2]

# Private memory only: pages of the mapped checkpoint belong to the file.
CONVERT = """
import json, sys, threading, time

def megabytes():
    with open("/proc/self/status") as status:
        values = dict(line.split(":") for line in status)
    return int(values["RssAnon"].split()[0]) / 1024

from keras_megatron.checkpoints import convert_checkpoint

start, before, peak, done = time.perf_counter(), megabytes(), [0.0], threading.Event()

def watch():
    while not done.wait(0.01):
        peak[0] = max(peak[0], megabytes())

watcher = threading.Thread(target=watch)
watcher.start()
convert_checkpoint(sys.argv[1], sys.argv[2])
done.set()
watcher.join()
print(json.dumps({"seconds": time.perf_counter() - start, "imports": before, "peak": peak[0]}))
"""


@pytest.fixture(scope="module")
def released():
    """The released configuration with random weights at the scale of trained ones."""
    torch.manual_seed(0)
    config = transformers.MegatronBertConfig(
        vocab_size=30592, layer_norm_eps=1e-5, initializer_range=0.04
    )
    return transformers.MegatronBertForPreTraining(config).eval()


def test_the_released_size(tmp_path, released):
    source, output = tmp_path / "release.zip", tmp_path / "preset"
    release_format.write_release_zip(source, released)
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-c", CONVERT, source, output],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": path},
    )
    measured = json.loads(done.stdout.splitlines()[-1])
    model_size = 4 * sum(parameter.numel() for parameter in released.parameters()) / 2**20
    print(f"model {model_size:.0f} MB; {measured}")
    assert measured["peak"] - measured["imports"] < 1.5 * model_size

    masked_lm = MegatronBertMaskedLM.from_preset(str(output))
    rng = np.random.default_rng(0)
    padding_mask = np.ones((2, 64), "int32")
    padding_mask[1, 40:] = 0
    inputs = {
        "token_ids": rng.integers(0, 30522, (2, 64), "int32"),
        "segment_ids": rng.integers(0, 2, (2, 64), "int32"),
        "padding_mask": padding_mask,
    }
    expected = reference_outputs(released, inputs)["prediction_logits"]
    found = masked_lm_logits(masked_lm, inputs)
    difference = np.abs(found - expected)[padding_mask == 1].max()
    print(f"largest difference {difference:.1e} of {np.abs(expected).max():.1f}")
    assert difference <= 2e-4
