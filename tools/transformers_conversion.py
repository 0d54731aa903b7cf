"""Compares our conversion to Hugging Face's format with the script that transformers had for it.

    pip download --no-deps transformers==4.46.3
    unzip -j transformers-4.46.3-*.whl '*/convert_megatron_bert_checkpoint.py'
    PYTHONPATH=tests KERAS_BACKEND=jax python tools/transformers_conversion.py \
        convert_megatron_bert_checkpoint.py

The script is not in the versions of transformers that this package is tested with. It converts a
release zip with random weights, and what we write for Megatron-LM; its tensors must be ours, bit by
bit. `--full` takes the shape of the 345M model, which needs about 6 GB of memory and of disk.
"""

import argparse
import json
import os
import pathlib
import subprocess
import sys
import tempfile

import release_format
import safetensors.numpy
import torch
import transformers

from keras_megatron.conversion import convert

SMALL = {
    "vocab_size": 29056,
    "hidden_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 256,
    "max_position_embeddings": 64,
}
COPY = "cls.predictions.decoder.weight"  # of the table of words, which transformers ties anyway
OF_US = ("architectures", "dtype", "pad_token_id", "tie_word_embeddings", "_num_labels")


def main() -> None:
    """Compare each version of the format, both ways; exit 1 if a tensor differs."""
    options = parse_options()
    config = transformers.MegatronBertConfig(**({} if options.full else SMALL))
    model = transformers.MegatronBertForPreTraining(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    bad = 0
    for version in options.versions:
        with tempfile.TemporaryDirectory() as folder:
            work = pathlib.Path(folder)
            theirs, their_config = their_conversion(options.script, model, version, work)
            bad += compare(f"version {version:g}, read", theirs, their_config, work / "ours")
            bad += compare_written(options.script, version, theirs, work)
    sys.exit(1 if bad else 0)


def their_conversion(script, model, version: float, work: pathlib.Path) -> tuple[dict, dict]:
    """Write a release zip, convert it by both ways, and return what the script made."""
    config = model.config
    arguments = {
        "tokenizer_type": "BertWordPieceCase",
        "padded_vocab_size": config.vocab_size,
        "ffn_hidden_size": config.intermediate_size,
    }
    source = work / "zip" / "release.zip"
    source.parent.mkdir()
    names = release_format.LATER_NAMES if version >= 3 else release_format.OLD_NAMES
    options = {"arguments": arguments, "names": names, "optimizer": False}
    release_format.write_release_zip(source, model, version, **options)
    convert(source, work / "ours", "transformers", progress=False)
    return run(script, source)


def run(script: str, source: pathlib.Path) -> tuple[dict, dict]:
    """Run the script, which writes beside its source."""
    # It was written for a torch.load that takes pickled arguments.
    environment = {**os.environ, "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD": "1"}
    subprocess.run([sys.executable, script, source], check=True, env=environment)
    tensors = torch.load(source.with_name("pytorch_model.bin"), weights_only=True)
    tensors = {name: tensor.numpy() for name, tensor in tensors.items()}
    return tensors, json.loads(source.with_name("config.json").read_text("utf-8"))


def compare(what: str, theirs: dict, their_config: dict, ours: pathlib.Path) -> int:
    """Print how many tensors are equal, and what differs in the configurations."""
    found = safetensors.numpy.load_file(ours / "model.safetensors")
    expected = {name: array for name, array in theirs.items() if name != COPY}
    equal = sum((found[name] == expected[name]).all() for name in found.keys() & expected.keys())
    config = json.loads((ours / "config.json").read_text("utf-8"))
    other = {
        name: (config.get(name), value)
        for name, value in their_config.items()
        if name in config and config[name] != value and name not in OF_US
    }
    same = equal == len(expected) == len(found)
    print(f"{what}: {equal} of {len(expected)} tensors equal; settings (ours, theirs) {other}")
    return 0 if same else 1


def compare_written(script: str, version: float, theirs: dict, work: pathlib.Path) -> int:
    """Have the script convert what we write for Megatron-LM."""
    convert(work / "ours", work / "megatron", "megatron", version=version, progress=False)
    (file,) = (work / "megatron").rglob("*.pt")
    written, _ = run(script, file)
    equal = sum((written[name] == theirs[name]).all() for name in written)
    print(f"version {version:g}, written: {equal} of {len(theirs)} tensors equal")
    return 0 if equal == len(theirs) == len(written) else 1


def parse_options() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("script", help="convert_megatron_bert_checkpoint.py")
    parser.add_argument("--full", action="store_true", help="the shape of the 345M model")
    parser.add_argument("--versions", type=float, nargs="+", default=[0.0, 1.0, 2.0, 3.0])
    return parser.parse_args()


if __name__ == "__main__":
    main()
