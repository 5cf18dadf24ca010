"""The table of options: unique names, help and documents for each, defaults that are understood."""

from __future__ import annotations

import re

import pytest

from chkpt_channels.transform.option_spec import Option
from chkpt_channels.transform.option_table import OPTIONS, ConvertOptions
from chkpt_channels.transform.options import build_options

each = pytest.mark.parametrize("option", OPTIONS, ids=lambda option: option.name)


def test_names_are_unique():
    assert [option.name for option in OPTIONS] == list(ConvertOptions.__annotations__)
    assert len({option.flag for option in OPTIONS}) == len(OPTIONS)


@each
def test_a_row_is_complete(option: Option):
    assert re.fullmatch(r"--[a-z]+[0-9]*(-[a-z]+)*", option.flag)
    assert option.help[0].isupper()
    assert option.help.endswith((".", "]", "…"))
    assert option.doc[0].islower() or option.doc[0] == "`"
    assert not option.doc.endswith(".")
    assert (option.metavar is None) == (option.kind is bool)


@each
def test_a_default_means_that_nothing_was_given(option: Option):
    if option.default is None:
        assert build_options("gray", **{option.name: None}) == build_options("gray")
    else:
        assert build_options("gray", **{option.name: option.default}) == build_options("gray")
