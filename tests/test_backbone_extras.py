"""What may be given to the backbone besides ids, and asked of it besides its outputs."""

import keras
import numpy as np
import pytest
import torch
from huggingface import SMALL, largest_difference, random_inputs, random_model, torch_inputs
from models import as_numpy, encoder_inputs, small_backbone

from keras_megatron import MegatronBertBackbone

TOLERANCE = 2e-5


@pytest.fixture(scope="module")
def reference():
    return random_model("MegatronBertModel", attn_implementation="eager")


@pytest.fixture(scope="module")
def backbone(reference, tmp_path_factory):
    folder = tmp_path_factory.mktemp("backbone")
    reference.save_pretrained(folder)
    return MegatronBertBackbone.from_preset(str(folder))


@pytest.fixture(scope="module")
def inputs():
    return encoder_inputs(random_inputs(SMALL["vocab_size"]))


def run(reference, inputs, **arguments):
    with torch.no_grad():
        return reference(**{**torch_inputs(inputs), **arguments})


@pytest.mark.parity
def test_all_hidden_states(backbone, reference, inputs, parity):
    expected = run(reference, inputs, output_hidden_states=True).hidden_states
    actual = backbone(inputs, output_hidden_states=True)["hidden_states"]
    assert len(actual) == len(expected) == SMALL["num_hidden_layers"] + 1
    for index, pair in enumerate(zip(actual, expected, strict=True)):
        parity(f"hidden state {index}", as_numpy(pair[0]), pair[1].numpy(), TOLERANCE)
    assert largest_difference(as_numpy(actual[0]), expected[1].numpy()) > 0.1  # negative control


@pytest.mark.parity
def test_attention_probabilities(backbone, reference, inputs, parity):
    expected = run(reference, inputs, output_attentions=True).attentions
    actual = as_numpy(backbone(inputs, output_attentions=True)["attentions"])
    assert len(actual) == len(expected) == SMALL["num_hidden_layers"]
    for index, pair in enumerate(zip(actual, expected, strict=True)):
        parity(f"attention probabilities {index}", pair[0], pair[1].numpy(), TOLERANCE)
    np.testing.assert_allclose(actual[0].sum(axis=-1), 1.0, rtol=1e-5)
    swapped = actual[0][:, ::-1]  # negative control: heads in another order
    assert largest_difference(swapped, expected[0].numpy()) > 0.001


@pytest.mark.parity
def test_given_embeddings(backbone, reference, inputs, parity):
    rng = np.random.default_rng(0)
    embeddings = rng.standard_normal((4, 17, SMALL["hidden_size"])).astype("float32")
    others = {name: array for name, array in inputs.items() if name != "token_ids"}
    expected = run(reference, others, inputs_embeds=torch.from_numpy(embeddings))
    actual = backbone({**others, "token_embeddings": embeddings})
    for ours, theirs in (
        ("sequence_output", "last_hidden_state"),
        ("pooled_output", "pooler_output"),
    ):
        parity(
            f"{ours}, given embeddings", as_numpy(actual[ours]), expected[theirs].numpy(), TOLERANCE
        )
    table = as_numpy(backbone.token_embedding.embeddings)
    same = backbone({**others, "token_embeddings": table[inputs["token_ids"]]})
    plain = backbone(inputs)
    assert largest_difference(*(as_numpy(x["sequence_output"]) for x in (same, plain))) <= 1e-6


@pytest.mark.parity
def test_given_positions(backbone, reference, inputs, parity):
    positions = np.tile(np.arange(17)[::-1] * 2, (4, 1)).astype("int32")
    expected = run(reference, inputs, position_ids=torch.from_numpy(positions).long())
    actual = as_numpy(backbone({**inputs, "position_ids": positions})["sequence_output"])
    parity("given positions", actual, expected.last_hidden_state.numpy(), TOLERANCE)
    assert largest_difference(as_numpy(backbone(inputs)["sequence_output"]), actual) > 0.01


@pytest.mark.parity
def test_attention_mask_of_queries_and_keys(backbone, reference, inputs, parity):
    rng = np.random.default_rng(0)
    mask = rng.random((4, 17, 17)) < 0.5
    mask |= np.eye(17, dtype=bool)
    # Transformers 5 takes a mask of four axes as it is, and refuses one of three.
    allowed = torch.from_numpy(mask & (inputs["padding_mask"][:, None] == 1))[:, None]
    additive = torch.zeros(allowed.shape).masked_fill(~allowed, torch.finfo(torch.float32).min)
    expected = run(reference, inputs, attention_mask=additive).last_hidden_state.numpy()
    given = {**inputs, "attention_mask": mask.astype("int32")}
    actual = as_numpy(backbone(given)["sequence_output"])
    real = inputs["padding_mask"] == 1
    parity("attention mask (batch, query, key)", actual[real], expected[real], TOLERANCE)
    transposed = {**given, "attention_mask": mask.transpose(0, 2, 1)}  # negative control
    wrong = as_numpy(backbone(transposed)["sequence_output"])
    assert largest_difference(wrong[real], expected[real]) > 0.01


def test_an_attention_mask_may_stand_alone(backbone, inputs):
    full = {**inputs, "padding_mask": np.ones_like(inputs["padding_mask"])}
    alone = {
        "token_ids": inputs["token_ids"],
        "segment_ids": inputs["segment_ids"],
        "attention_mask": np.ones((4, 17, 17), "int32"),
    }
    expected, actual = (as_numpy(backbone(x)["sequence_output"]) for x in (full, alone))
    assert largest_difference(actual, expected) <= 1e-6


def test_causality(backbone, inputs):
    changed = {**inputs, "token_ids": inputs["token_ids"].copy()}
    changed["token_ids"][:, 9:] = 7
    for causal in (True, False):
        before, after = (
            as_numpy(backbone(x, causal=causal)["sequence_output"])[:, :9]
            for x in (inputs, changed)
        )
        assert (largest_difference(before, after) > 1e-6) != causal


def test_models_may_be_built_of_the_extras(backbone, inputs):
    """Given inputs work on `keras.Input`s, what is asked for in the call of a layer."""

    class Mixed(keras.layers.Layer):
        def __init__(self):
            super().__init__()
            self.backbone = backbone

        def call(self, inputs):
            states = self.backbone(inputs, output_hidden_states=True)["hidden_states"]
            return keras.ops.mean(keras.ops.stack(states), axis=0)

    names = (*inputs, "position_ids")
    ids = {name: keras.Input((None,), dtype="int32", name=name) for name in names}
    model = keras.Model(ids, [Mixed()(ids), backbone(ids)["sequence_output"]])
    given = {**inputs, "position_ids": np.tile(np.arange(17, dtype="int32"), (4, 1))}
    mixed, last = (np.asarray(x) for x in model.predict(given, verbose=0))
    states = as_numpy(backbone(inputs, output_hidden_states=True)["hidden_states"])
    assert largest_difference(mixed, np.mean(states, axis=0)) <= TOLERANCE
    assert largest_difference(last, states[-1]) <= TOLERANCE
    with pytest.raises(ValueError, match=r"cannot be outputs of a keras\.Input"):
        backbone(ids, output_attentions=True)


def test_cross_attention_probabilities():
    backbone = small_backbone(cross_attention=True)
    inputs = encoder_inputs(random_inputs(SMALL["vocab_size"], batch=2, sequence=6))
    encoder = {
        "encoder_hidden_states": np.ones((2, 9, SMALL["hidden_size"]), "float32"),
        "encoder_padding_mask": np.ones((2, 9), "int32"),
    }
    outputs = backbone({**inputs, **encoder}, output_attentions=True)
    assert outputs["attentions"][0].shape == (2, 4, 6, 6)
    assert outputs["cross_attentions"][2].shape == (2, 4, 6, 9)
    assert backbone.from_config(backbone.get_config()).cross_attention


@pytest.mark.parametrize(("change", "message"), [
    ({"token_ids": None}, "either token_ids or token_embeddings"),
    ({"token_embeddings": np.zeros((4, 17, 48))}, "either token_ids or token_embeddings"),
    ({"segment_ids": None}, "'segment_ids' is missing"),
    ({"positions": np.zeros((4, 17))}, "unknown input 'positions'"),
    ({"encoder_hidden_states": np.zeros((4, 17, 48))}, "unknown input 'encoder_hidden_states'"),
    ({"position_ids": np.full((4, 17), 40)}, "position_ids must be from 0 to 39"),
    ({"attention_mask": np.ones((4, 17))}, r"\(batch, query, key\), not of shape \(4, 17\)"),
    ({"attention_mask": np.full((4, 17, 17), -1e9)}, "attention_mask must be from 0 to 1, but"),
    (
        {"attention_mask": keras.ops.full((4, 17, 17), -1e9)},
        "attention_mask must be bool or integers",
    ),
    ({"padding_mask": np.full((4, 17), -1e9)}, "padding_mask must be from 0 to 1"),
    ({"segment_ids": np.full((4, 17), 0.5)}, "segment_ids must be integers, but there is 0.5"),
])  # fmt: skip
def test_inputs_that_do_not_fit_are_refused(change, message, inputs):
    given = {k: v for k, v in {**inputs, **change}.items() if v is not None}
    with pytest.raises(ValueError, match=message):
        small_backbone()(given)


def test_documents_in_packed_rows_have_the_models_positions(inputs):
    """What is padding may be longer: it is nobody's."""
    backbone = small_backbone(max_sequence_length=32)
    packed = {name: np.tile(array[:1], (1, 3))[:, :40] for name, array in inputs.items()}
    packed["padding_mask"] = np.ones((1, 40), "int32")
    with pytest.raises(ValueError, match="a document has 40 tokens but the model has 32 positions"):
        backbone({**packed, "document_ids": np.ones((1, 40), "int32")})
    documents = np.repeat([[1, 2]], [8, 32], axis=1)
    assert backbone({**packed, "document_ids": documents})["sequence_output"].shape[1] == 40
    packed["padding_mask"][0, 4:] = 0
    padded = np.repeat([[1, 0]], [4, 36], axis=1)
    assert backbone({**packed, "document_ids": padded})["sequence_output"].shape[1] == 40
