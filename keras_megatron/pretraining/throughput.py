"""What a training step costs, and which part of what a device can do that is."""

import keras

# Dense bfloat16 products, FLOP/s, from the vendor's data sheets, by what a device's name contains.
PEAKS = {
    "H100 PCIe": 756e12,
    "H100": 989e12,
    "H200": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
}


def training_flops(backbone, tokens: int, sequence_length: int, masks: int = 0) -> float:
    """Return the floating-point operations that a model's training step needs.

    As arXiv 2104.04473, section 5.1, counts them, for a step without recomputation: two for each
    weight of a product and each of its rows, and twice as many backward. The vocabulary product is
    of the masks alone.

    Args:
        backbone: `MegatronBertBackbone`.
        tokens: of the batch, padding left out.
        sequence_length: how many tokens a token attends to.
        masks: hidden tokens that the batch predicts.
    """
    head_dim = backbone.head_dim or backbone.hidden_dim // backbone.num_heads
    attention = backbone.num_heads * head_dim
    weights = (
        4 * backbone.hidden_dim * attention + 2 * backbone.hidden_dim * backbone.intermediate_dim
    )
    a_token = backbone.num_layers * (2 * weights + 4 * sequence_length * attention)
    a_mask = 2 * backbone.hidden_dim * (backbone.hidden_dim + backbone.vocabulary_size)
    return 3.0 * (tokens * a_token + masks * a_mask)


def peak_flops(device_name: str) -> float | None:
    """Return the dense bfloat16 FLOP/s of a device by its name; None if it is not known."""
    return next((peak for name, peak in PEAKS.items() if name in device_name), None)


def device_name() -> str:
    """Return what the active backend calls its first GPU; "" without one."""
    backend = keras.config.backend()
    if backend == "torch":
        import torch

        return torch.cuda.get_device_name() if torch.cuda.is_available() else ""
    if backend == "jax":
        import jax

        return jax.devices()[0].device_kind if jax.default_backend() == "gpu" else ""
    import tensorflow as tf

    gpus = tf.config.list_physical_devices("GPU")
    return tf.config.experimental.get_device_details(gpus[0])["device_name"] if gpus else ""
