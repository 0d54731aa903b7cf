"""Compare MegatronBertTokenizer with two independent tokenizers on real text.

    python tools/tokenizer_parity.py CORPUS_DIR [--vocabulary FILE ...] [--paragraphs N]

CORPUS_DIR holds .txt or .txt.xz files with a paragraph a line. Every paragraph must get the same
ids and offsets as from `tokenizers.BertWordPieceTokenizer`, and the same ids in a TensorFlow graph.
Paragraphs on which `blingfire` and `tokenizers` disagree are counted and the first ones shown;
blingfire has Google's two vocabularies built in, so that this is of use with those only. Exit
status 1 if a paragraph differs from `tokenizers`. The control shows that a difference would count.
"""

import argparse
import lzma
import sys
from pathlib import Path

import blingfire
import numpy as np
import tensorflow as tf
import tokenizers

from keras_megatron import MegatronBertTokenizer

BUNDLED = Path(__file__).parents[1] / "keras_megatron/presets/vocabularies"
BLINGFIRE_MODELS = {True: "bert_base_tok.bin", False: "bert_base_cased_tok.bin"}
BATCH = 2000
SHOWN = 20


def read_paragraphs(folder: Path, count: int) -> list[str]:
    """Read `count` paragraphs, evenly spread over all the files; 0 reads all."""
    paragraphs = []
    for path in sorted([*folder.glob("*.txt"), *folder.glob("*.txt.xz")]):
        opener = lzma.open if path.suffix == ".xz" else open
        with opener(path, "rt", encoding="utf-8") as file:
            paragraphs += [line.strip() for line in file if line.strip()]
    if count and count < len(paragraphs):
        chosen = np.linspace(0, len(paragraphs) - 1, count).astype(int)
        paragraphs = [paragraphs[index] for index in chosen]
    return paragraphs


def blingfire_ids(model: int, text: str) -> list[int]:
    """Tokenize one text with blingfire."""
    room = len(text.encode()) + 1  # never more pieces than bytes
    return blingfire.text_to_ids(model, text, room, unk=100, no_padding=True).tolist()


def compare(vocabulary: Path, paragraphs: list[str]) -> int:
    """Print the counts for one vocabulary; return how many paragraphs differ from `tokenizers`."""
    ours = MegatronBertTokenizer(vocabulary)
    reference = tokenizers.BertWordPieceTokenizer(str(vocabulary), lowercase=ours.lowercase)
    control = tokenizers.BertWordPieceTokenizer(str(vocabulary), lowercase=not ours.lowercase)
    model = blingfire.load_model(
        str(Path(blingfire.__file__).parent / BLINGFIRE_MODELS[ours.lowercase])
    )
    in_graph = tf.function(
        ours.tokenize, input_signature=[tf.TensorSpec([None], tf.string)], autograph=False
    )
    pieces = control_differs = 0
    differ = {"ids": 0, "offsets": 0, "in a graph": 0}
    blingfire_differs = []
    for start in range(0, len(paragraphs), BATCH):
        texts = paragraphs[start : start + BATCH]
        encodings = reference.encode_batch(texts, add_special_tokens=False)
        ids, offsets = ours.tokenize_with_offsets(texts)
        rows = zip(
            texts,
            encodings,
            control.encode_batch(texts, add_special_tokens=False),
            ours.tokenize(texts),
            ids,
            offsets,
            in_graph(tf.constant(texts)).to_list(),
            strict=True,
        )
        for text, encoding, other, plain, row, spans, graph_row in rows:
            pieces += len(encoding.ids)
            differ["ids"] += plain != encoding.ids or row != encoding.ids
            differ["offsets"] += spans != encoding.offsets
            differ["in a graph"] += graph_row != encoding.ids
            control_differs += other.ids != encoding.ids
            if blingfire_ids(model, text) != encoding.ids:
                blingfire_differs.append((text, plain == encoding.ids))
    blingfire.free_model(model)

    casing = "uncased" if ours.lowercase else "cased"
    print(f"{vocabulary.name} ({casing}): {len(paragraphs)} paragraphs, {pieces} pieces")
    for what, count in differ.items():
        print(f"  differ from tokenizers, {what}: {count}")
    print(f"  control, with the wrong casing, differs: {control_differs}")
    agree = sum(agrees for _, agrees in blingfire_differs)
    print(
        f"  blingfire differs from tokenizers: {len(blingfire_differs)}"
        f" (in {agree} of them we give what tokenizers gives)"
    )
    for text, _ in blingfire_differs[:SHOWN]:
        print(f"    {text[:90]!r}")
    return sum(differ.values())


def main() -> int:
    """Compare on every vocabulary asked for."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("corpus", type=Path, metavar="CORPUS_DIR")
    parser.add_argument("--vocabulary", type=Path, action="append", help="default: both bundled")
    parser.add_argument("--paragraphs", type=int, default=40_000, help="0: all (default 40000)")
    arguments = parser.parse_args()
    paragraphs = read_paragraphs(arguments.corpus, arguments.paragraphs)
    if not paragraphs:
        parser.error(f"no .txt or .txt.xz files with text in {arguments.corpus}")
    vocabularies = arguments.vocabulary or sorted(BUNDLED.glob("*.txt"))
    return 1 if sum(compare(path, paragraphs) for path in vocabularies) else 0


if __name__ == "__main__":
    sys.exit(main())
