"""The rules and sizes of tensor parallelism, without any device."""

import keras
import pytest

from keras_megatron import MegatronBertBackbone
from keras_megatron.parallel import padded_vocabulary_size

pytestmark = pytest.mark.backend_independent


def mesh(*names: str) -> keras.distribution.DeviceMesh:
    return keras.distribution.DeviceMesh((1,) * len(names), names, ["cpu:0"])


def test_axes_may_have_other_names():
    layouts = MegatronBertBackbone.get_layout_map(mesh("d", "m"), "m", "d")
    expected = {
        "embeddings/token_embedding/embeddings": ("m", None),
        "task/transformer_layer_11/self_attention/value/bias": ("m", None),
        "transformer_layer_0/cross_attention/key/lora_kernel_a": (None, "m", None),
        "transformer_layer_0/feedforward_output_dense/output": ("d", None, None),
        "mlm_head/output": ("d", None, "m"),
    }
    for path, axes in expected.items():
        assert tuple(layouts[path].axes) == axes, path
    for path in ("pooled_dense/kernel", "transformer_layer_0/feedforward_output_dense/bias"):
        assert layouts[path] is None
    split = MegatronBertBackbone.get_layout_map(mesh("batch", "model"), sequence_parallel=True)
    path = "transformer_layer_0/self_attention/attention_output/output"
    assert tuple(split[path].axes) == ("batch", "model", None)


@pytest.mark.parametrize(
    ("names", "arguments", "message"),
    [
        (("batch", "x"), (), "the mesh has no axis 'model', only 'batch', 'x'"),
        (("batch", "model"), ("model", "model"), "must differ, but both are 'model'"),
    ],
)
def test_meshes_that_do_not_fit_are_refused(names, arguments, message):
    with pytest.raises(ValueError, match=message):
        MegatronBertBackbone.get_layout_map(mesh(*names), *arguments)


@pytest.mark.parametrize(("devices", "rows"), [(1, 30592), (2, 30720), (8, 30720), (16, 30720)])
def test_the_vocabulary_is_padded_as_megatron_does(devices, rows):
    """Megatron-LM, megatron/tokenizer/tokenizer.py: a multiple of 128 times the devices."""
    assert padded_vocabulary_size(30522, devices) == rows
