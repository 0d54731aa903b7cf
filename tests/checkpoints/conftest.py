import os

import pytest
from checkpoint_helpers import make_reference


@pytest.fixture(scope="session")
def reference():
    return make_reference()


@pytest.fixture(scope="session")
def vocabulary(tmp_path_factory):
    """A vocabulary of 100 pieces, which padding takes to the 128 rows of the reference."""
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"word{i}" for i in range(95))]
    path = tmp_path_factory.mktemp("vocabulary") / "vocab.txt"
    path.write_text("".join(f"{piece}\n" for piece in pieces))
    return path


@pytest.fixture
def empty(tmp_path):
    """An empty folder, which must still be so at the end."""
    folder = tmp_path / "empty"
    folder.mkdir()
    yield folder
    assert os.listdir(folder) == []
