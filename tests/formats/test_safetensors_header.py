"""The quick way of reading a header: it is taken for every header that the library writes, and says what the other way says."""

from __future__ import annotations

import json
import random
import re
import struct

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st

from chkpt_channels.core.errors import ChkptChannelsError, Location
from chkpt_channels.formats.safetensors_header import _any, _usual, changed, read

HERE = Location("a.safetensors")
SHAPES = ((), (0,), (3,), (4, 3, 3, 3))
texts = st.text(st.characters(exclude_categories=("Cs",)), max_size=6)
names = st.text(st.characters(exclude_categories=("Cs", "Cc"), exclude_characters='"\\\ufffd'), max_size=8).filter(
    lambda name: name != "__metadata__"
)


def written(tensors: dict[str, np.ndarray], metadata: dict[str, str] | None = None) -> bytes:
    """The header that the library gives them."""
    data = safetensors.numpy.save(tensors, metadata)
    (length,) = struct.unpack("<Q", data[:8])
    return data[8 : 8 + length]


@settings(max_examples=100)
@given(
    st.dictionaries(names, st.sampled_from(SHAPES), min_size=1, max_size=5),
    st.dictionaries(texts, texts, max_size=5),
)
def test_every_header_of_the_library_is_read_quickly_and_alike(shapes: dict[str, tuple[int, ...]], metadata: dict[str, str]):
    raw = written({name: np.zeros(shape, "<f2") for name, shape in shapes.items()}, metadata or None)
    quick, general = _usual(raw, HERE), _any(raw, HERE)
    if "\ufffd" in raw.decode():
        assert quick is None
        return
    assert quick
    assert quick._replace(head="") == general
    assert list(quick.tensors) == list(general.tensors)
    kept = {name: quick.spans[name] for name in list(quick.spans)[:-1]} or quick.spans
    taller = {name: (7, *shape) for name, shape in shapes.items()}
    one, other = (json.loads(changed(raw, header, taller, kept)[8:]) for header in (quick, general))
    assert (one, list(one)) == (other, list(other))


OTHERWISE = {
    "spaces": lambda raw: json.dumps(json.loads(raw)).encode(),
    "fields in another order": lambda raw: json.dumps(
        {name: dict(reversed(entry.items())) for name, entry in json.loads(raw).items()}, separators=(",", ":")
    ).encode(),
    "an escape": lambda raw: raw.replace(b'"a"', rb'"\u0061"'),
    "metadata at the end": lambda raw: raw.rstrip()[:-1] + b',"__metadata__":{"format":"pt"}}',
}


@pytest.mark.parametrize("spelled", OTHERWISE.values(), ids=OTHERWISE)
def test_what_other_writers_give_is_read_too(spelled):
    raw = written({"a": np.zeros((4, 3), "<f4"), "b": np.zeros(2, "<f4")})
    other = spelled(raw)
    assert _usual(other, HERE) is None
    assert read(other, HERE)._replace(metadata={}, head="") == read(raw, HERE)._replace(head="")


def test_a_changed_byte_is_read_alike_or_refused_by_both():
    """Five thousand headers with one to three other bytes: never does the quick way accept what the other refuses."""
    chance, raw = random.Random(17), written({"conv.weight": np.zeros((4, 3), "<f4"), "b": np.zeros(12, "u1")}, {"format": "pt"})
    accepted = 0
    for _ in range(5_000):
        data = bytearray(raw)
        for _ in range(chance.choice((1, 1, 2, 3))):
            data[chance.randrange(len(data))] = chance.choice(b'{}[]",:0123456789F3U8 \\\x00\xff')
        try:
            quick = _usual(bytes(data), HERE)
        except ChkptChannelsError as error:
            with pytest.raises(ChkptChannelsError, match=re.escape(str(error))):
                _any(bytes(data), HERE)
        else:
            accepted += quick is not None
            assert quick is None or quick._replace(head="") == _any(bytes(data), HERE)
    assert accepted > 20


@pytest.mark.parametrize("text", [b"", b"{", b"{}", b'{"__metadata__":{}}', b"[]", b"\xff"])
def test_headers_without_a_tensor_are_no_matter_of_the_quick_way(text: bytes):
    assert _usual(text, HERE) is None


def test_the_limit_of_values_holds_in_both():
    many = b'{"a":{"dtype":"U8","shape":[' + b"1," * 20_000_000 + b'1],"data_offsets":[0,1]}}'
    with pytest.raises(ChkptChannelsError, match="values in its JSON"):
        read(many, HERE)
