"""Converts a checkpoint in a process of its own, and measures time and memory."""

import json
import os
import pathlib
import subprocess
import sys

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

watcher = threading.Thread(target=watch, daemon=True)  # an error must end the process
watcher.start()
convert_checkpoint(*sys.argv[1:])
done.set()
watcher.join()
print(json.dumps({"seconds": time.perf_counter() - start, "imports": before, "peak": peak[0]}))
"""


def measure(source, output, *vocabulary):
    """Return seconds, and the MB of private memory after imports and at most."""
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-c", CONVERT, source, output, *vocabulary],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": path},
    )
    return json.loads(done.stdout.splitlines()[-1])


def model_megabytes(model):
    """What a torch model's weights take in float32."""
    return 4 * sum(parameter.numel() for parameter in model.parameters()) / 2**20
