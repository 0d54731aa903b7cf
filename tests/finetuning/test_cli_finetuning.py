"""The commands `finetune` and `predict`, in process."""

import json

import keras
import pytest

from keras_megatron import (
    MegatronBertCausalLM,
    MegatronBertTextEmbedder,
    cli,
)

pytestmark = pytest.mark.backend_independent


@pytest.fixture
def command(capsys):
    """Run the command; returns exit status, stdout and stderr."""

    def command(*arguments):
        capsys.readouterr()
        with pytest.raises(SystemExit) as exit:
            cli.main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return exit.value.code, captured.out, captured.err

    return command


@pytest.fixture(scope="module")
def finetuned(preset, data, tmp_path_factory):
    """The folder of a run made by the command, and the arguments that made it."""
    output = tmp_path_factory.mktemp("command") / "run"
    arguments = [
        *("finetune", "--task", "text-classification", "--preset", preset),
        *("--train", f"{data}/classes.tsv:train", "--dev", f"{data}/classes.tsv:dev"),
        *("--epochs", "1", "--batch-size", "3", "--learning-rate", "1e-3", "--warmup", "0.5"),
        *("--weight-decay", "0.1", "--seed", "3", "--lora-rank", "2", "--dtype", "mixed_bfloat16"),
        *("--test", f"{data}/classes.tsv:dev", "--output", str(output)),
    ]
    with pytest.raises(SystemExit) as exit:
        cli.main(arguments)
    assert exit.value.code == 0
    return output, arguments


def test_finetune_takes_its_settings_from_the_options(finetuned, data):
    settings = json.loads((finetuned[0] / "run.json").read_text())
    expected = {
        "task": "text-classification",
        "train": f"{data}/classes.tsv:train",
        "recipe": "default",
        "epochs": 1,
        "batch_size": 3,
        "learning_rate": 1e-3,
        "warmup": 0.5,
        "weight_decay": 0.1,
        "sequence_length": None,
        "seed": 3,
        "lora_rank": 2,
        "dtype": "mixed_bfloat16",
        "columns": None,
        "backend": keras.backend.backend(),
    }
    assert {name: settings[name] for name in expected} == expected


def test_finished_runs_say_so_and_others_are_refused(finetuned, command):
    output, arguments = finetuned
    status, out, err = command(*arguments)
    assert (status, err) == (0, "")
    assert f"{output} is finished" in out
    assert "dev of epoch 1: accuracy" in out
    assert "test of epoch 1: accuracy" in out
    status, _, err = command(*arguments, "--epochs", "2")
    assert status == 2
    assert f"{output} has a run with epochs = 1, not 2: give that, or choose another" in err
    status, _, err = command(*arguments, "--epochs", "2", "--seed", "4")
    assert (status, "epochs = 1, not 2; " in err, "seed = 3, not 4" in err) == (2, True, True)
    # The same file, spelled in another way.
    spelled = [str(a).replace("/classes.tsv", "/./classes.tsv") for a in arguments]
    assert spelled != [str(a) for a in arguments]
    assert command(*spelled)[0] == 0


def test_predict_writes_a_line_of_json_a_sample(finetuned, data, command, tmp_path):
    preset = finetuned[0] / "preset"
    status, out, _ = command("predict", "--preset", preset, f"{data}/classes.tsv:dev")
    assert status == 0
    answers = [json.loads(line) for line in out.splitlines()]
    assert [answer["label"] in ("land", "sea") for answer in answers] == [True, True]
    assert all(sum(answer["scores"].values()) == pytest.approx(1) for answer in answers)
    output = tmp_path / "answers.jsonl"
    status, nothing, _ = command(
        *("predict", "--preset", preset, f"{data}/classes.tsv:dev"),
        *("--output", output, "--batch-size", 1),
    )
    assert (status, nothing) == (0, "")
    again = [json.loads(line) for line in output.read_text().splitlines()]
    assert [answer["label"] for answer in again] == [answer["label"] for answer in answers]
    nowhere = tmp_path / "none" / "answers.jsonl"
    status, _, err = command("predict", "--preset", preset, output, "--output", nowhere)
    assert (status, f"cannot write {nowhere}: there is no folder" in err) == (2, True)
    status, _, err = command("predict", "--preset", preset, output, "--output", tmp_path)
    assert (status, f"cannot write {tmp_path}: it is a folder" in err) == (2, True)
    status, _, err = command("predict", "--preset", preset.parent, output)
    assert (status, f"did you mean {preset}?" in err) == (2, True)
    # Texts, one a line, need no table.
    _, out, _ = command("predict", "--preset", preset, f"{data}/texts.txt")
    assert len(out.splitlines()) == 2


def test_tasks_without_labels_answer_too(preset, data, command, tmp_path):
    (tmp_path / "masks.txt").write_text("a [MASK] b [MASK]\n[MASK]\n")
    status, out, _ = command("predict", "--preset", preset, tmp_path / "masks.txt")
    assert status == 0
    assert [len(json.loads(line)["masks"]) for line in out.splitlines()] == [2, 1]
    MegatronBertTextEmbedder.from_preset(preset).save_to_preset(str(tmp_path / "embedder"))
    _, out, _ = command("predict", "--preset", tmp_path / "embedder", f"{data}/texts.txt")
    assert [len(json.loads(line)["embedding"]) for line in out.splitlines()] == [16, 16]
    MegatronBertCausalLM.from_preset(preset).save_to_preset(str(tmp_path / "causal"))
    (tmp_path / "prompts.txt").write_text("call me\n")
    _, out, _ = command("predict", "--preset", tmp_path / "causal", tmp_path / "prompts.txt")
    assert json.loads(out)["text"].startswith("call me")


FINETUNE = {
    "--task": "text-classification",
    "--preset": "{preset}",
    "--train": "{data}/classes.tsv:train",
    "--dev": "{data}/classes.tsv:dev",
    "--output": "{tmp}/run",
}


@pytest.mark.parametrize(("options", "message"), [
    ({"--task": "translation"}, "there is no task 'translation': give one of text-classification,"),
    ({"--preset": "megatron_bert_tiny_cased"}, "did you mean megatron_bert_tiny_uncased"),
    ({"--train": "{data}/no.tsv"}, "there is no file"),
    ({"--train": "{data}/classes.tsv"}, "has the splits dev, train: choose one"),
    ({"--train": "{data}/entities.conll"},
     "entities.conll, line 1: 'label' is missing; there is words, tags"),
    ({"--train": "{data}/questions_train.json", "--task": "token-classification"},
     "'words' is missing"),
    ({"--train": "{tmp}/broken.tsv"}, "broken.tsv, line 3: there are 1 values for 2 columns"),
    ({"--train": "{tmp}/empty.tsv"}, "empty.tsv is empty"),
    ({"--dev": "{tmp}/other.tsv"}, "other.tsv, line 2: the label 'sky' is none of land, sea"),
    ({"--recipe": "mnli-175b"}, "there is no recipe 'mnli-175b': give one of mnli-336m,"),
    ({"--epochs": "0"}, "epochs must be at least 1, not 0"),
    ({"--batch-size": "0"}, "batch_size must be at least 1, not 0"),
    ({"--learning-rate": "-1"}, "learning_rate must be positive and finite, not -1.0"),
    ({"--weight-decay": "nan"}, "weight_decay must be finite and not negative, but is nan"),
    ({"--seed": "4294967296"}, "seed must be less than 2**32, not 4294967296"),
    ({"--warmup": "2"}, "warmup is a share of the steps"),
    ({"--sequence-length": "512"}, "sequence_length must be at most 96, the positions of"),
    ({"--lora-rank": "0"}, "lora_rank must be at least 1, not 0"),
    ({"--dtype": "float33"}, "float33"),
    ({"--save-every": "0"}, "save_every must be at least 1, not 0"),
    ({"--output": "{data}"}, "exists and is not of a run"),
    ({"--output": "{tmp}/empty.tsv"}, "exists and is not of a run"),
    ({"--output": "{tmp}/empty.tsv/run"}, "cannot write"),
])  # fmt: skip
def test_what_cannot_be_trained_is_one_line(command, preset, data, tmp_path, options, message):
    (tmp_path / "broken.tsv").write_text("label\ttext\nsea\ta\nland\n")
    (tmp_path / "empty.tsv").write_text("")
    (tmp_path / "other.tsv").write_text("label\ttext\nsky\ta\n")
    before = {path.name for path in tmp_path.iterdir()}
    places = {"preset": preset, "data": data, "tmp": tmp_path}
    arguments = [
        part.format(**places) for option in {**FINETUNE, **options}.items() for part in option
    ]
    status, _, err = command("finetune", *arguments)
    assert status == 2
    assert message in err
    assert err.startswith("keras-megatron: ")
    assert err.count("\n") == 1
    assert {path.name for path in tmp_path.iterdir()} == before


def test_what_cannot_be_predicted_is_one_line(command, finetuned, data, tmp_path):
    (tmp_path / "backbone").mkdir()
    for name in ("config.json", "model.weights.h5"):
        (tmp_path / "backbone" / name).write_bytes((finetuned[0] / "preset" / name).read_bytes())
    preset = finetuned[0] / "preset"
    for arguments, message in (
        (
            (preset, f"{data}/questions_dev.json"),
            "there is no column 'text', only id, question, context, answers: name those to read",
        ),
        ((preset, f"{data}/no.tsv"), "there is no file"),
        ((tmp_path / "backbone", f"{data}/texts.txt"), "has a backbone but no task"),
        ((tmp_path, f"{data}/texts.txt"), "is no preset, as it has no config.json"),
        (("no_such_preset", f"{data}/texts.txt"), "neither a folder nor the name of a preset"),
    ):
        status, out, err = command("predict", "--preset", *arguments)
        assert (status, out) == (2, "")
        assert message in err
        assert err.count("\n") == 1
