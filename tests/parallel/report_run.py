"""Prints what `parallel.describe` says of models on several devices as JSON: a child process.

On PyTorch each process has its own report, and process 0's is printed.
"""

import json
import os

import keras

CASES = ("plain", "lora", "int8", "int4")
DEVICES = 2 if keras.backend.backend() == "torch" else 4

if keras.backend.backend() == "tensorflow":  # JAX and torchrun are told by the environment
    from keras_megatron.parallel.tensorflow_engine import make_cpu_devices

    make_cpu_devices(DEVICES)

from sharded_models import build  # noqa: E402

from keras_megatron import parallel  # noqa: E402


def described() -> dict:
    """Return the reports of several models."""
    seen = {}
    with parallel.model_parallel(model=2, data=DEVICES // 2):
        models = {name: build("MaskedLM", num_layers=2 - (name != "plain")) for name in CASES}
        models["plain"].compile(optimizer=keras.optimizers.Adam())
        models["plain"].optimizer.build(models["plain"].trainable_variables)
        models["lora"].backbone.enable_lora(2)
        for kind in ("int8", "int4"):
            models[kind].backbone.quantize(kind)
        seen |= {name: parallel.describe(model).to_dict() for name, model in models.items()}
    seen["text"] = str(parallel.describe(models["plain"]))  # after it, too
    seen["parameters"] = models["plain"].count_params()
    seen["outside"] = parallel.describe(build("TextClassifier", num_layers=1)).to_dict()
    return seen


if __name__ == "__main__":
    report = described()
    if os.environ.get("RANK", "0") == "0":
        print(json.dumps(report))
