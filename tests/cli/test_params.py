"""The rows that commands share: what they say of themselves."""

from __future__ import annotations

from typing import Any

import pytest

from chkpt_channels.cli import params
from chkpt_channels.transform.option_spec import Option, option_of

SHARED: dict[str, Any] = {name: row for name, row in vars(params).items() if hasattr(row, "__metadata__")}


@pytest.mark.parametrize("name", SHARED)
def test_every_row_says_what_it_is(name: str):
    row = option_of(name.lower(), SHARED[name])
    assert isinstance(row, Option)
    assert row.help.endswith((".", "]", "json"))
    assert bool(row.doc) is not row.is_argument
    assert (row.metavar is None) is (row.kind is bool)
    assert row.is_argument or row.flag.startswith("--")


def test_a_placeholder_of_words_is_the_words():
    assert option_of("color", params.Color).metavar == "auto|always|never"
