"""JSON is read strictly, and an edit changes the text of the value and nothing else."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chkpt_channels import DamagedError
from chkpt_channels.containers.json.editor import Json
from chkpt_channels.core.errors import Location

PLACE = Location("config.json")
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**60), 2**60) | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)
STYLES = st.sampled_from([{}, {"indent": 2}, {"indent": "\t"}, {"separators": (",", ":")}, {"ensure_ascii": False}])


def parsed(text: str | bytes) -> Json:
    return Json(text if isinstance(text, bytes) else text.encode(), PLACE)


@given(VALUES, STYLES)
def test_it_reads_what_json_reads(value: Any, style: dict[str, Any]):
    try:
        text = json.dumps(value, **style).encode()
    except UnicodeEncodeError:
        return
    read = parsed(text)
    assert read.plain == value
    assert read.edited({}) == text
    for path, found in read.values:
        assert json.loads(read.text[found.start : found.stop]) == found.plain
        assert read.at(path) == found


@given(st.dictionaries(st.text(min_size=1), VALUES, min_size=1), VALUES, STYLES, st.data())
def test_an_edit_changes_one_value(document: dict[str, Any], new: Any, style: dict[str, Any], data: st.DataObject):
    text = json.dumps(document, **style)
    key = data.draw(st.sampled_from(sorted(document)))
    read = parsed(text)
    after = read.edited({(key,): new}).decode()
    assert json.loads(after) == {**document, key: new}
    old = read.at((key,))
    assert after.startswith(read.text[: old.start])
    assert after.endswith(read.text[old.stop :])


@given(st.dictionaries(st.text(min_size=1), VALUES), st.text(min_size=1), STYLES)
def test_a_key_may_be_added(document: dict[str, Any], key: str, style: dict[str, Any]):
    if key in document:
        return
    after = parsed(json.dumps(document, **style)).edited({(key,): 1})
    assert json.loads(after) == {**document, key: 1}


def test_lists_keep_their_lines():
    text = '{\n  "image_mean": [\n    0.485,\n    0.456,\n    0.406\n  ],\n  "é": [1, 2],\n  "size": {"x": 3}\n}\n'
    after = parsed(text).edited({("image_mean",): [0.5], ("é",): [3, 4, 5], ("size", "y"): 7, ("new",): 1})
    assert after.decode() == (
        '{\n  "image_mean": [\n    0.5\n  ],\n  "é": [3, 4, 5],\n  "size": {"x": 3, "y": 7},\n  "new": 1\n}\n'
    )


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"a": 1, "a": 2}', "occurs twice"),
        ("[NaN]", "not a JSON number"),
        ("[Infinity]", "not a JSON number"),
        ("[01]", "is not JSON"),
        ('["\\ud800"]', "the lone surrogate"),
        ('["\x00"]', "is not JSON"),
        (b'"\xff"', "is not UTF-8"),
        ("[1] 2", "is not JSON"),
        ("[1, ]", "is not JSON"),
        ('{"a" 1}', "is not JSON"),
        ("{1: 1}", "is not JSON"),
        ("", "is not JSON"),
        ("[" * 100_000, "nested too deeply"),
        ("[" * 501 + "]" * 501, "levels in its JSON"),
        ("1" * 5000, "not a JSON number"),
        ("\ufeff{}", "is not JSON"),
    ],
)
def test_what_is_no_strict_json(text: str | bytes, words: str):
    with pytest.raises(DamagedError, match=words):
        parsed(text)
