"""A hundred thousand damaged and hostile files: each is read whole, or refused in one line.

`fuzzing.run` does it in a process of its own, which is watched (`fuzzing.harness`), and which a
crash would end. To see one of its finds: `python -m fuzzing.run FOLDER --seeds SEEDS --kind KIND
--only NUMBER`, with the folder that `fuzzing.seeds.write_seeds` fills.
"""

import json
import os
import pathlib
import subprocess
import sys

import pytest
from fuzzing.controls import CONTROLS
from fuzzing.seeds import write_seeds

pytestmark = pytest.mark.backend_independent
HERE = pathlib.Path(__file__).parent
FILES = 100_000


def run(scratch, *arguments):
    """Run it, and return its exit status and its report."""
    scratch.mkdir()
    path = [str(HERE), str(HERE.parent.parent), os.environ.get("PYTHONPATH", "")]
    finished = subprocess.run(
        [sys.executable, "-m", "fuzzing.run", scratch, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        cwd=scratch,
        timeout=1800,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, path))},
    )
    lines = finished.stdout.splitlines()
    return finished.returncode, json.loads(lines[-1]) if lines else finished.stderr[-2000:]


def test_every_file_is_read_or_refused(tmp_path):
    seeds = tmp_path / "seeds"
    seeds.mkdir()
    write_seeds(seeds)
    status, report = run(tmp_path / "run", "--seeds", seeds, "--thousands", FILES // 1000)
    assert status == 0, f"the interpreter crashed, or the fuzz did: {report}"
    print(report["outcomes"], report["seconds"])
    assert report["wrong"] == []
    outcomes = report["outcomes"].values()
    assert sum(sum(outcome.values()) for outcome in outcomes) >= FILES
    for outcome in outcomes:  # neither all are damaged, nor is damage overlooked
        assert outcome["read"] > 0.03 * outcome["refused"]
        assert outcome["refused"] > outcome["read"]


# === The harness notices what it is there for ===


@pytest.fixture(scope="module")
def control(tmp_path_factory):
    status, report = run(tmp_path_factory.mktemp("control") / "run", "--control")
    assert status == 0, report
    return report


@pytest.mark.parametrize("case", CONTROLS)
def test_a_reader_that_misbehaves_is_noticed(control, case):
    _, expected = CONTROLS[case]
    assert any(expected in what for what in control[case]), control[case]


def test_a_reader_that_does_as_it_should_is_left_alone(control):
    assert control["good"] == []
    assert control["good refusal"] == []


def test_a_crash_is_noticed(tmp_path):
    status, _ = run(tmp_path / "run", "--control", "--crash")
    assert status < 0
