"""A form of the model that `serving.py` times: answers requests on stdin with lines of JSON.

python serving_worker.py make LAYERS FOLDER
python serving_worker.py FORM PRECISION FOLDER
"""

import json
import pathlib
import sys
import time

import numpy as np

PIECES = 30_000  # ids below are used
OURS = {"token_ids": "token_ids", "segment_ids": "segment_ids", "padding_mask": "padding_mask"}
THEIRS = {
    "token_ids": "input_ids",
    "segment_ids": "token_type_ids",
    "padding_mask": "attention_mask",
}


def inputs_of(batch: int, length: int) -> dict[str, np.ndarray]:
    """Return ids that are the same in every process."""
    rng = np.random.default_rng([batch, length])
    token_ids = rng.integers(1000, PIECES, (batch, length)).astype("int32")
    ones = np.ones_like(token_ids)
    return {"token_ids": token_ids, "segment_ids": ones * 0, "padding_mask": ones}


def classifier(layers: int):
    """Return a classifier of the 345M shape, of so many layers, with random weights."""
    import keras

    from keras_megatron import MegatronBertBackbone, MegatronBertTextClassifier

    keras.utils.set_random_seed(0)
    backbone = MegatronBertBackbone(30_592, layers, 16, 1024, 4096)
    model = MegatronBertTextClassifier(backbone, num_classes=3)
    model.classifier.kernel.assign(
        np.random.default_rng(0).normal(0, 0.05, model.classifier.kernel.shape)
    )
    return model


def keras_hub_classifier(preset: pathlib.Path, precision: str):
    """Return KerasHub's Bert of the shape of a preset, with random weights."""
    import keras_hub

    config = json.loads((preset / "config.json").read_text())["config"]
    shape = [config[key] for key in ("vocabulary_size", "num_layers", "num_heads", "hidden_dim")]
    backbone = keras_hub.models.BertBackbone(*shape, config["intermediate_dim"], dtype=precision)
    return keras_hub.models.BertTextClassifier(backbone, num_classes=3)


def make(layers: int, folder: pathlib.Path) -> None:
    """Write a classifier in every form."""
    from keras_megatron import serving

    model = classifier(layers)
    model.export_to_transformers(folder / "transformers")
    for precision in ("float32", "bfloat16", "int8"):
        for format in ("saved_model", "onnx", "openvino"):
            if (format, precision) != ("onnx", "bfloat16"):
                path = folder / f"{format}_{precision}"
                serving.export(model, path, format=format, precision=precision, warmup=False)
    theirs = hugging_face(folder, "float32")
    write_transformers(theirs, folder)


def hugging_face(folder: pathlib.Path, precision: str):
    """Load the weights into `transformers`, on a GPU if there is one."""
    import torch
    import transformers

    model = transformers.AutoModelForSequenceClassification.from_pretrained(
        folder / "transformers", dtype=getattr(torch, precision)
    )
    return model.to(device()).eval()


def device() -> str:
    """Return where PyTorch computes."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def write_transformers(model, folder: pathlib.Path) -> None:
    """Convert the model of `transformers` with PyTorch's ONNX exporter, and from there."""
    import openvino
    import torch

    inputs = {THEIRS[n]: torch.from_numpy(a).long() for n, a in inputs_of(2, 16).items()}
    model = model.cpu()
    axes = {name: {0: "batch", 1: "sequence"} for name in inputs}
    with torch.inference_mode():
        torch.onnx.export(
            logits_module(model),
            tuple(inputs[name] for name in THEIRS.values()),
            folder / "transformers.onnx",
            input_names=list(THEIRS.values()),
            output_names=["logits"],
            dynamic_axes={**axes, "logits": {0: "batch"}},
            dynamo=False,
        )
    openvino.save_model(
        openvino.Core().read_model(folder / "transformers.onnx"),
        folder / "transformers.xml",
        compress_to_fp16=False,
    )


def logits_module(model):
    """Return a module that takes the inputs in the order of `THEIRS`, made when torch is there."""
    import torch

    class Module(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.model = model

        def forward(self, input_ids, token_type_ids, attention_mask):
            return self.model(
                input_ids=input_ids, token_type_ids=token_type_ids, attention_mask=attention_mask
            ).logits

    return Module()


# === The forms: each a function of numpy ids that returns logits ===


def transformers(folder, precision, compiled=False):
    import torch

    model = hugging_face(folder, precision)
    if compiled:
        model = torch.compile(model)

    def answer(inputs):
        with torch.inference_mode():
            tensors = {
                THEIRS[name]: torch.from_numpy(array).to(model.device)
                for name, array in inputs.items()
            }
            return model(**tensors).logits.float().cpu().numpy()

    return answer


def transformers_compiled(folder, precision):
    return transformers(folder, precision, compiled=True)


def transformers_onnx(folder, precision):
    return _onnx(folder / "transformers.onnx", THEIRS, "int64")


def transformers_openvino(folder, precision):
    return _openvino(folder / "transformers.xml", THEIRS, "int64", precision)


def onnx(folder, precision):
    return _onnx(folder / f"onnx_{precision}" / "model.onnx", OURS, "int32")


def openvino(folder, precision):
    return _openvino(folder / f"openvino_{precision}" / "model.xml", OURS, "int32", precision)


def saved_model(folder, precision):
    import tensorflow as tf
    import tensorflow_text  # noqa: F401  its operations

    loaded = tf.saved_model.load(str(folder / f"saved_model_{precision}" / "1"))
    signature = loaded.signatures["tensors"]

    def answer(inputs):
        tensors = {name: tf.constant(array) for name, array in inputs.items()}
        return signature(**tensors)["logits"].numpy()

    answer.kept = loaded
    return answer


def _onnx(path, names, dtype):
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads()
    # Others are timed while this one waits.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = onnxruntime.InferenceSession(path, options)

    def answer(inputs):
        inputs = {names[name]: array.astype(dtype) for name, array in inputs.items()}
        return session.run(["logits"], inputs)[0]

    return answer


def _openvino(path, names, dtype, precision):
    import openvino

    hint = "bf16" if precision == "bfloat16" else "f32"
    settings = {"INFERENCE_PRECISION_HINT": hint, "INFERENCE_NUM_THREADS": threads()}
    model = openvino.Core().compile_model(path, "CPU", {**settings, "NUM_STREAMS": 1})

    def answer(inputs):
        inputs = {names[name]: array.astype(dtype) for name, array in inputs.items()}
        return model(inputs)["logits"]

    return answer


def threads() -> int:
    """Return how many threads a form may use."""
    import os

    return int(os.environ["OMP_NUM_THREADS"])


def serve(answer, inputs_for) -> None:
    """Answer requests, one a line: `inputs_for` makes ids of a request, and is not timed."""
    for line in sys.stdin:
        inputs = inputs_for(*json.loads(line))
        start = time.perf_counter()
        logits = answer(inputs)
        seconds = time.perf_counter() - start
        print(json.dumps({"seconds": seconds, "logits": logits.tolist()}), flush=True)


if __name__ == "__main__":
    if sys.argv[1] == "make":
        make(int(sys.argv[2]), pathlib.Path(sys.argv[3]))
    else:
        form, precision, folder = sys.argv[1:]
        serve(globals()[form](pathlib.Path(folder), precision), inputs_of)
