"""A configuration may hold anything where a table, a number or a name is looked up: that is no error of ours."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from chkpt_channels import ChkptChannelsError, check, convert
from chkpt_channels.folders import library_tables as tables
from tests.support.files import FIXTURES

KEYS = (
    *sorted({*tables.COUNTS, *tables.SIZE_KEYS, *tables.SHAPE_KEYS, *tables.WIDTH_KEYS, *tables.VISION, *tables.SCALING_KEYS}),
    *(key for pair in tables.NORMALIZATION_KEYS for key in pair),
    *("model_type", "architectures", "architecture", "_class_name", "registered_name", "config", "pretrained_cfg", "model_args"),
    *("first_conv", "encoder_name", "_model_class", "fusion_hidden_sizes", "do_convert_rgb", "do_rescale", "rescale_factor"),
    *("image_mode", "base_model_name_or_path", "weight_map"),
)
OTHER: tuple[Any, ...] = (None, 3, "vit", [], ["vit"], {}, {"model_type": []})
FEW = {"model_type": "vit", "num_channels": 3}


def attempt(folder: Path, out: Path) -> set[str]:
    """What escapes of each function; the errors that are told are none."""
    escaped = set()
    for work in (
        lambda: check(folder / "model.safetensors", "rgb"),
        lambda: convert(folder, out, to="gray", norm="auto", dry_run=True),
    ):
        try:
            work()
        except ChkptChannelsError:
            pass
        except Exception as error:
            escaped.add(f"{type(error).__name__}: {error}")
    return escaped


@pytest.mark.parametrize("name", ["config.json", "preprocessor_config.json"])
def test_any_value_under_any_key(name: str, tmp_path: Path):
    folder, escaped = tmp_path / "model", {}
    folder.mkdir()
    (folder / "model.safetensors").write_bytes((FIXTURES / "safetensors" / "model.safetensors").read_bytes())
    (folder / "config.json").write_text(json.dumps(FEW))
    for key in KEYS:
        for value in OTHER:
            inside = {**FEW, key: value}
            for document in (inside, {"vision_config": inside}, {"pretrained_cfg": inside}):
                (folder / name).write_text(json.dumps(document))
                if found := attempt(folder, tmp_path / "out"):
                    escaped[json.dumps(document)] = found
    assert not escaped
