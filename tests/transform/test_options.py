"""One row of the table is an option everywhere: in typer's parameters, in manifests, in reports, in the library's keywords."""

# no `from __future__ import annotations`: a table's rows are no text

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, get_args

import pytest
import typer
from typer.testing import CliRunner

from chkpt_channels import UsageError, convert, convert_state_dict, verify
from chkpt_channels.cli import params
from chkpt_channels.cli.app import COMMANDS
from chkpt_channels.cli.commands import Command
from chkpt_channels.cli.typer_app import built
from chkpt_channels.discovery.request import SearchRequest
from chkpt_channels.transform.mixing.normalization import NormalizationSpec
from chkpt_channels.transform.mixing.rules import ChannelRule
from chkpt_channels.transform.option_spec import Option, by_long_name, options_of
from chkpt_channels.transform.option_table import OPTIONS, ConvertOptions
from chkpt_channels.transform.options import as_keywords, build_options, options_toward


class MoreOptions(ConvertOptions, total=False):
    """The table with one more switch, and with one more option that takes a value."""

    brand_new: Annotated[bool, Option("--brand-new", help="Do the new thing.", doc="does the new thing", hidden=True)]
    newer: Annotated[Sequence[int], Option("--newer-than", metavar="N", help="Newer.", doc="newer", default=())]


MORE = options_of(MoreOptions)


def test_the_rows_in_their_order():
    assert MORE[: len(OPTIONS)] == OPTIONS
    assert [row.name for row in MORE[len(OPTIONS) :]] == ["brand_new", "newer"]
    assert (MORE[-2].kind, MORE[-2].default, MORE[-2].long_name) == (bool, False, "brand-new")


def test_a_new_row_is_an_option_of_the_command_line():
    seen: list[Any] = []

    def work(
        *,
        src: Annotated[str, Option("", metavar="SRC", help="It.")],
        options: MoreOptions,
        quiet: Annotated[bool, params.QUIET] = False,
    ) -> int:
        """Work."""
        seen.append((src, options, quiet))
        return 0

    other = built([Command(work, "work")])
    runner = CliRunner()
    words = ["x", "--brand-new", "--layer", "a", "--layer", "b", "--input-range", "255"]
    assert runner.invoke(other, ["work", *words]).exit_code == 0
    assert runner.invoke(other, ["work", "x", "--quiet"]).exit_code == 0
    assert seen == [("x", {"brand_new": True, "layers": ["a", "b"], "input_range": 255.0}, False), ("x", {}, True)]
    assert "--brand-new" not in runner.invoke(other, ["work", "--help"]).output
    shown = runner.invoke(other, ["work", "--help-all"]).output
    assert "--brand-new" in shown
    assert "Do the new thing." in shown
    parameters = typer.main.get_command(other).commands["work"].params
    assert [p.name for p in parameters] == ["src", *(row.name for row in MORE), "quiet", "color", "help_all"]


def test_a_new_row_is_a_name_of_manifests():
    names = by_long_name(MORE)
    assert names["brand-new"].name == "brand_new"
    assert names["newer-than"] is names["newer"]


def test_a_new_row_is_an_option_of_reports_and_of_the_library():
    given: Any = {"brand_new": True, "newer": [3], "layers": ["conv1"]}
    options = build_options("gray", MORE, **given)
    plain: Any = options.plain
    assert (plain["brand_new"], plain["newer"]) == (True, [3])
    assert as_keywords(options, MORE) == {"to": 1, **given}
    assert build_options(table=MORE, **as_keywords(options, MORE)) == options
    left: Any = build_options("gray", MORE).plain
    assert (left["brand_new"], left["newer"]) == (False, ())
    assert as_keywords(build_options("gray", MORE), MORE) == {"to": 1}


def test_the_order_of_a_report():
    """The target, what was parsed, and the rest as the rows stand."""
    names = list(as_keywords(build_options("rgb", luma="bt601", method="luma", strict=True, optimizer="drop", layers=["x"])))
    assert names == ["to", "luma", "method", "layers", "optimizer", "strict"]


def test_what_is_not_given_is_at_its_default():
    options = build_options(None)
    assert (options.rule, options.norm, options.search) == (ChannelRule(to=None), NormalizationSpec(), SearchRequest())
    switches = [row.name for row in OPTIONS if row.kind is bool]
    assert options.plain == {"optimizer": "reset", "like": None, "leave_out": (), **dict.fromkeys(switches, False)}
    assert as_keywords(options) == {}
    assert build_options(None, **dict.fromkeys(row.name for row in OPTIONS)) == options


def test_toward_gray_where_nothing_says_otherwise():
    assert options_toward(None, {}).to == 1
    assert options_toward(None, {"select": "0,1"}).to == 2
    assert options_toward(None, {"like": "like.pth"}).rule.to is None
    assert options_toward(4, {}).to == 4
    with pytest.raises(UsageError, match="a target is needed"):
        _ = build_options(None).to


def test_a_keyword_that_is_no_option_is_a_mistake_of_the_program():
    wrong: Any = {"metod": "sum"}
    with pytest.raises(TypeError, match="'metod' is not an option"):
        build_options(1, **wrong)
    with pytest.raises(TypeError, match="'metod' is not an option"):
        convert("a.pth", **wrong)


@pytest.mark.parametrize(
    ("wrong", "meant"),
    [
        ({"target": "gray"}, "did you mean to='gray'"),
        ({"in_channels": 1}, "did you mean to=1"),
        ({"channels": 1}, "did you mean to=1"),
        ({"layer": ["conv1"]}, r"did you mean layers=\['conv1'\]\?"),
        ({"from": 3}, "did you mean from_channels=3"),
        ({"metod": "sum"}, "did you mean method='sum'"),
        ({"overwrite": True}, "did you mean force=True"),
        ({"out_dir": "x" * 100}, "is not an option of a conversion"),
        ({"xyzzy": 1}, r"; docs/options.md lists them, and help\(chkpt_channels.convert\)"),
    ],
)
def test_the_keyword_that_was_meant_is_named(wrong: dict[str, Any], meant: str):
    with pytest.raises(TypeError, match=meant):
        convert("a.pth", **wrong)
    with pytest.raises(TypeError, match=meant):
        convert_state_dict({}, **wrong)


def test_the_keyword_of_another_function_is_not_suggested_again():
    with pytest.raises(TypeError, match=r"^'force' is not an option of a conversion; docs") as caught:
        verify("a.pth", "b.pth", **{"force": True})
    assert "force=True" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "taken", "refused"),
    [
        ("strict", [True, False], [1, "yes", None, [True]]),
        ("method", ["sum"], [1, True, ["sum"]]),
        ("from_channels", [3], [True, 3.0, "3", [3]]),
        ("input_range", [255, 0.5], [True, "255", [255]]),
        ("layers", [["a"], []], ["a", [1], [["a"]], [True]]),
        ("bands", ["B,G", ["B", "N=R"]], [1, [1], [["B"]]]),
        ("select", ["0,2", [0, "R"]], [0, [1.5], [True], [[0]]]),
        ("mean", ["0.5", [0.5], [1], ["0.5"]], [0.5, [True], [[0.5]], [{}], {}]),
        ("matrix", ["m.csv", [[1, 0.5], [0, 1]]], [1, [1], [[True]], [[[1]]]]),
    ],
)
def test_what_an_option_takes_in_a_document(name: str, taken: list[Any], refused: list[Any]):
    (row,) = (row for row in OPTIONS if row.name == name)
    assert all(map(row.takes, taken))
    assert not any(map(row.takes, refused))


def test_one_value_for_a_list():
    names = by_long_name(OPTIONS)
    assert names["layer"].as_listed("conv1") == ["conv1"]
    assert names["mean"].as_listed(0.5) == [0.5]
    assert names["mean"].as_listed("0.5,0.5") == "0.5,0.5"
    assert names["strict"].as_listed(True) is True
    assert names["from"].as_listed("x") == "x"
    assert names["matrix"].as_listed([1, 2]) == [1, 2]


def test_every_row_says_what_it_does():
    for row in OPTIONS:
        assert row.flag.startswith("--"), row.name
        assert row.help.endswith((".", "]", "…")), row.name
        assert row.doc, row.name
        assert not row.doc.endswith("."), row.name
        assert (row.metavar is None) is (row.kind is bool), row.name


@pytest.mark.parametrize("command", ["convert", "verify"])
def test_the_commands_have_every_row(command: str):
    parameters = {p.name: p for p in typer.main.get_command(built(COMMANDS.values())).commands[command].params}
    for row in OPTIONS:
        assert parameters[row.name].opts == [row.flag]
        assert (parameters[row.name].help, parameters[row.name].hidden) == (row.help, row.hidden)


def test_the_types_are_those_of_the_library():
    assert {row.name: row.kind for row in OPTIONS} == {n: get_args(a)[0] for n, a in ConvertOptions.__annotations__.items()}


def test_like_and_layers_are_two_answers():
    with pytest.raises(UsageError, match="--like shows the first convs, and --layer names them: give one of the two"):
        build_options("gray", like="like.pth", layers=["conv1"])
    assert as_keywords(build_options("gray", like=Path("like.pth"))) == {"to": 1, "like": "like.pth"}
    assert as_keywords(build_options("gray", like={"conv1.weight": [1]})) == {"to": 1}


@pytest.mark.parametrize(
    "more", [{"to": "gray"}, {"method": "adapter"}, {"select": "0"}, {"norm": "imagenet"}, {"like": "a.pth"}]
)
def test_folding_an_adapter_goes_with_no_rule(more: dict[str, Any]):
    assert options_toward(None, {"fold_adapter": True, "layers": ["a"]}).rule.to is None
    with pytest.raises(UsageError, match="--fold-adapter takes the channels from the convolution that it folds"):
        build_options(**{"to": None, **more, "fold_adapter": True})


def test_the_word_of_a_folded_file():
    assert options_toward(None, {"fold_adapter": True}).word == "folded"
    assert options_toward(None, {"fold_adapter": False}).word == "gray"
