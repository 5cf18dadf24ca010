"""What a notebook shows: lines, tables, pictures, names to complete; and that a file cannot put HTML into it."""

from __future__ import annotations

import base64
import io
import pickle
import re
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy

import chkpt_channels
from chkpt_channels import check, convert, inspect, verify
from tests.support.files import FIXTURES
from tests.support.memory import NET, kernel

RGB = FIXTURES / "torch_zip" / "state_dict.pth"
HOSTILE = "<script>alert('x')</script>&\"conv1.weight"


class Tags(HTMLParser):
    """The tags, attributes and text of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: set[str] = set()
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes |= {name for name, _ in attrs}

    def handle_data(self, data: str) -> None:
        self.text += data + "\n"


def pixels(page: str) -> Any:
    image = pytest.importorskip("matplotlib.image")
    (found,) = re.findall(r"src='data:image/png;base64,([^']+)'", page)
    return image.imread(io.BytesIO(base64.b64decode(found)))


def hostile(path: Path) -> Path:
    network = {HOSTILE if name == "conv1.weight" else name: array for name, array in NET.items()}
    safetensors.numpy.save_file(network, path)
    return path


def test_completion_offers_what_users_need(tmp_path: Path):
    assert {*dir(chkpt_channels)} == {*chkpt_channels.__all__, "__version__"}
    for result in (convert(RGB, tmp_path / "a.pth"), inspect(RGB), verify(RGB, RGB, to="rgb"), check(RGB)):
        assert not [name for name in dir(result) if name.startswith("_") or name in ("count", "index")]
        assert {"input", "result"} <= {*dir(result)}
        assert all(hasattr(result, name) for name in dir(result))


def test_results_are_one_line(tmp_path: Path):
    gray = tmp_path / "gray.pth"
    report = convert(RGB, gray, to="gray")
    assert str(report) == f"{gray}: 3 → 1 channels; conv1.weight 8×3×7×7 → 8×1×7×7, the sum of R, G and B"
    assert str(convert(RGB, to="gray", dry_run=True)).split(": ")[1].startswith("dry run, 3 → 1 channels")
    assert str(convert(RGB, tmp_path / "same.pth", to="rgb")).endswith(": unchanged; conv1.weight 8×3×7×7, unchanged")
    assert re.fullmatch(
        r".*state_dict\.pth: PyTorch \(zip\), [\d.]+ \w+, \d+ tensors; first conv conv1\.weight OIHW 8×3×7×7", str(inspect(RGB))
    )
    assert str(inspect(FIXTURES / "torch_zip" / "no_conv.pth")).endswith("first conv none identified")
    assert str(verify(RGB, gray)).startswith("identical: ")
    assert "conv1.weight: this is sum, not mean" in str(verify(RGB, gray, method="mean"))
    assert str(check(gray)) == f"{gray}: agrees"
    assert str(check(gray, "rgb")).endswith(": 1 mismatch; conv1.weight: found 1, expected 3")
    assert repr(report) == f"<Report: {report}>"
    assert "\n" not in repr(inspect(RGB))


def test_results_can_still_be_pickled(tmp_path: Path):
    report = convert(RGB, tmp_path / "a.pth")
    assert pickle.loads(pickle.dumps(report)) == report


def test_the_table_of_a_conversion(tmp_path: Path):
    report = convert(RGB, tmp_path / "gray.pth", to="gray")
    page = Tags(report._repr_html_())
    assert {*page.tags} <= {"div", "strong", "table", "tr", "th", "td", "pre", "img"}
    assert {"conv1.weight", "8×3×7×7 → 8×1×7×7, the sum of R, G and B", "3 → 1 channels"} <= {*page.text.split("\n")}
    assert report.load_lines[0] in page.text


def test_the_table_of_a_file():
    page = Tags(inspect(RGB)._repr_html_())
    assert "conv1.weight" in page.text
    assert "OIHW 8×3×7×7, float32, found by" in page.text
    nothing = Tags(inspect(FIXTURES / "torch_zip" / "no_conv.pth")._repr_html_())
    assert "none identified" in nothing.text
    assert "img" not in nothing.tags


def test_the_kernels_are_a_small_picture(tmp_path: Path):
    report = convert(RGB, tmp_path / "gray.pth", to="gray")
    one, two = pixels(inspect(RGB)._repr_html_()), pixels(report._repr_html_())
    assert two.shape[1] == 2 * one.shape[1]
    assert np.ptp(one[..., :3], axis=2).max() > 0.1
    assert np.ptp(two[: one.shape[0], one.shape[1] + 20 : -40, :3], axis=2).max() < 0.1  # lines are a dark blue
    four = pixels(inspect(FIXTURES / "torch_zip" / "state_dict_4ch.pth")._repr_html_())
    assert four.shape[1] == 4 * one.shape[1]
    assert len(report._repr_html_()) < 100_000


def test_everything_from_a_file_is_escaped(tmp_path: Path):
    source = hostile(tmp_path / "<img src=x onerror=alert(1)>.safetensors")
    found = inspect(source)
    assert found.first_convs[0].tensor.name == HOSTILE
    for page in (found._repr_html_(), convert(source, tmp_path / "<b>.safetensors", to="gray")._repr_html_()):
        tags = Tags(page)
        assert "script" not in tags.tags
        assert tags.tags.count("img") <= 1
        assert tags.attributes <= {"style", "alt", "src"}
        assert HOSTILE in tags.text
        assert "<script" not in page


def test_every_field_of_a_report_is_escaped(tmp_path: Path):
    """Those too that a real file can hardly fill."""
    evil, clean = "<i onclick=x>'\"", inspect(RGB)
    conv = clean.first_convs[0]._replace(why=evil, found_by=evil)
    notice, name = chkpt_channels.Notice("x", evil), chkpt_channels.Candidate(evil, (1,), evil)
    file = clean.input._replace(path=evil, title=evil)
    report = convert(RGB, tmp_path / "a.pth")
    kernels = (report.kernels[0]._replace(conv=conv._replace(tensor=conv.tensor._replace(name=evil)), method=evil),)
    shown = [
        clean._replace(input=file, first_convs=(conv,), declarations=(chkpt_channels.Declaration(evil, 3),), warnings=(notice,)),
        clean._replace(input=file, first_convs=(), candidates=(name,)),
        report._replace(
            input=file, target=evil, output=file, kernels=kernels, load_lines=(evil, evil), warnings=(notice,), advice=(notice,)
        ),
    ]
    for result in shown:
        assert "i" not in Tags(result._repr_html_()).tags
        assert "onclick" not in Tags(result._repr_html_()).attributes


def test_without_matplotlib_or_without_the_file_there_is_no_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    gray = tmp_path / "gray.pth"
    report = convert(RGB, gray, to="gray")
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "matplotlib", None)
        patch.delitem(sys.modules, "matplotlib.image", raising=False)
        assert "<img" not in report._repr_html_()
    gray.write_bytes(b"another file by now")
    assert "<img" not in report._repr_html_()
    gray.unlink()
    assert "<img" not in report._repr_html_()
    assert "conv1.weight" in report._repr_html_()


def test_long_lists_are_cut(tmp_path: Path):
    network = {f"conv{i}.weight": kernel(8 + i, 3, 5, 5) for i in range(30)}
    safetensors.numpy.save_file(network, tmp_path / "a.safetensors")
    page = Tags(inspect(tmp_path / "a.safetensors")._repr_html_())
    assert page.tags.count("tr") < 20
    assert re.search(r"and \d+ more", page.text)
