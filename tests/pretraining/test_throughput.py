"""Operations of a training step, next to the paper's formula."""

import types

import pytest

from keras_megatron.pretraining.throughput import peak_flops, training_flops

pytestmark = pytest.mark.backend_independent


@pytest.mark.parametrize("layers", [1, 24])
def test_operations_are_those_of_the_paper(layers):
    """arXiv 2104.04473, section 5.1, less the forward pass that recomputation repeats."""
    batch, s, h, v = 3, 512, 1024, 30_592
    shape = {"num_layers": layers, "num_heads": 16, "head_dim": None, "hidden_dim": h}
    backbone = types.SimpleNamespace(**shape, intermediate_dim=4 * h, vocabulary_size=v)
    tokens = batch * s
    paper = 72 * tokens * layers * h**2 * (1 + s / (6 * h) + v / (12 * layers * h))
    head = 6 * tokens * h**2  # BERT's dense layer before the vocabulary, which GPT has not
    found = training_flops(backbone, tokens, s, masks=tokens)
    assert found == pytest.approx(paper + head)
    assert training_flops(backbone, tokens, s) < found - 5 * tokens * h * v


def test_devices_are_known_by_their_names():
    assert peak_flops("NVIDIA H100 80GB HBM3") == 989e12
    assert peak_flops("NVIDIA H100 PCIe") == 756e12
    assert peak_flops("A processor") is None
