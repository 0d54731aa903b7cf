"""Convert NVIDIA's released Megatron BERT (or your own checkpoint) to a preset folder.

    python tools/convert_ngc.py megatron_bert_345m_v0.1_uncased.zip my_345m

Exits with 0, or with 2 after one line on stderr and without OUTPUT.
"""

import argparse
import contextlib
import os
import sys
from collections.abc import Iterator


class _Parser(argparse.ArgumentParser):
    def error(self, message: str):
        """Exit with one line, without the usage."""
        self.exit(2, f"{self.prog}: {message} (see --help)\n")


def _parse_arguments() -> argparse.Namespace:
    parser = _Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", help="release zip, unpacked checkpoint folder or .pt file")
    parser.add_argument("output", help="preset folder to make")
    parser.add_argument(
        "--vocabulary",
        metavar="uncased|cased|FILE",
        help="default: by the number of the model's rows",
    )
    parser.add_argument(
        "--num-heads",
        type=int,
        metavar="N",
        help="default: as the checkpoint's arguments say, else hidden / 64",
    )
    parser.add_argument(
        "--layer-norm-epsilon",
        type=float,
        metavar="E",
        help="default: as the checkpoint's arguments say, else 1e-5; 1e-12 is Hugging Face's",
    )
    parser.add_argument(
        "--mlp-activation",
        choices=("gelu", "gelu_approximate"),
        help="default: gelu, unless the checkpoint was trained with the fused approximation",
    )
    return parser.parse_args()


@contextlib.contextmanager
def _without_greetings() -> Iterator[None]:
    """Mute stderr: TensorFlow's libraries greet there when they are loaded, whatever they are told.

    KerasHub imports TensorFlow where it is installed, on every backend.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    stderr = os.dup(2)
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)


def main() -> int:
    """Run the command and return its exit status."""
    arguments = _parse_arguments()
    try:
        with _without_greetings():
            from keras_megatron.checkpoints import convert_checkpoint

        convert_checkpoint(**vars(arguments))
    except (ValueError, ImportError) as error:  # the latter if there is no such backend
        print(f"convert_ngc.py: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
