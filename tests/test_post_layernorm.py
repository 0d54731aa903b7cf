"""BERT's own order of LayerNorm and residual connections, next to the BERT of `transformers`."""

import numpy as np
import pytest
import torch
import transformers
from huggingface import SMALL, random_inputs, torch_inputs
from models import as_numpy, encoder_inputs, randomize, small_backbone

from keras_megatron import MegatronBertCausalLM, MegatronBertTextClassifier

POST = {"apply_residual_connection_post_layernorm": True}


def load_bert(backbone, bert: transformers.BertModel) -> None:
    """Assign the weights of the reference: its LayerNorms come one earlier here."""
    heads = backbone.num_heads

    def assign(layer, name: str, reshaped: tuple | None = None) -> None:
        kernel, bias = (bert.get_parameter(f"{name}.{k}").detach() for k in ("weight", "bias"))
        kernel = kernel.T if kernel.ndim == 2 else kernel
        for weight, value in zip(layer.weights, (kernel, bias), strict=True):
            weight.assign(np.reshape(value.numpy(), weight.shape))

    embeddings = backbone.embeddings
    for ours, theirs in (("token", "word"), ("position", "position"), ("segment", "token_type")):
        table = bert.get_parameter(f"embeddings.{theirs}_embeddings.weight").detach().numpy()
        getattr(embeddings, f"{ours}_embedding").weights[0].assign(table)
    norms = ["embeddings.LayerNorm"]
    for index, layer in enumerate(backbone.transformer_layers):
        name = f"encoder.layer.{index}"
        attention = layer.self_attention
        for part in ("query", "key", "value"):
            assign(getattr(attention, part), f"{name}.attention.self.{part}")
        assign(attention.attention_output, f"{name}.attention.output.dense")
        assign(layer.feedforward_intermediate_dense, f"{name}.intermediate.dense")
        assign(layer.feedforward_output_dense, f"{name}.output.dense")
        assign(layer.self_attention_layer_norm, norms[-1])
        assign(layer.feedforward_layer_norm, f"{name}.attention.output.LayerNorm")
        norms.append(f"{name}.output.LayerNorm")
    assign(backbone.get_layer("final_layer_norm"), norms[-1])
    assign(backbone.get_layer("pooled_dense"), "pooler.dense")
    assert heads == bert.config.num_attention_heads


@pytest.fixture(scope="module")
def bert():
    torch.manual_seed(0)
    model = transformers.BertModel(transformers.BertConfig(**SMALL)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.05 * torch.randn(parameter.shape)
    return model


@pytest.mark.parity
def test_it_is_bert(bert, parity):
    inputs = encoder_inputs(random_inputs(SMALL["vocab_size"]))
    with torch.inference_mode():
        expected = bert(**torch_inputs(inputs))
    differences = {}
    for is_post in (True, False):
        backbone = small_backbone(apply_residual_connection_post_layernorm=is_post)
        load_bert(backbone, bert)
        outputs = as_numpy(backbone(inputs))
        for ours, theirs in (
            ("sequence_output", expected.last_hidden_state),
            ("pooled_output", expected.pooler_output),
        ):
            difference = np.abs(outputs[ours] - theirs.numpy()).max()
            differences.setdefault(is_post, []).append(difference)
            if is_post:
                parity(f"BERT's order, {ours}", outputs[ours], theirs.numpy(), 2e-5)
    assert min(differences[False]) > 0.1  # negative control: Megatron's order is another model


def test_it_is_saved_with_the_model(tmp_path):
    backbone = small_backbone(**POST)
    randomize(backbone)
    backbone.save_to_preset(tmp_path / "preset")
    again = type(backbone).from_preset(str(tmp_path / "preset"))
    assert again.apply_residual_connection_post_layernorm
    inputs = encoder_inputs(random_inputs(SMALL["vocab_size"]))
    found, expected = (as_numpy(model(inputs)["sequence_output"]) for model in (again, backbone))
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_gradient_checkpointing_keeps_the_order():
    backbone = small_backbone(**POST, dropout=0.0, attention_dropout=0.0)
    randomize(backbone)
    inputs = encoder_inputs(random_inputs(SMALL["vocab_size"]))
    expected = as_numpy(backbone(inputs, training=True)["sequence_output"])
    backbone.gradient_checkpointing = True
    found = as_numpy(backbone(inputs, training=True)["sequence_output"])
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_decoding_keeps_the_order():
    """Greedy search with cached keys, and by the whole sequence each time."""
    backbone = small_backbone(**POST)
    decoder = MegatronBertCausalLM(backbone, preprocessor=None)
    randomize(decoder)
    decoder.compile(sampler="greedy")
    ids = np.zeros((2, 12), "int32")
    ids[:, :4] = np.random.default_rng(0).integers(1, SMALL["vocab_size"], (2, 4))
    there = (ids > 0).astype("int32")
    cached = decoder.generate(
        {"token_ids": ids, "segment_ids": 0 * ids, "padding_mask": there}, stop_token_ids=None
    )["token_ids"]
    for position in range(4, 12):
        whole = {"token_ids": ids, "segment_ids": 0 * ids, "padding_mask": 0 * ids + 1}
        ids[:, position] = decoder.logits(whole)[:, position - 1].argmax(axis=-1)
    np.testing.assert_array_equal(cached, ids)
    assert len(np.unique(ids[:, 4:])) > 3


@pytest.mark.backend_independent
def test_transformers_has_no_place_for_it(tmp_path):
    classifier = MegatronBertTextClassifier(small_backbone(**POST), num_classes=2)
    with pytest.raises(ValueError, match="apply_residual_connection_post_layernorm=True"):
        classifier.export_to_transformers(tmp_path / "out")
    assert not (tmp_path / "out").exists()
