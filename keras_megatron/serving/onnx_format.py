"""Any task, or a backbone, as an ONNX file: the same formula in ONNX's own operations.

The graph is written here instead of translated from TensorFlow's: LayerNorm, GELU and Softmax are
one operation each, query, key and value one product, and nothing of this process gets into it.
"""

import pathlib
from collections.abc import Callable

from keras_megatron.backbone import MegatronBertBackbone
from keras_megatron.serving import onnx_layers as layers
from keras_megatron.serving.onnx_graph import OnnxGraph
from keras_megatron.serving.settings import PRECISIONS
from keras_megatron.tasks.causal_lm import MegatronBertCausalLM
from keras_megatron.tasks.masked_lm import MegatronBertMaskedLM
from keras_megatron.tasks.multiple_choice import MegatronBertMultipleChoice
from keras_megatron.tasks.next_sentence_predictor import MegatronBertNextSentencePredictor
from keras_megatron.tasks.pretrainer import MegatronBertPretrainer
from keras_megatron.tasks.question_answering import MegatronBertQuestionAnswering
from keras_megatron.tasks.text_classifier import MegatronBertTextClassifier
from keras_megatron.tasks.text_embedder import MegatronBertTextEmbedder
from keras_megatron.tasks.token_classifier import MegatronBertTokenClassifier

_AXES = {2: ("batch", "sequence"), 3: ("batch", "choices", "sequence")}
_OTHER_AXES = {
    "mask_positions": ("batch", "masks"),
    "encoder_hidden_states": ("batch", "encoder_sequence"),
    "encoder_padding_mask": ("batch", "encoder_sequence"),
}


def write_onnx(model, folder: pathlib.Path, precision: str) -> None:
    """Write `model.onnx`, and above 2 GB the weights beside it in `model.onnx.data`.

    Inputs are the model's, by their names. Outputs are float32: `logits`; `embedding` of an
    embedder; `mlm` and `nsp` of a pretrainer; `sequence_output` and `pooled_output` of a backbone.
    Batch, sequence, masks and choices may have any size when it runs. A sequence with more tokens
    than the model has positions is an error of the runtime's then; ids are not checked.

    In int8 the kernels of the encoder and the table of words are stored in 8 bits, a scale a
    column, and onnxruntime rounds what it multiplies them by to 8 bits, with one scale for a whole
    batch: what else is in a batch changes a row a little. Heads stay in float32. It is meant for
    CPUs with 8-bit dot products (VNNI; those of ARM too): on others sums may saturate.

    Args:
        model: a task or a backbone.
        folder: is made if it is not there.
        precision: `"float32"` or `"int8"`.

    Raises:
        ValueError: the precision is another one, the model's weights are quantized, or something
            of the model has no counterpart in ONNX.
    """
    check_precision(precision)
    if precision == "bfloat16":
        raise ValueError(
            "precision 'bfloat16' is not for ONNX, onnxruntime multiplies no bfloat16 matrices on "
            "a CPU: use 'float32' or 'int8', or the format 'openvino'"
        )
    graph = model_graph(model, "dynamic" if precision == "int8" else None)
    folder.mkdir(parents=True, exist_ok=True)
    graph.save(folder / "model.onnx")


def check_precision(precision: str) -> None:
    """Refuse a precision that is not known.

    Raises:
        ValueError: as said.
    """
    if precision not in PRECISIONS:
        raise ValueError(f"precision must be one of {', '.join(PRECISIONS)}, not {precision!r}")


def model_graph(model, int8: str | None = None) -> OnnxGraph:
    """Make the graph of a task or a backbone.

    Args:
        model: as of `write_onnx`, as are the errors.
        int8: as of `OnnxGraph`.
    """
    head = _HEADS.get(type(model))
    if head is None:
        names = ", ".join(cls.__name__ for cls in _HEADS)
        raise ValueError(f"{type(model).__name__} has no form in ONNX: those that have are {names}")
    _refuse_quantized(model)
    graph = OnnxGraph(int8)
    for name, tensor in model.input.items():
        axes = _OTHER_AXES.get(name, _AXES[len(tensor.shape)])
        graph.input(name, (*axes, *tensor.shape[len(axes) :]), tensor.dtype)
    head(graph, model)
    return graph


def _refuse_quantized(model) -> None:
    modes = {getattr(x, "quantization_mode", None) for x in model._flatten_layers()} - {None}
    if modes:
        raise ValueError(
            f"the model's weights are quantized to {modes.pop()}: export the model that they were "
            "before; precision='int8' then rounds them in the file"
        )


def _sequence_output(graph: OnnxGraph, backbone, inputs: dict[str, str], causal: bool = False):
    """Do what `encode` does, up to the sequence output."""
    embedding = backbone.embeddings
    x = layers.embeddings(graph, embedding, inputs["token_ids"], inputs["segment_ids"])
    bias = layers.attention_bias(graph, inputs["padding_mask"], causal)
    encoder = None
    if backbone.cross_attention:
        states, mask = inputs["encoder_hidden_states"], inputs["encoder_padding_mask"]
        encoder = states, layers.attention_bias(graph, mask, causal=False)
    for index, layer in enumerate(backbone.transformer_layers):
        x = layers.transformer_layer(graph, layer, f"layer_{index}", x, bias, encoder)
    norm = backbone.get_layer("final_layer_norm")
    return layers.layer_norm(graph, norm, "final_norm", x)


def _pooled_output(graph: OnnxGraph, backbone, states: str) -> str:
    first = graph.node("Gather", states, graph.number(0, "int64"), axis=1)
    return layers.dense(graph, backbone.get_layer("pooled_dense"), "pooler", first, exact=True)


def _inputs(model) -> dict[str, str]:
    return {name: name for name in model.input}


def _backbone(graph: OnnxGraph, backbone: MegatronBertBackbone) -> None:
    states = _sequence_output(graph, backbone, _inputs(backbone))
    width = backbone.hidden_dim
    graph.output("sequence_output", states, ("batch", "sequence", width))
    pooled = _pooled_output(graph, backbone, states)
    graph.output("pooled_output", pooled, ("batch", width))


def _on_pooled(head: str) -> Callable:
    """Return what writes a task whose head, an attribute of it, is on the pooled output."""

    def write(graph: OnnxGraph, task) -> None:
        states = _sequence_output(graph, task.backbone, _inputs(task))
        layer = getattr(task, head)
        pooled = _pooled_output(graph, task.backbone, states)
        logits = layers.dense(graph, layer, head, pooled, exact=True)
        graph.output("logits", logits, ("batch", layer.units))

    return write


def _on_tokens(head: str) -> Callable:
    """Return what writes a task whose head, an attribute of it, is on each token."""

    def write(graph: OnnxGraph, task) -> None:
        states = _sequence_output(graph, task.backbone, _inputs(task))
        layer = getattr(task, head)
        logits = layers.dense(graph, layer, head, states, exact=True)
        graph.output("logits", logits, ("batch", "sequence", layer.units))

    return write


def _masked_lm(graph: OnnxGraph, task: MegatronBertMaskedLM) -> None:
    states = _sequence_output(graph, task.backbone, _inputs(task))
    logits = layers.masked_lm_head(graph, task.mlm_head, states, "mask_positions")
    graph.output("logits", logits, ("batch", "masks", task.backbone.vocabulary_size))


def _causal_lm(graph: OnnxGraph, task: MegatronBertCausalLM) -> None:
    states = _sequence_output(graph, task.backbone, _inputs(task), causal=True)
    logits = layers.masked_lm_head(graph, task.mlm_head, states)
    graph.output("logits", logits, ("batch", "sequence", task.backbone.vocabulary_size))


def _pretrainer(graph: OnnxGraph, task: MegatronBertPretrainer) -> None:
    backbone = task.backbone
    states = _sequence_output(graph, backbone, _inputs(task))
    masks = layers.masked_lm_head(graph, task.mlm_head, states, "mask_positions")
    graph.output("mlm", masks, ("batch", "masks", backbone.vocabulary_size))
    pooled = _pooled_output(graph, backbone, states)
    order = layers.dense(graph, task.binary_head, "binary_head", pooled, exact=True)
    graph.output("nsp", order, ("batch", 2))


def _multiple_choice(graph: OnnxGraph, task: MegatronBertMultipleChoice) -> None:
    rows = {name: layers.flatten_choices(graph, name) for name in task.input}
    states = _sequence_output(graph, task.backbone, rows)
    pooled = _pooled_output(graph, task.backbone, states)
    scores = layers.dense(graph, task.classifier, "classifier", pooled, exact=True)
    logits = layers.gather_choices(graph, scores, "padding_mask")
    graph.output("logits", logits, ("batch", "choices"))


def _text_embedder(graph: OnnxGraph, task: MegatronBertTextEmbedder) -> None:
    states = _sequence_output(graph, task.backbone, _inputs(task))
    vectors = layers.text_pooling(graph, task.text_pooling, states, "padding_mask")
    graph.output("embedding", vectors, ("batch", task.backbone.hidden_dim))


_HEADS = {
    MegatronBertBackbone: _backbone,
    MegatronBertCausalLM: _causal_lm,
    MegatronBertMaskedLM: _masked_lm,
    MegatronBertMultipleChoice: _multiple_choice,
    MegatronBertNextSentencePredictor: _on_pooled("binary_head"),
    MegatronBertPretrainer: _pretrainer,
    MegatronBertQuestionAnswering: _on_tokens("qa_outputs"),
    MegatronBertTextClassifier: _on_pooled("classifier"),
    MegatronBertTextEmbedder: _text_embedder,
    MegatronBertTokenClassifier: _on_tokens("classifier"),
}
