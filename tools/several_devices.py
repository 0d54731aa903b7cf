"""Runs a script on each backend, on several devices of one CPU, for the tools that compare them."""

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator

BACKENDS = ("jax", "torch", "tensorflow")


def run(script: str, backend: str, devices: int, *arguments: str) -> None:
    """Run a script: in one process, but on PyTorch in one a device.

    Raises:
        subprocess.CalledProcessError: it failed, and has said why.
    """
    environment = {
        **os.environ,
        "KERAS_BACKEND": backend,
        "TF_CPP_MIN_LOG_LEVEL": "3",
        "OMP_NUM_THREADS": "1",
        # Small models are sooner run than improved.
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}"
        " --xla_backend_optimization_level=0",
    }
    command = [sys.executable, "-W", "ignore"]
    if backend == "torch" and devices > 1:
        command += ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={devices}"]
    subprocess.run([*command, script, *arguments], env=environment, check=True)


@contextlib.contextmanager
def mesh(data: int, model: int) -> Iterator[None]:
    """Split models over all devices of this script; over one, let them be as they are."""
    import keras

    if data * model == 1:
        yield
        return
    from keras_megatron import parallel

    if keras.backend.backend() == "tensorflow":
        from keras_megatron.parallel.tensorflow_engine import make_cpu_devices

        make_cpu_devices(data * model)
    with parallel.model_parallel(model, data):
        yield


def is_first() -> bool:
    """Say whether this process is the one that writes what it found."""
    return os.environ.get("RANK", "0") == "0"
