"""`verify` on a conversion of some of the kernels that see the image, where names and shapes do not settle which do."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from chkpt_channels import AmbiguousError, convert, verify
from tests.api.test_verify import write
from tests.discovery.law.test_after import AUTOENCODER, SWIN_STEMS, SWIN_UNETR

Arrays = dict[str, np.ndarray]

FIRST, POINT, PATCH = sorted(SWIN_STEMS)


def arrays(shapes: dict[str, tuple[int, ...]] = SWIN_UNETR) -> Arrays:
    random = np.random.default_rng(0)
    return {name: random.standard_normal(shape).astype("<f4") for name, shape in shapes.items()}


def summed(before: Arrays, *names: str) -> Arrays:
    """The network with these kernels converted to gray by hand."""
    return {n: a.astype("<f8").sum(1, keepdims=True).astype("<f4") if n in names else a for n, a in before.items()}


@pytest.fixture
def original(tmp_path: Path) -> Path:
    return write(tmp_path / "a.safetensors", arrays())


def run(*arguments: str | Path) -> tuple[int, dict]:
    command = [sys.executable, "-m", "chkpt_channels", *map(str, arguments), "--json"]
    done = subprocess.run(command, capture_output=True, text=True)
    return done.returncode, json.loads(done.stdout)["results"][0]


def test_the_kernels_that_were_left_are_named(original: Path, tmp_path: Path):
    half = write(tmp_path / "b.safetensors", summed(arrays(), FIRST))
    code, result = run("verify", original, half)
    assert (code, result["status"], result["in_channels"]) == (1, "different", {"before": 3, "after": 1})
    assert {d["key"] for d in result["differences"]} == {POINT, PATCH}
    assert all(
        d["message"].startswith("takes the 3 channels of the image too, and was not converted: ") for d in result["differences"]
    )


@pytest.fixture
def ambiguous(tmp_path: Path) -> Path:
    return write(tmp_path / "a.safetensors", arrays(AUTOENCODER))


ENCODER, DECODER = "encoder.conv_in.weight", "decoder.conv_in.weight"


def test_who_names_the_kernels_is_warned(ambiguous: Path, tmp_path: Path):
    half = write(tmp_path / "b.safetensors", summed(arrays(AUTOENCODER), ENCODER))
    code, result = run("verify", ambiguous, half, "--layer", ENCODER)
    assert (code, result["status"], result["differences"]) == (0, "identical", [])
    (warning,) = [w for w in result["warnings"] if w["code"] == "unexplained"]
    assert DECODER in warning["message"]


def test_a_report_names_them_too(ambiguous: Path, tmp_path: Path):
    report, output = tmp_path / "report.json", tmp_path / "b.safetensors"
    code, result = run("convert", ambiguous, "--to", "gray", "--layer", ENCODER, "-o", output, "--report", report)
    assert (code, [w["code"] for w in result["warnings"]]) == (0, ["unexplained"])
    assert run("verify", ambiguous, output)[0] == 1
    code, result = run("verify", ambiguous, output, "--report", report)
    assert (code, [w["code"] for w in result["warnings"]]) == (0, ["unexplained"])


def test_like_names_them_too(original: Path, tmp_path: Path):
    like = write(tmp_path / "like.safetensors", summed(arrays(), FIRST, POINT))
    half = write(tmp_path / "b.safetensors", summed(arrays(), FIRST, POINT))
    found = verify(original, half, like=like)
    assert found.ok
    (warning,) = [w for w in found.warnings if w.code == "unexplained"]
    assert warning.message == (
        f"{PATCH} takes the 3 channels of the image too, and stays as it is: no layer is known to make these"
    )


def test_where_nothing_is_left_out_it_stays_ambiguous(ambiguous: Path, tmp_path: Path):
    """That all were converted does not show that each should have been."""
    whole = write(tmp_path / "b.safetensors", summed(arrays(AUTOENCODER), ENCODER, DECODER))
    with pytest.raises(AmbiguousError):
        verify(ambiguous, whole)
    assert verify(ambiguous, whole, layers=[ENCODER, DECODER]).ok
    with pytest.raises(AmbiguousError):
        verify(ambiguous, ambiguous)


def test_a_kernel_that_could_be_meant_is_named_as_such(tmp_path: Path):
    values = arrays(AUTOENCODER)
    before = write(tmp_path / "a.safetensors", values)
    after = write(tmp_path / "b.safetensors", summed(values, "encoder.conv_in.weight"))
    (difference,) = verify(before, after).differences
    assert difference.key == "decoder.conv_in.weight"
    assert difference.message.startswith("could take the 3 channels of the image too, and was not converted: ")


def test_a_permutation_shows_in_the_values(original: Path, tmp_path: Path):
    values = arrays()
    swapped = {n: a[:, ::-1].copy() if n in (FIRST, POINT) else a for n, a in values.items()}
    found = verify(original, write(tmp_path / "b.safetensors", swapped), "bgr")
    assert [d.key for d in found.differences] == [PATCH]
    assert found.in_channels == (3, 3)


def test_what_changed_otherwise_is_a_difference_too(original: Path, tmp_path: Path):
    half = summed(arrays(), FIRST)
    half[POINT] = half[POINT] + 1
    found = verify(original, write(tmp_path / "b.safetensors", half))
    assert {d.key for d in found.differences} == {POINT, PATCH}


def test_the_parts_of_a_folder_are_named(tmp_path: Path):
    for name, values in (("a", arrays()), ("b", summed(arrays(), FIRST))):
        for part in ("one", "two"):
            (tmp_path / name / part).mkdir(parents=True)
            write(tmp_path / name / part / "model.safetensors", values)
    found = verify(tmp_path / "a", tmp_path / "b")
    keys = {f"{part}/model.safetensors/{name}" for part in ("one", "two") for name in (POINT, PATCH)}
    assert {d.key for d in found.differences} == keys


def test_where_the_search_finds_all_the_plan_is_compared(tmp_path: Path):
    """In module order the stems are found; a kernel that was left is a difference from the plan, and said to be one."""
    shapes = {
        "stem.a.weight": (48, 3, 3, 3),
        "stem.b.weight": (48, 3, 1, 1),
        "s.0.a.weight": (48, 48, 3, 3),
        "s.0.b.weight": (48, 48, 1, 1),
    }
    values = arrays(shapes)
    before = write(tmp_path / "a.safetensors", values)
    convert(before, tmp_path / "whole.safetensors", "gray")
    assert verify(before, tmp_path / "whole.safetensors").ok
    half = write(tmp_path / "b.safetensors", summed(values, "stem.a.weight"))
    (difference,) = verify(before, half).differences
    shape = "it is F32 [48, 3, 1, 1], not F32 [48, 1, 1, 1]"
    assert difference == ("stem.b.weight", f"takes the 3 channels of the image too, and was not converted: {shape}")
