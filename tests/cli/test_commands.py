from __future__ import annotations

import pytest

from chkpt_channels.cli.app import run


@pytest.mark.parametrize(
    ("arguments", "messages"),
    [
        (["resnet18.pth"], ["error: 'resnet18.pth' is no command",
                            "try: chkpt-channels convert resnet18.pth --to gray   or   chkpt-channels inspect resnet18.pth"]),
        (["inspekt"], ["error: 'inspekt' is no command", "try: inspect"]),
        (["xyz"], ["error: 'xyz' is no command", "try: chkpt-channels --help"]),
        (["convert", "a.pth", "--metod", "sum"], ["error: no such option", "try: --method"]),
        (["convert", "a.pth", "-to", "gray"], ["error: no such option: -t", "try: --to"]),
        (["-version"], ["error: no such option: -v", "try: --version"]),
        (["verify", "a.pth"], ["error: missing argument 'CONVERTED'", "try: chkpt-channels verify --help"]),
        (["convert", "a.pth", "--from", "three"], ["error: invalid value for '--from'", "try: "]),
        (["convert", "a.pth", "--to", "gary"], ["error: --to 'gary' is not a target", "try: --to gray"]),
        (["convert", "a.pth", "--to", "gray", "--norm", "imagnet"], ["error: --norm is one of", "try: --norm imagenet"]),
        (["convert", "a.pth", "--to", "gray", "--norm", "0.5,0.5"], ["error: --norm is one of", "try: --mean a,b,c --std a,b,c"]),
        (["convert", "a.pth", "--to", "gray", "-o", "b.pth", "--output-dir", "c"], ["error: -o and --output-dir both say where"]),
        (["convert", "a.pth", "--to", "gray", "--color", "blue"], ["error: --color is one of auto, always, never, not 'blue'"]),
    ],
)  # fmt: skip
def test_what_the_parser_refuses_is_said_in_two_lines(arguments, messages, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.pth").write_bytes(b"")
    assert run(arguments) in (2, 3)
    out, err = capsys.readouterr()
    lines = err.splitlines()
    assert out == ""
    assert len(lines) <= 2
    assert all(line.startswith(message) for line, message in zip(lines, messages, strict=False)), lines


def test_help_is_a_word_too(capsys):
    assert run(["help"]) == 0
    whole = capsys.readouterr().out
    assert run(["--help"]) == 0
    assert capsys.readouterr().out == whole
    assert run(["help", "convert"]) == 0
    assert "Usage: chkpt-channels convert" in capsys.readouterr().out
    assert [run([word]) for word in ("-V", "--version")] == [0, 0]
    first, second = capsys.readouterr().out.splitlines()
    assert first == second


def test_options_are_in_groups(capsys):
    run(["convert", "--help-all"])
    shown = capsys.readouterr().out
    titles = [line.rstrip(":") for line in shown.splitlines() if line.endswith(":") and not line.startswith(" ")]
    assert titles[0] == "Arguments"
    assert shown.startswith("Usage: chkpt-channels convert [SRC…] [OPTION]…\n")
    assert "\n  SRC…  Checkpoints or model folders; - is stdin.\n" in shown
    assert titles[-1] == "Options"
    assert {"The new channels", "Where it goes", "Normalization", "Which kernel", "What goes with it", "Report"} == {
        *titles[1:-1]
    }
