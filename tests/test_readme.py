"""The README and docs/ are true: every command and every line of Python runs as it stands there, on files of the names that it
uses; the example of a report is what is printed, and tables are complete."""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import safetensors.numpy

import chkpt_channels
from chkpt_channels.cli.app import run
from tests.support.documents import DOCUMENTS, ROOT, TEXT, blocks, commands
from tests.support.files import FIXTURES

COMMANDS = {name: list(commands(text)) for name, text in DOCUMENTS.items()}
RUN = re.compile(r"(chkpt-channels|curl) ")
IN_A_STORE = re.compile(r"chkpt-channels .*\b(s3|https|hf)://")
"""What `tests/remote/test_documents.py` runs, on servers of its own."""
SET_UP = re.compile(r"(pipx|pip) install |make (\w+)")
FORMULAS = re.compile(r"W'|[At] = ")
STUBS = {
    "chkpt-channels": f'exec "{sys.executable}" -m chkpt_channels "$@"',
    "curl": 'cat "$URL"',
    "aws": "cat > uploaded.safetensors",
    "jq": "cat",
}
COPIES = {
    "resnet50.pth": "torch_zip/state_dict.pth",
    "net.pth": "torch_zip/state_dict.pth",
    "like.pth": "torch_zip/state_dict_gray.pth",
    "epoch_12.ckpt": "torch_zip/lightning.ckpt",
    "resnet50.safetensors": "safetensors/model.safetensors",
    "model.safetensors": "safetensors/model.safetensors",
    "vit.safetensors": "safetensors/vit.safetensors",
    "model.onnx": "onnx/plain_ts.onnx",
    "model.keras": "keras_zip/sequential.keras",
    "model.h5": "keras_h5/functional.h5",
    "model.weights.h5": "keras_h5/plain.weights.h5",
    "zoo/a.pth": "torch_zip/state_dict.pth",
    "zoo/b.pth": "torch_zip/state_dict.pth",
    "resnet-50/pytorch_model.bin": "torch_zip/state_dict.pth",
    "resnet50/model.safetensors": "safetensors/model.safetensors",
    "unet/model.safetensors": "safetensors/model.safetensors",
}
MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
CONFIGURATIONS = {
    "resnet-50/config.json": {"model_type": "resnet", "num_channels": 3},
    "resnet-50/preprocessor_config.json": {"image_mean": MEAN, "image_std": STD},
    "resnet50/config.json": {
        "architecture": "resnet50",
        "pretrained_cfg": {"input_size": [3, 224, 224], "mean": MEAN, "std": STD},
    },
    "unet/config.json": {"encoder_name": "resnet18", "in_channels": 3},
}
WRITES_NOTHING = {"--check", "--dry-run", "--explain"}


@pytest.fixture
def desk(tmp_path: Path) -> Path:
    """A folder with everything that the documents speak of, and the programs on its path."""
    desk = tmp_path / "desk"
    for name, fixture in COPIES.items():
        (desk / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(FIXTURES / fixture, desk / name)
    for name, document in CONFIGURATIONS.items():
        (desk / name).write_text(json.dumps(document))
    (desk / "sd" / "unet").mkdir(parents=True)
    latent = {"conv_in.weight": np.ones((8, 4, 3, 3), np.float32), "conv_out.weight": np.ones((4, 8, 3, 3), np.float32)}
    safetensors.numpy.save_file(latent, desk / "sd" / "unet" / "diffusion_pytorch_model.safetensors")
    for text in DOCUMENTS.values():
        for block in blocks(text):
            if block.title:
                (desk / block.title).write_text(block.text)
    (tmp_path / "bin").mkdir()
    for name, body in STUBS.items():
        program = tmp_path / "bin" / name
        program.write_text(f"#!/bin/sh\n{body}\n")
        program.chmod(program.stat().st_mode | stat.S_IXUSR)
    return desk


class Outputs:
    """What commands made on the desk. It is put aside before a conversion, since a document makes the same file more than once
    and nothing is overwritten unasked; afterwards all that was not made anew is put back."""

    def __init__(self, desk: Path) -> None:
        self._desk, self._aside = desk, desk.parent / "aside"
        self._given = {path.name for path in desk.iterdir()}
        self._aside.mkdir()

    def put_aside(self) -> None:
        for path in self._desk.iterdir():
            if path.name not in self._given:
                path.rename(self._aside / path.name)

    def put_back(self) -> None:
        for path in self._aside.iterdir():
            if (self._desk / path.name).exists():
                shutil.rmtree(path) if path.is_dir() else path.unlink()
            else:
                path.rename(self._desk / path.name)


def test_there_are_commands():
    assert sum(map(len, COMMANDS.values())) > 40
    assert len(COMMANDS["README.md"]) > 10


@pytest.mark.parametrize("name", DOCUMENTS)
def test_every_command_runs(name: str, desk: Path):
    environment = {
        **os.environ,
        "PATH": f"{desk.parent / 'bin'}:{os.environ['PATH']}",
        "URL": "model.safetensors",
        "MPLCONFIGDIR": str(desk.parent),
    }
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    outputs = Outputs(desk)
    for command in filter(RUN.match, COMMANDS[name]):
        if IN_A_STORE.match(command):
            continue
        converts = "chkpt-channels convert" in command and not WRITES_NOTHING & set(command.split())
        if converts:
            outputs.put_aside()
        run = ["bash", "-o", "pipefail", "-c", command]
        done = subprocess.run(run, cwd=desk, env=environment, capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 0, (command, done.stderr)
        if converts:
            outputs.put_back()
    if name == "docs/folders.md":
        assert (desk / "uploaded.safetensors").stat().st_size > 1000
    if name == "README.md":
        assert json.loads((desk / "resnet-50-gray" / "config.json").read_text())["num_channels"] == 1


@pytest.mark.parametrize("name", DOCUMENTS)
def test_nothing_else_is_typed(name: str):
    """What is not run here is an installation, a target of make, or a formula."""
    targets = set(re.search(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)[1].split())
    for command in COMMANDS[name]:
        if RUN.match(command) or FORMULAS.match(command):
            continue
        typed = SET_UP.match(command)
        assert typed, command
        assert typed[2] is None or typed[2] in targets, command
    for target in re.findall(r"`make ([\w-]+)", DOCUMENTS[name]):
        assert target in targets


def statements(source: str) -> Iterator[tuple[ast.stmt, str]]:
    """The statements of a block, each with the comment behind it."""
    lines = source.splitlines()
    for statement in ast.parse(source).body:
        comment = lines[(statement.end_lineno or 0) - 1][statement.end_col_offset :].strip()
        yield statement, comment.removeprefix("#").strip()


@pytest.mark.parametrize("name", [name for name, text in DOCUMENTS.items() if "```python" in text])
def test_every_line_of_python_runs(name: str, desk: Path, monkeypatch: pytest.MonkeyPatch):
    """A line that is an expression has the value that its comment says."""
    monkeypatch.chdir(desk)
    kernel = {"conv1.weight": np.ones((8, 3, 7, 7), np.float32), "fc.weight": np.ones((2, 8), np.float32)}
    scope = {"model": SimpleNamespace(state_dict=lambda: kernel)}
    for block in blocks(DOCUMENTS[name]):
        if block.language != "python":
            continue
        for statement, comment in statements(block.text):
            if isinstance(statement, ast.Expr) and comment:
                assert repr(eval(ast.unparse(statement), scope)) == comment
            else:
                exec(ast.unparse(statement), scope)
    if "state_dict" in scope:
        assert scope["state_dict"]["conv1.weight"].shape == (8, 1, 7, 7)
        assert scope["state_dict"]["fc.weight"] is kernel["fc.weight"]


def test_the_example_of_json_is_what_is_printed(desk: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.chdir(desk)
    [shown] = [json.loads(block.text) for block in blocks(DOCUMENTS["docs/json.md"]) if block.language == "json"]
    assert run(["convert", "model.onnx", "--to", "gray", "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    parities = [document["results"][0].pop("parity") for document in (shown, printed)]
    assert shown == printed
    # rounding errors differ from machine to machine, but not by an order of magnitude
    assert all(0.1 < parities[0][key] / value < 10 for key, value in parities[1].items())


def test_the_tables_of_statuses_and_of_evidence_are_complete():
    schema = json.loads((ROOT / "chkpt_channels" / "schema.json").read_text())
    fields = schema["$defs"]["result"]["properties"]
    table = DOCUMENTS["docs/json.md"].partition("| `status` | command |")[2].partition("\n\n")[0]
    statuses = re.findall(r"^\| (`.*?) \| .* \|", table, re.MULTILINE)
    assert {word for row in statuses for word in re.findall(r"`(\w+)`", row)} == set(fields["status"]["enum"])
    table = DOCUMENTS["docs/discovery.md"].partition("| `found_by` | evidence |\n")[2].partition("\n\n")[0]
    evidence = re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE)
    assert set(evidence) == set(fields["first_convs"]["items"]["properties"]["found_by"]["enum"])


def test_every_code_of_a_warning_is_described():
    code = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "chkpt_channels").rglob("*.py"))
    given = {*re.findall(r"Notice\(\s*\"(\w+)\"", code), *re.findall(r"\"code\": \"(\w+)\"", code)}
    table = DOCUMENTS["docs/json.md"].partition("| warning `code` | about |\n")[2].partition("\n\n")[0]
    assert {word for row in re.findall(r"^\| (.*?) \|", table, re.MULTILINE) for word in re.findall(r"`(\w+)`", row)} == given


def test_every_error_and_function_is_described():
    rows = re.findall(r"^\| `(\w+)`(?:, an? `(\w+)`)? \| (\d+) \| `(\w+)` \|", DOCUMENTS["docs/python.md"], re.MULTILINE)
    public = {name: getattr(chkpt_channels, name) for name in chkpt_channels.__all__}
    errors = {n for n, v in public.items() if isinstance(v, type) and issubclass(v, Exception)} - {"ChkptChannelsError"}
    assert {name for name, *_ in rows} == errors
    for name, base, exit_code, code in rows:
        assert (public[name].exit_code, public[name].code) == (int(exit_code), code)
        assert public[name].__bases__ == (public[base or "ChkptChannelsError"],)
    functions = re.findall(r"^\| `(\w+)\(", DOCUMENTS["docs/python.md"], re.MULTILINE)
    assert set(functions) == {name for name, value in public.items() if callable(value) and not isinstance(value, type)}


def test_the_hooks_are_those_that_there_are():
    used = set(re.findall(r"- id: ([\w-]+)", TEXT))
    assert used == set(re.findall(r"^- id: ([\w-]+)", (ROOT / ".pre-commit-hooks.yaml").read_text(), re.MULTILINE))
