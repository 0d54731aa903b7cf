import keras
import numpy as np
import pytest
import torch
from heads import SMALL_TOLERANCE
from huggingface import SMALL, largest_difference, random_inputs, random_model, torch_inputs
from models import as_numpy, encoder_inputs, randomize, small_backbone
from small_tasks import PIECES, TEXTS

from keras_megatron import (
    MegatronBertTextEmbedder,
    MegatronBertTextEmbedderPreprocessor,
    MegatronBertTokenizer,
)

POOLINGS = ("mean", "cls", "max")


@pytest.fixture(scope="module")
def inputs():
    return encoder_inputs(random_inputs(SMALL["vocab_size"]))


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    """A model of transformers, and the folder where it is saved."""
    folder = tmp_path_factory.mktemp("model")
    model = random_model("MegatronBertModel")
    model.save_pretrained(folder)
    return model, str(folder)


def reference_embeddings(model, inputs, pooling: str, normalize: bool) -> np.ndarray:
    """Pool in PyTorch, one text at a time and without its padding."""
    rows = []
    with torch.no_grad():
        states = model(**torch_inputs(inputs)).last_hidden_state
    for row, mask in zip(states, inputs["padding_mask"], strict=True):
        tokens = row[torch.from_numpy(mask).bool()]
        pooled = {"mean": tokens.mean(0), "cls": tokens[0], "max": tokens.max(0).values}[pooling]
        rows.append(torch.nn.functional.normalize(pooled, dim=0) if normalize else pooled)
    return torch.stack(rows).numpy()


def small_embedder(**arguments) -> MegatronBertTextEmbedder:
    preprocessor = MegatronBertTextEmbedderPreprocessor(
        MegatronBertTokenizer(PIECES), sequence_length=20
    )
    backbone = small_backbone(vocabulary_size=40, num_layers=1)
    embedder = MegatronBertTextEmbedder(backbone, preprocessor, **arguments)
    randomize(embedder)
    return embedder


@pytest.mark.parity
@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("normalize", [True, False])
def test_embeddings_equal_those_of_hugging_faces_states(
    pooling, normalize, inputs, reference, parity
):
    model, folder = reference
    embedder = MegatronBertTextEmbedder.from_preset(
        folder, preprocessor=None, pooling=pooling, normalize=normalize
    )
    expected = reference_embeddings(model, inputs, pooling, normalize)
    what = f"embeddings, {pooling}{', normalized' if normalize else ''}"
    parity(what, as_numpy(embedder(inputs)), expected, SMALL_TOLERANCE)

    # Negative control: another pooling.
    other = POOLINGS[POOLINGS.index(pooling) - 1]
    other = reference_embeddings(model, inputs, other, normalize)
    assert largest_difference(as_numpy(embedder(inputs)), other) > SMALL_TOLERANCE


@pytest.mark.parametrize("pooling", POOLINGS)
def test_padding_never_counts(pooling):
    embedder = small_embedder(pooling=pooling)
    short = embedder.encode_text(TEXTS)
    embedder.preprocessor.sequence_length = 36
    np.testing.assert_allclose(embedder.encode_text(TEXTS), short, atol=1e-5)
    np.testing.assert_allclose(embedder.encode_text(TEXTS[1], 1), short[1], atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(short, axis=1), 1.0, atol=1e-5)


def test_a_row_without_tokens_is_finite():
    inputs = {name: np.zeros((1, 4), "int32") for name in small_embedder().input}
    for pooling in POOLINGS:
        assert np.isfinite(as_numpy(small_embedder(pooling=pooling)(inputs))).all()


def test_texts_in_all_forms():
    import tensorflow as tf

    embedder = small_embedder()
    expected = embedder.encode_text(TEXTS, batch_size=3)
    assert expected.shape == (4, SMALL["hidden_size"])
    assert expected.dtype == np.float32
    np.testing.assert_allclose(embedder.predict(TEXTS, verbose=0), expected, atol=1e-6)
    np.testing.assert_allclose(embedder.encode_text(np.array(TEXTS)), expected, atol=1e-6)
    dataset = tf.data.Dataset.from_tensor_slices(TEXTS).batch(2)
    np.testing.assert_allclose(embedder.predict(dataset, verbose=0), expected, atol=1e-6)
    assert embedder.encode_text([]).shape == (0, SMALL["hidden_size"])
    half = small_embedder(normalize=False)
    half = MegatronBertTextEmbedder(
        small_backbone(vocabulary_size=40, num_layers=1, dtype="bfloat16"), half.preprocessor
    )
    assert half.encode_text(TEXTS).dtype == np.float32


def test_it_trains_with_a_loss_that_is_given():
    embedder = small_embedder()
    embedder.compile(optimizer=keras.optimizers.Adam(3e-3), loss="mean_squared_error")
    targets = np.eye(4, SMALL["hidden_size"], dtype="float32")
    losses = embedder.fit(TEXTS, targets, batch_size=4, epochs=20, verbose=0).history["loss"]
    assert losses[-1] < 0.7 * losses[0]


@pytest.mark.parametrize(("x", "message"), [
    (["it was", 7], "text 1 must be a str, not int: 7"),
    ((TEXTS, TEXTS), r"x must be a list of texts, but it has 2 column\(s\)"),
    (None, "samples must be in lists, not in a NoneType"),
])  # fmt: skip
def test_what_is_no_text_is_refused(x, message):
    with pytest.raises(ValueError, match=message):
        small_embedder().encode_text(x)


def test_unknown_poolings_are_refused():
    with pytest.raises(ValueError, match="pooling must be one of mean, cls, max, not 'sum'"):
        small_embedder(pooling="sum")
