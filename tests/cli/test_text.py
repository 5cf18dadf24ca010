"""The reports of inspect, check and verify for people, line by line."""

from __future__ import annotations

from typing import Any

import pytest

from chkpt_channels import Candidate
from chkpt_channels.api.report import Check, Difference, FileInfo, Inspection, KernelReport, Mismatch, Verification
from chkpt_channels.cli.text import candidate_rows, check_lines, inspection_lines, verification_lines
from chkpt_channels.core.dtypes import BY_NAME
from chkpt_channels.core.layout import Layout
from chkpt_channels.core.tensors import Declaration, FirstConv, Notice, OptimizerEntry, Tensor
from chkpt_channels.transform.mixing.normalization import Normalization

KERNEL = Tensor("conv1.weight", BY_NAME["F32"], (64, 3, 7, 7))
CONV = FirstConv(KERNEL, Layout("OIHW"), 3, "shapes", "the first conv in module order")
SUM = KernelReport(CONV, (64, 1, 7, 7), "sum", ((1.0,), (1.0,), (1.0,)))
SOURCE = FileInfo("models/rgb.pth", "torch_zip", 100 << 20, "PyTorch (zip)")
TARGET = FileInfo("models/gray.pth", "torch_zip", 99 << 20)
SAME = KernelReport(CONV, (64, 3, 7, 7), "identity", ((1.0, 0.0), (0.0, 1.0)))


# Inspected


INSPECTION = Inspection(SOURCE, (CONV,), (), (), (KERNEL, Tensor("n", BY_NAME["I64"], ())), (), ())


def test_an_inspection_is_told():
    assert list(inspection_lines(INSPECTION)) == [
        "models/rgb.pth: PyTorch (zip) · 100.0 MiB",
        "  first conv   conv1.weight   OIHW 64×3×7×7  float32   found by shapes: the first conv in module order",
        "  2 tensors; --all lists them",
    ]


def test_every_tensor_is_listed_if_asked_for():
    assert list(inspection_lines(INSPECTION, everything=True))[2:] == [
        "  conv1.weight  float32   64×3×7×7",
        "  n             int64     scalar",
    ]


def test_what_stands_beside_is_told():
    moment = Tensor("optimizer/m", BY_NAME["F32"], KERNEL.shape)
    found = INSPECTION._replace(
        first_convs=(CONV, CONV._replace(tensor=KERNEL._replace(name="b"), why="")),
        declarations=(Declaration("in_channels", 3),),
        optimizer=(OptimizerEntry("optimizer", "conv1.weight", {"m": moment}, {"step": 1}),),
        warnings=(Notice("lambda", "look out"),),
    )
    assert list(inspection_lines(found))[2:] == [
        "               b              OIHW 64×3×7×7  float32   found by shapes",
        "  declared     in_channels = 3",
        "  carried      optimizer/m",
        "  warning      look out",
        "  2 tensors; --all lists them",
    ]


CANDIDATES = tuple(Candidate(f"layer{k}.weight", (8, 3, 3, 3), "fed" if k else "") for k in range(12))


def test_where_none_could_be_told_the_candidates_are():
    lines = list(inspection_lines(INSPECTION._replace(first_convs=(), candidates=CANDIDATES)))
    assert lines[1:4] == ["  first conv   none identified", "  layer0.weight   8×3×3×3", "  layer1.weight   8×3×3×3   fed"]
    assert lines[-2:] == ["  and 2 more", "  2 tensors; --all lists them"]


def test_candidates_that_were_not_taken_are_told_if_asked_for():
    found = INSPECTION._replace(candidates=CANDIDATES)
    assert "  rejected:" not in list(inspection_lines(found))
    lines = list(inspection_lines(found, verbose=True))
    assert lines[2] == "  rejected:"
    assert len(lines) == 3 + len(CANDIDATES) + 1


def test_no_candidates_are_no_rows():
    assert list(candidate_rows(())) == []


# Checked, verified


def test_a_check_tells_what_disagrees_and_nothing_else():
    (line,) = check_lines(Check(SOURCE, (CONV,), ()))
    assert line == "✓ models/rgb.pth: 3 input channels (conv1.weight), and nothing that declares another number"
    (line,) = check_lines(Check(SOURCE, (CONV,), (), against=("config.json", "--expect 3")))
    assert line == "✓ models/rgb.pth: 3 input channels (conv1.weight), in agreement with config.json and --expect 3"
    assert list(check_lines(Check(SOURCE, (), (), "no checkpoint"))) == ["models/rgb.pth: skipped: no checkpoint"]
    mismatch = Mismatch("config.json", "num_channels", 3, 1)
    assert list(check_lines(Check(SOURCE, (CONV,), (mismatch,)))) == ["config.json: num_channels: found 3, expected 1"]


VERIFIED = Verification(SOURCE, TARGET, (3, 1), (SUM,), 9, 10, (), ())


@pytest.mark.parametrize(
    ("kernel", "expected"),
    [
        (SUM, "conv1.weight is the sum of R, G and B, to the last bit"),
        (
            SUM._replace(offset=(1.0,)),
            "conv1.weight is the sum of R, G and B, both normalizations folded in, to the last bit",
        ),
        (
            SUM._replace(method="fold-adapter", offset=(1.0,)),
            "conv1.weight is composed with the convolution in front of it, and its constant, to the last bit",
        ),
        (SUM._replace(method="mean"), "conv1.weight is the mean of R, G and B, to the last bit"),
        (
            SUM._replace(method="luma", matrix=((0.2, 0.7, 0.1),)),
            "conv1.weight is split over 3 channels by 0.2, 0.7, 0.1, to the last bit",
        ),
        (SUM._replace(method="stack"), "conv1.weight is unchanged, to the last bit"),
        (SAME, "conv1.weight is unchanged, to the last bit"),
    ],
    ids=["sum", "pipelines", "folded", "mean", "luma", "stack", "identity"],
)
def test_a_file_that_is_the_conversion_is_told_by_its_rule(kernel: KernelReport, expected: str):
    assert next(verification_lines(VERIFIED._replace(kernels=(kernel,)))) == f"identical: 9 of 10 tensors · {expected}"


SWAPPED = ((0.0, 0.0, 1.0), (0.0, 1.0, 0.0), (1.0, 0.0, 0.0))


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, ["the network takes 1 channel where it took 3"]),
        ({"kernels": (SUM._replace(method="stack"),)}, ["the network takes 1 channel; the graph makes 3 of it"]),
        ({"kernels": (SAME,)}, []),
        ({"in_channels": (3, 3), "kernels": (SUM._replace(method="bgr", matrix=SWAPPED),)},
         ["the network takes 3 channels, the old ones 2, 1, 0, where it took 3"]),
        ({"pipeline": Normalization((0.5,), (0.25,), 1.0)},
         ["the network takes 1 channel where it took 3; feed it Normalize(mean=[0.5], std=[0.25])"]),
        ({"differences": (Difference("layer", "differs"),)}, ["  layer: differs"]),
    ],
    ids=["gray", "stack", "unchanged", "bgr", "a normalization", "different"],
)  # fmt: skip
def test_what_the_input_of_a_conversion_takes(changes: dict[str, Any], expected: list[str]):
    assert list(verification_lines(VERIFIED._replace(**changes)))[1:] == expected


def test_differences_are_told_up_to_a_number():
    differences = tuple(Difference(f"layer{k}", "differs") for k in range(12))
    lines = list(verification_lines(VERIFIED._replace(differences=differences)))
    assert lines[0] == "models/rgb.pth and models/gray.pth: 12 differences; 9 of 10 tensors are identical"
    assert lines[1:3] == ["  layer0: differs", "  layer1: differs"]
    assert (len(lines), lines[-1]) == (12, "  and 2 more")
    one = next(verification_lines(VERIFIED._replace(differences=differences[:1])))
    assert one.endswith("1 difference; 9 of 10 tensors are identical")
