"""What the page says and saves is what the command line says and writes."""

from __future__ import annotations

import json
import re
import shutil
import struct
import subprocess
import sys
from array import array
from pathlib import Path
from random import Random
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect

from chkpt_channels import convert, patch
from tests.page.conftest import PAGE, ROOT, WAIT, Served, opened
from tests.support.builders import entry, floats, safetensors
from tests.support.files import FIXTURES, truths

SHOTS = ROOT / "build" / "page-shots"
RGB = FIXTURES / "torch_zip" / "state_dict.pth"
ROOMS = ("torch_zip", "torch_legacy", "safetensors", "onnx")
CONVERTIBLE = [truth.path for truth in truths() if truth.said["in_channels"] and truth.path.parent.name in ROOMS]
WITHOUT_LIBRARIES = """
import sys
sys.modules.update(dict.fromkeys(("numpy", "h5py", "ml_dtypes")))
from chkpt_channels import ChkptChannelsError, patch
for path in sys.argv[1:]:
    try:
        patch(path)
    except (ImportError, ChkptChannelsError):
        continue
    print(path)
"""


def asked(page: Page, path: Path, **choice: str) -> None:
    """Choose a target and a file, and wait for the answer."""
    for name, value in choice.items():
        if name in ("number", "bands"):
            page.locator(f"#{name}").fill(value)
        page.locator(f"[name=to][value={value if name == 'to' else name}]").check()
    page.locator("#file").set_input_files(path)
    answered(page)


def answered(page: Page) -> None:
    page.locator("#done:not([hidden]), #refused:not([hidden])").wait_for()
    expect(page.locator("#state")).to_have_text("Ready.", timeout=WAIT)


def saved(page: Page, into: Path) -> Path:
    assert page.locator("#refused").is_hidden(), page.locator("#refused").text_content()
    with page.expect_download() as download:
        page.locator("#save").click()
    path = into / download.value.suggested_filename
    download.value.save_as(path)
    return path


def told(*arguments: Any, **more: Any) -> subprocess.CompletedProcess[str]:
    """What the command line says."""
    command = [sys.executable, "-m", "chkpt_channels", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, **more)


@pytest.fixture(scope="session")
def plain() -> set[str]:
    """The fixtures that are converted to gray without numpy, h5py and ml_dtypes."""
    command = [sys.executable, "-c", WITHOUT_LIBRARIES, *map(str, CONVERTIBLE)]
    return set(subprocess.run(command, capture_output=True, text=True, check=True, cwd=PAGE).stdout.splitlines())


@pytest.mark.parametrize("path", CONVERTIBLE, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_the_bytes_are_those_of_the_command_line(path: Path, page: Page, plain: set[str], tmp_path: Path):
    asked(page, path)
    if str(path) in plain and not path.with_name(path.name + ".data").exists():
        written = saved(page, tmp_path)
        expected = convert(path, tmp_path / "expected" / written.name, "gray") if made(tmp_path / "expected") else None
        assert written.read_bytes() == Path(expected.target).read_bytes()
    else:
        expect(page.locator("#refused")).to_be_visible()
        assert re.search("needs (numpy|ml_dtypes)|was given without it", page.locator("#refused pre").inner_text())


def made(folder: Path) -> Path:
    folder.mkdir()
    return folder


def test_most_fixtures_need_no_library(plain: set[str]):
    for room, least in {"torch_zip": 15, "torch_legacy": 4, "safetensors": 6, "onnx": 8}.items():
        assert len([path for path in plain if f"/{room}/" in path]) >= least, (room, plain)


@pytest.mark.parametrize(
    ("path", "choice", "options"),
    [
        (RGB, {"to": "rgb"}, {"to": "rgb"}),
        (RGB, {"number": "4"}, {"to": 4}),
        (FIXTURES / "safetensors" / "bfloat16.safetensors", {"number": "6"}, {"to": 6}),
        (FIXTURES / "safetensors" / "half.safetensors", {"number": "2"}, {"to": 2}),
        (RGB, {"bands": "B,G,R"}, {"bands": "B,G,R"}),
    ],
    ids=str,
)
def test_other_targets(path: Path, choice: dict[str, str], options: dict[str, Any], page: Page, tmp_path: Path):
    asked(page, path, **choice)
    written = saved(page, tmp_path)
    report = convert(path, made(tmp_path / "expected") / written.name, **options)
    assert written.read_bytes() == Path(report.target).read_bytes()
    assert written.name == Path(patch(path, **options).name).name


def test_it_says_what_the_command_line_says(page: Page, tmp_path: Path):
    """The report but for the time it took, what was found, the advice, and the lines that load it."""
    shutil.copy(RGB, tmp_path)
    asked(page, tmp_path / RGB.name)
    said = told("convert", RGB.name, "--to", "gray", cwd=tmp_path).stdout
    report, load = said.split("  Load\n")
    shown = page.locator("#report").inner_text() + "\n"
    assert re.sub(r"\d+\.\d s", "", shown) == re.sub(r"\d+\.\d s", "", report)
    assert page.locator("#load").inner_text() == load.rstrip("\n")
    assert page.locator("#found pre").inner_text() == told("inspect", RGB.name, cwd=tmp_path).stdout.rstrip("\n")
    assert page.locator("#kernels canvas").count() == 2
    assert "conv1.weight, 8×3×7×7 F32" in page.locator("#kernels figcaption").first.inner_text()


def flipped(folder: Path) -> Path:
    """A bit of a weight that stays."""
    content = bytearray(RGB.read_bytes())
    last = max((piece for piece in patch(RGB).pieces if piece.data is None), key=lambda piece: piece.size)
    content[last.start + last.size // 2] ^= 1
    (folder / "damaged.pth").write_bytes(content)
    return folder / "damaged.pth"


def foreign(folder: Path) -> Path:
    return Path(shutil.copy(next((FIXTURES / "foreign").glob("net.tflite")), folder))


def html(folder: Path) -> Path:
    (folder / "page.pth").write_text("<!doctype html><title>Not found</title>")
    return folder / "page.pth"


def empty(folder: Path) -> Path:
    (folder / "empty.pth").touch()
    return folder / "empty.pth"


@pytest.mark.parametrize("make", [flipped, foreign, html, empty])
def test_what_is_refused_is_told_in_the_words_of_the_command_line(make: Any, page: Page, tmp_path: Path):
    path = make(tmp_path)
    asked(page, path)
    expect(page.locator("#done")).to_be_hidden()
    said = told("convert", path.name, "--to", "gray", cwd=tmp_path)
    assert said.returncode in (3, 4)
    assert page.locator("#refused pre").inner_text() == said.stderr.rstrip("\n")


def test_what_needs_a_library_says_so(page: Page):
    if json.loads((PAGE / "files.json").read_text())["wheels"]:
        pytest.skip("the page was made with wheels")
    asked(page, FIXTURES / "keras_h5" / "functional.h5")
    assert re.match(
        "error: functional.h5: needs (h5py|numpy), which this page does not have", page.locator("#refused pre").inner_text()
    )


def test_candidates_are_a_choice(page: Page, tmp_path: Path):
    header, at = {}, 0
    for name, shape in {"left.weight": (8, 3, 3, 3), "right.weight": (16, 3, 5, 5), "head.weight": (10, 24)}.items():
        header[name] = entry(shape, at)
        at = header[name]["data_offsets"][1]
    path = tmp_path / "two.safetensors"
    path.write_bytes(safetensors(header, floats(at // 4)))
    asked(page, path)
    assert page.locator("#refused pre").inner_text() == told("convert", path.name, "--to", "gray", cwd=tmp_path).stderr.rstrip()
    boxes = page.locator("#rows input")
    assert {boxes.nth(i).get_attribute("value") for i in range(boxes.count())} >= {"left.weight", "right.weight"}
    page.locator("#rows input[value='right.weight']").check()
    page.locator("#take").click()
    answered(page)
    written = saved(page, tmp_path)
    report = convert(path, made(tmp_path / "expected") / written.name, "gray", layers=["right.weight"])
    assert written.read_bytes() == Path(report.target).read_bytes()


def test_three_gigabytes_fit_into_64_mib_of_heap(page: Page, tmp_path: Path):
    """Sparse; what stays is compared piece by piece."""
    wide = 3 << 28
    header = {"conv1.weight": entry((64, 3, 7, 7)), "fc.weight": entry((1, wide), 64 * 3 * 7 * 7 * 4)}
    path, size = tmp_path / "large.safetensors", header["fc.weight"]["data_offsets"][1]
    head = safetensors(header, array("f", (Random(0).gauss(0, 1) for _ in range(64 * 3 * 7 * 7))).tobytes())
    with path.open("wb") as file:
        file.write(head)
        file.truncate(8 + struct.unpack("<Q", head[:8])[0] + size)
    asked(page, path)
    heap = page.workers[0].evaluate("self.python._module.HEAPU8.length"), page.evaluate("performance.memory.usedJSHeapSize")
    print("heap of Python, and of the page's JavaScript, MiB:", [size >> 20 for size in heap])
    assert sum(heap) < 64 << 20
    written = saved(page, tmp_path)
    report = convert(path, made(tmp_path / "expected") / written.name, "gray")
    with written.open("rb") as one, Path(report.target).open("rb") as other:
        while (piece := one.read(16 << 20)) == other.read(16 << 20) != b"":
            pass
        assert piece == b""
        assert one.tell() == other.tell() > 3 << 30


def test_the_keyboard_is_enough(page: Page, tmp_path: Path):
    page.locator("#file").focus()
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.value") == "gray"
    page.keyboard.press("ArrowDown")
    assert page.locator("[name=to][value=rgb]").is_checked()
    page.keyboard.press("ArrowUp")
    page.locator("#file").set_input_files(RGB)
    answered(page)
    for _ in range(20):
        if page.evaluate("document.activeElement.id") == "save":
            break
        page.keyboard.press("Tab")
    with page.expect_download() as download:
        page.keyboard.press("Enter")
    assert download.value.suggested_filename == "state_dict_gray.pth"


def test_a_file_is_dropped_anywhere(page: Page):
    page.evaluate(
        """bytes => {
            const data = new DataTransfer();
            data.items.add(new File([new Uint8Array(bytes)], "dropped.pth"));
            const about = { dataTransfer: data, bubbles: true, cancelable: true };
            for (const kind of ["dragenter", "dragover", "drop"])
                document.querySelector("h1").dispatchEvent(new DragEvent(kind, about));
        }""",
        list(RGB.read_bytes()),
    )
    expect(page.locator("#save")).to_have_text("Save dropped_gray.pth", timeout=WAIT)


def test_the_file_before_can_be_chosen_again(page: Page):
    """After another one was dropped, and by the same dialog."""
    asked(page, RGB)
    test_a_file_is_dropped_anywhere(page)
    page.locator("#file").set_input_files(RGB)
    expect(page.locator("#save")).to_have_text("Save state_dict_gray.pth", timeout=WAIT)
    with page.expect_file_chooser() as chooser:
        page.locator("#file").click()
    chooser.value.set_files(RGB)
    expect(page.locator("#save")).to_have_text("Save state_dict_gray.pth", timeout=WAIT)
    assert page.locator("#file").evaluate("input => input.files.length") == 1


def test_what_is_chosen_meanwhile_counts(page: Page):
    page.locator("#file").set_input_files(RGB)
    page.locator("[name=to][value=rgb]").check()
    page.locator("#number").fill("5")
    page.locator("#number").press("Tab")
    expect(page.locator("#save")).to_have_text("Save state_dict_5ch.pth", timeout=WAIT)


def test_nothing_leaves(page: Page, served: Served):
    """Nothing is asked for after loading, and another address cannot be reached, from the page or from its worker."""
    asked(page, RGB)
    assert served.asked[page.loaded :] == []
    other = Served(PAGE)
    probe = f"fetch('{other.address}').then(() => 'reached', () => 'refused')"
    assert page.evaluate(probe) == "refused"
    assert page.workers[0].evaluate(probe) == "refused"
    assert other.asked == []


def test_what_is_fetched_is_beside_the_page(served: Served, page: Page):
    paths = {path.lstrip("/") or "index.html" for path in served.asked[: page.loaded]}
    assert all((PAGE / path).is_file() for path in paths), paths
    print("payload, MB:", sum((PAGE / path).stat().st_size for path in paths) / 1e6)


@pytest.mark.parametrize(
    ("name", "looks"),
    [
        ("wide", {"viewport": {"width": 1280, "height": 900}}),
        ("narrow", {"viewport": {"width": 360, "height": 740}, "device_scale_factor": 2, "is_mobile": True}),
        ("dark", {"viewport": {"width": 1280, "height": 900}, "color_scheme": "dark"}),
    ],
)
def test_it_fits(name: str, looks: dict[str, Any], browser: Browser, served: Served, tmp_path: Path):
    """Nothing is wider than the window; pictures of all states are left in build/page-shots."""
    page = opened(browser, served.address, **looks)
    SHOTS.mkdir(parents=True, exist_ok=True)
    for state, path in {"result": RGB, "damaged": flipped(tmp_path)}.items():
        asked(page, path)
        page.screenshot(path=SHOTS / f"{name}-{state}.png", full_page=True)
        assert page.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth")
    dark = page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(20, 23, 27)"
    assert dark == (name == "dark")
    page.context.close()
