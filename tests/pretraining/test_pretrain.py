"""A pretraining run: what it writes, that it learns, and what it refuses."""

import dataclasses
import json

import filelock
import keras
import numpy as np
import pytest
import torch
import transformers
from huggingface import torch_inputs

from keras_megatron import MegatronBertMaskedLM, MegatronBertPretrainer
from keras_megatron.pretraining.run import build_pretrainer, pretrain
from keras_megatron.pretraining.sentence_pairs import pretraining_batches
from keras_megatron.pretraining.settings import PretrainSettings
from keras_megatron.pretraining.token_files import TokenFiles

EVERY = {"log_every": 2, "save_every": 4, "verbose": False}


@pytest.fixture(scope="module")
def settings(corpus, tokenizer, tmp_path_factory):
    vocabulary = tmp_path_factory.mktemp("vocabulary") / "vocabulary.txt"
    vocabulary.write_text("\n".join(tokenizer.get_vocabulary()) + "\n", encoding="utf-8")
    return PretrainSettings(
        tokens=str(corpus),
        held_out=str(corpus),
        vocabulary=str(vocabulary),
        steps=12,
        num_layers=2,
        num_heads=2,
        hidden_dim=16,
        max_sequence_length=32,
        sequence_length=32,
        batch_size=8,
        learning_rate=1e-2,
        dtype="float32",
    )


def changed(settings, **values) -> PretrainSettings:
    return dataclasses.replace(settings, **values)


def lines_of(output) -> list[dict]:
    return [json.loads(line) for line in (output / "log.jsonl").read_text("utf-8").splitlines()]


@pytest.fixture(scope="module")
def finished(settings, tmp_path_factory):
    output = tmp_path_factory.mktemp("run") / "out"
    metrics = pretrain(settings, output, evaluate_every=6, **EVERY)
    return output, metrics


def test_a_run_learns_and_writes_what_it_says(settings, finished):
    output, metrics = finished
    lines = lines_of(output)
    assert [line["step"] for line in lines] == [2, 4, 6, 8, 10, 12]
    assert lines[-1]["loss"] < lines[0]["loss"] - 0.5
    for line in lines:
        assert line["loss"] == pytest.approx(line["mlm_loss"] + line["nsp_loss"], abs=1e-4)
    assert [line["step"] for line in lines if "held_out" in line] == [6, 12]
    assert lines[-1]["learning_rate"] == pytest.approx(settings.learning_rate / 12, rel=0.02)
    names = sorted(path.name for path in (output / "checkpoints").iterdir())
    assert names == ["step_00000008.safetensors", "step_00000012.safetensors"]
    assert metrics == json.loads((output / "metrics.json").read_text())
    assert metrics["held_out"] == lines[-1]["held_out"]
    assert metrics["tokens"] == 12 * 8 * 32


def test_its_preset_is_the_model(settings, finished, tokenizer):
    output, metrics = finished
    model = MegatronBertPretrainer.from_preset(str(output / "preset"))
    files = TokenFiles.open(settings.tokens, tokenizer)
    batches = pretraining_batches(files, tokenizer, 8, 32, seed=2**31 - 1)
    measured = model.evaluate(batches, verbose=0, return_dict=True)
    # Keras takes the mean of the batches' means.
    assert measured["loss"] == pytest.approx(metrics["held_out"]["loss"], abs=0.02)
    untrained = build_pretrainer(settings).evaluate(batches, verbose=0, return_dict=True)
    assert untrained["loss"] > measured["loss"] + 0.3
    masked_lm = MegatronBertMaskedLM.from_preset(str(output / "preset"))
    assert len(masked_lm.fill_mask("The [MASK].", top_k=2)[0]) == 2


def test_held_out_losses_are_means_over_batches_and_pairs(settings, tokenizer, tmp_path):
    """As transformers has them, though most batches of two have no pair."""
    rare = changed(settings, pair_rate=0.2, batch_size=2, steps=2)
    found = pretrain(rare, tmp_path / "run", log_every=2, save_every=2, verbose=False)["held_out"]
    model = MegatronBertPretrainer.from_preset(str(tmp_path / "run" / "preset"))
    model.export_to_transformers(tmp_path / "exported")
    reference = transformers.MegatronBertForPreTraining.from_pretrained(tmp_path / "exported")
    files = TokenFiles.open(settings.tokens, tokenizer)
    batches = pretraining_batches(
        files, tokenizer, 2, 32, rare.masking(), seed=2**31 - 1, pair_rate=0.2
    )
    of_pairs, batch_losses = [], {"mlm": [], "nsp": []}
    for x, y, weight in batches:
        with torch.no_grad():
            logits = reference(**torch_inputs(x))
        rows = np.arange(len(x["token_ids"]))[:, None]
        of_part = {
            "mlm": logits.prediction_logits[rows, x["mask_positions"]],
            "nsp": logits.seq_relationship_logits,
        }
        for part, scores in of_part.items():
            there = np.asarray(weight[part]) > 0
            labels = torch.from_numpy(np.asarray(y[part])[there]).long()
            entropy = torch.nn.functional.cross_entropy(scores[there], labels, reduction="none")
            batch_losses[part].append(entropy.mean().item() if there.any() else 0.0)
            of_pairs += entropy.tolist() if part == "nsp" else []
    mlm, nsp = np.mean(batch_losses["mlm"]), np.mean(of_pairs)
    assert found["mlm_loss"] == pytest.approx(mlm, abs=1e-4)
    assert found["nsp_loss"] == pytest.approx(nsp, abs=1e-4)
    assert found["loss"] == pytest.approx(mlm + nsp, abs=2e-4)
    assert abs(np.mean(batch_losses["nsp"]) - nsp) > 0.1  # negative control


def test_to_measure_changes_nothing(settings, tmp_path):
    losses = []
    for every in (None, 2):
        run = changed(settings, steps=6)
        folder = tmp_path / str(every)
        pretrain(run, folder, log_every=2, save_every=6, evaluate_every=every, verbose=False)
        losses.append([line["loss"] for line in lines_of(folder)])
    np.testing.assert_array_equal(*losses)


def test_tensorboard_has_the_log(finished):
    tensorflow = pytest.importorskip("tensorflow")
    output, _ = finished
    scalars = {}
    for path in (output / "tensorboard").iterdir():
        for event in tensorflow.compat.v1.train.summary_iterator(str(path)):
            for value in event.summary.value:
                scalars.setdefault(value.tag, []).append((event.step, value.simple_value))
    for name in ("loss", "learning_rate", "tokens_per_second"):
        expected = [(line["step"], line[name]) for line in lines_of(output)]
        np.testing.assert_allclose(scalars[name], expected, rtol=1e-6)
    assert [step for step, _ in scalars["held_out/mlm_accuracy"]] == [6, 12]


def test_a_finished_run_is_left_alone(settings, finished, capsys):
    output, metrics = finished
    before = (output / "log.jsonl").read_text()
    assert pretrain(settings, output, **EVERY) == metrics
    assert "finished" in capsys.readouterr().out
    assert (output / "log.jsonl").read_text() == before
    with pytest.raises(ValueError, match=r"has a run with steps = 12, not 14"):
        pretrain(changed(settings, steps=14), output, **EVERY)


def test_it_goes_on_from_a_preset(settings, finished, tmp_path):
    output, _ = finished
    again = changed(settings, preset=str(output / "preset"), vocabulary=None, steps=2, dropout=0.0)
    pretrain(again, tmp_path / "again", **EVERY | {"save_every": 2})
    # The same batches as those of the first run's beginning.
    assert lines_of(tmp_path / "again")[0]["loss"] < lines_of(output)[0]["loss"] - 0.5


@pytest.mark.parametrize(
    ("values", "tolerance"),
    [
        ({"packing": True}, 1e-3),
        ({"gradient_checkpointing": True}, 1e-4),
        ({"dtype": "mixed_bfloat16"}, 0.05),
        ({"dtype": "mixed_float16"}, 0.05),
        ({"accumulation": 2}, 0.05),  # means of parts, which have other numbers of masks
    ],
)
def test_other_ways_come_to_the_same(settings, tmp_path, values, tolerance):
    plain = changed(
        settings,
        dropout=0.0,
        held_out=None,
    )
    losses = []
    for index, chosen in enumerate((plain, changed(plain, **values))):
        pretrain(chosen, tmp_path / str(index), **EVERY)
        losses.append([line["loss"] for line in lines_of(tmp_path / str(index))])
    np.testing.assert_allclose(losses[1], losses[0], atol=tolerance)
    assert losses[0][0] - losses[0][-1] > 2 * tolerance  # it learns by more than that


@pytest.mark.backend_independent
def test_worker_processes_make_the_same_batches(settings, tmp_path):
    short = changed(settings, steps=4, held_out=None)
    for workers in (0, 1):
        pretrain(short, tmp_path / str(workers), workers=workers, **EVERY)
    for line, other in zip(lines_of(tmp_path / "0"), lines_of(tmp_path / "1"), strict=True):
        assert line["loss"] == pytest.approx(other["loss"], abs=1e-6)


@pytest.mark.backend_independent
def test_measuring_needs_held_out_data(settings, tmp_path):
    with pytest.raises(ValueError, match="evaluate_every needs held-out data: set held_out"):
        pretrain(
            changed(settings, held_out=None), tmp_path / "out", **EVERY | {"evaluate_every": 4}
        )
    assert not (tmp_path / "out").exists()


@pytest.mark.backend_independent
def test_two_processes_do_not_share_a_folder(settings, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "run.json").write_text(json.dumps(settings.facts()))
    with (
        filelock.FileLock(tmp_path / "out" / ".lock"),
        pytest.raises(ValueError, match="another process is training in"),
    ):
        pretrain(settings, tmp_path / "out", **EVERY)


@pytest.mark.backend_independent
def test_a_loss_that_is_no_number_ends_it(settings, tmp_path):
    with pytest.raises(ValueError, match=r"the loss is (nan|inf) before step"):
        pretrain(changed(settings, learning_rate=1e38), tmp_path / "out", **EVERY)


@pytest.mark.backend_independent
@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"steps": 0}, "steps must be at least 1, not 0"),
        ({"steps": 2.5}, "steps must be of type int, not 2.5"),
        ({"accumulation": 3}, "batch_size=8 cannot be split into accumulation=3"),
        ({"preset": "x"}, "give either a preset to go on from, or the vocabulary"),
        ({"vocabulary": None}, "give either a preset to go on from, or the vocabulary"),
        ({"dtype": "float8"}, "dtype must be one of float32, mixed_bfloat16"),
        ({"dtype": "bfloat16"}, "rounds updates away: use 'mixed_bfloat16'"),
        ({"sequence_length": 64}, "sequence_length=64 is more than the model's"),
        ({"selection_rate": 2.0}, "selection_rate must be between 0 and 1, not 2"),
        ({"tokens": "/nowhere/x"}, "cannot read /nowhere/x.idx: No such file"),
        ({"batch_size": 10**6}, "fewer than a batch of 1000000"),
        (
            {"learning_rate": 1e-9},
            "learning_rate=1e-09 is less than final_learning_rate=1e-05: give both",
        ),
        ({"num_heads": 3}, "is not a multiple"),
        ({"clip": 0.0}, "clip must be a number above 0, not 0.0"),
        ({"clip": float("nan")}, "clip must be a number above 0, not nan"),
        ({"initializer_range": float("inf")}, "initializer_range must be a number above 0"),
        ({"learning_rate": -1.0}, "learning_rate must be a number above 0, not -1.0"),
        ({"weight_decay": float("nan")}, "weight_decay must be from 0 to inf, not nan"),
        ({"pair_rate": 2.0}, "pair_rate must be from 0 to 1, not 2.0"),
        ({"dropout": 1.0}, "dropout must be less than 1"),
        ({"selection_rate": 0.0}, "selection_rate must be above 0"),
        ({"seed": -1}, "seed must be from 0 to 4294967295, not -1"),
        ({"warmup": 1.0}, "warmup is a share of the steps"),
    ],
)
def test_bad_settings_are_refused(settings, tmp_path, values, message):
    with pytest.raises(ValueError, match=message):
        pretrain(changed(settings, **values), tmp_path / "out", **EVERY)
    assert not (tmp_path / "out").exists()


@pytest.mark.backend_independent
def test_intervals_are_whole_lines_of_the_log(settings, tmp_path):
    with pytest.raises(ValueError, match="save_every=3 must be a multiple of log_every=2"):
        pretrain(settings, tmp_path / "out", log_every=2, save_every=3)
    with pytest.raises(ValueError, match="keep must be at least 1, not 0"):
        pretrain(settings, tmp_path / "out", keep=0, **EVERY)


@pytest.mark.backend_independent
def test_a_stopped_run_goes_on_with_the_same_data_and_whole_lines(settings, corpus, tmp_path):
    for end in (".bin", ".idx", ".json"):
        (tmp_path / f"corpus{end}").write_bytes(corpus.with_name(f"corpus{end}").read_bytes())
    stopped = changed(settings, tokens=str(tmp_path / "corpus"))
    (tmp_path / "out").mkdir()
    folder = tmp_path / "out"
    pretrain(stopped, folder, log_every=2, save_every=6, verbose=False)
    for name in ("metrics.json", "checkpoints/step_00000012.safetensors"):  # back to step 6
        (folder / name).unlink()
    with pytest.raises(ValueError, match="is at step 6, which is no multiple of log_every=4"):
        pretrain(stopped, folder, log_every=4, save_every=4, verbose=False)
    index = tmp_path / "corpus.idx"
    whole = index.read_bytes()
    index.write_bytes(whole[:-8] + b"\0" * 8)
    with pytest.raises(ValueError, match="has a run with tokens_sha256 = "):
        pretrain(stopped, folder, log_every=2, save_every=6, verbose=False)
    index.write_bytes(whole)
    assert pretrain(stopped, folder, log_every=2, save_every=6, verbose=False)["steps"] == 12
    (folder / "run.json").write_text("[]")
    with pytest.raises(ValueError, match=r"run\.json is damaged: it holds no object"):
        pretrain(stopped, folder, log_every=2, save_every=6, verbose=False)


@pytest.mark.backend_independent
def test_settings_are_read_from_toml(tmp_path):
    path = tmp_path / "run.toml"
    path.write_text('tokens = "corpus"\nsteps = 5\npreset = "megatron_bert_tiny_uncased"\n')
    settings = PretrainSettings.from_file(path)
    assert settings.tokens == str(tmp_path / "corpus")
    assert settings.preset == "megatron_bert_tiny_uncased"
    for text, message in (
        ("steps = 1\n", "lacks tokens"),
        ('tokens = "a"\nsteps = 1\nlr = 1\n', "unknown settings lr: known are tokens, steps"),
        ("tokens =", "cannot read the settings in"),
        (
            'tokens = "a"\nsteps = 1\npreset = "b"\nnum_layers = 2\nhidden_dim = 8\n',
            "has num_layers, hidden_dim beside a preset, which has its own: leave them out",
        ),
        (
            'tokens = "a"\nsteps = 1\npreset = "b"\nlowercase = false\ninitializer_range = 0.1\n',
            "has lowercase, initializer_range beside a preset, which has its own: leave them out",
        ),
    ):
        path.write_text(text)
        with pytest.raises(ValueError, match=message):
            PretrainSettings.from_file(path)


def test_the_trained_heads_are_those_of_the_reference_loss(settings, tokenizer):
    """The loss that is logged is the cross entropy of both heads' logits, computed apart."""
    model = build_pretrainer(changed(settings, dropout=0.0))
    model.compile()
    files = TokenFiles.open(settings.tokens, tokenizer)
    x, y, weight = pretraining_batches(files, tokenizer, 8, 32)[0]
    logits = {name: keras.ops.convert_to_numpy(a) for name, a in model(x).items()}
    expected = 0.0
    for name, labels in y.items():
        scores = logits[name].astype("float64")
        log_sum = np.log(np.exp(scores).sum(-1))
        losses = log_sum - np.take_along_axis(scores, labels[..., None], -1)[..., 0]
        expected += (losses * weight[name]).sum() / weight[name].sum()
    found = model.test_on_batch(x, y, weight, return_dict=True)["loss"]
    assert float(found) == pytest.approx(expected, abs=1e-4)
    assert abs(float(found) - 2 * expected) > 1
