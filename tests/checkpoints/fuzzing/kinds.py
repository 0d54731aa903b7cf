"""Every kind of file that is fuzzed, and how often."""

import shutil

from fuzzing import mutations, pickles
from fuzzing.kind import Kind, mapped, read_arrays
from fuzzing.torch_kinds import Archive, ModelArchive, ModelStream, Release, Sharded, Stream
from keras_megatron.checkpoints.huggingface import open_weights, read_json
from keras_megatron.checkpoints.huggingface_config import backbone_config
from keras_megatron.checkpoints.safetensors_files import load_safetensors
from keras_megatron.checkpoints.torch_dist import read_torch_dist
from keras_megatron.pretraining.token_files import TokenFiles


class Safetensors(Kind):
    def prepare(self):
        self.real = (self.seeds / "model.safetensors").read_bytes()

    def mutated(self, rng):
        return mutations.safetensors(rng, self.real)

    def read(self):
        read_arrays(load_safetensors(mapped(self.content)))


class TorchDist(Kind):
    """`.metadata` mostly, else a file that it names."""

    def prepare(self):
        self.files = {
            path.name: path.read_bytes() for path in (self.seeds / "torch_dist").iterdir()
        }
        self.metadata = self.files[".metadata"]
        self.operations = pickles.operations(self.metadata)

    def mutated(self, rng):
        self.changed = rng.choice((".metadata",) * 6 + ("__0_0.distcp", "common.pt"))
        if self.changed == ".metadata" and rng.random() < 0.7:
            return pickles.pickled(rng, self.metadata, self.operations)
        return mutations.anywhere(rng, self.files[self.changed])

    def place(self, content):
        self.placed = {**self.files, self.changed: content}
        return sum(map(len, self.placed.values()))

    def read(self):
        opened = read_torch_dist(lambda name: mapped(self.placed[name]), self.placed.__contains__)
        read_arrays(opened["model"])


class HuggingFace(Kind):
    """A folder's weights, its index of shards and its config.json."""

    def prepare(self):
        shutil.copytree(self.seeds / "hugging_face", self.scratch, dirs_exist_ok=True)
        self.files = {path.name: path.read_bytes() for path in self.scratch.iterdir()}

    def mutated(self, rng):
        names = [name for name in self.files if name.endswith(".json")]
        self.changed = rng.choice((*names, *names, *self.files))
        content = self.files[self.changed]
        if self.changed.endswith(".json"):
            return mutations.json_text(rng, content)
        if self.changed.endswith(".safetensors"):
            return mutations.safetensors(rng, content)
        return mutations.anywhere(rng, content)

    def place(self, content):
        (self.scratch / self.changed).write_bytes(content)
        return len(content) + sum(map(len, self.files.values()))

    def read(self):
        backbone_config(read_json(self.scratch / "config.json"))
        read_arrays(open_weights(self.scratch))

    def clean(self):
        (self.scratch / self.changed).write_bytes(self.files[self.changed])


class Tokens(Kind):
    """Megatron's token files: the index mostly, else the ids, or what tells their vocabulary."""

    def prepare(self):
        self.files = {
            end: (self.seeds / f"tokens{end}").read_bytes() for end in (".idx", ".bin", ".json")
        }
        for end, content in self.files.items():
            (self.scratch / f"tokens{end}").write_bytes(content)

    def mutated(self, rng):
        self.changed = rng.choice((".idx",) * 8 + (".bin", ".json"))
        content = self.files[self.changed]
        if self.changed == ".json":
            return mutations.json_text(rng, content)
        return (
            mutations.index(rng, content)
            if self.changed == ".idx"
            else mutations.anywhere(rng, content)
        )

    def place(self, content):
        (self.scratch / f"tokens{self.changed}").write_bytes(content)
        return len(content) + sum(map(len, self.files.values()))

    def read(self):
        files = TokenFiles.open(self.scratch / "tokens", Vocabulary)
        ids = 0
        for number in range(len(files)):
            for sentence, length in zip(
                files.document(number), self.lengths(files, number), strict=True
            ):
                assert len(sentence) == length
                ids += len(sentence)
        assert ids == files.lengths.sum()

    @staticmethod
    def lengths(files, number):
        return files.lengths[files.documents[number] : files.documents[number + 1]]

    def clean(self):
        (self.scratch / f"tokens{self.changed}").write_bytes(self.files[self.changed])


class Vocabulary:
    """What of a tokenizer `TokenFiles.open` asks for."""

    lowercase = True

    @staticmethod
    def get_vocabulary():
        return ["a", "b"]

    @staticmethod
    def vocabulary_size():
        return 1000  # as many as let most files be read


# How many of each in a run of 1000.
KINDS = {
    Safetensors: 260,
    Archive: 190,
    Stream: 220,
    Tokens: 120,
    TorchDist: 70,
    HuggingFace: 50,
    Release: 30,
    ModelStream: 20,
    ModelArchive: 20,
    Sharded: 20,
}
assert sum(KINDS.values()) == 1000
