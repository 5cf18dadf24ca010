"""The rows that commands share: what they say of themselves."""

from __future__ import annotations

import pytest

from chkpt_channels.cli import params
from chkpt_channels.cli.app import COMMANDS
from chkpt_channels.transform.option_spec import Option

OWN = {(row.flag, row.help) for row in vars(params).values() if isinstance(row, Option)}
ROWS = {
    f"{command.name} {row.name}": row
    for command in COMMANDS.values()
    for row in command.parameters
    if (row.flag, row.help) in OWN
}


def test_every_row_is_of_a_command():
    assert {(row.flag, row.help) for row in ROWS.values()} == OWN


@pytest.mark.parametrize("name", ROWS)
def test_every_row_says_what_it_is(name: str):
    row = ROWS[name]
    assert row.help.endswith((".", "]", "json"))
    assert bool(row.doc) is not row.is_argument
    assert (row.metavar is None) is (row.kind is bool)
    assert row.is_argument or row.flag.startswith("--")


def test_a_placeholder_of_words_is_the_words():
    assert ROWS["inspect color"].metavar == "auto|always|never"
