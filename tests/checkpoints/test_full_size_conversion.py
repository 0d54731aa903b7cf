"""The 345M shape, once a backend: time, memory and parity of the conversion."""

import numpy as np
import pytest
import release_format
import torch
import transformers
from checkpoint_helpers import masked_lm_logits, reference_outputs
from measured_conversion import measure, model_megabytes

from keras_megatron import MegatronBertMaskedLM

pytestmark = pytest.mark.full_size


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
    measured, model_size = measure(source, output), model_megabytes(released)
    print(f"model {model_size:.0f} MB; {measured}")
    assert measured["peak"] - measured["imports"] < 1.3 * model_size

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
