"""Settings of outputs: which apply to which source and output, and what the others are refused for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from chkpt_channels import UsageError
from chkpt_channels.api.output.target import Settings
from tests.support.files import FIXTURES

RGB = FIXTURES / "torch_zip" / "state_dict.pth"


@pytest.mark.parametrize(
    ("settings", "dst", "words"),
    [
        ({"hash_name": True}, "-", "standard output has neither a name nor a folder"),
        ({"with_sidecars": True}, "-", "standard output has neither a name nor a folder"),
        ({"sha256": True}, None, ""),
        ({"hash_name": True}, "a.pth", ""),
    ],
)
def test_settings_of_files(settings: dict[str, Any], dst: str | None, words: str):
    chosen = Settings(**settings)
    if not words:
        assert chosen.validated(RGB, dst) == chosen
        return
    with pytest.raises(UsageError, match=words):
        chosen.validated(RGB, dst)


def test_settings_of_folders(tmp_path: Path):
    assert Settings(hard_link=True).validated(tmp_path, None).hard_link
    with pytest.raises(UsageError, match="-o names an output folder"):
        Settings().validated(tmp_path, "-")
    with pytest.raises(UsageError, match="apply to files"):
        Settings(state_dict="").validated(tmp_path, None)
