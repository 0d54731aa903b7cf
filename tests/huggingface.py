"""The independent reference: Hugging Face's MegatronBert with random weights, run in PyTorch."""

import numpy as np
import torch
import transformers

SMALL = {
    "vocab_size": 131,
    "hidden_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 96,
    "max_position_embeddings": 40,
    "type_vocab_size": 2,
    "layer_norm_eps": 1e-5,
}


def random_masked_lm(seed: int = 0, **config) -> transformers.MegatronBertForMaskedLM:
    """Return a masked language model whose every parameter is random."""
    return random_model("MegatronBertForMaskedLM", seed, **config)


def random_model(name: str, seed: int = 0, **config) -> transformers.PreTrainedModel:
    """Return a model of transformers by its class's name, every parameter of it random.

    Biases and LayerNorms too. `config` changes the configuration `SMALL`.
    """
    generator = torch.Generator().manual_seed(seed)
    model = getattr(transformers, name)(transformers.MegatronBertConfig(**{**SMALL, **config}))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            is_gain = name.endswith(("ln.weight", "LayerNorm.weight"))
            parameter.copy_(1 + 0.1 * noise if is_gain else 0.05 * noise)
    return model.eval()


def random_inputs(
    vocabulary_size: int, batch: int = 4, sequence: int = 17, masks: int = 3, seed: int = 1
) -> dict[str, np.ndarray]:
    """Return ids with padding at the end of some rows, two segments, and mask positions."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(sequence // 2, sequence + 1, size=batch)
    lengths[0] = sequence
    position = np.arange(sequence)
    return {
        "token_ids": rng.integers(1, vocabulary_size, size=(batch, sequence)).astype("int32"),
        "segment_ids": (position[None] >= lengths[:, None] // 2).astype("int32"),
        "padding_mask": (position[None] < lengths[:, None]).astype("int32"),
        "mask_positions": np.sort(
            [rng.choice(length, size=masks, replace=False) for length in lengths]
        ).astype("int32"),
    }


def torch_inputs(inputs: dict[str, np.ndarray]) -> dict[str, torch.Tensor]:
    """Return inputs by transformers' names; those it has no name for are left out."""
    names = {
        "token_ids": "input_ids",
        "segment_ids": "token_type_ids",
        "padding_mask": "attention_mask",
    }
    return {names[k]: torch.from_numpy(v).long() for k, v in inputs.items() if k in names}


def reference_logits(model, inputs: dict[str, np.ndarray]) -> np.ndarray:
    """Return the model's logits at the masked positions, float32 (batch, masks, vocabulary)."""
    with torch.no_grad():
        logits = model(**torch_inputs(inputs)).logits
    logits = logits.float().numpy()
    return np.take_along_axis(logits, inputs["mask_positions"][..., None], axis=1)


def largest_difference(actual, expected) -> float:
    """Return the largest absolute difference of two arrays."""
    return float(np.abs(np.asarray(actual, "float64") - np.asarray(expected, "float64")).max())
