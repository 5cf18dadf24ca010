"""Every model of transformers that sees images: the shapes that its converted weights have are those that the library builds from
the converted configuration, or the folder is refused. No weights are made: a file of the right size that is one hole."""

import json
import os
import struct
from math import prod

os.environ["TRANSFORMERS_VERBOSITY"] = "error"

import pytest
import torch
import transformers
from transformers.models.auto import modeling_auto
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from chkpt_channels import ChkptChannelsError
from chkpt_channels.folders.library_tables import FIXED_CHANNELS
from chkpt_channels.folders.model_folder import ModelFolder
from chkpt_channels.folders.planning import plan_model
from chkpt_channels.transform.options import build_options

TASKS = (
    "IMAGE_CLASSIFICATION", "SEMANTIC_SEGMENTATION", "UNIVERSAL_SEGMENTATION", "OBJECT_DETECTION", "DEPTH_ESTIMATION",
    "IMAGE_TO_IMAGE", "VIDEO_CLASSIFICATION", "ZERO_SHOT_IMAGE_CLASSIFICATION", "IMAGE_TEXT_TO_TEXT", "KEYPOINT_DETECTION",
    "BACKBONE", "IMAGE",
)  # fmt: skip
DTYPES = {
    torch.float32: "F32",
    torch.float64: "F64",
    torch.int64: "I64",
    torch.bool: "BOOL",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
}


def models() -> dict[str, str]:
    """One class for each kind of model."""
    found: dict[str, str] = {}
    for task in TASKS:
        for kind, name in getattr(modeling_auto, f"MODEL_FOR_{task}_MAPPING_NAMES").items():
            found.setdefault(kind, name if isinstance(name, str) else name[0])
    return found


def shapes(name, config) -> dict[str, torch.Tensor]:
    """What the library builds, without its numbers."""
    with torch.device("meta"):
        return getattr(transformers, name)(config).state_dict()


def hole(path, tensors) -> None:
    header, at = {}, 0
    for name, tensor in tensors.items():
        size = prod(tensor.shape) * tensor.element_size()
        header[name] = {"dtype": DTYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [at, at + size]}
        at += size
    raw = json.dumps(header).encode()
    raw += b" " * (-len(raw) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(raw)) + raw)
        file.truncate(8 + len(raw) + at)


def built(name, kind, folder) -> dict[str, torch.Tensor]:
    """The library's model by its default configuration, which is saved beside a file of that size. Empty where the library itself
    wants another library, or a configuration with more than its defaults."""
    try:
        config = CONFIG_MAPPING[kind]()
        before = shapes(name, config)
        config.architectures = [name]
        config.save_pretrained(folder)
    except Exception:  # of any kind: it is not ours
        return {}
    hole(folder / "model.safetensors", before)
    return before


def wrong(name, kind, folder, before) -> dict[str, object]:
    """What the library builds otherwise than it was converted. Raises what refuses the conversion."""
    with ModelFolder(folder) as opened:
        planned = plan_model(opened, opened.resolved(build_options(5)))
        documents = {file: sidecar.document.edited(edits) for file, (sidecar, edits) in planned.documents.items()}
        expected = {key: tuple(tensor.shape) for key, tensor in before.items()}
        for _, made in planned.parts:
            expected |= {key: edit.shape for key, edit in made.edits.tensors.items()}
    (folder / "new").mkdir()
    (folder / "new" / "config.json").write_bytes(documents["config.json"])
    found = {key: tuple(t.shape) for key, t in shapes(name, CONFIG_MAPPING[kind].from_pretrained(folder / "new")).items()}
    return {key: (expected.get(key), found.get(key)) for key in {**expected, **found} if expected.get(key) != found.get(key)}


@pytest.mark.slow
def test_the_library_builds_what_was_converted(tmp_path):
    outcome: dict[str, dict[str, object]] = {"right": {}, "wrong": {}, "refused": {}, "not built": {}}
    for kind, name in models().items():
        folder = tmp_path / kind
        folder.mkdir()
        if not (before := built(name, kind, folder)):
            outcome["not built"][kind] = name
            continue
        try:
            found = wrong(name, kind, folder, before)
            outcome["wrong" if found else "right"][kind] = found
        except ChkptChannelsError as error:
            outcome["refused"][kind] = str(error)
    assert not outcome["wrong"]
    assert len(outcome["right"]) > 130
    assert FIXED_CHANNELS.keys() & outcome["right"].keys() == set()
    print({word: len(found) for word, found in outcome.items()})
