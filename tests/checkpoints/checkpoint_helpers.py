"""Small reference models of Hugging Face, and what tests of checkpoints share."""

import contextlib
import pathlib

import numpy as np
import pytest
import torch
import transformers

SIZES = {
    "vocab_size": 128,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 24,
    "layer_norm_eps": 1e-5,
}


def make_reference(architecture="MegatronBertForPreTraining", seed=0, **sizes):
    """A Hugging Face model whose weights are far from their initial values, biases too."""
    config = transformers.MegatronBertConfig(**{**SIZES, **sizes})
    model = getattr(transformers, architecture)(config).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(0.15 * noise + (0.5 if parameter.ndim == 1 else 0.0))
    return model


def make_inputs(config, seed=0):
    """Two rows of ids, the second with padding, both with two segments."""
    rng = np.random.default_rng(seed)
    shape = (2, config.max_position_embeddings - 5)
    padding_mask = np.ones(shape, "int32")
    padding_mask[1, 11:] = 0
    return {
        "token_ids": rng.integers(0, config.vocab_size, shape, "int32"),
        "segment_ids": rng.integers(0, 2, shape, "int32"),
        "padding_mask": padding_mask,
    }


def reference_outputs(model, inputs):
    """The Hugging Face model's outputs, as a dict of numpy arrays."""
    with torch.no_grad():
        outputs = model(
            torch.tensor(inputs["token_ids"]),
            attention_mask=torch.tensor(inputs["padding_mask"]),
            token_type_ids=torch.tensor(inputs["segment_ids"]),
        )
    return {name: value.numpy() for name, value in outputs.items()}


def masked_lm_logits(model, inputs):
    """Our logits at all positions."""
    length = inputs["token_ids"].shape[1]
    positions = np.tile(np.arange(length, dtype="int32"), (len(inputs["token_ids"]), 1))
    return model.logits({**inputs, "mask_positions": positions})


@contextlib.contextmanager
def one_line_error(*parts):
    """Expect a ValueError of one line that has all these parts."""
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        yield
    message = str(caught.value)
    assert "\n" not in message, message
    for part in parts:
        assert str(part) in message, message


def tree(folder):
    """All files and folders under a folder."""
    return sorted(str(path.relative_to(folder)) for path in pathlib.Path(folder).rglob("*"))
