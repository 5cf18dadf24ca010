"""Rows of an option table: names, kinds, and the values that they take."""

# No `from __future__ import annotations`: the rows would be text.

from collections.abc import Sequence
from typing import Annotated, TypedDict

from chkpt_channels.transform.option_spec import Option, by_long_name, options_of


class Table(TypedDict, total=False):
    deep: Annotated[bool, Option("--deep", "Go deep.", "goes deep")]
    from_depth: Annotated[int | None, Option("--from", "Begin here.", "begins here")]
    scales: Annotated[str | Sequence[float] | None, Option("--scale", "Scales.", "scales", default="1")]
    names: Annotated[Sequence[str], Option("--name", "Names.", "names", default=())]


DEEP, FROM, SCALE, NAME = ROWS = options_of(Table)


def test_a_row_has_the_name_and_kind_of_its_key():
    assert [row.name for row in ROWS] == ["deep", "from_depth", "scales", "names"]
    assert [row.long_name for row in ROWS] == ["deep", "from", "scale", "name"]
    assert DEEP.kind is bool
    assert [row.default for row in ROWS] == [False, None, "1", ()]
    assert [row.scalars for row in ROWS] == [(bool,), (int,), (str,), ()]


def test_both_names_lead_to_an_option():
    assert by_long_name(ROWS) == {
        "deep": DEEP, "from": FROM, "from-depth": FROM, "scale": SCALE, "scales": SCALE, "name": NAME, "names": NAME,
    }  # fmt: skip


def test_a_long_name_wins_over_a_keyword():
    """Where one option is called as the keyword of another, manifests mean the command line's name."""
    other = DEEP._replace(flag="--from-depth")
    assert by_long_name([FROM, other])["from-depth"] == other


def test_values_in_documents():
    assert DEEP.takes(True)
    assert not DEEP.takes(1)
    assert FROM.takes(3)
    assert not FROM.takes(True)
    assert SCALE.takes([1, 0.5, "2"])
    assert not SCALE.takes([True])
    assert not SCALE.takes([[1]])
    assert not NAME.takes("a")


def test_a_single_value_is_listed_where_only_lists_are_taken():
    assert NAME.as_listed("a") == ["a"]
    assert NAME.as_listed(["a"]) == ["a"]
    assert SCALE.as_listed(0.5) == [0.5]
    assert SCALE.as_listed("0.5") == "0.5"
    assert FROM.as_listed("x") == "x"
