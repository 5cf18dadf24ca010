"""The command line as a user meets it: whole processes, exit codes, what goes where, and the documents' word for it."""

from __future__ import annotations

import json
import os
import re
import resource
import signal
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import typer

from chkpt_channels import __version__
from chkpt_channels.cli import app as module
from chkpt_channels.cli.typer_app import built
from tests.support.documents import TEXT
from tests.support.files import FIXTURES

ROOT = FIXTURES.parent
RGB = FIXTURES / "torch_zip" / "state_dict.pth"
ONNX = FIXTURES / "onnx" / "plain_ts.onnx"
KERAS = FIXTURES / "keras_h5" / "functional.h5"
SAFE = FIXTURES / "safetensors" / "model.safetensors"
COMMANDS = dict(typer.main.get_command(built(module.COMMANDS.values())).commands)


def run(*arguments, cwd=None, stdin=b"", **environment):
    return subprocess.run(
        [sys.executable, "-m", "chkpt_channels", *map(str, arguments)],
        cwd=cwd,
        input=stdin,
        capture_output=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        check=False,
        timeout=60,
    )


@pytest.fixture
def rgb(tmp_path):
    path = tmp_path / "net.pth"
    path.write_bytes(RGB.read_bytes())
    return path


def test_convert_says_what_it_did_and_where(rgb, tmp_path):
    done = run("convert", "net.pth", "--to", "gray", cwd=tmp_path)
    report, messages = done.stdout.decode(), done.stderr.decode()
    assert done.returncode == 0
    assert report.startswith("✓ net_gray.pth   3 → 1 channels   ")
    assert "8×3×7×7 → 8×1×7×7, the sum of R, G and B; the other 37 tensors are byte-identical" in report
    assert re.search(r"checked: .* \(\|Δ\| ≤ \d\.\de-\d\d, 0\.\d ulp\)", report)
    assert report.endswith("\nmodel.load_state_dict(torch.load('net_gray.pth', weights_only=True))\n")
    assert "  Input  " in report
    assert messages == ""
    assert sorted(path.name for path in tmp_path.iterdir()) == ["net.pth", "net_gray.pth"]


def test_a_closed_standard_input_is_an_error_of_the_system(tmp_path):
    line = 'exec "$0" -m chkpt_channels convert - --to gray -o out.pth 0<&-'
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(["sh", "-c", line, sys.executable], cwd=tmp_path, env=environment, capture_output=True, check=False)
    assert (done.returncode, done.stdout) == (5, b"")
    assert done.stderr == b"error: standard input: is closed; nothing was written\n"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("word", ["gray", "grey", "grayscale", "L", "1", "GRAY"])
def test_every_spelling_of_gray_gives_the_canonical_name(rgb, tmp_path, word):
    assert run("convert", "net.pth", "--to", word, "-q", cwd=tmp_path).returncode == 0
    assert (tmp_path / "net_gray.pth").exists()


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("a.pth.tar", "a_gray.pth.tar"),
        ("a.v2.ckpt", "a.v2_gray.ckpt"),
        ("pytorch_model", "pytorch_model_gray"),
        ("mit leerzeichen ü.pt", "mit leerzeichen ü_gray.pt"),
    ],
)
def test_default_names_keep_the_suffix(tmp_path, name, expected):
    (tmp_path / name).write_bytes(RGB.read_bytes())
    assert run("convert", name, "--to", "gray", cwd=tmp_path).returncode == 0
    assert (tmp_path / expected).exists()


def test_standard_input_and_output(rgb, tmp_path):
    run("convert", rgb, "--to", "gray", "-o", tmp_path / "file.pth")
    piped = run("convert", "-", "--to", "gray", "-o", "-", stdin=rgb.read_bytes())
    assert piped.returncode == 0
    assert piped.stdout == (tmp_path / "file.pth").read_bytes()
    assert "conv1.weight" in piped.stderr.decode()


def test_json_moves_to_stderr_with_the_output_on_stdout(rgb):
    piped = run("convert", rgb, "--to", "gray", "-o", "-", "--json")
    assert json.loads(piped.stderr.decode().split("\n}\n")[0] + "\n}")["results"][0]["status"] == "converted"


def test_standard_input_without_a_name_is_wrong_usage():
    assert run("convert", "-", "--to", "gray", stdin=b"PK").returncode in (2, 3)
    done = run("convert", "-", "--to", "gray", stdin=RGB.read_bytes())
    assert done.returncode == 2
    assert b"-o names the output" in done.stderr


def _lfs(path):
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:" + "0" * 64 + "\nsize 102502400\n")


def _flip(path):
    raw = bytearray(RGB.read_bytes())
    with zipfile.ZipFile(RGB) as archive:
        member = archive.getinfo("state_dict/data/5")
    at = raw.index(b"Z", member.header_offset)
    while raw[at] == ord("Z"):
        at += 1
    raw[at] ^= 1
    path.write_bytes(raw)


BAD = {
    "missing": (lambda path: None, 5, "no such file"),
    "empty": (lambda path: path.write_bytes(b""), 3, "is empty"),
    "html": (lambda path: path.write_text("<!DOCTYPE html><html>404</html>"), 3, "an HTML page"),
    "lfs": (_lfs, 3, "Git-LFS pointer to 102,502,400 bytes"),
    "truncated": (lambda path: path.write_bytes(RGB.read_bytes()[:20000]), 3, "its end is missing"),
    "one flipped bit": (_flip, 3, "data/5: its CRC-32 is"),
    "no convolution": (lambda path: path.write_bytes((FIXTURES / "torch_zip/no_conv.pth").read_bytes()), 4, "no convolution"),
    "folder": (lambda path: path.mkdir(), 3, "is not a model folder"),
    "fifo": (lambda path: os.mkfifo(path), 5, "is a FIFO"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_files_end_in_their_exit_code_and_one_line(tmp_path, case):
    make, code, words = BAD[case]
    path = tmp_path / "bad.pth"
    make(path)
    before = sorted(tmp_path.iterdir())
    done = run("convert", "bad.pth", "--to", "gray", cwd=tmp_path)
    first = done.stderr.decode().splitlines()[0]
    assert (done.returncode, done.stdout) == (code, b"")
    assert first.startswith("error: bad.pth: ")
    assert words in first
    assert first.endswith("; nothing was written")
    assert b"Traceback" not in done.stderr
    assert sorted(tmp_path.iterdir()) == before
    failed = json.loads(run("convert", "bad.pth", "--to", "gray", "--json", cwd=tmp_path).stdout)
    assert failed["exit_code"] == code
    assert failed["results"][0]["status"] == "failed"
    assert words in failed["results"][0]["error"]["message"]


def test_a_long_path_is_not_wrapped(tmp_path):
    folder = tmp_path / ("x" * 100) / ("y" * 100)
    done = run("convert", folder / "no.pth", "--to", "gray", COLUMNS="40")
    assert done.returncode == 5
    assert done.stderr.decode().splitlines()[0] == f"error: {folder}/no.pth: no such file or directory; nothing was written"


@pytest.mark.parametrize(
    ("make", "extra", "code", "words"),
    [
        (lambda out, src: out.write_bytes(b"old"), (), 5, "exists already"),
        (lambda out, src: out.symlink_to(src), ("--force",), 5, "is the input itself"),
        (lambda out, src: out.symlink_to("nowhere"), ("--force",), 5, "a symbolic link"),
        (lambda out, src: os.link(src, out), ("--force",), 5, "is the input itself"),
        (lambda out, src: out.mkdir(), ("--force",), 5, "a folder"),
        (lambda out, src: os.mkfifo(out), ("--force",), 5, "a FIFO"),
    ],
)
def test_outputs_that_must_not_be_written(rgb, tmp_path, make, extra, code, words):
    out = tmp_path / "out.pth"
    make(out, rgb)
    before = {path: (os.lstat(path).st_ino, os.lstat(path).st_mtime_ns) for path in tmp_path.iterdir()}
    done = run("convert", rgb, "--to", "gray", "-o", out, *extra)
    assert done.returncode == code
    assert words in done.stderr.decode()
    assert {path: (os.lstat(path).st_ino, os.lstat(path).st_mtime_ns) for path in tmp_path.iterdir()} == before


def test_the_input_itself_is_never_written(rgb):
    before = rgb.read_bytes()
    done = run("convert", rgb, "--to", "gray", "-o", rgb, "--force")
    assert (done.returncode, rgb.read_bytes()) == (5, before)


def test_a_missing_folder_is_named(rgb, tmp_path):
    done = run("convert", rgb, "--to", "gray", "-o", tmp_path / "no" / "out.pth")
    assert done.returncode == 5
    assert "no such file or directory" in done.stderr.decode()


@pytest.mark.skipif(os.geteuid() == 0 and not Path("/proc/sys").exists(), reason="root may write everywhere else")
def test_an_unwritable_folder_is_named(rgb, tmp_path):
    folder = Path("/proc/sys")  # nobody, not even root, makes files here
    if os.geteuid():
        folder = tmp_path / "locked"
        folder.mkdir(mode=0o500)
    done = run("convert", rgb, "--to", "gray", "-o", folder / "out.pth")
    assert done.returncode == 5
    assert "cannot be written" in done.stderr.decode()


def test_force_replaces_and_keeps_the_mode(rgb, tmp_path):
    out = tmp_path / "out.pth"
    out.write_bytes(b"old")
    out.chmod(0o640)
    assert run("convert", rgb, "--to", "gray", "-o", out, "--force").returncode == 0
    assert out.stat().st_mode & 0o777 == 0o640
    assert out.read_bytes()[:2] == b"PK"


USAGE = {
    "no target": (("convert", RGB), "--to"),
    "no such target": (("convert", RGB, "--to", "mauve"), "is not a target"),
    "zero channels": (("convert", RGB, "--to", "0"), "is not a target"),
    "luma that sum does not use": (("convert", RGB, "--to", "gray", "--luma", "bt601", "--method", "sum"), "--luma"),
    "no such luma": (("convert", RGB, "--to", "rgb", "--luma", "a,b,c"), "--luma"),
    "two weights for three": (("convert", RGB, "--to", "rgb", "--luma", "0.5,0.5"), "2 weights"),
    "no such layout": (("convert", RGB, "--to", "gray", "--layout", "XYZ"), "--layout"),
    "no such layer": (("convert", RGB, "--to", "gray", "--layer", "cnov1"), "try: --layer conv1"),
    "another family's name": (("convert", RGB, "--to", "gray", "-o", "x.keras"), "like another format"),
    "a foreign name": (("convert", RGB, "--to", "gray", "-o", "x.onnx"), "like another format"),
    "no such option": (("convert", RGB, "--to", "gray", "--frobnicate"), "--frobnicate"),
    "no such command": (("conver", RGB), "conver"),
}


@pytest.mark.parametrize("case", USAGE)
def test_wrong_usage_is_exit_2(tmp_path, case):
    arguments, words = USAGE[case]
    done = run(*arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert words in done.stderr.decode()
    assert not list(tmp_path.iterdir())


def test_dry_run_writes_nothing(rgb, tmp_path):
    done = run("convert", "net.pth", "--to", "gray", "--dry-run", "--json", cwd=tmp_path)
    result = json.loads(done.stdout)["results"][0]
    assert (result["status"], result["output"]) == ("would_convert", None)
    assert result["first_convs"][0]["shape_after"] == [8, 1, 7, 7]
    assert list(tmp_path.iterdir()) == [rgb]


def test_several_layers_are_listed_and_refused(tmp_path):
    done = run("convert", RGB, "--to", "gray", "--layer", "conv2", "-o", tmp_path / "x.pth")
    assert done.returncode == 4
    lines = done.stderr.decode().splitlines()
    assert len(lines) == 4
    assert lines[-1].startswith("try: --layer ")


def test_luma_that_does_not_sum_to_one_is_warned_of(tmp_path):
    gray = FIXTURES / "torch_zip" / "state_dict_gray.pth"
    done = run("convert", gray, "--to", "rgb", "--luma", "1,1,1", "-o", tmp_path / "x.pth")
    assert done.returncode == 0
    assert "3 times what it was" in done.stderr.decode()


def test_inspect_goes_on_after_a_bad_file_and_ends_in_the_highest_code(tmp_path):
    (tmp_path / "bad.pth").write_bytes(b"")
    done = run("inspect", tmp_path / "bad.pth", RGB, SAFE, "--json")
    results = json.loads(done.stdout)["results"]
    assert done.returncode == 3
    assert [r["status"] for r in results] == ["failed", "inspected", "inspected"]


def test_inspect_lists_everything_on_request():
    assert b"fc.bias" not in run("inspect", RGB).stdout
    assert b"fc.bias" in run("inspect", RGB, "--all").stdout


def test_verify_says_what_holds_and_what_does_not(rgb, tmp_path):
    gray = tmp_path / "gray.pth"
    run("convert", rgb, "--to", "gray", "-o", gray)
    good = run("verify", rgb, gray)
    assert good.returncode == 0
    assert "conv1.weight is the sum of R, G and B, to the last bit" in good.stdout.decode()
    other = run("verify", rgb, FIXTURES / "torch_zip" / "half.pth")
    assert other.returncode == 1
    assert "conv1.weight: is F16" in other.stdout.decode()
    assert json.loads(run("verify", rgb, gray, "--json").stdout)["results"][0]["status"] == "identical"


PRINTING = [
    ["--help"],
    ["convert", "--help-all"],
    ["--version"],
    ["schema"],
    ["inspect", RGB],
    ["inspect", RGB, "--json"],
    ["verify", RGB, RGB],
    ["check", RGB, "--expect", "gray"],
    ["check", RGB, "--json"],
    ["convert", RGB, "--to", "gray", "--dry-run", "-o", "out.pth"],
]
"""Commands that print something; the first `check` finds a difference."""


def printed_to(stream: int, arguments: list, **more) -> tuple[int, str]:
    """The exit code, and what stands on stderr."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "chkpt_channels", *map(str, arguments)]
    done = subprocess.run(command, stdout=stream, stderr=subprocess.PIPE, env=environment, text=True, timeout=60, **more)
    return done.returncode, done.stderr


@pytest.mark.parametrize("arguments", PRINTING, ids=lambda words: " ".join(str(word) for word in words if word != RGB))
def test_standard_output_that_fails_is_no_bug_and_no_difference(arguments, tmp_path):
    def without_room() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))

    with (tmp_path / "full").open("w") as full:
        code, messages = printed_to(full.fileno(), arguments, preexec_fn=without_room, cwd=tmp_path)
    assert code == 5
    assert "error: standard output: cannot be written: file too large\n" in messages
    reading, writing = os.pipe()
    os.close(reading)
    code, messages = printed_to(writing, arguments, cwd=tmp_path)
    os.close(writing)
    # what converts is done all the same, and its exit code is its own
    assert (code, "error" in messages) == (0 if arguments[0] == "convert" and "--help-all" not in arguments else 141, False)


@pytest.mark.parametrize("arguments", PRINTING, ids=lambda words: " ".join(str(word) for word in words if word != RGB))
def test_standard_output_and_error_that_fail(arguments, tmp_path):
    with (tmp_path / "full").open("w") as full:
        limit = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))  # noqa: E731
        command = [sys.executable, "-m", "chkpt_channels", *map(str, arguments)]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        done = subprocess.run(command, stdout=full, stderr=full, env=environment, timeout=60, preexec_fn=limit, cwd=tmp_path)
    assert done.returncode == 5


def test_quiet_prints_nothing(rgb):
    done = run("convert", rgb, "--to", "gray", "-q")
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


def test_text_for_a_terminal_without_unicode(rgb):
    done = run("convert", rgb, "--to", "gray", PYTHONIOENCODING="ascii")
    assert done.returncode == 0
    assert b"8\\xd73\\xd77\\xd77" in done.stdout


def test_bad_names_are_escaped(tmp_path):
    path = tmp_path / "evil\x1b[31m\nname.pth"
    path.write_bytes(b"")
    done = run("inspect", path)
    assert done.returncode == 3
    assert b"\x1b" not in done.stderr
    assert len(done.stderr.decode().splitlines()) == 2


def test_a_closed_stderr_changes_nothing(rgb, tmp_path):
    command = f'exec {sys.executable} -m chkpt_channels convert "{rgb}" --to gray -o "{tmp_path}/o.pth" 2>&-'
    done = subprocess.run(["sh", "-c", command], env={**os.environ, "PYTHONPATH": str(ROOT)}, check=False, capture_output=True)
    assert done.returncode == 0
    assert (tmp_path / "o.pth").exists()


def interrupted_at(moment: int) -> tuple[int, bool]:
    """(exit code, whether it came to that) of a command that gets SIGINT at a line, by its count, after all its work is done."""
    lines, ended = 0, False

    def traced(frame, event, _):
        nonlocal lines, ended
        ended |= event == "return" and frame.f_code is module._run.__code__
        lines += ended and event == "line"
        if ended and event == "line" and lines == moment:
            os.kill(os.getpid(), signal.SIGINT)
        return traced

    before = signal.signal(signal.SIGINT, lambda *_: None)
    sys.settrace(traced)
    try:
        return module.run(["--version"]), lines >= moment
    finally:
        sys.settrace(None)
        signal.signal(signal.SIGINT, before)


def test_an_interrupt_between_the_work_and_the_end_has_its_code():
    codes = [code for code, reached in map(interrupted_at, range(1, 60)) if reached]
    assert codes.count(130) > 5
    assert set(codes) == {0, 130}


@pytest.mark.parametrize("option", ["--from", "--input-range"])
def test_nought_is_a_value(rgb, tmp_path, option):
    done = run("convert", "net.pth", "--to", "gray", "--norm", "half", option, "0", cwd=tmp_path)
    assert (done.returncode, sorted(path.name for path in tmp_path.iterdir())) == (2, ["net.pth"])


HEAVY = ("numpy", "h5py", "onnx", "rich", "ml_dtypes", "safetensors", "torch", "tensorflow")
"""Not pydantic: from 0.29 on typer imports it in every parse."""


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["convert", "--help"]])
def test_help_imports_nothing_heavy(arguments):
    code = f"import sys; from chkpt_channels.cli.app import run; run({arguments!r}); print(*sys.modules, file=sys.stderr)"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, env=environment, check=True, text=True)
    assert not {name.partition(".")[0] for name in done.stderr.split()} & set(HEAVY)


@pytest.mark.parametrize(("file", "is_searched"), [(KERAS, False), (ONNX, False), (RGB, True)], ids=["keras", "onnx", "torch"])
def test_where_a_graph_decides_the_law_is_not_imported(file, is_searched):
    arguments = ["convert", str(file), "--to", "gray", "--dry-run", "--quiet"]
    code = (
        f"import sys; from chkpt_channels.cli.app import run; assert not run({arguments!r}); print(*sys.modules, file=sys.stderr)"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "CHKPT_CHANNELS_CATALOGUE": "off"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, env=environment, check=True, text=True)
    assert any(name.startswith("chkpt_channels.discovery.law.") for name in done.stderr.split()) is is_searched


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_any_encoding(command):
    done = run(command, "--help", PYTHONIOENCODING="latin-1")
    assert (done.returncode, done.stderr) == (0, b"")
    assert b"Usage: chkpt-channels" in done.stdout


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no full device")
def test_a_full_standard_output_is_told_once(tmp_path):
    for n in range(5):
        (tmp_path / f"{n}.pth").write_bytes(RGB.read_bytes())
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(
            [sys.executable, "-m", "chkpt_channels", "check", str(tmp_path)],
            stdout=full,
            stderr=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            check=False,
        )
    assert done.returncode == 5
    assert done.stderr.decode().splitlines() == ["error: standard output: cannot be written: no space left on device"]


def test_the_root_is_a_state_dict_without_a_name(rgb, tmp_path):
    """An empty text is refused but there."""
    done = run("convert", "net.pth", "--to", "gray", "-o", "a.safetensors", "--state-dict", "", cwd=tmp_path)
    assert (done.returncode, (tmp_path / "a.safetensors").exists()) == (0, True), done.stderr
    assert run("convert", "net.pth", "--to", "gray", "-o", "b.pth", "--norm", "", cwd=tmp_path).returncode == 2


def test_a_shell_that_asks_gets_no_conversion(rgb, tmp_path):
    asked = {"_CHKPT_CHANNELS_COMPLETE": "complete_bash", "COMP_WORDS": "chkpt-channels con", "COMP_CWORD": "1"}
    done = run("convert", "net.pth", "--to", "gray", cwd=tmp_path, **asked)
    assert (done.returncode, done.stdout) == (0, b"convert\n")
    assert [path.name for path in tmp_path.iterdir()] == ["net.pth"]


@pytest.mark.parametrize("stated", [{}, {"COMP_WORDS": "chkpt-channels con", "COMP_CWORD": "one"}], ids=["nothing", "no number"])
def test_a_completion_that_no_shell_asks_for_is_wrong_usage(stated: dict[str, str]):
    done = run(_CHKPT_CHANNELS_COMPLETE="complete_bash", **stated)
    assert done.returncode == 2
    assert b"unset _CHKPT_CHANNELS_COMPLETE" in done.stderr


def test_version():
    assert run("--version").stdout.decode() == f"chkpt-channels {__version__}\n"


@pytest.mark.parametrize("command", COMMANDS)
def test_help_fits_a_screen_and_shows_an_example(command):
    text = run(command, "--help", COLUMNS="100", LINES="50").stdout.decode()
    assert len(text.splitlines()) <= 40
    assert "Example: chkpt-channels " + command in text


@pytest.mark.parametrize("command", ["convert", "verify", "inspect", "check", "plot", "status"])
def test_all_options_are_shown_on_request(command):
    done = run(command, "--help-all", COLUMNS="100")
    assert done.returncode == 0
    text = done.stdout.decode()
    assert all(option in text for parameter in COMMANDS[command].params for option in parameter.opts if option.startswith("--"))


@pytest.mark.parametrize(("command", "hint"), [("schema", "--help"), ("inspect", "--help-all")])
def test_an_option_is_offered_where_it_is(command, hint):
    done = run(command, "--help-al")
    assert (done.returncode, done.stderr.decode().splitlines()[-1]) == (2, f"try: {hint}")


@pytest.mark.parametrize("command", ["inspect", "convert"])
def test_files_are_left_out_where_that_can_be_said(command, rgb, tmp_path):
    (tmp_path / "cut.pth").write_bytes(RGB.read_bytes()[:-100])
    (tmp_path / "config.json").write_text("{}")
    done = run(command, ".", *(["--to", "gray"] if command == "convert" else []), cwd=tmp_path)
    assert done.returncode == 3
    assert ("--leave-out cut.pth" in done.stderr.decode()) is (command == "convert")


def test_the_documents_invent_no_option():
    known = {o for command in COMMANDS.values() for p in command.params for o in p.opts}
    known |= {"--help", "--version", "--install-completion", "--show-completion"}
    mentioned = set(re.findall(r"`(--[a-z0-9-]+)", TEXT)) | set(re.findall(r"chkpt-channels [^\n`]*?(--[a-z0-9-]+)", TEXT))
    assert mentioned <= known


def test_check_asks_for_a_path(rgb):
    """Standard input has no name and nothing beside it; what is named besides is checked."""
    done = run("check", "-", rgb, "--json")
    refused, checked = json.loads(done.stdout)["results"]
    assert (done.returncode, refused["error"]["code"], refused["error"]["hint"]) == (2, "usage", "chkpt-channels inspect -")
    assert (checked["error"], checked["in_channels"]["before"]) == (None, 3)
    assert done.stderr.decode().splitlines()[-1] == "try: chkpt-channels inspect -"
