"""From each format to each other: the weights stay, bit by bit, or one line says why not."""

import json
import shutil

import numpy as np
import pytest
import release_format
import safetensors.numpy
import sharded_format
import torch
import transformers
from checkpoint_helpers import (
    make_inputs,
    make_reference,
    masked_lm_logits,
    one_line_error,
    reference_outputs,
    tree,
)

from keras_megatron import (
    MegatronBertBackbone,
    MegatronBertMaskedLM,
    MegatronBertPretrainer,
    MegatronBertTextClassifier,
    MegatronBertTokenizer,
)
from keras_megatron.conversion import FORMATS, convert, source_format
from keras_megatron.inspection import inspect_checkpoint

FILE = "release/mp_rank_00/model_optim_rng.pt"


@pytest.fixture(scope="module")
def sources(tmp_path_factory, reference, vocabulary):
    """The same weights and vocabulary in each format, none of them written by our conversion."""
    folder = tmp_path_factory.mktemp("sources")
    release_format.write_release_zip(folder / "release.zip", reference)
    theirs = folder / "transformers"
    reference.save_pretrained(theirs)
    (theirs / "vocab.txt").write_text(vocabulary.read_text())
    tokenizer = MegatronBertTokenizer(str(vocabulary))
    preprocessor = MegatronBertPretrainer.preprocessor_cls(tokenizer, sequence_length=24)
    model = MegatronBertPretrainer.from_preset(str(theirs), preprocessor=preprocessor)
    model.save_to_preset(str(folder / "keras"))
    return {
        "megatron": (folder / "release.zip", {"vocabulary": vocabulary}),
        "transformers": (theirs, {}),
        "keras": (folder / "keras", {}),
    }


def logits_of(folder, to, inputs, vocabulary, scratch):
    """The masked language model's logits of a converted model."""
    if to == "transformers":
        model = transformers.MegatronBertForPreTraining.from_pretrained(folder).eval()
        return reference_outputs(model, inputs)["prediction_logits"]
    if to != "keras":
        convert(folder, scratch, vocabulary=vocabulary, progress=False)
        folder = scratch
    return masked_lm_logits(MegatronBertMaskedLM.from_preset(str(folder)), inputs)


@pytest.mark.parametrize("to", FORMATS)
@pytest.mark.parametrize("found", ["megatron", "transformers", "keras"])
def test_every_way(tmp_path, sources, reference, vocabulary, found, to):
    source, options = sources[found]
    assert source_format(source) == found
    if found == to == "keras":
        with one_line_error("a Keras preset already"):
            convert(source, tmp_path / "out", to)
        assert tree(tmp_path) == []
        return
    assert convert(source, tmp_path / "out", to, progress=False, **options) == []
    assert tree(tmp_path)[0] == "out"
    assert not [name for name in tree(tmp_path) if name.startswith(".")]
    inputs = make_inputs(reference.config)
    ours = logits_of(tmp_path / "out", to, inputs, vocabulary, tmp_path / "scratch")
    expected = reference_outputs(reference, inputs)["prediction_logits"]
    assert np.abs(ours - expected)[inputs["padding_mask"] == 1].max() < 2e-5


@pytest.mark.backend_independent
def test_hugging_face_s_names_and_numbers(tmp_path, reference, vocabulary):
    """What `--to transformers` writes is the state dict of the model the release was made of."""
    for version in (0, 1.0, 2.0, 3.0):
        source = tmp_path / f"{version}.zip"
        release_format.write_release_zip(source, reference, version)
        out = tmp_path / f"{version}"
        convert(source, out, "transformers", vocabulary=vocabulary, progress=False)
        written = safetensors.numpy.load_file(out / "model.safetensors")
        expected = {name: tensor.numpy() for name, tensor in reference.state_dict().items()}
        for copy in ("weight", "bias"):
            del expected[f"cls.predictions.decoder.{copy}"]
        assert written.keys() == expected.keys()
        for name, array in written.items():
            np.testing.assert_array_equal(array, expected[name], strict=True)
        config = transformers.AutoConfig.from_pretrained(out)
        for name in ("hidden_size", "num_attention_heads", "layer_norm_eps", "vocab_size"):
            assert getattr(config, name) == getattr(reference.config, name)


@pytest.mark.backend_independent
def test_a_sharded_run_to_other_ranks(tmp_path, reference, vocabulary):
    """Four tensor ranks by hand, to two by two."""
    sizes = {"num_hidden_layers": 4, "num_attention_heads": 4}
    model = make_reference(**sizes)
    names = release_format.LATER_NAMES
    found = sharded_format.shards(model, 3.0, 4, names=names)
    sharded_format.write_shards(tmp_path / "source", found)
    layout = {"tensor_parallel": 2, "pipeline_parallel": 2, "virtual_pipeline": 2}
    options = {"vocabulary": vocabulary, "progress": False}
    convert(tmp_path / "source", tmp_path / "out", "megatron", **options, **layout)
    expected = sharded_format.shards(model, 3.0, 2, 2, 2, names=names)
    for (rank, stage), content in expected.items():
        place = tmp_path / "out" / "release" / sharded_format.rank_folder(rank, stage, 2)
        written = torch.load(place / "model_optim_rng.pt", weights_only=False)
        encoder = content["model1"]["language_model"]["encoder"]
        for name, tensor in encoder.items():
            assert torch.equal(written["model1"]["language_model"]["encoder"][name], tensor)


@pytest.mark.backend_independent
@pytest.mark.parametrize("rows", [50176, 64128])
def test_other_vocabularies_and_the_tanh_gelu(tmp_path, rows):
    """As of BioMegatron and of Megatron BERTs in other languages."""
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"p{i}" for i in range(rows - 100))]
    vocabulary = tmp_path / "vocab.txt"
    vocabulary.write_text("".join(f"{piece}\n" for piece in pieces))
    model = make_reference(
        vocab_size=rows, hidden_size=8, num_hidden_layers=1, hidden_act="gelu_new"
    )
    model.save_pretrained(tmp_path / "theirs")
    vocabulary.rename(tmp_path / "theirs" / "vocab.txt")
    convert(tmp_path / "theirs", tmp_path / "out", "megatron", progress=False, tensor_parallel=2)
    saved = torch.load(tmp_path / "out" / FILE, weights_only=False)["args"]
    assert (saved.padded_vocab_size, saved.openai_gelu) == (-(-rows // 256) * 256, True)
    vocabulary = tmp_path / "out" / "vocab.txt"
    convert(tmp_path / "out", tmp_path / "keras", vocabulary=vocabulary, progress=False)
    back = MegatronBertMaskedLM.from_preset(str(tmp_path / "keras"))
    assert back.backbone.vocabulary_size == rows
    inputs = make_inputs(model.config)
    expected = reference_outputs(model, inputs)["prediction_logits"]
    assert np.abs(masked_lm_logits(back, inputs) - expected)[0].max() < 2e-5


@pytest.mark.backend_independent
def test_the_tokenizer_of_a_mere_backbone(tmp_path, reference, vocabulary):
    reference.bert.save_pretrained(tmp_path / "theirs")
    (tmp_path / "theirs" / "vocab.txt").write_text(vocabulary.read_text())
    convert(tmp_path / "theirs", tmp_path / "keras", progress=False)
    assert MegatronBertTokenizer.from_preset(str(tmp_path / "keras")).vocabulary_size() == 100
    convert(tmp_path / "keras", tmp_path / "back", "transformers", progress=False)
    assert (tmp_path / "back" / "vocab.txt").read_text() == vocabulary.read_text()
    stored = safetensors.numpy.load_file(tmp_path / "theirs" / "model.safetensors")
    written = safetensors.numpy.load_file(tmp_path / "back" / "model.safetensors")
    assert written.keys() == stored.keys()
    for name, array in written.items():
        np.testing.assert_array_equal(array, stored[name])


# === What does not go together ===


@pytest.mark.backend_independent
@pytest.mark.parametrize(
    ("found", "arguments", "parts"),
    [
        ("keras", {"to": "onnx"}, ("'onnx'", "megatron-core")),
        ("keras", {"to": "transformers", "tensor_parallel": 2}, ("tensor_parallel", "megatron")),
        ("keras", {"to": "megatron", "num_heads": 4}, ("num_heads", "Megatron-LM")),
        ("transformers", {"vocabulary": "cased"}, ("vocabulary", "Megatron-LM")),
        ("keras", {"to": "megatron", "tensor_parallel": 3}, ("4 attention heads", "3")),
        ("megatron", {"to": "megatron", "pipeline_parallel": 2}, ("3 layers", "2 chunks")),
    ],
)
def test_options_that_do_not_fit(tmp_path, sources, found, arguments, parts):
    source, options = sources[found]
    with one_line_error(*parts):
        convert(source, tmp_path / "out", progress=False, **{**options, **arguments})
    assert tree(tmp_path) == []


@pytest.mark.backend_independent
def test_there_is_something_already(tmp_path, sources):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "file").write_text("mine")
    for to in FORMATS:
        source, options = sources["megatron"]
        with one_line_error("exists already"):
            convert(source, tmp_path / "out", to, progress=False, **options)
    assert tree(tmp_path) == ["out", "out/file"]


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_a_preset_of_16_bits_keeps_them(tmp_path, sources, dtype):
    model = MegatronBertPretrainer.from_preset(str(sources["keras"][0]), dtype=dtype)
    model.save_to_preset(str(tmp_path / "keras"))
    convert(tmp_path / "keras", tmp_path / "out", "transformers", progress=False)
    stored = safetensors.numpy.load_file(tmp_path / "out" / "model.safetensors")
    assert {array.dtype.name for array in stored.values()} == {dtype}


def test_what_is_left_out_is_named(tmp_path, sources, capsys):
    folder = tmp_path / "nameless"
    shutil.copytree(sources["transformers"][0], folder)
    config = json.loads((folder / "config.json").read_text())
    del config["architectures"]  # as of a mere encoder
    (folder / "config.json").write_text(json.dumps(config))
    unused = convert(folder, tmp_path / "out")
    assert unused == inspect_checkpoint(folder).dropped
    assert "cls.predictions.bias" in unused
    assert "  not converted: cls.predictions.bias\n" in capsys.readouterr().out
    assert convert(sources["transformers"][0], tmp_path / "whole", progress=False) == []


def test_what_megatron_s_format_does_not_say_is_named(tmp_path, vocabulary, capsys):
    preprocessor = MegatronBertTextClassifier.preprocessor_cls(
        MegatronBertTokenizer(str(vocabulary)), sequence_length=24, class_names=["a", "b", "c"]
    )
    backbone = MegatronBertBackbone.from_preset("megatron_bert_tiny_uncased", load_weights=False)
    model = MegatronBertTextClassifier(
        backbone, num_classes=3, multi_label=True, preprocessor=preprocessor
    )
    model.save_to_preset(str(tmp_path / "keras"))
    convert(tmp_path / "keras", tmp_path / "out", "megatron")
    said = capsys.readouterr().out
    assert "not converted: multi_label=True: read again, its classes exclude each other" in said
    assert "not converted: class_names: a, b, c" in said
