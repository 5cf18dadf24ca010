"""The tables of what libraries call things: rows that would contradict each other, or that nothing would ever find."""

from __future__ import annotations

from itertools import combinations

import pytest

from chkpt_channels.folders.library_tables import (
    CHANNEL_KEYS,
    CONFIG,
    COUNTS,
    FIRST_CONV,
    FIXED_CHANNELS,
    NORMALIZATION_KEYS,
    PREPROCESSORS,
    SCALING_KEYS,
    SHAPE_KEYS,
    SIZE_KEYS,
    WIDTH_KEYS,
)


@pytest.mark.parametrize("key", CHANNEL_KEYS)
def test_what_models_call_their_channels_is_read_as_a_number_of_channels(key: str):
    """Else an edit would add the key once more."""
    assert key in COUNTS
    assert key != "num_channels"


def test_a_model_has_one_name_for_its_channels():
    assert all(not a & b for a, b in combinations(CHANNEL_KEYS.values(), 2))


def test_a_key_is_read_in_one_way():
    assert not COUNTS & SIZE_KEYS
    assert not SHAPE_KEYS & (COUNTS | SIZE_KEYS)
    assert not (COUNTS | SIZE_KEYS | SHAPE_KEYS) & WIDTH_KEYS.keys()
    pairs = (*NORMALIZATION_KEYS, SCALING_KEYS)
    assert not {key for pair in pairs for key in pair} & (COUNTS | SIZE_KEYS | SHAPE_KEYS | WIDTH_KEYS.keys())


def test_a_file_is_a_configuration_or_a_preprocessors():
    assert CONFIG not in PREPROCESSORS


@pytest.mark.parametrize("model", FIXED_CHANNELS)
def test_why_a_model_stays_as_it_is_is_said_in_words_that_go_into_a_message(model: str):
    """`message (model)` is one line that begins with the library."""
    assert FIXED_CHANNELS[model].startswith("transformers ")
    assert FIXED_CHANNELS[model].isprintable()
    assert not FIXED_CHANNELS[model].endswith(".")


def test_first_convs_are_named_as_modules():
    names = [name for convs in FIRST_CONV.values() for name in convs]
    assert all(not name.endswith(".weight") and name.replace(".", "_").isidentifier() for name in names)
    assert {key for convs in FIRST_CONV.values() for key in convs.values()} <= COUNTS
