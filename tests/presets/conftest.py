import pytest
import release_format
from http_server import serving
from keras_hub.src.utils import preset_utils
from tiny_release import NAME, hf_model, register_tiny

from keras_megatron.backbone import MegatronBertBackbone
from keras_megatron.presets import registry


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """An empty cache and no proxy; the folder of the tiny preset in it."""
    home = tmp_path / "home"
    monkeypatch.setenv("KERAS_HOME", str(home))
    monkeypatch.setenv("NO_PROXY", "*")
    monkeypatch.delenv("KERAS_MEGATRON_KEEP_DOWNLOADS", raising=False)
    monkeypatch.delenv("KERAS_MEGATRON_BASE_URL", raising=False)
    return home / "models" / "keras_megatron" / NAME


@pytest.fixture(scope="session")
def release_zip(tmp_path_factory):
    """The zip of the tiny preset's release."""
    path = tmp_path_factory.mktemp("release") / "release.zip"
    release_format.write_release_zip(path, hf_model())
    return path


@pytest.fixture
def tiny(tmp_path):
    """The tiny preset, registered."""
    yield register_tiny(tmp_path)
    del registry._presets[NAME]
    del preset_utils.BUILTIN_PRESETS[NAME]
    del preset_utils.BUILTIN_PRESETS_FOR_BACKBONE[MegatronBertBackbone][NAME]


@pytest.fixture
def server(tiny, release_zip, monkeypatch):
    """Serves the tiny preset's release where the package looks for it."""
    with serving(release_zip.read_bytes()) as server:
        monkeypatch.setenv("KERAS_MEGATRON_BASE_URL", server.url)
        yield server
