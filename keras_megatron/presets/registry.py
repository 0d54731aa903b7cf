"""The names that `from_preset` knows, and what stands behind each."""

import dataclasses
import json
import os
import pathlib

from keras_hub.src.utils.preset_utils import register_presets

from keras_megatron.backbone import MegatronBertBackbone
from keras_megatron.checkpoints.huggingface_config import backbone_config

HERE = pathlib.Path(__file__).parent
BASE_URL = "https://api.ngc.nvidia.com/v2/models"
BASE_URL_VARIABLE = "KERAS_MEGATRON_BASE_URL"

_presets: dict[str, "Preset"] = {}


@dataclasses.dataclass(frozen=True)
class Release:
    """A checkpoint published on NVIDIA's NGC as a zip.

    Attributes:
        model: Model on NGC, `"organization/name"`.
        version: Version of the model; each is one zip.
    """

    model: str
    version: str

    @property
    def url(self) -> str:
        """Address of the zip: `BASE/organization/name/versions/VERSION/zip`.

        BASE is NVIDIA's, or that of a mirror in the environment variable KERAS_MEGATRON_BASE_URL.

        Raises:
            ValueError: the variable holds something else than an http or https address.
        """
        base = os.environ.get(BASE_URL_VARIABLE) or BASE_URL
        if not base.startswith(("http://", "https://")):
            raise ValueError(
                f"{BASE_URL_VARIABLE} must begin with http:// or https://, but it is {base!r}"
            )
        return f"{base.rstrip('/')}/{self.model}/versions/{self.version}/zip"

    @property
    def file_name(self) -> str:
        """Name under which the zip is kept."""
        return f"{self.model.rpartition('/')[2]}_{self.version}.zip"


@dataclasses.dataclass(frozen=True)
class Preset:
    """One name that `from_preset` knows.

    Attributes:
        name: The name.
        description: What it is, in a sentence or two.
        directory: Folder with a config.json: a complete Keras preset (the embedded one), or sizes
            in Hugging Face's form.
        vocabulary: Name of the bundled vocabulary, `"uncased"` or `"cased"`.
        release: Where the weights of a directory without weights are published, if they are.
    """

    name: str
    description: str
    directory: pathlib.Path
    vocabulary: str
    release: Release | None = None

    @property
    def embedded(self) -> bool:
        """Whether the directory is complete, with weights."""
        return "registered_name" in self._config()

    @property
    def vocabulary_file(self) -> pathlib.Path:
        """The bundled vocabulary, one piece a line."""
        return HERE / "vocabularies" / f"bert_{self.vocabulary}.txt"

    def backbone_arguments(self) -> dict:
        """Return the backbone's arguments as the directory has them."""
        config = self._config()
        return config["config"] if self.embedded else backbone_config(config)

    def parameters(self) -> int:
        """Count the backbone's parameters, without building it."""
        size = self.backbone_arguments()
        hidden, wide = size["hidden_dim"], size["intermediate_dim"]
        norm = 2 * hidden
        attention = 4 * (hidden * hidden + hidden)
        feed_forward = hidden * wide + wide + wide * hidden + hidden
        rows = size["vocabulary_size"] + size["max_sequence_length"] + size["num_segments"]
        pooler = hidden * hidden + hidden
        layers = size["num_layers"] * (norm + attention + norm + feed_forward)
        return rows * hidden + layers + norm + pooler

    def _config(self) -> dict:
        return json.loads((self.directory / "config.json").read_text(encoding="utf-8"))


def register(preset: Preset) -> None:
    """Make a preset known to this package and to KerasHub."""
    _presets[preset.name] = preset
    metadata = {
        "description": preset.description,
        "params": preset.parameters(),
        "path": "megatron_bert",
    }
    # KerasHub takes a local folder where its own presets have a Kaggle handle.
    entry = {"metadata": metadata, "kaggle_handle": str(preset.directory)}
    register_presets({preset.name: entry}, MegatronBertBackbone)


def find(name: str) -> Preset | None:
    """Return the preset of this name, or None if `name` is something else, such as a folder."""
    return _presets.get(name)


def known() -> list[Preset]:
    """Return all presets, in the order in which they were registered."""
    return list(_presets.values())


def register_built_in() -> None:
    """Register this package's presets."""
    for preset in _built_in():
        # The embedded one is missing while the script that trains it makes it.
        if (preset.directory / "config.json").exists():
            register(preset)


def _built_in() -> list[Preset]:
    text = "Trained by NVIDIA on Wikipedia, RealNews, OpenWebText and CC-Stories."
    without = "No weights were released: for load_weights=False."

    def preset(name: str, description: str, vocabulary: str, version: str | None = None) -> Preset:
        release = version and Release("nvidia/megatron_bert_345m", version)
        return Preset(name, description, HERE / name, vocabulary, release or None)

    return [
        preset(
            "megatron_bert_tiny_uncased",
            "Small Megatron BERT, lower-cased, embedded in the package and trained by this project "
            "on public-domain and permissively licensed English; for demonstrations and tests.",
            "uncased",
        ),
        preset(
            "megatron_bert_345m_uncased",
            f"24-layer Megatron BERT where all input is lower-cased. {text}",
            "uncased",
            version="v0.1_uncased",
        ),
        preset(
            "megatron_bert_345m_cased",
            f"24-layer Megatron BERT where case is maintained. {text}",
            "cased",
            version="v0.1_cased",
        ),
        preset(
            "megatron_bert_1_3b_uncased",
            f"24-layer Megatron BERT of 1.3 billion parameters, lower-cased. {without}",
            "uncased",
        ),
        preset(
            "megatron_bert_3_9b_uncased",
            f"48-layer Megatron BERT of 3.9 billion parameters, lower-cased. {without}",
            "uncased",
        ),
    ]
