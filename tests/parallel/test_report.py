"""`parallel.describe`: what devices hold, by each backend's own account, and why."""

import functools
import json
import os
import pathlib
import subprocess
import sys

import keras
import pytest

from keras_megatron.parallel.reasons import NO_REASON
from keras_megatron.parallel.report import OUTSIDE

CASES = ("plain", "lora", "int8", "int4")
HERE = pathlib.Path(__file__).parent
# By the end of a variable's path: which axis two devices split, and a word of the reason.
SPLIT = {
    "token_embedding/embeddings": (0, "vocabulary"),
    **{f"self_attention/{name}/kernel": (1, "heads") for name in ("query", "key", "value")},
    **{f"self_attention/{name}/bias": (0, "heads") for name in ("query", "key", "value")},
    "attention_output/kernel": (0, "all-reduce"),
    "feedforward_intermediate_dense/kernel": (1, "columns"),
    "feedforward_intermediate_dense/bias": (0, "columns"),
    "feedforward_output_dense/kernel": (0, "all-reduce"),
    "mlm_head/bias": (0, "vocabulary"),
}
WHOLE = {
    "layer_norm/gamma": "LayerNorm",
    "attention_output/bias": "after the all-reduce",
    "feedforward_output_dense/bias": "after the all-reduce",
    "position_embedding/embeddings": "positions",
    "segment_embedding/embeddings": "segments",
    "pooled_dense/kernel": "pooler",
    "mlm_head/dense/kernel": "masked positions",
}


@functools.cache
def seen() -> dict:
    command = [sys.executable]
    if keras.backend.backend() == "torch":
        command += ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = subprocess.run(
        [*command, HERE / "report_run.py"],
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(HERE.parents[1]), str(HERE)]),
            "JAX_NUM_CPU_DEVICES": "4",
            "COLUMNS": "160",
        },
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def variables(case: str, kind: str = "weight") -> list[dict]:
    return [v for v in seen()[case]["variables"] if v["kind"] == kind]


def test_weights_are_whole_or_a_half():
    split = 0
    for variable in variables("plain"):
        ending = next((end for end in SPLIT if variable["path"].endswith(end)), None)
        axes, expected = [None] * len(variable["shape"]), variable["bytes"]
        if ending:
            axes[SPLIT[ending][0]] = "model"
            expected, split = expected // 2, split + 1
            assert SPLIT[ending][1] in variable["reason"], variable
        assert variable["layout"] == axes, variable
        assert variable["bytes_a_device"] == expected, variable
    assert split == 10 * 2 + 2  # two layers; the table and its bias


def test_what_is_whole_has_a_reason():
    for ending, word in WHOLE.items():
        found = [v for v in variables("plain") if v["path"].endswith(ending)]
        assert found
        assert all(word in variable["reason"] for variable in found), ending
    for case in CASES:
        reasons = {v["path"]: v["reason"] for v in seen()[case]["variables"]}
        assert NO_REASON not in reasons.values(), reasons


def test_totals():
    report = seen()["plain"]
    weights = sum(variable["bytes"] for variable in variables("plain"))
    assert weights == 4 * seen()["parameters"]
    a_device = sum(variable["bytes_a_device"] for variable in variables("plain"))
    slots = [v for v in variables("plain", "optimizer") if v["shape"]]
    assert sum(v["bytes"] for v in slots) == 2 * weights
    assert sum(v["bytes_a_device"] for v in slots) == 2 * a_device
    assert report["mesh"]["model"] == 2
    assert report["ideal"] == 0.5
    assert report["ideal"] < report["share"] < 0.7


def test_adapters_and_integers():
    adapters = [v for v in variables("lora") if "query/lora_kernel_a" in v["path"]]
    assert adapters
    assert all(v["bytes_a_device"] * 2 == v["bytes"] for v in adapters)
    for case in ("int8", "int4"):
        kernels = [v for v in variables(case) if v["path"].endswith("query/kernel")]
        assert kernels
        assert all(v["dtype"] == "int8" for v in kernels)
    assert all(v["bytes"] == v["bytes_a_device"] and "int4" in v["reason"] for v in kernels)


def test_a_model_from_outside_is_told():
    report = seen()["outside"]
    assert report["mesh"] == {}
    assert (report["share"], report["ideal"]) == (1.0, 1.0)
    assert all(v["reason"] == OUTSIDE for v in report["variables"])


def test_the_table_joins_layers():
    lines = seen()["text"].splitlines()
    row = next(line for line in lines if "layer_0..1/self_attention/query/kernel" in line)
    assert "16 x 4/model x 4" in row
    assert "2.05 kB    1.02 kB" in row  # of two layers
    assert "transformer_layer" not in seen()["text"]
    assert lines[-1].split()[0] == "total"


@pytest.mark.backend_independent
def test_example_runs():
    from test_examples import CODE

    from keras_megatron.parallel import describe

    exec("\n".join(CODE.findall(describe.__doc__.replace("\n    ", "\n"))), {})
