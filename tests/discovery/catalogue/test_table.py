"""The file of known architectures."""

from __future__ import annotations

import json
from itertools import pairwise

import pytest

from chkpt_channels.discovery.catalogue.entry import KnownNorm, KnownStem
from chkpt_channels.discovery.catalogue.table import (
    BODY,
    FILE,
    KEY_BYTES,
    KEY_MASK,
    NAME_RECORD,
    SHAPE_RECORD,
    WHOLE,
    Catalogue,
    StemShape,
    catalogue,
    is_counted,
    name_hash,
    shape_hash,
)
from fixtures.catalogue.binary import FEWEST_NAMES, encoded
from fixtures.catalogue.entry import Entry

MOST_BYTES = 120_000
STEM = KnownStem("conv1.weight", "OIHW", "Conv2d", (2, 2), (3, 3), (1, 1), False)


def entry(name: str, *, filters: int = 64, rank: int = 2, stem: KnownStem = STEM, blocks: int = 20, prefix: str = "") -> Entry:
    """A network with one conv, blocks and a head."""
    layout = {2: "OIHW", 3: "OIDHW"}[rank]
    tensors = [(f"{prefix}{stem.key}", (filters, 3, *[7] * rank))]
    tensors += [(f"{prefix}layer.{i}.{part}", (filters, filters)) for i in range(blocks) for part in ("a", "b")]
    tensors += [(f"{prefix}fc.weight", (1000, filters))]
    lines = ("import zoo", f'model = zoo.make("{name}", in_chans={{channels}}, classes={{classes}})')
    stems = (stem._replace(key=prefix + stem.key, layout=layout),)
    norms = (KnownNorm("v1", (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)),)
    return Entry("zoo", name, tuple(tensors), stems, lines, (f"{prefix}fc.weight", 1000), norms)


def keys(tensors: dict[str, tuple[int, ...]], stems: set[str], head: str = "fc") -> tuple[int, int, int]:
    """The keys of a whole, of its body, and of the shapes of its body."""
    body = {name: shape for name, shape in tensors.items() if not name.startswith(head)}
    whole, names = sum(map(name_hash, tensors)), sum(map(name_hash, body))
    return whole & KEY_MASK, names & KEY_MASK, sum(shape_hash(n, s) for n, s in body.items() if n not in stems) & KEY_MASK


def test_a_network_is_found_by_its_names_and_told_by_its_shapes():
    wide, narrow = entry("wide", filters=64), entry("narrow", filters=32)
    known = Catalogue(encoded([narrow, wide], {}))
    whole, body, shapes = keys(dict(wide.tensors), {STEM.key})
    stem = StemShape("conv1.weight", "OIHW", (7, 7))
    assert known.named(whole) == (WHOLE, ((stem,),))
    assert known.named(body) == (BODY, ((stem,),))
    (found,) = known.shaped(shapes)
    assert (found.library, found.name, found.classes, found.order) == ("zoo", "wide", ("fc.weight", 1000), "rgb")
    assert found.lines == wide.lines
    assert found.stems == (KnownStem("conv1.weight", "OIHW", "Conv2d", (2, 2), (3, 3), (1, 1), False),)
    assert found.norms == (KnownNorm("v1", (0.5, 0.5, 0.5), (0.25, 0.25, 0.25), 1.0),)


def test_networks_with_names_and_shapes_of_one_another_are_all_told():
    known = Catalogue(encoded([entry("b"), entry("a")], {}))
    assert [a.name for a in known.shaped(keys(dict(entry("a").tensors), {STEM.key})[2])] == ["a", "b"]


def test_what_is_not_in_it_is_not_found():
    known = Catalogue(encoded([entry("a")], {}))
    assert all(known.named(key) is None and known.shaped(key) == () for key in (0, KEY_MASK, name_hash("conv1.weight")))


def test_names_of_two_and_of_three_dimensions_have_two_variants():
    flat, deep = entry("flat"), entry("deep", rank=3)
    found = Catalogue(encoded([flat, deep], {})).named(keys(dict(flat.tensors), set())[0])
    assert {stems[0].layout for stems in found.variants} == {"OIHW", "OIDHW"}


def test_names_of_networks_with_other_stems_are_left_out():
    tensors = (("conv0.weight", (64, 3, 7, 7)), *entry("a").tensors)
    one, other = (entry(name)._replace(tensors=tensors) for name in ("one", "other"))
    whole, body, _ = keys(dict(tensors), set())
    assert Catalogue(encoded([one], {})).named(whole)
    known = Catalogue(encoded([one, other._replace(stems=(STEM._replace(key="conv0.weight"),))], {}))
    assert known.named(whole) is None
    assert known.named(body) is None


def test_a_small_body_is_no_body():
    """132 networks of 2,970 are one child: all of them would share the body without names."""
    small = entry("small", blocks=FEWEST_NAMES // 2 - 1)
    known = Catalogue(encoded([small], {}))
    whole, body, _ = keys(dict(small.tensors), set())
    assert known.named(whole).forms == WHOLE
    assert known.named(body) is None


def test_what_all_names_begin_with_is_set_apart():
    inner = entry("inner", prefix="model.")
    known = Catalogue(encoded([inner], {}))
    whole, _, shapes = keys(dict(entry("inner").tensors), {STEM.key})
    assert known.named(whole).variants[0][0].key == "conv1.weight"
    assert (known.shaped(shapes)[0].within, known.shaped(shapes)[0].classes) == ("model.", ("fc.weight", 1000))


def test_entries_in_any_order_give_the_same_bytes():
    entries = [entry(name, filters=filters) for name in "abc" for filters in (16, 32)]
    assert encoded(entries, {"zoo": ("1", "MIT")}) == encoded(entries[::-1], {"zoo": ("1", "MIT")})


def test_another_version_is_not_read():
    with pytest.raises(ValueError, match="not a catalogue"):
        Catalogue(b"\0" * 100)


def test_the_one_of_this_package_is_small_sorted_and_names_its_libraries():
    data, known = FILE.read_bytes(), catalogue()
    assert len(data) <= MOST_BYTES
    libraries = json.loads(known.about)
    assert {"timm", "torchvision", "transformers"} <= libraries.keys()
    assert all(version and licence for version, licence in libraries.values())
    for table, record in ((known._names, NAME_RECORD.size), (known._shapes, SHAPE_RECORD.size)):
        rows = [table[i : i + KEY_BYTES] for i in range(0, len(table), record)]
        assert len(rows) > 1000
        assert all(a < b for a, b in pairwise(rows))


@pytest.mark.parametrize("name", ["bn1.num_batches_tracked", "layers.0.attn.relative_position_index"])
def test_what_versions_of_a_library_leave_out_is_not_counted(name):
    assert not is_counted(name)
    assert is_counted("bn1.running_mean")


def test_names_of_any_characters_have_a_hash():
    assert len({name_hash(name) for name in ("conv\ud800", "conv\udc80", "conv")}) == 3
