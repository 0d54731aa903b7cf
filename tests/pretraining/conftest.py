import pathlib

import pytest

from keras_megatron import MegatronBertTokenizer
from keras_megatron.pretraining.corpus import write_corpus

PARAGRAPHS = pathlib.Path(__file__).parents[1] / "data" / "paragraphs.txt"


@pytest.fixture(scope="session")
def tokenizer():
    return MegatronBertTokenizer.from_preset("megatron_bert_tiny_uncased")


@pytest.fixture(scope="session")
def documents_file(tmp_path_factory):
    """Real paragraphs, five to a document, with an empty line between documents."""
    paragraphs = [p for p in PARAGRAPHS.read_text("utf-8").splitlines() if p.strip()]
    documents = ["\n".join(paragraphs[i : i + 5]) for i in range(0, len(paragraphs), 5)]
    path = tmp_path_factory.mktemp("documents") / "documents.txt"
    path.write_text("\n\n".join(documents) + "\n", encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def corpus(documents_file, tokenizer):
    """Token files of these."""
    prefix = documents_file.with_name("corpus")
    write_corpus([documents_file], prefix, tokenizer)
    return prefix
