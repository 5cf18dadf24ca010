"""The reports for people, line by line."""

from __future__ import annotations

from typing import Any

import pytest

from chkpt_channels import Candidate
from chkpt_channels.api.report import (
    Check,
    DeclarationChange,
    Difference,
    FileInfo,
    Inspection,
    KernelReport,
    Mismatch,
    Parity,
    Report,
    Verification,
)
from chkpt_channels.cli.text import (
    candidate_rows,
    check_lines,
    conversion_lines,
    dtype,
    explanation_lines,
    inspection_lines,
    note_lines,
    shape,
    size,
    verification_lines,
)
from chkpt_channels.core.dtypes import BY_NAME
from chkpt_channels.core.layout import Layout
from chkpt_channels.core.tensors import Declaration, FirstConv, Notice, OptimizerEntry, Tensor
from chkpt_channels.transform.mixing.normalization import Normalization

KERNEL = Tensor("conv1.weight", BY_NAME["F32"], (64, 3, 7, 7))
CONV = FirstConv(KERNEL, Layout("OIHW"), 3, "shapes", "the first conv in module order")
SUM = KernelReport(CONV, (64, 1, 7, 7), "sum", ((1.0,), (1.0,), (1.0,)))
SOURCE = FileInfo("models/rgb.pth", "torch_zip", 100 << 20, "PyTorch (zip)")
TARGET = FileInfo("models/gray.pth", "torch_zip", 99 << 20)
REPORT = Report(
    status="converted",
    input=SOURCE,
    target="models/gray.pth",
    output=TARGET,
    in_channels=(3, 1),
    kernels=(SUM,),
    declarations=(),
    tensors_total=10,
    changed=("conv1.weight",),
    parameters_fewer=6272,
    parity=Parity(1.2e-7, 1.5),
    warnings=(),
    seconds=0.123,
    load_lines=("import torch", "model.load_state_dict(torch.load('gray.pth'))"),
)


def told(**changes: Any) -> Report:
    return REPORT._replace(**changes)


@pytest.mark.parametrize(
    ("count", "expected"),
    [
        (0, "0 bytes"),
        (1023, "1023 bytes"),
        (1024, "1.0 KiB"),
        (102_550_733, "97.8 MiB"),
        ((1 << 30) * 3 // 2, "1.5 GiB"),
        (5 << 40, "5.0 TiB"),
        (5000 << 40, "5000.0 TiB"),
    ],
)
def test_bytes_are_told_in_units(count: int, expected: str):
    assert size(count) == expected


@pytest.mark.parametrize(("dimensions", "expected"), [((64, 3, 7, 7), "64×3×7×7"), ((5,), "5"), ((), "scalar")], ids=str)
def test_shapes_are_told_with_crosses(dimensions: tuple[int, ...], expected: str):
    assert shape(dimensions) == expected


@pytest.mark.parametrize(("name", "expected"), [("F32", "float32"), ("BF16", "bfloat16"), ("QI8", "qint8"), ("I4", "I4")])
def test_element_types_are_told_in_torchs_words_if_it_has_any(name: str, expected: str):
    assert dtype(Tensor("k", BY_NAME[name], ())) == expected


def test_a_conversion_is_told_in_a_few_lines():
    assert list(conversion_lines(REPORT)) == [
        "rgb.pth → gray.pth   PyTorch (zip) · 100.0 MiB · 0.1 s",
        "  conv1.weight   OIHW  64×3×7×7 → 64×1×7×7   float32   sum   found by shapes: the first conv in module order",
        "  9 other tensors: identical bytes · 6,272 parameters fewer",
        "  parity on a random gray image: max |Δ| 1.2e-07 (1.5 ulp)",
    ]


CHANGES: dict[str, tuple[dict[str, Any], str]] = {
    "dry run": ({"output": None}, "rgb.pth → gray.pth   PyTorch (zip) · 100.0 MiB · dry run, nothing was written"),
    "why": ({"why": "exact everywhere"}, "  sum is the default here: exact everywhere"),
    "more parameters": ({"parameters_fewer": -1}, "  9 other tensors: identical bytes · 1 parameter more"),
    "one other": ({"tensors_total": 2}, "  1 other tensor: identical bytes · 6,272 parameters fewer"),
    "also changed": ({"changed": ("conv1.weight", "bn.running_mean", "b")}, "  also changed: bn.running_mean, b"),
    "declared": (
        {"declarations": (DeclarationChange("model.conv1.in_channels", 3, 1),)},
        "  model.conv1.in_channels: 3 → 1",
    ),
    "declared elsewhere": (
        {"declarations": (DeclarationChange("image_mean", [0.4850001, 0.5], None, "models/config.json"),)},
        "  config.json: image_mean: [0.485, 0.5] → none",
    ),
    "a switch": (
        {"declarations": (DeclarationChange("do_rescale", True, False, "models/vae/config.json"),)},
        "  vae/config.json: do_rescale: true → false",
    ),
    "beside it": ({"beside": ("models/config.json", "models/a.data")}, "  beside it: config.json, a.data"),
    "RGB": ({"in_channels": (1, 3)}, "  parity on a random RGB image: max |Δ| 1.2e-07 (1.5 ulp)"),
    "bands": ({"in_channels": (3, 13)}, "  parity on a random 13-channel image: max |Δ| 1.2e-07 (1.5 ulp)"),
    "an odd name": ({"target": "models/a\nb.pth"}, "rgb.pth → a\\nb.pth   PyTorch (zip) · 100.0 MiB · 0.1 s"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_what_a_conversion_did_has_its_line(name: str):
    changes, expected = CHANGES[name]
    assert expected in list(conversion_lines(told(**changes)))
    assert expected not in list(conversion_lines(REPORT))


SAME = KernelReport(CONV, (64, 3, 7, 7), "identity", ((1.0, 0.0), (0.0, 1.0)))


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, "  unchanged: 3 input channels already; every byte copied"),
        ({"in_channels": (1, 1)}, "  unchanged: 1 input channel already; every byte copied"),
        ({"output": None}, "  unchanged: 3 input channels already"),
        ({"warnings": (Notice("renamed_data", "…"),)}, "  unchanged: 3 input channels already"),
    ],
    ids=["copied", "one", "dry run", "renamed"],
)
def test_what_is_as_asked_already_is_told_and_no_more(changes: dict[str, Any], expected: str):
    lines = list(
        conversion_lines(told(**{"status": "unchanged", "kernels": (SAME,), "in_channels": (3, 3), "changed": (), **changes}))
    )
    assert lines[1:] == [
        "  conv1.weight   OIHW  64×3×7×7   float32   found by shapes: the first conv in module order",
        expected,
    ]


def test_everything_is_told_if_asked_for():
    lines = list(conversion_lines(told(candidates=(Candidate("conv2.weight", (8, 3, 3, 3), "fed"),)), verbose=True))
    assert "                 old = A · new, A = [1; 1; 1]" in lines
    assert lines[-3:-1] == ["  rejected:", "    conv2.weight   8×3×3×3   fed"]


def test_names_of_several_kernels_are_aligned():
    other = SUM._replace(conv=CONV._replace(tensor=KERNEL._replace(name="a")))
    first, second = list(conversion_lines(told(kernels=(SUM, other))))[1:3]
    assert first.index("OIHW") == second.index("OIHW")


# Explained


def test_a_matrix_is_explained():
    luma = KernelReport(CONV, (64, 2, 7, 7), "matrix", ((1.0, 0.25), (0.5, 0.123456789), (0.0, 10.0)))
    assert list(explanation_lines(told(kernels=(luma,)))) == [
        "conv1.weight   OIHW  64×3×7×7 → 64×2×7×7   matrix",
        "  x_old[i] = Σ_j A[i, j] · x_new[j]",
        "  W'[j] = Σ_i W[i] · A[i, j]   for every filter and tap, in float64, rounded once to float32",
        "  A = [        1      0.25 ]",
        "      [      0.5  0.123457 ]",
        "      [        0        10 ]",
    ]


def test_a_shift_is_explained_with_it():
    lines = list(explanation_lines(told(kernels=(SUM._replace(offset=(0.5, 0.0, -1.0)),), why="of the pipelines")))
    assert lines[1:] == [
        "  x_old[i] = Σ_j A[i, j] · x_new[j] + t[i]",
        "  W'[j] = Σ_i W[i] · A[i, j]   for every filter and tap, in float64, rounded once to float32",
        "  b' = b + Σ_i t[i] · Σ_taps W[i]",
        "  A = [ 1 ]   t = 0.5",
        "      [ 1 ]   t = 0",
        "      [ 1 ]   t = -1",
        "sum is the default here: of the pipelines",
    ]


@pytest.mark.parametrize("method", ["broadcast", "stack", "identity"])
def test_where_no_weight_changes_nothing_is_explained(method: str):
    kernel = KernelReport(CONV._replace(layout=None), None, method, ((1.0,),))
    assert list(explanation_lines(told(kernels=(kernel,)))) == [
        f"conv1.weight   layout ambiguous  64×3×7×7 → 64×3×7×7   {method}",
        "  W' = W: no weight changes",
    ]


def test_an_adapter_is_explained_with_its_matrix():
    kernel = KernelReport(CONV, None, "adapter", ((1.0, 0.5),), (0.25,))
    assert list(explanation_lines(told(kernels=(kernel,)))) == [
        "conv1.weight   OIHW  64×3×7×7 → 64×3×7×7   adapter",
        "  x_old[i] = Σ_j A[i, j] · x_new[j] + t[i]",
        "  W' = W: a 1×1 convolution in front holds A and t",
        "  A = [   1  0.5 ]   t = 0.25",
    ]


def test_a_kernel_that_grows_is_explained_by_taps():
    kernel = KernelReport(CONV, (64, 2, 9, 9), "fold-adapter", ((1.0, 0.5),))
    assert list(explanation_lines(told(kernels=(kernel,)))) == [
        "conv1.weight   OIHW  64×3×7×7 → 64×2×9×9   fold-adapter",
        "  x_old[i, u] = Σ_a Σ_j A_a[i, j] · x_new[j, u + a]",
        "  W'[j, a + b] = Σ_i W[i, b] · A_a[i, j]   for every filter, A = Σ_a A_a, in float64, rounded once to float32",
        "  A = [   1  0.5 ]",
    ]


# Notes


IMAGENET = Normalization((0.5,), (0.25,))
NOTES: dict[str, tuple[dict[str, Any], list[str]]] = {
    "gray": (
        {},
        ["note: sum is exact where preprocessing had three equal means and stds; --norm imagenet folds in unequal ones"],
    ),
    "more channels": (
        {"in_channels": (3, 4)},
        ["note: preprocessing now needs 4 means and 4 stds; --norm folds in the old ones"],
    ),
    "another order": (
        {"in_channels": (3, 3)},
        ["note: preprocessing must give the channels, their means and stds in the new order"],
    ),
    "stack": (
        {"kernels": (SUM._replace(method="stack"),)},
        ["note: stack: no weight changed; the graph makes the 3 old channels of the new one, exact everywhere"],
    ),
    "adapter": (
        {"kernels": (SUM._replace(method="adapter"),), "in_channels": (3, 4)},
        ["note: adapter: no weight changed; the graph makes the 3 old channels of 4 new ones, exact everywhere"],
    ),
    "a pipeline": ({"pipeline": IMAGENET}, ["note: feed it (raw - mean) / std: --new-mean 0.5 --new-std 0.25"]),
    "a pipeline for bytes": (
        {"pipeline": IMAGENET._replace(input_range=255.0)},
        ["note: feed it (raw - 255 · mean) / std, raw in 0..255: --new-mean 0.5 --new-std 0.25"],
    ),
    "raw images": ({"pipeline": Normalization((0.0,), (1.0,))}, ["note: feed it images in 0..1 as they are"]),
    "unchanged": ({"status": "unchanged"}, []),
}


@pytest.mark.parametrize("name", NOTES)
def test_what_the_pipeline_has_to_do_is_noted(name: str):
    changes, expected = NOTES[name]
    following = (
        [] if changes.get("status") == "unchanged" else ["next: import torch; model.load_state_dict(torch.load('gray.pth'))"]
    )
    assert list(note_lines(told(**changes))) == [*expected, *following]


def test_warnings_come_first_and_cannot_move_the_cursor():
    lines = list(note_lines(told(warnings=(Notice("a", "one\x1b[2J"), Notice("b", "two")))))
    assert lines[:2] == ["warning: one\\x1b[2J", "warning: two"]


def test_a_dry_run_has_nothing_to_load():
    assert not any(line.startswith("next:") for line in note_lines(told(output=None)))


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
    assert list(check_lines(Check(SOURCE, (CONV,), ()))) == []
    assert list(check_lines(Check(SOURCE, (), (), "no checkpoint"))) == ["models/rgb.pth: skipped: no checkpoint"]
    mismatch = Mismatch("config.json", "num_channels", 3, 1)
    assert list(check_lines(Check(SOURCE, (CONV,), (mismatch,)))) == ["config.json: num_channels: found 3, expected 1"]


VERIFIED = Verification(SOURCE, TARGET, (3, 1), (SUM,), 9, 10, (), ())


@pytest.mark.parametrize(
    ("kernel", "expected"),
    [
        (SUM, "conv1.weight is the sum over its 3 input channels, to the last bit"),
        (
            SUM._replace(offset=(1.0,)),
            "conv1.weight is the sum over its 3 input channels, with both normalizations folded in, to the last bit",
        ),
        (
            SUM._replace(method="fold-adapter", offset=(1.0,)),
            "conv1.weight is made by fold-adapter from 3 input channels to 1, with its constant folded in, to the last bit",
        ),
        (SUM._replace(method="mean"), "conv1.weight is made by mean from 3 input channels to 1, to the last bit"),
        (
            SUM._replace(method="luma", matrix=((0.2, 0.7, 0.1),)),
            "conv1.weight is made by luma from 1 input channel to 3, to the last bit",
        ),
        (SAME, "conv1.weight is unchanged, to the last bit"),
    ],
    ids=["sum", "pipelines", "folded", "mean", "luma", "identity"],
)
def test_a_file_that_is_the_conversion_is_told_by_its_rule(kernel: KernelReport, expected: str):
    assert next(verification_lines(VERIFIED._replace(kernels=(kernel,)))) == f"identical: 9 of 10 tensors · {expected}"


SWAPPED = ((0.0, 0.0, 1.0), (0.0, 1.0, 0.0), (1.0, 0.0, 0.0))


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, ["the input takes 1 channel where it took 3"]),
        ({"kernels": (SAME,)}, []),
        ({"in_channels": (3, 3), "kernels": (SUM._replace(method="bgr", matrix=SWAPPED),)},
         ["the input takes 3 channels, the old ones 2, 1, 0, where it took 3"]),
        ({"pipeline": Normalization((0.5,), (0.25,), 1.0)},
         ["the input takes 1 channel where it took 3; feed it (raw - mean) / std: --new-mean 0.5 --new-std 0.25"]),
        ({"differences": (Difference("layer", "differs"),)}, ["  layer: differs"]),
    ],
    ids=["gray", "unchanged", "bgr", "a normalization", "different"],
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


def test_where_nothing_differs_from_like_no_kernel_need_be_known():
    report = told(status="unchanged", kernels=(), in_channels=(0, 0), changed=(), parity=None, why="")
    assert list(conversion_lines(report))[1:] == ["  unchanged: no shape differs from LIKE; every byte copied"]
    assert report.result()["in_channels"] is None
    assert report.result()["method"] == "identity"
