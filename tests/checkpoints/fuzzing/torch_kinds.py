"""Files of torch.save, alone and as the converter reads them."""

import pickletools
import shutil
import zipfile

from fuzzing import mutations, pickles
from fuzzing.kind import Kind, mapped, read_arrays
from keras_megatron.checkpoints.megatron import read_megatron
from keras_megatron.checkpoints.sources import open_checkpoint
from keras_megatron.checkpoints.torch_files import load_torch_file

MEMBER = "release/mp_rank_00/model_optim_rng.pt"


class TorchFile(Kind):
    """One file of torch.save."""

    name = ""

    def prepare(self):
        self.real = (self.seeds / self.name).read_bytes()
        self.pickle, self.start = self.find_pickle()
        self.operations = pickles.operations(self.pickle)

    def mutated(self, rng):
        if rng.random() < 0.35:
            return mutations.anywhere(rng, self.real)
        return self.with_pickle(pickles.pickled(rng, self.pickle, self.operations))

    def find_pickle(self):
        """The fourth pickle of a stream is the object; before it are three short ones."""
        start = 0
        for _ in range(3):
            start += [position for _, _, position in pickletools.genops(self.real[start:])][-1] + 1
        end = start + [place for _, _, place in pickletools.genops(self.real[start:])][-1] + 1
        return self.real[start:end], start

    def with_pickle(self, changed):
        return self.real[: self.start] + changed + self.real[self.start + len(self.pickle) :]

    def read(self):
        read_arrays(load_torch_file(mapped(self.content)))


class Stream(TorchFile):
    name = "small_stream.pt"


class Archive(TorchFile):
    name = "small_archive.pt"

    def mutated(self, rng):
        if rng.random() < 0.25:
            return mutations.zip_fields(rng, self.real)
        return super().mutated(rng)

    def find_pickle(self):
        with zipfile.ZipFile(self.seeds / self.name) as archive:
            self.member = next(name for name in archive.namelist() if name.endswith("/data.pkl"))
            return archive.read(self.member), 0

    def with_pickle(self, changed):
        return mutations.zip_with(self.real, self.member, changed)


class WholeModel:
    """Reads a checkpoint as the converter does, up to the weights by their names."""

    source = None  # what is converted

    def place(self, content):
        path = self.scratch / "source" / self.placed
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        self.unpacked = self.scratch / "unpacked"
        self.unpacked.mkdir(exist_ok=True)
        return 2 * len(content) if self.placed.endswith(".pt") else 4 * len(content)

    def read(self):
        shards = open_checkpoint(
            self.scratch / "source" / (self.source or self.placed), self.unpacked
        )
        read_arrays(read_megatron(shards).weights)

    def clean(self):
        for path in self.unpacked.iterdir():
            shutil.rmtree(path)


class ModelStream(WholeModel, Stream):
    name = "model_stream.pt"
    placed = "model.pt"


class ModelArchive(WholeModel, Archive):
    name = "model_archive.pt"
    placed = "model.pt"


class Release(WholeModel, Stream):
    """The release's zip: its own fields, or the file in it."""

    name = "model_stream.pt"
    placed = "release.zip"

    def prepare(self):
        super().prepare()
        self.zips = [
            (self.seeds / f"release_{kind}.zip").read_bytes() for kind in ("stored", "deflated")
        ]

    def mutated(self, rng):
        index = rng.randrange(2)
        kind = rng.random()
        if kind < 0.25:
            return mutations.anywhere(rng, self.zips[index])
        if kind < 0.6:
            return mutations.zip_fields(rng, self.zips[index])
        method = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)[index]
        return mutations.zip_with(self.zips[index], MEMBER, super().mutated(rng), method)


class Sharded(WholeModel, Archive):
    """One of two ranks; the other is whole."""

    name = "sharded/mp_rank_01/model_optim_rng.pt"
    placed = "mp_rank_01/model_optim_rng.pt"
    source = ""

    def prepare(self):
        super().prepare()
        shutil.copytree(self.seeds / "sharded", self.scratch / "source")
