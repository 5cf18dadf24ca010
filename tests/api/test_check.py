"""check: kernels against what the file itself, its configurations, its name and the user say; what is skipped is told."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import zipfile
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import safetensors.numpy

from chkpt_channels import AmbiguousError, DamagedError, UnsupportedError, UsageError, check, convert
from chkpt_channels.cli.app import run
from tests.support import onnx_models
from tests.support.files import FIXTURES, truths

RGB = FIXTURES / "torch_zip" / "state_dict.pth"
GRAY = FIXTURES / "torch_zip" / "state_dict_gray.pth"
ONNX = FIXTURES / "onnx" / "plain_ts.onnx"
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 99\n"
AMBIGUOUS = {
    "a.weight": np.ones((8, 3, 3, 3), np.float32),
    "b.weight": np.ones((9, 3, 5, 5), np.float32),
    "c.weight": np.ones((8, 300, 3, 3), np.float32),
}


@pytest.fixture
def rgb(tmp_path: Path) -> Path:
    return Path(shutil.copy(RGB, tmp_path / "net.pth"))


def configure(path: Path, name: str = "config.json", **content: Any) -> None:
    (path.parent / name).write_text(json.dumps(content))


def found(path: Path, expect: Any = None) -> list[tuple[str, str, Any, Any]]:
    """The mismatches: in which file, at which place, what stands there and what should."""
    return [(Path(m.file).name, m.where, m.found, m.expected) for m in check(path, expect).mismatches]


def test_what_agrees(rgb: Path):
    configure(rgb, model_type="resnet", num_channels=3)
    configure(rgb, "preprocessor_config.json", image_mean=[0.5] * 3, image_std=[0.5] * 3)
    result = check(rgb, "rgb")
    assert result.ok
    assert not result.skipped
    assert [conv.tensor.name for conv in result.first_convs] == ["conv1.weight"]


@pytest.mark.parametrize(
    ("name", "content", "where", "told"),
    [
        ("config.json", {"num_channels": 1}, "num_channels", 1),
        ("config.json", {"vision_config": {"in_channels": 4}}, "vision_config.in_channels", 4),
        ("config.json", {"pretrained_cfg": {"input_size": [1, 8, 8]}}, "pretrained_cfg.input_size.0", 1),
        ("config.json", {"model_args": {"in_chans": 2}}, "model_args.in_chans", 2),
        ("config.json", {"model_type": "hgnet_v2", "stem_channels": [1, 32]}, "stem_channels.0", 1),
        ("preprocessor_config.json", {"image_mean": [0.5], "image_std": [0.5]}, None, None),
        ("preprocessor_config.json", {"image_mean": 0.5, "image_std": 0.5}, None, None),
        ("preprocessor_config.json", {"image_mean": [0.5] * 4, "image_std": [0.5] * 3}, "numbers in image_mean", 4),
        ("preprocessor_config.json", {"image_mean": [0.5] * 3, "image_std": [0.5] * 4}, "numbers in image_std", 4),
        ("processor_config.json", {"p": {"image_mean": [0.5] * 4, "image_std": [1]}}, "numbers in p.image_mean", 4),
        # what counts something else than the image's channels
        ("config.json", {"decoder": {"num_channels": 1}}, None, None),
        ("config.json", {"out_channels": 1, "hidden_channels": 8}, None, None),
        ("config.json", {"model_type": "other", "stem_channels": [64, 32]}, None, None),
        ("config.json", {"num_channels": "1"}, None, None),
    ],
)
def test_configurations(rgb: Path, name: str, content: Any, where: str | None, told: Any):
    configure(rgb, name, **content)
    assert found(rgb) == ([(name, where, told, 3)] if where else [])


def test_an_expectation(rgb: Path):
    assert found(rgb, "gray") == [("net.pth", "conv1.weight", 3, 1)]
    assert found(rgb, 4) == [("net.pth", "conv1.weight", 3, 4)]
    assert not found(rgb, "bgr")


def test_an_input_of_a_graph_that_its_kernel_does_not_take(tmp_path: Path):
    assert check(ONNX, 3).ok
    model = onnx.load(ONNX)
    model.graph.input[0].type.tensor_type.shape.dim[1].dim_value = 1
    onnx.save(model, tmp_path / "net.onnx")
    assert found(tmp_path / "net.onnx") == [("net.onnx", f"graph.input {model.graph.input[0].name}", 1, 3)]


@pytest.mark.parametrize("name", [t.path.name for t in truths() if t.path.parent.name == "onnx"])
def test_graphs_that_make_channels_themselves_agree(tmp_path: Path, name: str):
    """Broadcast and stacked graphs take one channel, and their kernels three."""
    source = FIXTURES / "onnx" / name
    assert check(source).ok
    with suppress(UnsupportedError):
        convert(source, tmp_path / name, to="gray")
        assert check(tmp_path / name).ok


def test_a_module_that_counts_other_channels_than_its_kernel_has(tmp_path: Path):
    source, path = FIXTURES / "torch_zip" / "module.pth", tmp_path / "net.pth"
    assert check(source, 3).ok
    with zipfile.ZipFile(source) as archive, zipfile.ZipFile(path, "w") as out:
        for name in archive.namelist():
            data = archive.read(name)
            if name.endswith("/data.pkl"):
                at = data.index(b"K\x03", data.index(b"in_channels"))
                data = data[:at] + b"K\x01" + data[at + 2 :]
            out.writestr(name, data)
    assert found(path) == [("net.pth", "conv1.in_channels", 1, 3)]


def test_first_convs_that_do_not_agree_with_each_other(tmp_path: Path):
    one = safetensors.numpy.load_file(FIXTURES / "safetensors" / "model.safetensors")
    gray = {name: array.sum(1, keepdims=True) if name == "conv1.weight" else array for name, array in one.items()}
    both = {f"model.{n}": a for n, a in one.items()} | {f"ema.{n}": a for n, a in gray.items()}
    safetensors.numpy.save_file(both, tmp_path / "two.safetensors")
    result = check(tmp_path / "two.safetensors")
    assert {conv.in_channels for conv in result.first_convs} in ({1, 3}, {3}, {1}, set())
    assert result.ok is (len({conv.in_channels for conv in result.first_convs}) <= 1)


@pytest.mark.parametrize("digits", [8, 12, 64])
@pytest.mark.parametrize("suffix", [".pth", ".pth.tar", ".safetensors"])
def test_a_hash_in_the_name(tmp_path: Path, digits: int, suffix: str):
    source = RGB if "pth" in suffix else FIXTURES / "safetensors" / "model.safetensors"
    digest = hashlib.sha256(source.read_bytes()).hexdigest()
    good = Path(shutil.copy(source, tmp_path / f"net-{digest[:digits]}{suffix}"))
    stale = Path(shutil.copy(source, tmp_path / f"net-{digest[:digits][::-1]}{suffix}"))
    assert check(good).ok
    assert found(stale) == [(stale.name, "SHA-256 in the name", digest[:digits][::-1], digest[:digits])]


@pytest.mark.parametrize("name", ["net-v2.pth", "net-1234567.pth", "deadbeef.pth", "net-ABCDEF12.pth", "net-deadbeef-ema.pth"])
def test_names_without_a_hash_are_not_hashed(tmp_path: Path, name: str):
    assert check(Path(shutil.copy(RGB, tmp_path / name))).ok


def test_pointers(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    path = tmp_path / "net.pth"
    path.write_bytes(POINTER)
    result = check(path, "gray")
    assert result.ok
    assert "Git-LFS pointer" in result.skipped
    with pytest.raises(DamagedError, match="Git-LFS pointer"):
        check(path, lfs_pointers="error")
    assert run(["check", str(path)]) == 0
    assert capsys.readouterr().out == f"{path}: skipped: {result.skipped}\n"
    assert run(["check", str(path), "--lfs-pointers", "error"]) == 3
    assert "Git-LFS pointer" in capsys.readouterr().err


def test_what_is_uncertain_is_skipped_unless_something_is_expected(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    path = tmp_path / "net.safetensors"
    safetensors.numpy.save_file(AMBIGUOUS, path)
    assert check(path).skipped == "its first convolution is ambiguous"
    with pytest.raises(AmbiguousError) as caught:
        check(path, 3)
    assert caught.value.candidates
    assert run(["check", str(path)]) == 0
    assert run(["check", str(path), "--expect", "rgb"]) == 4
    assert "a.weight" in capsys.readouterr().err
    configure(path, pretrained_cfg={"first_conv": "a", "input_size": [3, 8, 8]})
    assert [conv.tensor.name for conv in check(path, 3).first_convs] == ["a.weight"]


def test_what_holds_no_kernel(tmp_path: Path):
    path = tmp_path / "scale.safetensors"
    safetensors.numpy.save_file({"scale": np.ones(3, np.float32)}, path)
    assert check(path).skipped == "it holds no convolution that could see an image"
    with pytest.raises(AmbiguousError):
        check(path, "gray")


@pytest.mark.parametrize(
    ("front", "reason"),
    [
        (
            onnx_models.node("Expand", ["image", "shape"], ["x"], "grow"),
            "grow: the image 'image' is not followed through this Expand",
        ),
        (onnx_models.node("Identity", ["k"], ["x"]), r"none of its inputs \(image\) reaches the kernel of a convolution"),
    ],
)
def test_why_a_graph_shows_no_convolution(front: onnx.NodeProto, reason: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    path, weights = tmp_path / "net.onnx", {"k": onnx_models.noise(4, 3, 3, 3), "shape": onnx_models.ints(1, 3, 8, 8)}
    conv = onnx_models.node("Conv", ["x", "k"], ["out"])
    onnx.save(onnx_models.model([front, conv], weights, (None, None, None, None)), path)
    assert re.match(reason, check(path).skipped)
    assert run(["check", str(path)]) == 0
    assert re.match(rf"{re.escape(str(path))}: skipped: {reason}", capsys.readouterr().out)
    with pytest.raises(UnsupportedError, match=reason.rpartition(": ")[2]):
        convert(path, tmp_path / "out.onnx", to="gray")
    with pytest.raises(AmbiguousError, match=f"{reason}.*, so that --expect cannot be checked") as caught:
        check(path, 3)
    assert not caught.value.hint


@pytest.mark.parametrize(("expect", "lfs"), [("blue", "skip"), (0, "skip"), (None, "ignore")])
def test_words_that_mean_nothing(rgb: Path, expect: Any, lfs: str):
    with pytest.raises(UsageError):
        check(rgb, expect, lfs_pointers=lfs)


def tree(root: Path) -> Path:
    """Two good models, one whose configuration is stale, a pointer, and what is not looked at."""
    for name in ("good", "deep/er", "stale", ".git", ".cache"):
        (root / name).mkdir(parents=True)
        shutil.copy(RGB, root / name / "net.pth")
    configure(root / "good" / "net.pth", num_channels=3)
    configure(root / "stale" / "net.pth", num_channels=1)
    (root / "big.bin").write_bytes(POINTER)
    (root / "README.md").write_text("words")
    return root


def told(capsys: pytest.CaptureFixture[str]) -> list[str]:
    """What is said of files beside that they agree, and beside their number."""
    lines = capsys.readouterr().out.splitlines()
    return [line for line in lines if not line.startswith("✓") and not re.match(r"\d+ (agree|disagree|skipped),? ", f"{line} ")]


def test_folders_are_searched(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    root = tree(tmp_path / "a")
    assert run(["check", str(root)]) == 1
    shown = told(capsys)
    assert shown == [
        f"{root / 'big.bin'}: skipped: a Git-LFS pointer; its content is not downloaded",
        f"{root / 'stale' / 'config.json'}: num_channels: found 1, expected 3",
    ]
    assert run(["check", str(root / "good"), str(root / "deep"), "--expect", "rgb"]) == 0
    assert told(capsys) == []


def test_a_configuration_stands_for_the_weights_beside_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    root = tree(tmp_path / "a")
    assert run(["check", str(root / "stale" / "config.json")]) == 1
    assert "num_channels: found 1, expected 3" in capsys.readouterr().out
    assert run(["check", str(root / "good" / "config.json")]) == 0
    (tmp_path / "web").mkdir()
    (tmp_path / "web" / "config.json").write_text("{}")
    assert run(["check", str(tmp_path / "web" / "config.json")]) == 0


def test_each_file_is_looked_at_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    root = tree(tmp_path / "a")
    paths = [root / "stale" / "net.pth", root / "stale" / "config.json", root / "stale"]
    assert run(["check", *map(str, paths)]) == 1
    assert len(told(capsys)) == 1


def test_the_highest_code_wins(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    root = tree(tmp_path / "a")
    (root / "broken.safetensors").write_bytes(b"no checkpoint")
    assert run(["check", str(root)]) == 3
    assert "stale" in capsys.readouterr().out
    assert run(["check", str(tmp_path / "nowhere.pth")]) == 5


def sharded(folder: Path, channels: int = 3) -> Path:
    """A transformers folder in two shards: the second one alone looks like a network of eight channels."""
    folder.mkdir()
    chance, places = np.random.default_rng(0), {}
    shapes = [{"conv1.weight": (8, channels, 3, 3)}, {"conv2.weight": (16, 8, 3, 3), "fc.weight": (2, 16)}]
    for number, named in enumerate(shapes, 1):
        name = f"model-0000{number}-of-00002.safetensors"
        arrays = {key: chance.standard_normal(shape).astype("float32") for key, shape in named.items()}
        safetensors.numpy.save_file(arrays, folder / name)
        places |= dict.fromkeys(named, name)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
    configure(folder / "x", model_type="resnet", num_channels=channels)
    return folder


NAMES = [
    "",
    "config.json",
    "model.safetensors.index.json",
    "model-00001-of-00002.safetensors",
    "model-00002-of-00002.safetensors",
]


@pytest.mark.parametrize("name", NAMES)
def test_shards_are_one_model(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """Whichever file of it is named, as a pre-commit hook names those that changed."""
    root = sharded(tmp_path / "a")
    assert run(["check", str(root / name)]) == 0
    assert told(capsys) == []
    assert run(["check", str(root / name), "--expect", "gray"]) == 1
    assert told(capsys) == [f"{root / NAMES[2]}: conv1.weight: found 3, expected 1"]
    configure(root / "x", model_type="resnet", num_channels=1)
    assert run(["check", str(root / name)]) == 1
    assert told(capsys) == [f"{root / 'config.json'}: num_channels: found 1, expected 3"]


def test_converted_shards_agree(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    convert(sharded(tmp_path / "a"), tmp_path / "b", to="gray")
    for name in NAMES:
        assert run(["check", str(tmp_path / "b" / name), "--expect", "gray"]) == 0
    assert run(["check", *(str(tmp_path / "b" / name) for name in NAMES), "--expect", "rgb"]) == 1
    assert len(told(capsys)) == 1


def test_a_missing_shard(tmp_path: Path):
    root = sharded(tmp_path / "a")
    (root / NAMES[4]).unlink()
    with pytest.raises(DamagedError, match="its shard is missing"):
        check(root / NAMES[3])
    (root / NAMES[4]).write_bytes(POINTER)
    assert "Git-LFS pointer" in check(root / NAMES[3]).skipped


@pytest.mark.parametrize("text", ["[]", "{}", "no JSON", '{"weight_map": {"a": 1}}', '{"weight_map": []}'])
def test_what_is_only_called_an_index(rgb: Path, text: str):
    (rgb.parent / "faiss.index.json").write_text(text)
    assert check(rgb).ok


def test_weights_of_any_name_are_found_in_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    for name in ("b", "b.weights", "b.dat"):
        shutil.copy(RGB, tmp_path / name)
    (tmp_path / "notes").write_text("words")
    safetensors.numpy.save_file({"scale": np.ones(3, np.float32)}, tmp_path / "scaler")
    assert run(["check", str(tmp_path), "--expect", "gray"]) == 1
    shown = told(capsys)
    assert [line.partition(": ")[0] for line in shown] == [str(tmp_path / n) for n in ("b", "b.dat", "b.weights", "scaler")]
    assert run(["check", str(tmp_path), "--expect", "rgb"]) == 0
    assert run(["check", str(tmp_path / "scaler"), "--expect", "rgb"]) == 4


@pytest.mark.parametrize(
    ("text", "why"),
    [('{"num_channels": 5,', "is not JSON: "), ('{"a": "' + "x" * (8 << 20) + '"}', "has 8388617 bytes; 8388608 are the most")],
)
def test_a_configuration_that_is_not_read_is_told(text: str, why: str, rgb: Path, capsys: pytest.CaptureFixture[str]):
    (rgb.parent / "config.json").write_text(text)
    assert [notice.code for notice in check(rgb).notices] == ["unread_configuration"]
    assert run(["check", str(rgb)]) == 0
    assert told(capsys)[0].startswith(f"{rgb}: config.json {why}")


def test_a_configuration_is_believed_where_it_describes_the_file(rgb: Path, capsys: pytest.CaptureFixture[str]):
    configure(rgb, model_type="vit", num_channels=1, hidden_size=768)
    configure(rgb, "preprocessor_config.json", image_mean=[0.5], image_std=[0.5])
    assert run(["check", str(rgb)]) == 0
    assert told(capsys) == [
        f"{rgb}: the configuration beside it states hidden_size 768, and no tensor is that wide: it is not compared"
    ]
    configure(rgb, model_type="resnet", num_channels=1)
    assert not check(rgb).ok
    shutil.copy(FIXTURES / "safetensors" / "model.safetensors", rgb.parent)
    assert [notice.code for notice in check(rgb).notices] == ["other_configuration"]
    assert check(rgb).ok
    assert not check(rgb.parent / "model.safetensors").ok


def test_a_folder_without_weights_and_a_word_that_is_no_number(tmp_path: Path, rgb: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "none").mkdir()
    assert run(["check", str(tmp_path / "none")]) == 0
    assert "warning: no weights are in" in capsys.readouterr().err
    assert run(["check", str(rgb), "--expect", "5x"]) == 2
    assert "error: --expect '5x' is not a target" in capsys.readouterr().err


def test_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    root = tree(tmp_path / "a")
    assert run(["check", str(root), "--json"]) == 1
    document = json.loads(capsys.readouterr().out)
    assert (document["command"], document["exit_code"]) == ("check", 1)
    by_name = {str(Path(r["input"]["path"]).relative_to(root)): r for r in document["results"]}
    statuses = {name: result["status"] for name, result in by_name.items()}
    assert statuses == {"big.bin": "skipped", "deep/er/net.pth": "agrees", "good/net.pth": "agrees", "stale/net.pth": "disagrees"}
    place = f"{root / 'stale' / 'config.json'}: num_channels"
    assert by_name["stale/net.pth"]["differences"] == [{"key": place, "message": "found 1, expected 3"}]
    assert by_name["stale/net.pth"]["in_channels"] == {"before": 3, "after": None}
    assert by_name["big.bin"]["warnings"][0]["code"] == "skipped"
    assert len({frozenset(result) for result in document["results"]}) == 1  # one shape


def test_what_convert_wrote_agrees(tmp_path: Path):
    shutil.copy(RGB, tmp_path / "net.pth")
    configure(tmp_path / "net.pth", model_type="resnet", num_channels=3)
    (tmp_path / "out").mkdir()
    convert(tmp_path / "net.pth", tmp_path / "out" / "net.pth", to="gray", with_sidecars=True)
    assert check(tmp_path / "out" / "net.pth", "gray").ok
    shutil.copy(tmp_path / "config.json", tmp_path / "out")
    assert not check(tmp_path / "out" / "net.pth").ok


def copies(home: Path, *names: str, gray: str = "") -> Path:
    """The same network under each of these names, with one channel under `gray`."""
    for name in names:
        fixture = {".msgpack": "flax", ".npz": "npz", ".safetensors": "safetensors"}.get(Path(name).suffix, "torch_zip")
        files = {"torch_zip": ("state_dict.pth", "state_dict_gray.pth"), "safetensors": ("model.safetensors", "gray.safetensors")}
        stem = files.get(fixture, (f"rgb{Path(name).suffix}", f"gray{Path(name).suffix}"))[name == gray]
        (home / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(FIXTURES / fixture / stem, home / name)
    return home


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("model.safetensors", "flax_model.msgpack"),
        ("pytorch_model.bin", "model.safetensors"),
        ("diffusion_pytorch_model.fp16.safetensors", "diffusion_flax_model.msgpack"),
        ("net.pth", "net.npz"),
    ],
)
@pytest.mark.parametrize("ways", [1, -1])
def test_one_model_in_several_formats(one: str, other: str, ways: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """By names alone: a network and its gray one often stand side by side."""
    one, other = (one, other)[::ways]
    assert run(["check", str(copies(tmp_path / "a", one, other, "net_gray.pth", gray="net_gray.pth"))]) == 0
    is_library = "net" not in one
    assert set(check(tmp_path / "a" / one).against) == ({other} if is_library else set())
    assert run(["check", str(copies(tmp_path / "b", one, other, gray=other))]) == 1
    lines = [line for line in told(capsys) if line.startswith(str(tmp_path / "b" / other))]
    assert len(lines) == 1
    assert lines[0].endswith(f": found 1, expected 3, as {tmp_path / 'b' / one} has")
    for name in (one, other):
        assert run(["check", str(tmp_path / "b" / name)]) == is_library  # of one's own names only where the folder is asked
    with pytest.raises(UnsupportedError, match="its weights disagree"):
        convert(tmp_path / "b", tmp_path / "c", to=4)


@pytest.mark.parametrize("with_configuration", [True, False])
def test_a_folder_is_listed_once_for_its_models(with_configuration: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Once for each of thousands of files would be quadratic."""
    real, listed = os.listdir, Counter[str]()

    def listdir(path: str) -> list[str]:
        listed[str(path)] += 1
        return real(path)

    monkeypatch.setattr(os, "listdir", listdir)
    for count in (5, 50):
        home = copies(tmp_path / str(count), *(f"net{i}.pth" for i in range(count)))
        if with_configuration:
            configure(home / "x", num_channels=3)
        listed.clear()
        assert run(["check", str(home)]) == 0
        assert 1 <= listed[str(home)] <= 3


def test_a_copy_in_a_folder_of_its_own(tmp_path: Path):
    """Where it has no configuration, it is the same model; with one it is another."""
    home = copies(tmp_path, "model.safetensors", "flax/flax_model.msgpack", gray="flax/flax_model.msgpack")
    copy = home / "flax" / "flax_model.msgpack"
    assert check(copy).ok
    configure(home / "x", model_type="resnet")
    assert [m.beside for m in check(copy).mismatches] == [str(home / "model.safetensors")]
    configure(copy, model_type="resnet")
    assert check(copy).ok


def test_a_copy_that_cannot_be_read_is_told_where_it_is_checked(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    home = copies(tmp_path, "model.safetensors", "flax_model.msgpack", "pytorch_model.bin")
    (home / "pytorch_model.bin").write_bytes(POINTER)
    (home / "model.onnx").write_bytes((home / "flax_model.msgpack").read_bytes()[:-9])
    assert check(home / "model.safetensors").against == ("flax_model.msgpack",)
    assert run(["check", str(home)]) == 3
    assert "model.onnx: is cut off" in capsys.readouterr().err
