"""Every fixture, converted by the package and by torch: nothing differs."""

import json
from pathlib import Path

import pytest
import safetensors.torch
import torch

from chkpt_channels import UnsupportedError, convert, verify
from tests.frameworks.oracle import bits, leaves, load, mixed, sharing

FIXTURES = Path(__file__).resolve().parents[2] / "fixtures"
EXPECTED = {
    f"{folder}/{name}": entry
    for folder in ("torch_zip", "torch_legacy", "safetensors")
    for name, entry in json.loads((FIXTURES / folder / "expected.json").read_text()).items()
}
CONVERTIBLE = [name for name, entry in EXPECTED.items() if entry["first_convs"]]
TARGETS = {"gray": 1, "rgb": 3, "4": 4}


def opened(path):
    if path.suffix == ".safetensors":
        return safetensors.torch.load_file(path)
    try:
        return torch.jit.load(path)
    except RuntimeError:
        return load(path)


def converted_by_torch(name, leaf, entry, new):
    """What a leaf of the file must be afterwards."""
    if name in entry["first_convs"]:
        return mixed(leaf, new, entry["first_convs"][name]["layout"].index("I"))
    if name in entry["optimizer"]:
        return torch.zeros([leaf.shape[0], new, *leaf.shape[2:]] if leaf.ndim else [], dtype=leaf.dtype)
    return new if name in entry["declarations"] else leaf


def assert_quantized(found, leaf, conv, new):
    """The same numbers, or the mixed kernel to half a step."""
    if conv is None:
        assert torch.equal(found.int_repr(), leaf.int_repr())
        return
    expected = mixed(leaf.dequantize(), new, conv["layout"].index("I"))
    whole = found.qscheme() == torch.per_tensor_affine
    steps = torch.tensor(found.q_scale()) if whole else found.q_per_channel_scales().reshape(-1, 1, 1, 1)
    assert found.shape == expected.shape
    assert ((found.dequantize() - expected).abs() <= steps / 2 * 1.001).all()


@pytest.mark.parametrize("to", TARGETS)
@pytest.mark.parametrize("name", CONVERTIBLE)
def test_conversion_is_what_torch_computes(tmp_path, name, to):
    entry, source, new = EXPECTED[name], FIXTURES / name, TARGETS[to]
    report = convert(source, tmp_path / source.name, to)
    if new == entry["in_channels"]:
        assert report.status == "unchanged"
        assert (tmp_path / source.name).read_bytes() == source.read_bytes()
        return
    before, after = opened(source), opened(tmp_path / source.name)
    found = dict(leaves(after))
    assert list(found) == [path for path, _ in leaves(before)]
    for path, leaf in leaves(before):
        assert type(found[path]) is type(leaf), path
        if isinstance(leaf, torch.Tensor) and leaf.is_quantized:
            assert_quantized(found[path], leaf, entry["first_convs"].get(path), new)
            continue
        expected = converted_by_torch(path, leaf, entry, new)
        if isinstance(leaf, torch.Tensor):
            assert (found[path].dtype, found[path].shape) == (expected.dtype, expected.shape), path
            assert torch.equal(bits(found[path]), bits(expected)), path
            assert found[path].stride() == leaf.stride() or expected is not leaf, path
        else:
            assert found[path] == expected, path
    assert sharing(after) == sharing(before)
    changed = {name for name in report.changed if not name.endswith(("/scale", "/scales"))}
    assert changed == {*entry["first_convs"], *entry["optimizer"]}
    assert {d.where for d in report.declarations} == set(entry["declarations"])
    assert verify(source, tmp_path / source.name).ok


@pytest.mark.parametrize("name", [name for name in EXPECTED if name not in CONVERTIBLE])
def test_a_file_without_first_conv_is_refused(tmp_path, name):
    with pytest.raises(UnsupportedError):
        convert(FIXTURES / name, tmp_path / "new.pth", "gray")
