"""Every command's JSON is what `chkpt-channels schema` says."""

from __future__ import annotations

import json
from pathlib import Path

import jsonschema
import pytest

from chkpt_channels.cli.app import run
from tests.support.files import FIXTURES

RGB = str(FIXTURES / "torch_zip" / "state_dict.pth")
TRAINING = str(FIXTURES / "torch_zip" / "training.ckpt")
AMBIGUOUS = str(FIXTURES / "torch_zip" / "no_conv.pth")
CASES = {
    "convert": ["convert", TRAINING, "--to", "gray", "--norm", "imagenet", "--sha256", "-o", "{}/x.ckpt"],
    "explained": ["convert", RGB, "--bands", "B,G,R,N=R", "--explain"],
    "unchanged": ["convert", RGB, "--to", "rgb", "-o", "{}/x.pth"],
    "refused": ["convert", RGB, "--to", "gray", "--layer", "conv2"],
    "wrong usage": ["convert", RGB, "--to", "gray", "--select", "0,1"],
    "missing": ["convert", "nothing.pth", "--to", "gray"],
    "inspect": ["inspect", RGB, TRAINING, "nothing.pth"],
    "identical": ["verify", RGB, RGB],
    "different": ["verify", RGB, str(FIXTURES / "torch_zip" / "state_dict_gray.pth")],
    "check": ["check", str(FIXTURES / "torch_zip"), "--expect", "rgb"],
    "like": ["convert", RGB, "--like", str(FIXTURES / "torch_zip" / "state_dict_gray.pth"), "-o", "{}/x.pth"],
    "nothing to do": ["convert", AMBIGUOUS, "--like", AMBIGUOUS, "-o", "{}/x.pth"],
    "onnx": ["convert", str(FIXTURES / "onnx" / "plain_ts.onnx"), "--to", "gray", "-o", "{}/x.onnx"],
}


@pytest.fixture(scope="module")
def schema() -> dict[str, object]:
    found: dict[str, object] = json.loads((Path(__file__).parent.parent / "chkpt_channels" / "schema.json").read_text())
    jsonschema.Draft202012Validator.check_schema(found)
    return found


@pytest.mark.parametrize("case", CASES)
def test_it_holds(case: str, schema: dict[str, object], tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    arguments = [argument.format(tmp_path) for argument in CASES[case]]
    code = run([*arguments, "--json"])
    document = json.loads(capsys.readouterr().out)
    jsonschema.validate(document, schema)
    assert document["exit_code"] == code
    assert document["results"]
    run([*arguments, "--output-format", "jsonl", *(["--force"] if "-o" in arguments else [])])
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["status"] for line in lines] == [result["status"] for result in document["results"]]


def test_a_ledger_holds_it_too(schema: dict[str, object], tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    ledger = str(tmp_path / "l.jsonl")
    command = ["convert", RGB, TRAINING, AMBIGUOUS, "--to", "gray", "--output-dir", str(tmp_path), "--ledger", ledger, "--json"]
    run(command)
    capsys.readouterr()
    for arguments, statuses in (([*command, "--resume"], ["skipped"] * 2), (["status", ledger, "--json"], ["converted"] * 2)):
        run(arguments)
        document = json.loads(capsys.readouterr().out)
        jsonschema.validate(document, schema)
        assert [result["status"] for result in document["results"]] == [*statuses, "failed"]


def test_the_command_prints_it(schema: dict[str, object], capsys: pytest.CaptureFixture[str]):
    assert run(["schema"]) == 0
    assert json.loads(capsys.readouterr().out) == schema
