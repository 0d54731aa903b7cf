"""Peak memory of converting shards: that of the model and a fraction, however many there are."""

import os

import pytest
import sharded_format
import torch
import transformers
from measured_conversion import measure, model_megabytes

pytestmark = [
    pytest.mark.backend_independent,
    pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="no /proc here"),
]
PIECES = 11900
# The table of words is a tenth of the weights, as in the released models.
SIZES = {"vocab_size": 11904, "num_hidden_layers": 8, "max_position_embeddings": 128}


@pytest.fixture(scope="module")
def model():
    """470 MB of weights."""
    with torch.device("meta"):
        model = transformers.MegatronBertForPreTraining(transformers.MegatronBertConfig(**SIZES))
    model = model.to_empty(device="cpu").eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(0.01)
    return model


def test_many_shards_take_no_more_memory_than_the_model(tmp_path, model):
    vocabulary = tmp_path / "vocab.txt"
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"w{i}" for i in range(PIECES - 5))]
    vocabulary.write_text("".join(f"{piece}\n" for piece in pieces))
    found = sharded_format.shards(model, 0, 4, 2)
    source = sharded_format.write_shards(tmp_path / "run", found)
    measured, model_size = measure(source, tmp_path / "preset", vocabulary), model_megabytes(model)
    ratio = (measured["peak"] - measured["imports"]) / model_size
    print(f"model {model_size:.0f} MB; {measured}; ratio {ratio:.2f}")
    assert model_size > 400
    assert 0.9 < ratio < 1.3  # less than the model would be a measurement of something else
