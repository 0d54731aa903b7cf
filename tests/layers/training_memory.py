"""Print by how many bytes training steps raise the peak memory of this process."""

import pathlib
import re
import sys

import keras
import numpy as np
from models import small_backbone

BATCH, SEQUENCE, HIDDEN = 8, 256, 64
backbone = small_backbone(
    num_layers=8,
    hidden_dim=HIDDEN,
    intermediate_dim=4 * HIDDEN,
    max_sequence_length=SEQUENCE,
    gradient_checkpointing=sys.argv[1] == "1",
)
model = keras.Model(backbone.input, backbone.output["pooled_output"])
model.compile(optimizer="sgd", loss="mse", jit_compile=False)


def step(batch: int, sequence: int) -> None:
    ids = np.ones((batch, sequence), "int32")
    inputs = {"token_ids": ids, "segment_ids": ids * 0, "padding_mask": ids}
    model.train_on_batch(inputs, np.zeros((batch, HIDDEN), "float32"))


def peak() -> int:
    """Return this process's own peak in bytes; getrusage's is at least that of its parent."""
    status = pathlib.Path("/proc/self/status").read_text()
    return int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) * 1024


step(1, 2)  # traced and warm
before = peak()
step(BATCH, SEQUENCE)
print(peak() - before)
