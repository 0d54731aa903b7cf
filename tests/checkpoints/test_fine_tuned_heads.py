"""Heads of Megatron-LM's fine-tuning become the matching task of Hugging Face's model."""

import numpy as np
import pytest
import sharded_format
import torch
import transformers
from checkpoint_helpers import make_inputs, make_reference, one_line_error

from keras_megatron import MegatronBertMultipleChoice, MegatronBertTextClassifier
from keras_megatron.checkpoints import convert_checkpoint

pytestmark = pytest.mark.parity
TOLERANCE = 2e-5


def write(folder, model, head, tensor_size=1, pipeline_size=1, pretraining_heads=False):
    """A fine-tuned checkpoint: `classification.py` and `multiple_choice.py` save no other head."""
    weights = {kind: model.get_parameter(f"classifier.{kind}").detach() for kind in HEAD}
    # `model_state` asks for the pretraining heads; what it makes of that is taken out below.
    pretraining = make_reference(**SIZES)
    pretraining.bert.load_state_dict(model.bert.state_dict())
    found = sharded_format.shards(
        pretraining, 3.0, tensor_size, pipeline_size, extra={head: weights} if head else None
    )
    for content in found.values():
        if not pretraining_heads:
            content["model"].pop("lm_head", None)
            content["model"].pop("binary_head", None)
    return sharded_format.write_shards(folder, found)


HEAD = ("weight", "bias")
SIZES = {"num_hidden_layers": 2}


def make_fine_tuned(architecture, **options):
    return make_reference(architecture, **SIZES, **options)


@pytest.mark.parametrize("grid", [(1, 1), (2, 2)])
def test_a_text_classifier(tmp_path, vocabulary, parity, grid):
    model = make_fine_tuned("MegatronBertForSequenceClassification", num_labels=3)
    source = write(tmp_path / "run", model, "classification_head", *grid)
    assert not convert_checkpoint(source, tmp_path / "preset", vocabulary, progress=False)
    classifier = MegatronBertTextClassifier.from_preset(str(tmp_path / "preset"))
    assert classifier.num_classes == 3
    assert classifier.classify("word1 word2")["scores"].keys() == {0, 1, 2}
    inputs = make_inputs(model.config)
    expected = logits(model, inputs)
    found = np.asarray(classifier.logits(inputs))
    parity(f"text classifier, fine-tuned, {grid}", found, expected, TOLERANCE)
    assert np.abs(found[:, ::-1] - expected).max() > 100 * TOLERANCE


def logits(model, inputs):
    with torch.no_grad():
        outputs = model(
            torch.tensor(inputs["token_ids"]),
            attention_mask=torch.tensor(inputs["padding_mask"]),
            token_type_ids=torch.tensor(inputs["segment_ids"]),
        )
    return outputs.logits.numpy()


def test_multiple_choice(tmp_path, vocabulary, parity):
    model = make_fine_tuned("MegatronBertForMultipleChoice")
    assert isinstance(model, transformers.MegatronBertForMultipleChoice)
    source = write(tmp_path / "run", model, "multichoice_head", 2)
    assert not convert_checkpoint(source, tmp_path / "preset", vocabulary, progress=False)
    chooser = MegatronBertMultipleChoice.from_preset(str(tmp_path / "preset"))
    inputs = {name: value[None] for name, value in make_inputs(model.config).items()}
    expected = logits(model, inputs)
    found = np.asarray(chooser.logits(inputs))
    parity("multiple choice, fine-tuned", found, expected, TOLERANCE)
    assert np.abs(found[:, ::-1] - expected).max() > 100 * TOLERANCE
    with pytest.raises(ValueError, match="num_classes"):
        MegatronBertTextClassifier.from_preset(str(tmp_path / "preset"))


def test_pretraining_heads_beside_it_are_named(tmp_path, vocabulary):
    model = make_fine_tuned("MegatronBertForSequenceClassification")
    source = write(tmp_path / "run", model, "classification_head", pretraining_heads=True)
    unused = convert_checkpoint(source, tmp_path / "preset", vocabulary, progress=False)
    assert {name.split(".")[0] for name in unused} == {"lm_head", "binary_head"}


def test_heads_that_make_no_sense(tmp_path, vocabulary):
    model = make_fine_tuned("MegatronBertForSequenceClassification", num_labels=3)
    cases = {
        "multichoice_head": ["multichoice_head", "3 outputs"],
        None: ["lacks", "lm_head"],
    }
    for head, parts in cases.items():
        source = write(tmp_path / str(head), model, head)
        with one_line_error(*parts):
            convert_checkpoint(source, tmp_path / "preset", vocabulary, progress=False)
    found = {"weight": torch.zeros(3, 32), "bias": torch.zeros(3)}
    both = sharded_format.shards(
        make_reference(**SIZES), extra={"classification_head": found, "multichoice_head": found}
    )
    source = sharded_format.write_shards(tmp_path / "both", both)
    with one_line_error("both", "classification_head", "multichoice_head"):
        convert_checkpoint(source, tmp_path / "preset", vocabulary, progress=False)
    del both[0, 0]["model"]["multichoice_head"], both[0, 0]["model"]["language_model"]["pooler"]
    source = sharded_format.write_shards(tmp_path / "no pooler", both)
    with one_line_error("lacks", "pooler"):
        convert_checkpoint(source, tmp_path / "preset", vocabulary, progress=False)
