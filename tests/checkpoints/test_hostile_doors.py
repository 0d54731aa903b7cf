"""Hostile pickles are refused through every door by which a user's file comes in."""

import json
import time
import zipfile

import hostile
import pytest
from checkpoint_helpers import one_line_error, tree

from keras_megatron import MegatronBertMaskedLM
from keras_megatron.checkpoints import convert_checkpoint
from keras_megatron.checkpoints.huggingface import open_weights
from keras_megatron.cli import main

pytestmark = pytest.mark.backend_independent
RUNNING, REFUSED = list(hostile.running_pickles("")), list(hostile.refused_pickles())
MEMBER = "release/mp_rank_00/model_optim_rng.pt"


def converted(source):
    return lambda: convert_checkpoint(source, source.parent / "output", progress=False)


def archive(folder, pickled):
    (folder / "model.pt").write_bytes(hostile.as_archive(pickled))
    return converted(folder / "model.pt")


def stream(folder, pickled):
    (folder / "model.pt").write_bytes(hostile.as_stream(pickled))
    return converted(folder / "model.pt")


def release(folder, pickled):
    with zipfile.ZipFile(folder / "release.zip", "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr(MEMBER, hostile.as_stream(pickled))
    return converted(folder / "release.zip")


def one_rank_of_two(folder, pickled):
    for rank in range(2):
        path = folder / "run" / f"mp_rank_0{rank}" / "model_optim_rng.pt"
        path.parent.mkdir(parents=True)
        harmless = hostile.finish(b"}" + hostile.text("model") + b"}s")
        path.write_bytes(hostile.as_archive(pickled if rank else harmless))
    return converted(folder / "run")


def metadata(folder, pickled):
    (folder / "run").mkdir()
    (folder / "run" / ".metadata").write_bytes(pickled)
    return converted(folder / "run")


def common(folder, pickled):
    """What all ranks of torch_dist have in common, beside tables that are empty."""
    tables = b"".join(
        hostile.text(name) + b"}s" for name in ("state_dict_metadata", "storage_data")
    )
    top = hostile.name("torch.distributed.checkpoint.metadata", "Metadata")
    opened = metadata(folder, hostile.finish(top + b")\x81}" + tables + b"b"))
    (folder / "run" / "common.pt").write_bytes(hostile.as_archive(pickled))
    return opened


def hugging_face(folder, pickled):
    (folder / "pytorch_model.bin").write_bytes(hostile.as_stream(pickled))
    return lambda: open_weights(folder)


def hugging_face_shard(folder, pickled):
    index = {"weight_map": {"bert.pooler.dense.bias": "shard.bin"}}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    (folder / "shard.bin").write_bytes(hostile.as_archive(pickled))
    return lambda: open_weights(folder)


def hugging_face_preset(folder, pickled):
    config = {"model_type": "megatron-bert", "architectures": ["MegatronBertForMaskedLM"]}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\n")
    hugging_face(folder, pickled)
    return lambda: MegatronBertMaskedLM.from_preset(str(folder), preprocessor=None)


DOORS = (
    *(archive, stream, release, one_rank_of_two, metadata, common),
    *(hugging_face, hugging_face_shard, hugging_face_preset),
)


@pytest.mark.parametrize("door", DOORS, ids=lambda door: door.__name__)
def test_code_does_not_run(door, tmp_path):
    marker = tmp_path / "it ran"
    for number, case in enumerate(RUNNING):
        folder = tmp_path / str(number)
        folder.mkdir()
        opened = door(folder, hostile.running_pickles(marker)[case])
        before = tree(folder)
        with one_line_error("refused"):
            opened()
        assert tree(folder) == before, case
        assert not marker.exists(), case
    time.sleep(0.1)  # a process that was started may be slow
    assert not marker.exists()


@pytest.mark.parametrize("door", DOORS[:-1], ids=lambda door: door.__name__)
def test_tricks_are_refused(door, tmp_path):
    pickles = hostile.refused_pickles()
    for number, case in enumerate(REFUSED):
        folder = tmp_path / str(number)
        folder.mkdir()
        opened = door(folder, pickles[case])
        before = tree(folder)
        with one_line_error():
            opened()
        assert tree(folder) == before, case


@pytest.mark.parametrize("case", [*RUNNING, *REFUSED])
def test_the_command_says_so_in_one_line(case, tmp_path, capsys):
    marker = tmp_path / "it ran"
    pickled = {**hostile.running_pickles(marker), **hostile.refused_pickles()}[case]
    source, output = tmp_path / "evil.pt", tmp_path / "deep" / "output"
    source.write_bytes(hostile.as_archive(pickled))
    with pytest.raises(SystemExit) as stopped:
        main(["convert", str(source), str(output)])
    assert stopped.value.code == 2
    said = capsys.readouterr().err
    assert said.startswith("keras-megatron: ")
    assert said.count("\n") == 1
    assert str(source) in said
    assert len(said) < 500 + len(str(source))
    assert tree(tmp_path) == ["evil.pt"]
