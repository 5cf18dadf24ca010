"""Whatever this package accepts, the real framework reads: the same names, shapes, dtypes and values, before and after.

Of the fixtures, and of thousands of files with a few lies in them. Where the two disagree, this package must be the stricter one.
"""

import json
import re
from collections import Counter
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory

import pytest
import torch

from chkpt_channels import ChkptChannelsError, convert, verify
from tests.frameworks.readings import THEIRS, ours
from tests.frameworks.spellings import PAIRS
from tests.support import mutations
from tests.support.files import truths
from tests.support.sandbox import aside

COUNTS = {"torch_zip": 800, "torch_legacy": 800, "safetensors": 600, "onnx": 600, "keras_h5": 350, "keras_zip": 350}
COUNTS = dict.fromkeys(THEIRS, 350) | COUNTS
DRAWN = {"tensors of torch": 400, "tensors of old torch": 400, "zip names": 300, "HDF5 addresses": 200, "ONNX names": 300}
FINE = ("agreed", "read", "refused", "unread")
ENDLESS = "memo bomb|holds itself"
"""Seeds through which the test cannot walk, as this package does."""
CALLS = (
    "object is not callable|list must be a tuple|_rebuild_qtensor|unhashable type|positional argument|not enough values|"
    "more than 1 value|expected at most|tuple index out of range"
)
COPIED = {
    "is not allowed here": "a global that is not a tensor's: copied with a warning, its call is the reader's",
    r"^\w+ refused: MemoryError|to memo_table_": "an index into the memo, for which Python makes a table of that length, and"
    " TorchScript none",
    "restore data location|Invalid device string": "the device that a storage comes from, which torch's map_location overrules",
    CALLS: "a call that makes no tensor, a quantizer, or the sixth part of an old file's storage",
    "can't assign a|expected string or bytes-like": "the state that is given to an object",
    "codec can't decode": "a name or a text that is no UTF-8",
    "invalid literal for int": "the alignment that torch notes beside the tensors",
    "requires_grad must be a bool": "whether a tensor is trained",
    "resize storage|wrong byte size|failed to unpack|Unknown saved id": "a tensor without a name, in an attribute of another",
    r"Unknown typename|unequal size length|Invalid serialized state|set_\(\) received": "the same, in a list, or as a state",
    "Can't get attribute '_utils": "a function under a divided name, which torch's reader of weights alone finds",
    "is not in a subdirectory": "a member that is no part of the archive",
    "Unknown type name|expected int|not in the map|name.empty|qualified name|torch_mangle": "a TorchScript module's own code",
    r"isObject\(\)|isGenericDict\(\)|TupleElements|a valid token|PROTO opcode": "what TorchScript keeps beside the tensors",
}
"""Where torch, or Python's unpickler, refuses what is copied unread, and why that says nothing about the tensors. Other formats
have no such reason."""


def verdict(form, path):
    """ "refused", "agreed", or what is wrong: what the framework says, or where it reads something else."""
    out = path.parent / "out" / path.name
    out.parent.mkdir()
    try:
        convert(path, out, "gray")
    except ChkptChannelsError:
        return "refused"
    for one in (path, out):
        expected = ours(one)
        try:
            found = THEIRS[form](one)
        except Exception as error:  # whatever a framework raises
            return f"{'original' if one == path else 'output'} refused: {type(error).__name__}: {error}".replace(
                str(path.parent), ""
            )
        names = expected.keys() ^ found.keys()
        if names or (names := {name for name in expected if expected[name] != found[name]}):
            return f"{'original' if one == path else 'output'} differs: {sorted(names)[:4]}"
    return "agreed"


def mutant(form, number, folder):
    """The mutated file of this number."""
    chance = Random(number)
    seed = chance.choice([one for one in mutations.seeds(form) if not re.search(ENDLESS, one.name)])
    return seed.put(folder, mutations.mutated(form, seed.data, chance))


def told_of_each(count, tell_of, died):
    """What `tell_of` says of each number, from forks of this process as far as they come: libraries crash on such files."""
    found = []

    def work(tell):
        torch.set_num_threads(1)  # trap: a fork has none of OpenMP's other threads, and would wait for them
        for number in range(len(found), count):
            tell(json.dumps(tell_of(number)).encode() + b"\n")

    while len(found) < count:
        found += [json.loads(line) for line in aside(work).splitlines()]
        if len(found) < count:
            found.append(died)
    return found


def every_verdict(form, count):
    def told(number):
        with TemporaryDirectory() as folder:
            return verdict(form, mutant(form, number, Path(folder)))

    return told_of_each(count, told, "original refused: the process died")


@pytest.mark.parametrize("form", COUNTS)
def test_what_is_accepted_is_read_alike(form, record_property):
    found = every_verdict(form, COUNTS[form])
    counts = Counter(one if one in ("agreed", "refused") else "copied" for one in found)
    record_property("differential", (form, dict(counts)))
    wrong = {number: one for number, one in enumerate(found) if one not in ("agreed", "refused") and not is_copied(form, one)}
    assert not wrong
    assert counts["agreed"] > COUNTS[form] // 10
    assert counts["copied"] < counts["agreed"]


def pair_verdict(pair, number):
    """What becomes of a drawn file, or what is wrong: "refused" by this package, "unread" by the framework, "read" alike and
    not converted, or "agreed": both read the output alike too."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / f"a{pair.suffix}"
        path.write_bytes(pair.draw(Random(number)))
        try:
            pair.ours(path)
        except ChkptChannelsError:
            return "refused"
        readers = [reader for reader in pair.theirs if tried(reader, path) is not None]
        if wrong := next(filter(None, (difference(pair, reader, path) for reader in readers)), ""):
            return wrong
        out = path.with_name(f"out{pair.suffix}")
        try:
            convert(path, out, "gray")
        except ChkptChannelsError:
            return "read" if readers else "unread"
        if not (verification := verify(path, out)).ok:
            return f"verify: {verification.differences[:3]}"
        wrong = next(filter(None, (difference(pair, reader, out) for reader in readers)), "")
        return wrong or ("agreed" if readers else "unread")


def tried(reader, path):
    """What a reader of the framework makes of a file, None where it refuses it."""
    try:
        return reader(path)
    except Exception:  # whatever a framework raises
        return None


def difference(pair, reader, path):
    """What the two readings of a file do not have in common."""
    expected, found = pair.ours(path), tried(reader, path)
    if found is None:
        return f"{path.name} is refused"
    names = [name for name in {**expected, **found} if expected.get(name) != found.get(name)]
    return "".join(f"{path.name}: {name}: {expected.get(name)}, not {found.get(name)}"[:500] for name in names[:1])


@pytest.mark.parametrize("kind", PAIRS)
def test_spellings_are_read_alike(kind, record_property):
    found = told_of_each(DRAWN[kind], lambda number: pair_verdict(PAIRS[kind], number), "the process died")
    counts = Counter(one if one in FINE else "wrong" for one in found)
    record_property("differential", (kind, dict(counts)))
    assert not {number: one for number, one in enumerate(found) if one not in FINE}
    assert min(counts["agreed"], counts["refused"]) > DRAWN[kind] // 10


def is_copied(form, said):
    """Whether the framework's reason is one of the table's."""
    return (
        form.startswith(("torch", "numpy_pickle"))
        and said.startswith("original refused")
        and any(re.search(why, said) for why in COPIED)
    )


@pytest.mark.parametrize("truth", [one for one in truths() if one.said["first_convs"]], ids=str)
def test_fixtures_are_read_alike(truth, tmp_path):
    form = truth.path.parent.name
    seed = mutations.seed(str(truth), truth.path)
    assert verdict(form, seed.put(tmp_path, seed.data)) == "agreed"
