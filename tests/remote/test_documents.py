"""The commands of the documents that name stores, as they stand there, on files of the names that they use."""

from __future__ import annotations

import shlex
import shutil
from pathlib import Path

import pytest

from chkpt_channels.cli.app import run
from tests.remote.conftest import Bucket, Zoo
from tests.support.documents import DOCUMENTS, commands
from tests.support.files import FIXTURES
from tests.test_readme import COPIES, IN_A_STORE

COMMANDS = [command for text in DOCUMENTS.values() for command in commands(text) if IN_A_STORE.match(command)]


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_runs(command: str, bucket: Bucket, web: Zoo, hugging: Zoo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for name, fixture in COPIES.items():
        if "/" not in name:
            shutil.copy(FIXTURES / fixture, tmp_path / name)
            bucket.put(name, FIXTURES / fixture)
            for zoo in (web, hugging):
                shutil.copy(FIXTURES / fixture, zoo.root / name)
    bucket.put("vit/model.safetensors", FIXTURES / "safetensors" / "model.safetensors")
    (hugging.root / "vit").mkdir()
    shutil.copy(FIXTURES / "safetensors" / "model.safetensors", hugging.root / "vit")
    monkeypatch.chdir(tmp_path)
    assert all(name in "".join(COMMANDS) for name in ("s3://zoo/", "https://example.org/", "hf://owner/repository/"))
    typed = command.replace("https://example.org/", web.prefix).replace("hf://owner/repository/", hugging.prefix)
    assert run(shlex.split(typed)[1:]) == 0
