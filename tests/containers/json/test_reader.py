"""JSON: what every reader agrees on is read, everything else is damage with its place."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chkpt_channels.containers.json import reader as json_reader
from chkpt_channels.core.errors import DamagedError, Location
from chkpt_channels.core.limits import LIMITS

PLACE = Location("a.json")
TEXT = st.text(st.characters(exclude_categories=["Cs"]))
NUMBERS = st.integers(-(10**18), 10**18) | st.floats(allow_nan=False, allow_infinity=False)
VALUES = st.recursive(
    st.none() | st.booleans() | NUMBERS | TEXT, lambda inner: st.lists(inner) | st.dictionaries(TEXT, inner), max_leaves=20
)


@given(VALUES, st.booleans(), st.sampled_from([None, 2]))
def test_what_python_writes_is_read(value: Any, ascii_: bool, indent: int | None):
    assert json_reader.document(json.dumps(value, ensure_ascii=ascii_, indent=indent).encode(), PLACE) == value


REFUSED = {
    "a key twice": (b'{"a": {"b": 1, "b": 1}}', "the key 'b' occurs twice in its JSON"),
    "a key twice, spelled in two ways": (b'{"a": 1, "\\u0061": 1}', "the key 'a' occurs twice"),
    "NaN": (b"[NaN]", "holds NaN, which is not a JSON number"),
    "minus infinity": (b"[-Infinity]", "holds -Infinity, which is not a JSON number"),
    "too large a float": (b"[1e999]", "holds 1e999, which is not a JSON number"),
    "too long an integer": (b"[" + b"9" * 21 + b"]", "holds 9{21}, which is not a JSON number"),
    "half a pair": (b'["\\uD83D"]', r"the lone surrogate \\ud83d"),
    "the other half": (b'{"\\ude00": 1}', r"the lone surrogate \\ude00"),
    "a pair the wrong way round": (b'["\\ude00\\ud83d"]', "the lone surrogate"),
    "no UTF-8": (b'["\xff"]', "is not UTF-8, at byte 12"),
    "a byte-order mark": (b"\xef\xbb\xbf{}", "is not JSON"),
    "a comment": (b"{} // x", "is not JSON: extra data, at byte 13"),
    "behind what is not ASCII": ('["é" x]'.encode(), "is not JSON: .*, at byte 16"),
    "nothing": (b"", "is not JSON"),
    "deep": (b"[" * (LIMITS.json_depth + 1) + b"]" * (LIMITS.json_depth + 1), "501 levels in its JSON; 500 are the most"),
    "very deep": (b"[" * 100_000 + b"]" * 100_000, "nested too deeply"),
}


@pytest.mark.parametrize(("raw", "words"), REFUSED.values(), ids=REFUSED)
def test_what_readers_disagree_on_is_damage(raw: bytes, words: str):
    with pytest.raises(DamagedError, match=words):
        json_reader.document(raw, PLACE, 10)


def test_a_pair_is_a_character():
    assert json_reader.loads(b'["\\ud83d\\ude00"]', PLACE) == ["\U0001f600"]


def test_the_number_of_values_is_known_before_any_is_made(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(json_reader, "LIMITS", LIMITS._replace(json_values=10))
    assert json_reader.loads(b"[1,2,3,4,5,6,7,8,9,10]", PLACE) == list(range(1, 11))
    with pytest.raises(DamagedError, match="has 11 values in its JSON; 10 are the most"):
        json_reader.loads(b"[1,2,3,4,5,6,7,8,9,10,", PLACE)
