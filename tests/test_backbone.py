import gc
import weakref

import keras
import numpy as np
import pytest
import torch
import transformers
from huggingface import SMALL, largest_difference, random_inputs, random_masked_lm
from models import as_numpy, encoder_inputs, small_backbone

from keras_megatron import MegatronBertBackbone
from keras_megatron.checkpoints import huggingface
from keras_megatron.garbage import no_collections

SMALL_TOLERANCE = 2e-5


@pytest.fixture(scope="module")
def inputs():
    return encoder_inputs(random_inputs(SMALL["vocab_size"]))


def load(reference, folder, **arguments) -> MegatronBertBackbone:
    reference.save_pretrained(folder)
    backbone = small_backbone(
        layer_norm_epsilon=reference.config.layer_norm_eps,
        activation={"gelu": "gelu", "gelu_new": "gelu_approximate"}[reference.config.hidden_act],
        **arguments,
    )
    huggingface.load_weights(backbone, folder)
    return backbone


def run_reference(model: transformers.MegatronBertModel, inputs) -> tuple[np.ndarray, np.ndarray]:
    with torch.no_grad():
        outputs = model(
            input_ids=torch.from_numpy(inputs["token_ids"]).long(),
            token_type_ids=torch.from_numpy(inputs["segment_ids"]).long(),
            attention_mask=torch.from_numpy(inputs["padding_mask"]).long(),
        )
    return outputs.last_hidden_state.float().numpy(), outputs.pooler_output.float().numpy()


def reference_encoder(**config) -> transformers.MegatronBertModel:
    torch.manual_seed(0)
    encoder = transformers.MegatronBertModel(transformers.MegatronBertConfig(**{**SMALL, **config}))
    encoder.load_state_dict(random_masked_lm(**config).bert.state_dict(), strict=False)
    return encoder.eval()


@pytest.mark.parity
@pytest.mark.parametrize("config", [
    {"hidden_act": "gelu", "layer_norm_eps": 1e-12},
    {"hidden_act": "gelu", "layer_norm_eps": 1e-5},
    {"hidden_act": "gelu_new", "layer_norm_eps": 1e-5},
])  # fmt: skip
def test_outputs_equal_hugging_face(config, inputs, tmp_path, parity):
    reference = reference_encoder(**config)
    sequence, pooled = run_reference(reference, inputs)
    outputs = as_numpy(load(reference, tmp_path)(inputs))
    settings = f"{config['hidden_act']}, epsilon {config['layer_norm_eps']:g}"
    parity(f"hidden states, {settings}", outputs["sequence_output"], sequence, SMALL_TOLERANCE)
    parity(f"pooled output, {settings}", outputs["pooled_output"], pooled, SMALL_TOLERANCE)


def test_a_permutation_left_out_is_seen(inputs, tmp_path):
    """Negative control: heads and head dim swapped in one query kernel, as a bad reshape would."""
    reference = reference_encoder()
    backbone = load(reference, tmp_path)
    kernel = backbone.transformer_layers[1].self_attention.query.kernel
    values = as_numpy(kernel)
    kernel.assign(values.swapaxes(1, 2).reshape(values.shape))
    sequence, _ = run_reference(reference, inputs)
    assert largest_difference(as_numpy(backbone(inputs))["sequence_output"], sequence) > 1e-3


def test_padding_and_segments_matter(inputs, tmp_path):
    """Negative control: parity would not notice inputs that the model ignores."""
    backbone = load(reference_encoder(), tmp_path)
    outputs = as_numpy(backbone(inputs))["sequence_output"]
    for name in ("padding_mask", "segment_ids"):
        changed = {**inputs, name: np.ones_like(inputs[name])}
        assert largest_difference(as_numpy(backbone(changed))["sequence_output"], outputs) > 1e-3


def test_tokens_behind_the_padding_change_nothing(inputs, tmp_path):
    backbone = load(reference_encoder(), tmp_path)
    padding = inputs["padding_mask"] == 0
    assert padding.any()
    other = {**inputs, "token_ids": np.where(padding, 7, inputs["token_ids"])}
    before, after = (as_numpy(backbone(x))["sequence_output"] for x in (inputs, other))
    assert largest_difference(before[~padding], after[~padding]) <= 1e-6


def test_a_row_of_padding_gives_numbers(inputs):
    empty = {**inputs, "padding_mask": np.zeros_like(inputs["padding_mask"])}
    assert np.isfinite(as_numpy(small_backbone()(empty))["sequence_output"]).all()


@pytest.mark.parametrize("dtype", ["bfloat16", "mixed_bfloat16"])
def test_bfloat16_is_as_close_as_hugging_faces(dtype, inputs, tmp_path):
    reference = reference_encoder()
    exact, _ = run_reference(reference, inputs)
    outputs = load(reference, tmp_path, dtype=dtype)(inputs)["sequence_output"]
    assert keras.backend.standardize_dtype(outputs.dtype) == "bfloat16"
    ours = as_numpy(keras.ops.cast(outputs, "float32"))
    theirs, _ = run_reference(reference.to(torch.bfloat16), inputs)
    assert np.sqrt(((ours - exact) ** 2).mean()) <= 3 * np.sqrt(((theirs - exact) ** 2).mean())
    assert largest_difference(ours, exact) <= 3 * largest_difference(theirs, exact)


def test_kernels_start_as_in_megatron():
    backbone = small_backbone(hidden_dim=128, intermediate_dim=256, num_layers=8)
    layer = backbone.transformer_layers[3]
    for kernel in (
        layer.self_attention.query.kernel,
        layer.feedforward_intermediate_dense.kernel,
        backbone.token_embedding.embeddings,
    ):
        assert np.std(as_numpy(kernel)) == pytest.approx(0.02, rel=0.05)
    scaled = 0.02 / np.sqrt(2 * 8)
    for kernel in (
        layer.self_attention.attention_output.kernel,
        layer.feedforward_output_dense.kernel,
    ):
        assert np.std(as_numpy(kernel)) == pytest.approx(scaled, rel=0.05)
    assert not as_numpy(layer.self_attention.query.bias).any()
    different = backbone.transformer_layers[4].self_attention.query.kernel
    assert largest_difference(as_numpy(layer.self_attention.query.kernel), as_numpy(different)) > 0


def test_dropout_is_on_in_training_only(inputs):
    backbone = small_backbone(dropout=0.5)
    first, second = (as_numpy(backbone(inputs))["sequence_output"] for _ in range(2))
    np.testing.assert_array_equal(first, second)
    first, second = (as_numpy(backbone(inputs, training=True))["sequence_output"] for _ in range(2))
    assert largest_difference(first, second) > 1e-3


@pytest.mark.parametrize("dtype", ["float32", "mixed_bfloat16", "mixed_float16"])
def test_training_mode_keeps_the_dtype(dtype, inputs):
    outputs = small_backbone(dtype=dtype)(inputs, training=True)["sequence_output"]
    expected = {"float32": "float32", "mixed_bfloat16": "bfloat16", "mixed_float16": "float16"}
    assert keras.backend.standardize_dtype(outputs.dtype) == expected[dtype]
    assert np.isfinite(as_numpy(keras.ops.cast(outputs, "float32"))).all()


def test_config_and_keras_file_round_trip(inputs, tmp_path):
    backbone = small_backbone(activation="gelu_approximate", dropout=0.2, head_dim=16)
    copy = MegatronBertBackbone.from_config(backbone.get_config())
    assert copy.get_config() == backbone.get_config()
    backbone.save(tmp_path / "backbone.keras")
    loaded = keras.saving.load_model(tmp_path / "backbone.keras")
    np.testing.assert_array_equal(
        as_numpy(loaded(inputs))["pooled_output"], as_numpy(backbone(inputs))["pooled_output"]
    )


def test_parameter_counts_are_the_papers():
    """The released uncased model has 336,297,858 parameters with both heads (reference facts)."""
    hidden, rows = 1024, 30592
    heads = (hidden * hidden + hidden) + 2 * hidden + rows + (2 * hidden + 2)
    with keras.device("cpu"):
        layer_free = small_backbone(
            vocabulary_size=rows, num_layers=1, num_heads=16, hidden_dim=hidden,
            intermediate_dim=4096, max_sequence_length=512,
        )  # fmt: skip
    layer = layer_free.transformer_layers[0].count_params()
    assert layer_free.count_params() + 23 * layer + heads == 336_297_858


@pytest.mark.parametrize(("arguments", "message"), [
    ({"hidden_dim": 50}, "hidden_dim=50 is not a multiple of num_heads=4"),
    ({"activation": "gleu"}, "unknown activation 'gleu'"),
    ({"num_layers": 0}, "num_layers must be a positive integer, not 0"),
    ({"head_dim": 0}, "head_dim must be a positive integer, not 0"),
    ({"dropuot": 0.2}, "unknown argument 'dropuot'"),
    ({"vocabulary_size": 1.5}, "vocabulary_size must be a positive integer, not 1.5"),
])  # fmt: skip
def test_impossible_shapes_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        small_backbone(**arguments)


def test_a_sequence_longer_than_the_positions_is_refused():
    inputs = encoder_inputs(random_inputs(SMALL["vocab_size"], sequence=41))
    with pytest.raises(ValueError, match="41 tokens but the model has 40 positions"):
        small_backbone()(inputs)


def test_lora_trains_queries_and_values_only():
    backbone = small_backbone()
    backbone.enable_lora(2)
    names = {weight.path for weight in backbone.trainable_weights}
    assert len(names) == 3 * 2 * 2  # two factors of three layers' two kernels, no bias
    assert all("/query/lora_" in name or "/value/lora_" in name for name in names)


@pytest.mark.parametrize("rank", [0, -1, 2.0, True, 10**5])
def test_ranks_out_of_range_are_refused(rank):
    with pytest.raises(ValueError, match=f"rank must be an integer from 1 to 48, not {rank}"):
        small_backbone().enable_lora(rank)


def test_layers_that_are_not_there_get_no_adapters():
    backbone = small_backbone()
    with pytest.raises(ValueError, match="no layer is called 'qury': give names such as query"):
        backbone.enable_lora(2, ["query", "qury"])
    assert backbone.get_layer("pooled_dense").trainable
    assert all(weight.trainable for weight in backbone.weights)


def test_layer_norms_may_keep_float32():
    """As a map of dtype policies says; what goes on is cast."""
    policies = keras.dtype_policies.DTypePolicyMap(default_policy="mixed_bfloat16")
    policies[".*layer_norm.*"] = keras.dtype_policies.DTypePolicy("float32")
    inputs = encoder_inputs(random_inputs(SMALL["vocab_size"]))
    exact, backbone = small_backbone(), small_backbone(dtype=policies)
    backbone.set_weights(exact.get_weights())
    found, expected = (
        as_numpy(b(inputs)["sequence_output"]).astype("float32") for b in (backbone, exact)
    )
    assert 0 < largest_difference(found, expected) < 0.1 * np.abs(expected).max()
    kinds = {layer.compute_dtype for layer in backbone._flatten_layers() if "norm" in layer.name}
    assert kinds == {"float32"}


def test_int8_stays_close(inputs):
    backbone = small_backbone()
    exact = as_numpy(backbone(inputs))["sequence_output"]
    backbone.quantize("int8")
    kernels = [weight for weight in backbone.weights if weight.path.endswith("/kernel")]
    assert len(kernels) == 3 * 6 + 1  # of three layers, and the pooler's
    assert {keras.backend.standardize_dtype(kernel.dtype) for kernel in kernels} == {"int8"}
    rounded = as_numpy(backbone(inputs))["sequence_output"]
    assert 0 < largest_difference(rounded, exact) < 0.1 * np.abs(exact).max()


@pytest.mark.parametrize("is_enabled", [True, False])
def test_quantizing_frees_kernels_without_a_search_for_garbage(is_enabled):
    backbone = small_backbone()
    was = weakref.ref(backbone.get_layer("pooled_dense").kernel)
    assert was() is not None
    try:
        if not is_enabled:
            gc.disable()
        backbone.quantize("int8")
        assert was() is None
        assert (gc.isenabled(), gc.get_freeze_count()) == (is_enabled, 0)
        gc.freeze()  # as a server may have done
        with no_collections():
            pass
        assert gc.get_freeze_count() > 0
    finally:
        gc.unfreeze()
        gc.enable()
