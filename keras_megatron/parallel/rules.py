"""Which axis of which variable and activation is split over devices, as one LayoutMap.

Megatron-LM, arXiv 1909.08053, section 3: the first matrix of a block (query, key, value;
feed-forward up) is split by columns, the second (attention output; feed-forward down) by rows, so
that a layer communicates twice forward and twice backward, each time an all-reduce of its output.
The table of word embeddings is split by rows of the vocabulary, and with it the logits and their
cross entropy.
"""

import keras

# The kernels come as Keras has them: attention's are (hidden, heads, head_dim), and its output's
# (heads, head_dim, hidden). MODEL and DATA stand for the axes of the mesh.
MODEL, DATA = object(), object()

# Paths are matched as a whole, so that what stands before the model's own path does not matter.
_QKV = r"(.*/)?transformer_layer_\d+/(self|cross)_attention/(query|key|value)"
_OUTPUT = r"(.*/)?transformer_layer_\d+/(self|cross)_attention/attention_output"
_UP = r"(.*/)?transformer_layer_\d+/feedforward_intermediate_dense"
_DOWN = r"(.*/)?transformer_layer_\d+/feedforward_output_dense"
_TOKENS = r"(.*/)?embeddings/token_embedding"

# Variables, those of adapters (LoRA) and of int8 included. What is not here is replicated:
# LayerNorms, biases that are added after an all-reduce, positions, segments, pooler, small heads.
_VARIABLES = {
    rf"{_TOKENS}/embeddings": (MODEL, None),
    rf"{_TOKENS}/embeddings_scale": (MODEL,),
    rf"{_TOKENS}/lora_embeddings_a": (MODEL, None),
    rf"{_QKV}/kernel": (None, MODEL, None),
    rf"{_QKV}/bias": (MODEL, None),
    rf"{_QKV}/kernel_scale": (None, None, MODEL, None),
    rf"{_QKV}/lora_kernel_a": (None, MODEL, None),
    rf"{_OUTPUT}/kernel": (MODEL, None, None),
    rf"{_OUTPUT}/lora_kernel_a": (MODEL, None, None),
    rf"{_UP}/kernel": (None, MODEL),
    rf"{_UP}/bias": (MODEL,),
    rf"{_UP}/kernel_scale": (MODEL,),
    rf"{_UP}/lora_kernel_b": (None, MODEL),
    rf"{_DOWN}/kernel": (MODEL, None),
    rf"{_DOWN}/lora_kernel_a": (MODEL, None),
    r"(.*/)?mlm_head/bias": (MODEL,),
}

# Outputs of layers. Each block's is whole again on every device; logits stay split.
_SPLIT_OUTPUTS = {
    rf"{_QKV}/output": (DATA, None, MODEL, None),
    rf"{_UP}/output": (DATA, None, MODEL),
    r"(.*/)?mlm_head/output": (DATA, None, MODEL),
}
_WHOLE_OUTPUTS = (
    r"(.*/)?embeddings/output",
    rf"{_OUTPUT}/output",
    rf"{_DOWN}/output",
)
_NORM_OUTPUTS = (
    r"(.*/)?transformer_layer_\d+/(self_attention|cross_attention|feedforward)_layer_norm/output",
    r"(.*/)?final_layer_norm/output",
    r"(.*/)?mlm_head/layer_norm/output",
)


def layout_map(
    device_mesh: keras.distribution.DeviceMesh,
    model_parallel_dim_name: str = "model",
    data_parallel_dim_name: str = "batch",
    sequence_parallel: bool = False,
) -> keras.distribution.LayoutMap:
    """Return the layout of Megatron's tensor parallelism, for every task and every backend.

    Args:
        device_mesh: a mesh with an axis of each name.
        model_parallel_dim_name: the mesh's axis that kernels are split over.
        data_parallel_dim_name: the mesh's axis that batches are split over.
        sequence_parallel: split what stands between the blocks, LayerNorms and dropout, over the
            sequence (arXiv 2205.05198, section 4.2.2): each all-reduce becomes a reduce-scatter and
            an all-gather, and a device keeps only its share of these activations.

    Returns:
        A `keras.distribution.LayoutMap` for `keras.distribution.ModelParallel`.

    Raises:
        ValueError: the mesh has no axis of a name, or both names are the same.

    Example:
    ```python
    import keras
    from keras_megatron import MegatronBertBackbone

    mesh = keras.distribution.DeviceMesh((1, 1), ("batch", "model"), ["cpu:0"])
    layout_map = MegatronBertBackbone.get_layout_map(mesh)
    layout = layout_map["transformer_layer_0/self_attention/query/kernel"]
    assert layout.axes == (None, "model", None)
    ```
    """
    names = model_parallel_dim_name, data_parallel_dim_name
    for name in names:
        if name not in device_mesh.axis_names:
            has = ", ".join(map(repr, device_mesh.axis_names))
            raise ValueError(
                f"the mesh has no axis {name!r}, only {has}: name its axes, or tell get_layout_map "
                "what they are called"
            )
    if len(set(names)) < 2:
        raise ValueError(f"the axes of model and data must differ, but both are {names[0]!r}")
    between = (DATA, MODEL, None) if sequence_parallel else (DATA, None, None)
    rules = {**_VARIABLES, **_SPLIT_OUTPUTS, **dict.fromkeys(_WHOLE_OUTPUTS, between)}
    rules |= dict.fromkeys(_NORM_OUTPUTS, (DATA, None, None))
    axis = {MODEL: model_parallel_dim_name, DATA: data_parallel_dim_name, None: None}
    layouts = keras.distribution.LayoutMap(device_mesh)
    for path, axes in rules.items():
        layouts[path] = tuple(axis[which] for which in axes)
    return layouts
