"""The one table of weight names. It drives every conversion, in both directions.

Torch orientation (as Megatron and Hugging Face store it): kernels are (outputs, inputs), heads are
flat. Keras orientation: kernels are (inputs, outputs), and attention splits its heads into an axis
of their own. Between the two lie a transposition (kernels only) and a reshape to the variable.
"""

import dataclasses
from collections.abc import Iterator, Mapping

import numpy as np

_STRIPE = 16  # rows that are transposed at a time: as many numbers as a line of the cache has
# What a module's variables are called in Keras and in torch, and whether they are transposed.
_VARIABLES = {
    "table": (("embeddings", "weight", False),),
    "norm": (("gamma", "weight", False), ("beta", "bias", False)),
    "dense": (("kernel", "weight", True), ("bias", "bias", False)),
    "bias": (("bias", "bias", False),),
}

# Module in Keras | in Hugging Face | in Megatron (spelled as in 2020, query_key_value split in
# three) | kind and shape in torch orientation, where a bias has the first size only.
# V vocabulary, P positions, S segments, H hidden, A all heads, F feed-forward, L labels.
_EMBEDDINGS = """
token_embedding    | word_embeddings       | word_embeddings       | table VH
position_embedding | position_embeddings   | position_embeddings   | table PH
segment_embedding  | token_type_embeddings | tokentype_embeddings  | table SH
"""
_LAYER = """
self_attention_layer_norm       | attention.ln           | input_layernorm          | norm H
self_attention/query            | attention.self.query   | attention.query          | dense AH
self_attention/key              | attention.self.key     | attention.key            | dense AH
self_attention/value            | attention.self.value   | attention.value          | dense AH
self_attention/attention_output | attention.output.dense | attention.dense          | dense HA
feedforward_layer_norm          | ln                     | post_attention_layernorm | norm H
feedforward_intermediate_dense  | intermediate.dense     | mlp.dense_h_to_4h        | dense FH
feedforward_output_dense        | output.dense           | mlp.dense_4h_to_h        | dense HF
"""
# Of a decoder's layer that attends to an encoder; in Megatron as in its T5.
_CROSS_ATTENTION = """
cross_attention_layer_norm       | crossattention.ln           | post_attention_layernorm | norm H
cross_attention/query            | crossattention.self.query   | inter_attention.query    | dense AH
cross_attention/key              | crossattention.self.key     | inter_attention.key      | dense AH
cross_attention/value            | crossattention.self.value   | inter_attention.value    | dense AH
cross_attention/attention_output | crossattention.output.dense | inter_attention.dense    | dense HA
"""
_FINAL = "final_layer_norm | bert.encoder.ln | transformer.final_layernorm | norm H"
_POOLER = "pooled_dense | bert.pooler.dense | pooler.dense | dense HH"
_MLM_HEAD = """
mlm_head/dense      | cls.predictions.transform.dense     | lm_head.dense     | dense HH
mlm_head/layer_norm | cls.predictions.transform.LayerNorm | lm_head.layernorm | norm H
mlm_head            | cls.predictions                     | lm_head           | bias V
"""
_BINARY_HEAD = "binary_head | cls.seq_relationship | binary_head | dense LH"
_CLASSIFIER = "classifier | classifier | classification_head | dense LH"
_QA_OUTPUTS = "qa_outputs | qa_outputs | qa_outputs | dense LH"


@dataclasses.dataclass(frozen=True)
class Weight:
    """One row: what a weight is called on each side.

    Attributes:
        part: What it belongs to: "backbone", "pooler", or a head.
        keras: Path of the variable.
        hugging_face: Key in a Hugging Face checkpoint.
        megatron: Key in a Megatron checkpoint.
        transposed: Whether Keras stores it transposed.
        sizes: Its shape in torch orientation, one letter a dimension.
    """

    part: str
    keras: str
    hugging_face: str
    megatron: str
    transposed: bool
    sizes: str

    def shape(self, sizes: Mapping[str, int]) -> tuple[int, ...]:
        """Return the shape in torch orientation, given what each letter is."""
        return tuple(sizes[letter] for letter in self.sizes)

    def to_keras(self, array: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        """Turn an array from torch orientation into a Keras variable's shape."""
        return (_transpose(array) if self.transposed else array).reshape(shape)

    def to_torch(self, array: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        """Turn a Keras variable into the shape of torch orientation."""
        return _transpose(array.reshape(shape[::-1])) if self.transposed else array.reshape(shape)


def _transpose(array: np.ndarray) -> np.ndarray:
    """Return the transpose of a matrix as an array of its own, in C order.

    numpy writes all of a row at a time, and for each number of it reads another line of memory: 7
    times as slow as in stripes, which stay in the processor's cache.
    """
    result = np.empty(array.shape[::-1], array.dtype)
    for start in range(0, len(array), _STRIPE):
        stripe = slice(start, start + _STRIPE)
        result[:, stripe] = array[stripe].T
    return result


def weights(num_layers: int, cross_attention: bool = False) -> Iterator[Weight]:
    """Yield the weights of every part of a model with `num_layers` layers."""
    yield from _rows("backbone", _EMBEDDINGS, "embeddings/", "bert.embeddings.", "embedding.")
    for i in range(num_layers):
        sides = (f"transformer_layer_{i}/", f"bert.encoder.layer.{i}.", f"transformer.layers.{i}.")
        yield from _rows("backbone", _LAYER, *sides)
        if cross_attention:
            yield from _rows("backbone", _CROSS_ATTENTION, *sides)
    yield from _rows("backbone", _FINAL)
    yield from _rows("pooler", _POOLER)
    yield from _rows("mlm_head", _MLM_HEAD)
    yield from _rows("binary_head", _BINARY_HEAD)
    yield from _rows("classifier", _CLASSIFIER)
    yield from _rows("qa_outputs", _QA_OUTPUTS)


def model_sizes(config: Mapping[str, int], labels: int = 2) -> dict[str, int]:
    """Return what each letter of a shape is, from the backbone's arguments and the head's size."""
    head_dim = config.get("head_dim") or config["hidden_dim"] // config["num_heads"]
    return {
        "V": config["vocabulary_size"],
        "P": config["max_sequence_length"],
        "S": config["num_segments"],
        "H": config["hidden_dim"],
        "A": config["num_heads"] * head_dim,
        "F": config["intermediate_dim"],
        "L": labels,
    }


def _rows(
    part: str, table: str, keras: str = "", hugging_face: str = "", megatron: str = ""
) -> Iterator[Weight]:
    """Yield the weights of a table's modules, each name with the prefix of its side."""
    for line in table.strip().splitlines():
        names = [cell.strip() for cell in line.split("|")]
        kind, sizes = names.pop().split()
        for variable, parameter, transposed in _VARIABLES[kind]:
            yield Weight(
                part,
                f"{keras}{names[0]}/{variable}",
                f"{hugging_face}{names[1]}.{parameter}",
                f"{megatron}{names[2]}.{parameter}",
                transposed,
                sizes[0] if parameter == "bias" else sizes,
            )
