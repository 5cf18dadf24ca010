"""Model folders: every part converted alike, configurations with them, everything else the same bytes, one rename."""

from __future__ import annotations

import errno
import json
import os
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy

from chkpt_channels import (
    AmbiguousError,
    DamagedError,
    FileSystemError,
    OutputExistsError,
    UnsupportedError,
    UsageError,
    convert,
    inspect,
    verify,
)
from chkpt_channels.cli.app import run
from tests.support.builders import floats, storage, tensor, torch_zip
from tests.support.files import FIXTURES, contents, snapshot

RGB = FIXTURES / "torch_zip" / "state_dict.pth"
CONFIG = {"architectures": ["ResNetForImageClassification"], "model_type": "resnet", "num_channels": 3, "depths": [1, 1]}
PREPROCESSOR = {"do_normalize": True, "image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225], "size": 224}
TIMM = {
    "architecture": "resnet18",
    "pretrained_cfg": {"input_size": [3, 224, 224], "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]},
    "model_args": {"in_chans": 3},
}


def weights(channels: int = 3, seed: int = 0) -> dict[str, np.ndarray]:
    chance = np.random.default_rng(seed)
    shapes = {"conv1.weight": (8, channels, 7, 7), "bn1.weight": (8,), "bn1.bias": (8,), "layer.conv.weight": (16, 8, 3, 3)}
    named = {name: chance.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    extra = {"bn1.running_mean": np.zeros(8, np.float32), "bn1.running_var": np.ones(8, np.float32)}
    return named | extra | {"fc.weight": chance.normal(size=(5, 16)).astype(np.float32)}


def folder(path: Path, config: Any = CONFIG, preprocessor: Any = PREPROCESSOR, *, channels: int = 3, indent: Any = 2) -> Path:
    path.mkdir()
    safetensors.numpy.save_file(weights(channels), path / "model.safetensors")
    (path / "config.json").write_text(json.dumps(config, indent=indent) + "\n")
    if preprocessor:
        (path / "preprocessor_config.json").write_text(json.dumps(preprocessor, indent=indent))
    (path / "README.md").write_text("# a model\n")
    return path


def shard(path: Path) -> Path:
    folder(path)
    (path / "model.safetensors").unlink()
    named = list(weights().items())
    places = {}
    for i, part in enumerate((named[:4], named[4:]), 1):
        name = f"model-0000{i}-of-00002.safetensors"
        safetensors.numpy.save_file(dict(part), path / name)
        places |= dict.fromkeys(dict(part), name)
    total = sum(array.nbytes for _, array in named)
    index = {"metadata": {"total_size": total}, "weight_map": places}
    (path / "model.safetensors.index.json").write_text(json.dumps(index, indent=2))
    return path


def kernel(path: Path) -> np.ndarray:
    return safetensors.numpy.load_file(path)["conv1.weight"]


def loaded(path: Path) -> Any:
    return json.loads(path.read_text())


def test_weights_and_configurations_change_together(tmp_path: Path):
    source, out = folder(tmp_path / "a"), tmp_path / "b"
    before = snapshot(source)
    report = convert(source, out, to="gray")
    assert snapshot(source) == before
    assert sorted(p.name for p in out.iterdir()) == sorted(p.name for p in source.iterdir())
    assert np.array_equal(
        kernel(out / "model.safetensors"), weights()["conv1.weight"].astype(np.float64).sum(1, keepdims=True).astype("f4")
    )
    assert (out / "config.json").read_text() == (source / "config.json").read_text().replace(
        '"num_channels": 3', '"num_channels": 1'
    )
    changed = loaded(out / "preprocessor_config.json")
    assert changed["image_mean"] == pytest.approx([0.449])
    assert changed["image_std"] == pytest.approx([0.226])
    assert changed.pop("do_convert_rgb") is False  # many processors make three channels of any image unless told otherwise
    assert {k: v for k, v in changed.items() if "image" not in k} == {k: v for k, v in PREPROCESSOR.items() if "image" not in k}
    assert (out / "README.md").read_bytes() == (source / "README.md").read_bytes()
    assert report.in_channels == (3, 1)
    assert {Path(d.file).name for d in report.declarations} == {"config.json", "preprocessor_config.json"}
    assert [w.code for w in report.warnings] == ["pipeline_averaged"]
    assert "--norm auto" in report.warnings[0].message
    assert report.load_lines[-1] == f"model = transformers.ResNetForImageClassification.from_pretrained({str(out)!r})"
    assert verify(source, out).ok


def test_norm_auto_folds_what_the_configuration_says(tmp_path: Path):
    source, out = folder(tmp_path / "a"), tmp_path / "b"
    report = convert(source, out, to="gray", norm="auto")
    assert loaded(out / "preprocessor_config.json")["image_mean"] == pytest.approx([0.449])
    assert "pipeline_averaged" not in {w.code for w in report.warnings}
    new = safetensors.numpy.load_file(out / "model.safetensors")
    expected = (weights()["conv1.weight"] * (0.226 / np.array(PREPROCESSOR["image_std"])).reshape(1, 3, 1, 1)).sum(
        1, keepdims=True
    )
    assert np.allclose(new["conv1.weight"], expected, atol=1e-6)
    assert new["bn1.running_mean"].any()
    assert verify(source, out, norm="auto").ok
    assert not verify(source, out, "gray").ok
    assert verify(source, out).under == "--norm imagenet"


def test_raw_bytes_need_no_rescaling(tmp_path: Path):
    source, out = folder(tmp_path / "a"), tmp_path / "b"
    convert(source, out, to="gray", norm="auto", input_range=255)
    changed = loaded(out / "preprocessor_config.json")
    assert (changed["image_mean"], changed["image_std"], changed["do_rescale"]) == ([0.0], [1.0], False)


def test_timm(tmp_path: Path):
    source, out = folder(tmp_path / "a", TIMM, None), tmp_path / "b"
    convert(source, out, to="gray")
    config = loaded(out / "config.json")
    assert config["pretrained_cfg"]["input_size"] == [1, 224, 224]
    assert config["pretrained_cfg"]["mean"] == pytest.approx([0.449])
    assert config["model_args"] == {"in_chans": 1}
    assert "timm.create_model" in convert(source, tmp_path / "c", to="gray").load_lines[-1]


@pytest.mark.parametrize("to", ["rgb", 4])
def test_other_targets(to: Any, tmp_path: Path):
    gray = {**PREPROCESSOR, "image_mean": [0.5], "image_std": [0.25], "do_convert_rgb": True}
    source, out = folder(tmp_path / "a", {**CONFIG, "num_channels": 1}, gray, channels=1), tmp_path / "b"
    convert(source, out, to=to)
    count = 3 if to == "rgb" else 4
    changed = loaded(out / "preprocessor_config.json")
    assert loaded(out / "config.json")["num_channels"] == count
    assert (changed["image_mean"], changed["image_std"]) == ([0.5] * count, [0.25] * count)
    assert changed["do_convert_rgb"] is (to == "rgb")


def test_there_and_back_is_the_same_folder(tmp_path: Path):
    even = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "do_convert_rgb": False}
    source = folder(tmp_path / "a", preprocessor=PREPROCESSOR | even)
    convert(source, tmp_path / "b", to=5, method="zero")
    convert(tmp_path / "b", tmp_path / "c", select="0,1,2")
    assert {n: (tmp_path / "c" / n).read_bytes() for n in os.listdir(source)} == {
        n: (source / n).read_bytes() for n in os.listdir(source)
    }


@pytest.mark.parametrize(
    ("config", "place"),
    [
        ({"model_type": "vit"}, ("num_channels",)),
        ({"model_type": "qwen2_vl", "vision_config": {"model_type": "qwen2_vl_vision"}}, ("vision_config", "in_channels")),
        (
            {"model_type": "upernet", "backbone_config": {"model_type": "swin", "num_channels": 3}},
            ("backbone_config", "num_channels"),
        ),
        (
            {"model_type": "vision-encoder-decoder", "encoder": {"model_type": "vit", "num_channels": 3}},
            ("encoder", "num_channels"),
        ),
        ({"_class_name": "UNet2DConditionModel", "in_channels": 3, "out_channels": 3}, ("in_channels",)),
    ],
)
def test_where_the_count_stands(config: Any, place: tuple[str, ...], tmp_path: Path):
    convert(folder(tmp_path / "a", config, None), tmp_path / "b", to=1)
    found = loaded(tmp_path / "b" / "config.json")
    assert loaded(tmp_path / "b" / "config.json").get("out_channels", 3) == 3
    for step in place:
        found = found[step]
    assert found == 1


def test_shards(tmp_path: Path):
    source, out = shard(tmp_path / "a"), tmp_path / "b"
    report = convert(source, out, to="gray")
    assert kernel(out / "model-00001-of-00002.safetensors").shape == (8, 1, 7, 7)
    second = "model-00002-of-00002.safetensors"
    assert (out / second).read_bytes() == (source / second).read_bytes()
    total = loaded(source / "model.safetensors.index.json")["metadata"]["total_size"]
    assert loaded(out / "model.safetensors.index.json")["metadata"]["total_size"] == total - 8 * 2 * 49 * 4
    assert report.tensors_total == len(weights())
    assert verify(source, out).ok
    assert [c.tensor.name for c in inspect(out).first_convs] == ["conv1.weight"]


def edited(path: Path, **changes: str | None) -> None:
    index = loaded(path / "model.safetensors.index.json")
    for name, file in changes.items():
        index["weight_map"][name.replace("_", ".")] = file
    (path / "model.safetensors.index.json").write_text(json.dumps(index))


FIRST = "model-00001-of-00002.safetensors"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"conv1_weight": "../../x"}, "not a file beside the index"),
        ({"conv1_weight": "model-00003-of-00002.safetensors"}, "its shard is missing"),
        ({"fc_weight2": FIRST}, "where the index says it is"),
        ({"conv1_weight": None}, "is not an index"),
    ],
)
def test_an_index_that_does_not_fit(changes: dict[str, Any], words: str, tmp_path: Path):
    source = shard(tmp_path / "a")
    edited(source, **changes)
    with pytest.raises(DamagedError, match=words):
        convert(source, tmp_path / "b", to="gray")
    assert os.listdir(tmp_path) == ["a"]


def test_a_tensor_in_two_shards(tmp_path: Path):
    source = shard(tmp_path / "a")
    shutil.copy(source / FIRST, source / "model-00002-of-00002.safetensors")
    with pytest.raises(DamagedError, match="is in two shards"):
        convert(source, tmp_path / "b", to="gray")


def test_all_weights_are_converted_alike(tmp_path: Path):
    source, out = folder(tmp_path / "a"), tmp_path / "b"
    (source / "onnx").mkdir()
    shutil.copy(FIXTURES / "onnx" / "plain_ts.onnx", source / "onnx" / "model.onnx")
    shutil.copy(RGB, source / "pytorch_model.bin")
    report = convert(source, out, to="gray")
    assert {k.conv.tensor.name.partition("/")[0] for k in report.kernels} == {"model.safetensors", "onnx", "pytorch_model.bin"}
    assert verify(source, out).ok
    assert len(inspect(out).first_convs) == 3


def test_weights_that_disagree(tmp_path: Path):
    source = folder(tmp_path / "a")
    shutil.copy(FIXTURES / "torch_zip" / "state_dict_gray.pth", source / "pytorch_model.bin")
    with pytest.raises(UnsupportedError, match="its weights disagree"):
        convert(source, tmp_path / "b", to=4)


def test_what_is_no_network_is_copied(tmp_path: Path):
    source, out = folder(tmp_path / "a"), tmp_path / "b"
    safetensors.numpy.save_file({"scale": np.ones(3, np.float32)}, source / "scaler.safetensors")
    report = convert(source, out, to="gray")
    assert (out / "scaler.safetensors").read_bytes() == (source / "scaler.safetensors").read_bytes()
    assert "copied" in {w.code for w in report.warnings}


def test_foreign_weights_would_be_stale(tmp_path: Path):
    source = folder(tmp_path / "a")
    (source / "model.gguf").write_bytes(b"x")
    with pytest.raises(UnsupportedError, match="would keep the old channels"):
        convert(source, tmp_path / "b", to="gray")


def test_what_may_not_be_written_over(tmp_path: Path):
    source = folder(tmp_path / "a")
    (tmp_path / "b").mkdir()
    for out in (tmp_path / "b", source, source / "inside"):
        with pytest.raises(OutputExistsError):
            convert(source, out, to="gray")
    assert sorted(os.listdir(tmp_path)) == ["a", "b"]
    assert "inside" not in os.listdir(source)


def test_a_link_to_a_folder(tmp_path: Path):
    source = folder(tmp_path / "a")
    (source / "more").symlink_to(tmp_path)
    with pytest.raises(UnsupportedError, match="is a link to a folder"):
        convert(source, tmp_path / "b", to="gray")


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "README.md"])
def test_a_link_that_leaves_the_folder(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """What it shows belongs to somebody else: it would stand in the output, and be handed on with it."""
    source = folder(tmp_path / "a")
    (source / name).rename(tmp_path / "outside")
    (source / name).symlink_to("../outside")
    assert run(["convert", str(source), "--to", "gray", "-o", str(tmp_path / "b")]) == 4
    told = capsys.readouterr().err
    assert f"{name}: is a link that leaves the model's folder" in told
    assert "try: --follow-links" in told
    assert snapshot(tmp_path).keys() == {"a", "outside"}
    convert(source, tmp_path / "b", to="gray", follow_links=True, hard_link=True)
    assert not (tmp_path / "b" / name).is_symlink()
    assert not (tmp_path / "b" / name).samefile(tmp_path / "outside")
    assert kernel(tmp_path / "b" / "model.safetensors").shape == (8, 1, 7, 7)
    assert verify(source, tmp_path / "b").ok


def test_a_configuration_behind_a_link_does_not_go_with_a_file(tmp_path: Path):
    source = folder(tmp_path / "a")
    (source / "config.json").rename(tmp_path / "outside.json")
    (source / "config.json").symlink_to("../outside.json")
    (tmp_path / "b").mkdir()
    with pytest.raises(UnsupportedError, match=r"config\.json: is a link that leaves the model's folder"):
        convert(source / "model.safetensors", tmp_path / "b" / "model.safetensors", to="gray", with_sidecars=True)
    assert not list((tmp_path / "b").iterdir())


def test_links_inside_the_folder_are_read_and_become_files(tmp_path: Path):
    source = folder(tmp_path / "a")
    (source / "model.safetensors").rename(source / "real.txt")
    (source / "model.safetensors").symlink_to("real.txt")
    convert(source, tmp_path / "b", to="gray")
    assert not (tmp_path / "b" / "model.safetensors").is_symlink()
    assert kernel(tmp_path / "b" / "model.safetensors").shape == (8, 1, 7, 7)


def test_hard_links_on_request(tmp_path: Path):
    source = folder(tmp_path / "a")
    convert(source, tmp_path / "b", to="gray", hard_link=True)
    assert (tmp_path / "b" / "README.md").samefile(source / "README.md")
    assert not (tmp_path / "b" / "config.json").samefile(source / "config.json")


def test_version_control_stays_behind(tmp_path: Path):
    source = folder(tmp_path / "a")
    (source / ".git").mkdir()
    (source / ".gitattributes").touch()
    convert(source, tmp_path / "b", to="gray")
    assert (tmp_path / "b" / ".gitattributes").exists()
    assert not (tmp_path / "b" / ".git").exists()


def test_a_failure_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from chkpt_channels.api.output import folder as writing

    def broken(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    source = folder(tmp_path / "a")
    monkeypatch.setattr(writing, "_copy", broken)
    with pytest.raises(KeyboardInterrupt):
        convert(source, tmp_path / "b", to="gray")
    assert os.listdir(tmp_path) == ["a"]


@pytest.mark.parametrize("call", ["open", "mkdir", "fsync", "pwrite"])
def test_a_full_disk(call: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    source = folder(tmp_path / "a")
    (source / "more").mkdir()
    (source / "more" / "notes.txt").write_text("x")
    draft = partial(os.path.join, tmp_path, ".chkpt-channels-")
    real = getattr(os, call)

    def full(*args: Any, **kwargs: Any) -> Any:
        at = str(args[0]) if isinstance(args[0], str | os.PathLike) else os.readlink(f"/proc/self/fd/{args[0]}")
        if at.startswith(draft()) and os.sep in at.removeprefix(draft()):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(*args, **kwargs)

    monkeypatch.setattr(os, call, full)
    with pytest.raises(FileSystemError, match=r"cannot be (written|published): no space left on device"):
        convert(source, tmp_path / "b", to="gray")
    monkeypatch.undo()
    assert os.listdir(tmp_path) == ["a"]


@pytest.mark.parametrize("setting", [{"sha256": True}, {"hash_name": True}, {"state_dict": "model"}])
def test_settings_that_are_for_files(setting: dict[str, Any], tmp_path: Path):
    with pytest.raises(UsageError, match="apply to files"):
        convert(folder(tmp_path / "a"), tmp_path / "b", **setting)
    assert os.listdir(tmp_path) == ["a"]


def test_a_folder_is_no_stream(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match="a model folder cannot be written to standard output"):
        convert(folder(tmp_path / "a"), "-")
    assert os.listdir(tmp_path) == ["a"]


@pytest.mark.parametrize("how", ["-o", "--output-dir", "neither"])
def test_the_dot_in_a_folders_name_begins_no_extension(how: str, tmp_path: Path):
    source, out = folder(tmp_path / "net-50.v1"), tmp_path / "out"
    options = {"-o": ["-o", str(out / "net-50.v1_gray")], "--output-dir": ["--output-dir", str(out)], "neither": []}[how]
    out.mkdir()
    assert run(["convert", str(source), "--to", "gray", *options]) == 0
    home = tmp_path if how == "neither" else out
    assert (home / "net-50.v1_gray" / "model.safetensors").exists()
    assert run(["convert", str(source), "--to", "gray", "--check", *options]) == 0


def test_a_configuration_that_is_no_file(tmp_path: Path):
    source = folder(tmp_path / "a")
    (source / "config.json").unlink()
    os.mkfifo(source / "config.json")
    with pytest.raises(FileSystemError, match="is a FIFO"):
        convert(source, tmp_path / "b")
    assert os.listdir(tmp_path) == ["a"]


def test_a_dry_run_writes_nothing(tmp_path: Path):
    source = folder(tmp_path / "a")
    report = convert(source, to="gray", dry_run=True)
    assert report.status == "would_convert"
    assert Path(report.target).name == "a_gray"
    assert os.listdir(tmp_path) == ["a"]


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_unchanged(channels: int, tmp_path: Path):
    source = folder(tmp_path / "a", {**CONFIG, "num_channels": channels}, channels=channels)
    assert convert(source, tmp_path / "b", to=channels).status == "unchanged"
    assert {n: digest for n, (_, digest) in snapshot(source).items()} == {
        n: digest for n, (_, digest) in snapshot(tmp_path / "b").items()
    }
    assert verify(source, tmp_path / "b").ok


def test_verify_names_the_file(tmp_path: Path):
    source, out = folder(tmp_path / "a"), tmp_path / "b"
    convert(source, out, to="gray")
    (out / "config.json").write_text((source / "config.json").read_text())
    (out / "README.md").write_text("changed")
    (out / "new").touch()
    found = {d.key: d.message for d in verify(source, out).differences}
    assert found == {
        "config.json": "differs from what the conversion writes",
        "README.md": "differs, though the conversion does not change it",
        "new": "is not in the original",
    }


def test_sidecars_of_a_single_file(tmp_path: Path):
    source, out = folder(tmp_path / "a"), tmp_path / "out"
    out.mkdir()
    with pytest.raises(UsageError, match="would replace the configurations of the source"):
        convert(source / "model.safetensors", to="gray", with_sidecars=True)
    convert(source / "model.safetensors", out / "model.safetensors", to="gray", with_sidecars=True)
    assert loaded(out / "config.json")["num_channels"] == 1
    assert len(loaded(out / "preprocessor_config.json")["image_mean"]) == 1


AMBIGUOUS = {
    "a.weight": np.ones((8, 3, 3, 3), np.float32),
    "b.weight": np.ones((9, 3, 5, 5), np.float32),
    "c.weight": np.ones((8, 300, 3, 3), np.float32),
}


def test_a_configuration_settles_what_shapes_leave_open(tmp_path: Path):
    path = tmp_path / "model.safetensors"
    safetensors.numpy.save_file(AMBIGUOUS, path)
    with pytest.raises(AmbiguousError):
        convert(path, tmp_path / "x.safetensors", to="gray")
    config = {"pretrained_cfg": {"first_conv": "a", "input_size": [3, 8, 8]}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (conv,) = inspect(path).first_convs
    assert (conv.tensor.name, conv.found_by) == ("a.weight", "sidecar")
    (tmp_path / "config.json").write_text(json.dumps({"pretrained_cfg": {"first_conv": "zzz", "input_size": [3, 8, 8]}}))
    assert not inspect(path).first_convs
    (tmp_path / "config.json").write_text("no JSON")
    assert not inspect(path).first_convs


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    source, out = folder(tmp_path / "a"), tmp_path / "b"
    assert run(["convert", str(source), "--to", "gray", "-o", str(out)]) == 0
    shown = capsys.readouterr()
    assert "config.json: num_channels: 3 → 1" in shown.out
    assert "--norm auto" in shown.err
    assert run(["convert", str(source), "--to", "gray", "-o", str(out), "--check"]) == 0
    (out / "README.md").write_text("changed")
    assert run(["convert", str(source), "--to", "gray", "-o", str(out), "--check"]) == 1
    assert run(["convert", str(source), "--to", "gray", "-o", str(tmp_path / "c"), "--check"]) == 1
    assert "is missing" in capsys.readouterr().out
    assert run(["convert", str(source), "--to", "gray", "-o", str(out)]) == 5
    assert contents(out / "model.safetensors").keys() == contents(source / "model.safetensors").keys()


@pytest.mark.parametrize(
    "config",
    [
        {"model_type": "blip", "vision_config": {"image_size": 384}},
        {"model_type": "x", "vision_config": {"model_type": "glm_ocr_vision", "in_channels": 3}},
        {"model_type": "swin2sr", "num_channels": 3},
    ],
)
def test_models_that_their_library_does_not_build_for_other_channels(config: Any, tmp_path: Path):
    source = folder(tmp_path / "a", config, None)
    with pytest.raises(UnsupportedError, match=r"config\.json: .*model_type: transformers "):
        convert(source, tmp_path / "b", to="gray")
    assert convert(source, tmp_path / "c", to="bgr").status == "converted"


def test_widths_that_begin_with_the_image(tmp_path: Path):
    config = {"model_type": "hgnet_v2", "num_channels": 3, "stem_channels": [3, 32, 48]}
    convert(folder(tmp_path / "a", config, None), tmp_path / "b", to="gray")
    assert loaded(tmp_path / "b" / "config.json") == {"model_type": "hgnet_v2", "num_channels": 1, "stem_channels": [1, 32, 48]}
    other = {"model_type": "other", "num_channels": 3, "stem_channels": [3, 32, 48]}
    convert(folder(tmp_path / "c", other, None), tmp_path / "d", to="gray")
    assert loaded(tmp_path / "d" / "config.json")["stem_channels"] == [3, 32, 48]


def test_a_count_left_to_its_default_is_spelled(tmp_path: Path):
    """Where the part that sees the image does not count, another part's count does not stand for it."""
    config = {"model_type": "clip", "vision_config": {"model_type": "clip_vision_model"}, "other": {"num_channels": 7}}
    convert(folder(tmp_path / "a", config, None), tmp_path / "b", to="gray")
    changed = loaded(tmp_path / "b" / "config.json")
    assert (changed["vision_config"]["num_channels"], changed["other"]) == (1, {"num_channels": 7})


def test_timm_without_model_args(tmp_path: Path):
    """timm itself goes by input_size, transformers' wrapper of it by model_args."""
    config = {key: value for key, value in TIMM.items() if key != "model_args"}
    convert(folder(tmp_path / "a", config, None), tmp_path / "b", to="gray")
    assert loaded(tmp_path / "b" / "config.json")["model_args"] == {"in_chans": 1}


@pytest.mark.parametrize(
    ("given", "changed"),
    [
        ({"image_mean": 0.5, "image_std": 0.25}, {"image_mean": 0.5, "image_std": 0.25}),
        ({"image_mean": [0.5], "image_std": [0.25]}, {"image_mean": [0.5], "image_std": [0.25]}),
        ({"image_mean": [0.1] * 4, "image_std": [1] * 4}, {"image_mean": [0.1] * 4, "image_std": [1] * 4}),
        ({"mean": 0.0, "std": 0.02}, {"mean": 0.0, "std": 0.02}),
        ({"image_mean": None, "image_std": None}, {"image_mean": None, "image_std": None}),
    ],
)
def test_means_of_other_lengths(given: Any, changed: Any, tmp_path: Path):
    source = folder(tmp_path / "a", preprocessor={**given, "do_convert_rgb": False})
    report = convert(source, tmp_path / "b", to="gray")
    assert loaded(tmp_path / "b" / "preprocessor_config.json") == changed | {"do_convert_rgb": False}
    kept = any(isinstance(value, list) and len(value) == 4 for value in given.values())
    assert ("pipeline_kept" in {w.code for w in report.warnings}) is kept


@pytest.mark.parametrize("said", [{}, {"do_convert_rgb": None}, {"do_convert_rgb": True}, {"do_convert_rgb": False}])
def test_gray_images_are_not_turned_into_colors(said: Any, tmp_path: Path):
    """Many processors do that where their configuration does not say otherwise, or says null."""
    source = folder(tmp_path / "a", preprocessor=PREPROCESSOR | said)
    convert(source, tmp_path / "b", to="gray")
    assert loaded(tmp_path / "b" / "preprocessor_config.json")["do_convert_rgb"] is False
    assert "do_convert_rgb" not in loaded(tmp_path / "b" / "config.json")


def test_a_network_that_gives_the_image_back_loads_its_encoder(tmp_path: Path):
    config = {"architectures": ["ViTForMaskedImageModeling"], "model_type": "vit", "num_channels": 3}
    report = convert(folder(tmp_path / "a", config, None), tmp_path / "b", to="gray")
    assert [w.code for w in report.warnings] == ["reconstructs"]
    assert report.load_lines[-1].startswith("model = transformers.AutoModel.")


def test_diffusers_name_of_the_first_conv(tmp_path: Path):
    path = folder(tmp_path / "a", {"_class_name": "UNet2DConditionModel", "in_channels": 4, "out_channels": 4}, None)
    shapes = {"conv_in.weight": (8, 4, 3, 3), "up.weight": (4, 16, 3, 3), "b.conv.weight": (8, 4, 3, 3), "z.weight": (4, 8, 1, 1)}
    named = {name: np.ones(shape, np.float32) for name, shape in shapes.items()}
    safetensors.numpy.save_file(named, path / "model.safetensors")
    (conv,) = inspect(path).first_convs
    assert (conv.tensor.name, conv.found_by) == ("conv_in.weight", "sidecar")
    convert(path, tmp_path / "b", to=9, method="zero")
    assert loaded(tmp_path / "b" / "config.json")["in_channels"] == 9


@pytest.mark.parametrize(
    "raw", [b"{num_channels: 3", b'\xef\xbb\xbf{"num_channels": 3}', b'{"a": 1, "a": 2}', b'{"a": NaN}', b"\xff"]
)
def test_a_configuration_that_cannot_be_read_would_stay_stale(raw: bytes, tmp_path: Path):
    source = folder(tmp_path / "a")
    (source / "config.json").write_bytes(raw)
    with pytest.raises(DamagedError, match=r"config\.json"):
        convert(source, tmp_path / "b", to="gray")
    folder(tmp_path / "c")
    (tmp_path / "c" / "web").mkdir()
    (tmp_path / "c" / "web" / "config.json").write_bytes(raw)  # no weights beside: something else
    convert(tmp_path / "c", tmp_path / "d", to="gray")
    assert (tmp_path / "d" / "web" / "config.json").read_bytes() == raw


def test_a_configuration_that_disagrees_is_told(tmp_path: Path):
    source = folder(tmp_path / "a", {**CONFIG, "num_channels": 4})
    assert "count_kept" in {w.code for w in convert(source, tmp_path / "b", to="gray").warnings}


def test_a_link_to_nothing(tmp_path: Path):
    source = folder(tmp_path / "a")
    (source / "more.txt").symlink_to("nowhere")
    with pytest.raises(FileSystemError, match=r"more\.txt: is a link to nothing"):
        convert(source, tmp_path / "b", to="gray")


def test_an_optimizer_apart_from_its_model(tmp_path: Path):
    """As transformers' Trainer keeps it: nothing in it says which state is the kernel's."""
    source = folder(tmp_path / "a")
    moments = tensor(storage("0", 8 * 147), (8, 3, 7, 7))
    state = {"state": {0: {"step": 1, "exp_avg": moments}}, "param_groups": [{"lr": 0.1, "params": [0]}]}
    (source / "optimizer.pt").write_bytes(torch_zip(state, {"0": floats(8 * 147)}))
    report = convert(source, tmp_path / "b", to="gray")
    assert (tmp_path / "b" / "optimizer.pt").read_bytes() == (source / "optimizer.pt").read_bytes()
    told = {notice.code: notice.message for notice in report.warnings}
    assert "optimizer.pt" in told["copied"]
    assert "of the shape that conv1.weight had" in told["stale_optimizer"]
    assert verify(source, tmp_path / "b").ok


@pytest.mark.parametrize(
    "text",
    [
        '{"model_type":"resnet","num_channels":%d}',
        '{\r\n\t"num_channels"\t:\t%d ,\r\n"model_type": "r\u00e9s\u2713net"}\r\n',
        '\n\n{ "a": {"num_channels":9}, "num_channels" :%d\n}   ',
    ],
)
def test_odd_formatting_stays(text: str, tmp_path: Path):
    source = folder(tmp_path / "a")
    (source / "config.json").write_bytes((text % 3).encode())
    convert(source, tmp_path / "b", to="gray")
    assert (tmp_path / "b" / "config.json").read_bytes() == (text % 1).encode()


def test_the_cache_of_the_hub(tmp_path: Path):
    """snapshots/<revision>/<name> are links to ../../blobs/<hash>; both stay as they are."""
    plain, snapshot_ = folder(tmp_path / "plain"), tmp_path / "hub" / "snapshots" / "0123abcd"
    blobs = tmp_path / "hub" / "blobs"
    snapshot_.mkdir(parents=True)
    blobs.mkdir()
    for i, path in enumerate(sorted(plain.iterdir())):
        path.rename(blobs / f"{i}")
        (snapshot_ / path.name).symlink_to(f"../../blobs/{i}")
    before = snapshot(snapshot_) | snapshot(blobs)
    os.chmod(snapshot_, 0o555)
    out = tmp_path / "out é '1'"
    convert(snapshot_, out, to="gray", hard_link=True)
    os.chmod(snapshot_, 0o755)
    assert {name: digest for name, (_, digest) in (snapshot(snapshot_) | snapshot(blobs)).items()} == {
        name: digest for name, (_, digest) in before.items()
    }
    assert not any(path.is_symlink() for path in out.iterdir())
    assert not any(path.samefile(blob) for path in out.iterdir() for blob in blobs.iterdir())  # nobody writes into the cache
    assert loaded(out / "config.json")["num_channels"] == 1
    assert verify(snapshot_, out).ok


def test_files_that_are_one_where_case_does_not_count(tmp_path: Path):
    model = folder(tmp_path / "model")
    (model / "Config.json").write_text("{}")
    with pytest.raises(UnsupportedError, match=r"config\.json: differs from Config\.json by the case") as caught:
        convert(model, tmp_path / "out", "gray")
    assert caught.value.hint == "--leave-out Config.json"
    convert(model, tmp_path / "out", "gray", leave_out=["Config.json"])
    assert inspect(model).first_convs
