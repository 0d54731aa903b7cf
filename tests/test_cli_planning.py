"""The command `plan`, in process, with what a compilation gave; tests/parallel compiles."""

import json

import pytest

from keras_megatron import cli
from keras_megatron.parallel.planning import plans

pytestmark = pytest.mark.backend_independent


@pytest.fixture
def command(capsys, monkeypatch):
    """Run the command; returns exit status, stdout and stderr."""
    monkeypatch.setenv("COLUMNS", "100")

    def command(*arguments):
        with pytest.raises(SystemExit) as exit:
            cli.main(["plan", *map(str, arguments)])
        captured = capsys.readouterr()
        return exit.value.code, captured.out, captured.err

    return command


@pytest.fixture
def requests(monkeypatch):
    """What would be compiled; each layer takes 10 MB of each kind, and sends two arrays."""
    noted = []

    def compiled(requests, devices):
        noted.extend(requests)
        for request in requests:
            layers = request["config"]["num_layers"]
            sizes = ("parameters", "gradients", "optimizer", "activations")
            sent = {"kind": "all-reduce", "axis": "model", "arrays": 2 * layers, "bytes": layers}
            sent["part"] = "attention, forward"
            found = [sent] if request["model"] > 1 else []
            yield {**dict.fromkeys(sizes, 10**7 * layers), "sent": found}

    monkeypatch.setattr(plans, "_compiled", compiled)
    return noted


MODEL = ("--preset", "megatron_bert_3_9b_uncased")


def test_tables_json_and_plot(command, requests, tmp_path):
    status, out, err = command(
        *(*MODEL, "--preset", "megatron_bert_1_3b_uncased", "--mesh", "1x1", "--mesh", "2x8"),
        *("--batch", 4, "--sequence", 128, "--dtype", "bfloat16", "--per-copy"),
        *("--json", tmp_path / "plans.json", "--plot", tmp_path / "plans.png"),
    )
    assert (status, err) == (0, "")
    assert [request["batch"] for request in requests[::2]] == [4, 8, 4, 8]
    assert {request["config"]["num_layers"] for request in requests} == {2, 3}
    assert {request["dtype"] for request in requests} == {"bfloat16"}
    assert "megatron_bert_3_9b_uncased: memory of each device" in out
    assert "480 MB" in out  # 48 layers
    # Four all-reduces of 4 x 128 x 2560 numbers of two bytes, for each layer.
    assert "192 x 2.62 MB" in out
    assert "megatron_bert_1_3b_uncased on 2x8: what is sent, by part of the step" in out
    found = json.loads((tmp_path / "plans.json").read_text())
    assert [plan["parameters"] for plan in found] == [48 * 10**7] * 2 + [24 * 10**7] * 2
    assert [plan["paper"]["all_reduces"] for plan in found] == [0, 192, 0, 96]
    assert found[1]["sent"][0]["arrays"] == 96
    assert (tmp_path / "plans.png").read_bytes().startswith(b"\x89PNG")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["plans.json", "plans.png"]


def test_sequence_parallel_is_passed_on(command, requests):
    status, out, _ = command(*MODEL, "--mesh", "1x8", "--sequence-parallel")
    assert status == 0
    assert all(request["sequence_parallel"] for request in requests)
    assert "8" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((*MODEL, "--mesh", "1by8"), "a mesh is data x model devices, such as 1x8, not '1by8'"),
        ((*MODEL, "--mesh", "0x8"), "not '0x8'"),
        (("--preset", "bert", "--mesh", "1x8"), "no preset 'bert': choose from megatron_bert_tiny"),
        ((*MODEL, "--mesh", "1x16"), "num_heads=40 of megatron_bert_3_9b_uncased cannot be split"),
        ((*MODEL, "--mesh", "3x8"), "a batch of 8 cannot be split over the 3 data devices"),
        ((*MODEL, "--mesh", "1x8", "--sequence", "513"), "longer than the 512 positions"),
        ((*MODEL, "--mesh", "1x8", "--dtype", "int3"), "int3"),
        ((*MODEL, "--mesh", "1x8", "--json", "no/x.json"), "there is no folder no"),
        ((*MODEL, "--mesh", "1x8", "--json", "."), "cannot write .: it is a folder"),
        ((*MODEL, "--mesh", "1x8", "--plot", "x.jpg"), "a name that ends with .png, not x.jpg"),
        (MODEL, "Missing option '--mesh'"),
    ],
)
def test_user_errors_are_one_line(command, requests, arguments, message):
    status, out, err = command(*arguments)
    assert (status, out, requests) == (2, "", [])
    assert message in err
    assert err.count("\n") == 1
