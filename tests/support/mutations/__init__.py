"""Valid files of every format, and how each is made a little wrong: structure first, so that the lie reaches the reader behind
the checksums and lengths."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import NamedTuple

from chkpt_channels.formats import known
from fixtures.generate.hostile.make import CASES
from tests.support.files import brought, truths
from tests.support.mutations import hdf5, headers, pickles, wire, zips
from tests.support.mutations.basics import Mutation, junk

LARGEST = 64 << 10
LONGEST = "at the limit"
"""Files of so much work that hundreds of others are changed in the time of a few of these; they are tried as they are."""
MUTATE: dict[str, Mutation] = {
    "torch_zip": zips.mutate,
    "torch_legacy": pickles.mutate_legacy,
    "safetensors": headers.mutate,
    "onnx": wire.mutate,
    "keras_h5": hdf5.mutate,
    "keras_zip": zips.mutate,
}
MUTATE |= {form.name: brought(form.name, "mutations", "mutate") for form in known() if form.name not in MUTATE}
"""A format that is not listed brings its own: `mutate` of tests/formats/<format>/mutations.py."""


class Seed(NamedTuple):
    """A sound file: `file` is what it is called, `beside` what it names."""

    name: str
    file: str
    data: bytes
    beside: dict[str, bytes]

    def __str__(self) -> str:
        return self.name

    def put(self, folder: Path, data: bytes) -> Path:
        """Another content under this name, all that goes with it beside it."""
        for name, content in self.beside.items():
            (folder / name).write_bytes(content)
        path = folder / self.file
        path.write_bytes(data)
        return path


@cache
def seeds(form: str) -> tuple[Seed, ...]:
    """The small fixtures, and the files among the hostile ones that are sound after all."""
    made = [seed(str(truth), truth.path) for truth in truths() if truth.path.parent.name == form]
    forms = {"torch_zip": ("torch_zip", "torchscript")}.get(form, (form,))
    for case in CASES:
        small = not (case.options or case.megabytes or case.name.endswith(LONGEST))
        if case.format in forms and case.code == 0 and small:
            with TemporaryDirectory() as folder:
                path = case.made(Path(folder))
                if path.parent == Path(folder) and not path.is_symlink():
                    made.append(seed(str(case), path))
    return tuple(one for one in made if len(one.data) <= LARGEST)


def seed(name: str, path: Path) -> Seed:
    """A file as a seed, and the data files whose names begin with its own."""
    beside = {other.name: other.read_bytes() for other in path.parent.glob(f"{path.name}.*") if other.is_file()}
    return Seed(name, path.name, path.read_bytes(), beside)


def mutated(form: str, data: bytes, chance: Random) -> bytes:
    """The file with a few lies in it: most of the time structural ones, sometimes any."""
    if chance.random() < 0.1:
        return junk(data, chance)
    return MUTATE[form](data, chance)
