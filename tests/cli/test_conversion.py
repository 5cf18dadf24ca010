"""The report of a conversion for people, line by line."""

from __future__ import annotations

from typing import Any

import pytest

from chkpt_channels import Candidate
from chkpt_channels.api.report import DeclarationChange, FileInfo, KernelReport, Parity, Report
from chkpt_channels.cli.conversion import closing_lines, conversion_lines, explanation_lines, outcome_row, parts, warning_lines
from chkpt_channels.core.dtypes import BY_NAME
from chkpt_channels.core.layout import Layout
from chkpt_channels.core.tensors import FirstConv, Notice, Tensor
from chkpt_channels.storage.stores.parts import Transfer

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


def test_a_conversion_is_told_outcome_first():
    assert list(conversion_lines(REPORT)) == [
        "✓ models/gray.pth   3 → 1 channels   99.0 MiB   0.1 s",
        "  conv1.weight   64×3×7×7 → 64×1×7×7, the sum of R, G and B; the other 9 tensors are byte-identical",
        "  checked: a random gray image gives in the first layer what it gave stacked 3 times (|Δ| ≤ 1.2e-07, 1.5 ulp)",
    ]


def test_a_dry_run_says_so():
    first, *_, last = conversion_lines(told(output=None))
    assert first == "models/gray.pth   3 → 1 channels   dry run, nothing was written"
    assert last.startswith("  computed: ")


CHANGES: dict[str, tuple[dict[str, Any], str]] = {
    "also changed": ({"changed": ("conv1.weight", "bn.running_mean", "b")}, "  also changed: bn.running_mean, b"),
    "taken out": ({"changed": ("conv1.weight", "b", "m"), "removed": ("m",)}, "  also taken out: m"),
    "the others then": ({"changed": ("conv1.weight", "b")}, "  the other 8 tensors are byte-identical"),
    "one other": (
        {"tensors_total": 2},
        "  conv1.weight   64×3×7×7 → 64×1×7×7, the sum of R, G and B; the other 1 tensor is byte-identical",
    ),
    "no other": ({"tensors_total": 1}, "  conv1.weight   64×3×7×7 → 64×1×7×7, the sum of R, G and B"),
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
    "a hash": ({"output": TARGET._replace(sha256="abc")}, "  sha256: abc"),
    "RGB": (
        {"in_channels": (1, 3)},
        "  checked: a random RGB image gives in the first layer what its old channels gave (|Δ| ≤ 1.2e-07, 1.5 ulp)",
    ),
    "no parity": ({"parity": None}, "  checked: read back as planned; where nothing was to change, no byte did"),
    "as many": ({"in_channels": (3, 3)}, "✓ models/gray.pth   3 channels   99.0 MiB   0.1 s"),
    "an odd name": ({"target": "models/a\nb.pth"}, "✓ models/a\\nb.pth   3 → 1 channels   99.0 MiB   0.1 s"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_what_a_conversion_did_has_its_line(name: str):
    changes, expected = CHANGES[name]
    assert expected in list(conversion_lines(told(**changes)))
    assert expected not in list(conversion_lines(REPORT))


SAME = KernelReport(CONV, (64, 3, 7, 7), "identity", ((1.0, 0.0), (0.0, 1.0)))
UNCHANGED: dict[str, Any] = {"status": "unchanged", "kernels": (SAME,), "in_channels": (3, 3), "changed": ()}


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, "unchanged: 3 input channels already; every byte copied   99.0 MiB   0.1 s"),
        ({"in_channels": (1, 1)}, "unchanged: 1 input channel already; every byte copied   99.0 MiB   0.1 s"),
        ({"output": None}, "unchanged: 3 input channels already   dry run, nothing was written"),
        ({"warnings": (Notice("renamed_data", "…"),)}, "unchanged: 3 input channels already   99.0 MiB   0.1 s"),
        (
            {"kernels": (), "in_channels": (0, 0)},
            "unchanged: no shape differs from LIKE; every byte copied   99.0 MiB   0.1 s",
        ),
    ],
    ids=["copied", "one", "dry run", "renamed", "like"],
)
def test_what_is_as_asked_already_is_told_and_no_more(changes: dict[str, Any], expected: str):
    report = told(**{**UNCHANGED, **changes})
    assert list(conversion_lines(report)) == [f"= models/gray.pth   {expected}"]
    assert report.result()["method"] == "identity"
    assert (report.result()["in_channels"] is None) == (report.in_channels == (0, 0))


def test_the_evidence_is_a_v_away():
    report = told(candidates=(Candidate("conv2.weight", (8, 3, 3, 3), "fed"),), why="exact")
    assert [line for line in conversion_lines(report, verbose=True) if line not in list(conversion_lines(report))] == [
        "  from models/rgb.pth: PyTorch (zip), 100.0 MiB",
        "                 OIHW, float32, found by shapes: the first conv in module order",
        "                 old = A · new, A = [1; 1; 1]",
        "  sum is the default here: exact",
        "  6,272 parameters fewer",
        "  rejected:",
        "    conv2.weight   8×3×3×3   fed",
    ]
    assert "  1 parameter more" in list(conversion_lines(told(parameters_fewer=-1), verbose=True))


def test_names_of_several_kernels_are_aligned_and_the_others_have_a_line():
    other = SUM._replace(conv=CONV._replace(tensor=KERNEL._replace(name="a")))
    lines = list(conversion_lines(told(kernels=(SUM, other), changed=("conv1.weight", "a"))))
    assert lines[1].index("64×3") == lines[2].index("64×3")
    assert lines[3] == "  the other 8 tensors are byte-identical"


def test_one_of_many_is_a_line_with_its_warnings():
    warned = told(warnings=(Notice("a", "look"),))
    row = "rgb.pth     ✓ models/gray.pth   3 → 1 channels   sum   0.1 s"
    assert outcome_row("rgb.pth", REPORT, 9) == row
    lines, messages, closing = parts(warned, "rgb.pth", 9, explain=False, verbose=False)
    assert (list(lines), list(messages), list(closing)) == ([row], ["warning: rgb.pth: look"], [])
    assert outcome_row("rgb.pth", told(**UNCHANGED), 7) == (
        "rgb.pth   = models/gray.pth   unchanged: 3 input channels already; every byte copied   0.1 s"
    )
    assert outcome_row("rgb.pth", told(output=None), 7).endswith("   dry run")


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


# Input and Load


def test_advice_stands_under_input():
    advice = (Notice("a", "feed it \x1b[2J"), Notice("b", "more"))
    assert list(closing_lines(told(advice=advice)))[:2] == ["  Input  feed it \\x1b[2J", "         more"]


def test_warnings_cannot_move_the_cursor():
    lines = list(warning_lines(told(warnings=(Notice("a", "one\x1b[2J"), Notice("b", "two")))))
    assert lines == ["warning: one\\x1b[2J", "warning: two"]


def test_the_lines_that_load_it_come_last_and_stand_as_they_are():
    assert list(closing_lines(REPORT))[-3:] == ["  Load", *REPORT.load_lines]


def test_a_dry_run_and_standard_output_have_nothing_to_load():
    for output in (None, TARGET._replace(path="-")):
        assert "  Load" not in list(closing_lines(told(output=output)))


def test_where_the_graph_changed_all_tensors_are_the_same():
    stacked = SUM._replace(method="stack", shape_after=KERNEL.shape)
    for total, words in ((9, "all 9 tensors are"), (1, "its 1 tensor is")):
        lines = list(conversion_lines(told(kernels=(stacked,), changed=(), tensors_total=total, parity=None)))
        expected = f"no weight changed; the graph makes the 3 old channels of the new one; {words} byte-identical"
        assert lines[1] == f"  conv1.weight   64×3×7×7, {expected}"


def test_how_an_output_came_into_a_store():
    moved = Transfer("copied", 3 << 20, 5 << 20, 90 << 20, 31, "store", 95 << 20)
    report = REPORT._replace(transfer=moved, output=TARGET._replace(path="s3://zoo/b.pth"))
    said = [line for line in conversion_lines(report) if line.startswith("  store: ")]
    assert said == [
        "  store: 90.0 MiB copied there; 3.0 MiB read, 5.0 MiB sent; 31 requests",
        "  store: 95.0 MiB of the source were compared with no checksum, here or there",
    ]
    assert "  Load   once aws s3 cp s3://zoo/b.pth . has fetched it" in list(closing_lines(report))
    streamed = REPORT._replace(transfer=Transfer("streamed", 0, 5 << 20, 0, 9, "looked", 0))
    assert [line for line in conversion_lines(streamed) if line.startswith("  store: ")] == [
        "  store: all of it streamed through here; 0 bytes read, 5.0 MiB sent; 9 requests",
        "  store: that no other's new object was replaced shows a look right before the end, not the store itself",
    ]
