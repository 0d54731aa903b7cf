"""The 345M shape by its name: downloaded over loopback HTTP, converted, equal to Hugging Face."""

import contextlib
import functools
import http.server
import threading

import numpy as np
import pytest
import release_format
import torch
import transformers
from huggingface import random_inputs, reference_logits
from models import as_numpy

from keras_megatron import MegatronBertMaskedLM

pytestmark = [pytest.mark.full_size, pytest.mark.parity]
ROWS, PIECES = 30592, 30522


@contextlib.contextmanager
def serving(folder):
    """Serve a folder as NVIDIA's NGC serves its releases; yields the base address."""
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=folder)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_from_a_name_to_a_filled_mask(tmp_path, monkeypatch, parity):
    torch.manual_seed(0)
    config = transformers.MegatronBertConfig(
        vocab_size=ROWS, layer_norm_eps=1e-5, initializer_range=0.04
    )
    reference = transformers.MegatronBertForPreTraining(config).eval()
    folder = tmp_path / "ngc" / "nvidia" / "megatron_bert_345m" / "versions" / "v0.1_uncased"
    folder.mkdir(parents=True)
    release_format.write_release_zip(folder / "zip", reference)

    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "home"))
    with serving(tmp_path / "ngc") as address:
        monkeypatch.setenv("KERAS_MEGATRON_BASE_URL", address)
        masked_lm = MegatronBertMaskedLM.from_preset("megatron_bert_345m_uncased")

    inputs = random_inputs(PIECES, batch=2, sequence=128, masks=20)
    masked_lm_reference = transformers.MegatronBertForMaskedLM(config).eval()
    masked_lm_reference.load_state_dict(reference.state_dict(), strict=False)
    expected = reference_logits(masked_lm_reference, inputs)
    assert np.abs(expected).max() > 1
    parity("masked-LM logits, 345M", as_numpy(masked_lm(inputs)), expected, 2e-4)

    answers = masked_lm.fill_mask("The capital of [MASK] is Paris.", top_k=PIECES)
    assert len(answers[0]) == PIECES
    # The second time it comes from the cache: no server runs any more.
    again = MegatronBertMaskedLM.from_preset("megatron_bert_345m_uncased")
    kernel = again.backbone.transformer_layers[23].feedforward_output_dense.kernel
    layer = reference.bert.encoder.layer[23]
    np.testing.assert_array_equal(as_numpy(kernel).T, layer.output.dense.weight.detach().numpy())
