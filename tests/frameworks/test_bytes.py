"""The output is byte for byte what torch.save writes for the converted object."""

import pickletools
import zipfile

import pytest
import torch

from chkpt_channels import convert, verify
from fixtures.generate.torch_networks import resnet
from tests.frameworks.oracle import FORMATS, LEGACY, ZIP, ZIP4, become_, bits, load, mixed, tensors
from tests.frameworks.samples import KERNEL, SAMPLES


@pytest.mark.parametrize("to", [1, 4, 13, 32])
@pytest.mark.parametrize("form", FORMATS, ids=str)
@pytest.mark.parametrize("sample", SAMPLES)
def test_conversion_equals_torch_save_of_the_converted_object(tmp_path, sample, form, to):
    sample = SAMPLES[sample]
    obj = sample.build()
    original = form.save(obj, tmp_path / "before" / "net.pth")
    expected = form.save(sample.convert_(obj, to), tmp_path / "expected" / "net.pth")
    convert(original, tmp_path / "net.pth", to)
    assert (tmp_path / "net.pth").read_bytes() == expected.read_bytes()
    assert verify(original, expected).ok


@pytest.mark.parametrize("form", FORMATS, ids=str)
@pytest.mark.parametrize("sample", [name for name in SAMPLES if not name.startswith("wrapped")])
def test_to_four_channels_and_back_gives_the_original_file(tmp_path, sample, form):
    """Exactly so where 3/4 of each weight is a number of its dtype: these have significands of two bits."""
    sample = SAMPLES[sample]
    obj = sample.build()
    kernel = tensors(obj)[sample.kernels[0]]
    short = torch.randint(2, 4, kernel.shape) * 2.0 ** torch.randint(-4, 2, kernel.shape)
    kernel.data.copy_(short * kernel.float().sign())
    original = form.save(obj, tmp_path / "net.pth")
    there, back = tmp_path / "there" / "net.pth", tmp_path / "back" / "net.pth"
    there.parent.mkdir()
    back.parent.mkdir()
    convert(original, there, 4)
    convert(there, back, "rgb")
    assert there.read_bytes() != original.read_bytes() == back.read_bytes()


@pytest.mark.parametrize("form", [ZIP, ZIP4, LEGACY], ids=str)
def test_to_four_channels_and_back_moves_any_weight_by_one_ulp_at_most(tmp_path, form):
    state = resnet().state_dict()
    original = form.save(state, tmp_path / "net.pth")
    convert(original, tmp_path / "there.pth", 4)
    convert(tmp_path / "there.pth", tmp_path / "back.pth", 3)
    back = load(tmp_path / "back.pth")
    assert (tmp_path / "back.pth").stat().st_size == original.stat().st_size
    assert torch.all((back[KERNEL].view(torch.int32) - state[KERNEL].view(torch.int32)).abs() <= 1)
    assert all(torch.equal(bits(back[name]), bits(state[name])) for name in state if name != KERNEL)


def opcodes(path):
    """What the archive's pickle says, but for where its frames end, and in how many bytes they are."""
    found = list(pickletools.genops(zipfile.ZipFile(path).read("net/data.pkl")))
    frames = [argument for opcode, argument, _ in found if opcode.name == "FRAME"]
    return [(opcode.name, argument) for opcode, argument, _ in found if opcode.name != "FRAME"], frames


def test_frames_keep_their_contents(tmp_path):
    """A pickler ends a frame behind 64 KiB, so new integers may move the end; an edit leaves it where it was."""
    state = {KERNEL: torch.randn(64, 3, 7, 7), **{f"layers.{i}.bias": torch.ones(1) for i in range(2500)}}
    original = ZIP4.save(state, tmp_path / "net.pth")
    there, back = tmp_path / "there" / "net.pth", tmp_path / "back" / "net.pth"
    there.parent.mkdir()
    convert(original, there, 32)
    become_(state[KERNEL], mixed(state[KERNEL], 32))
    (spelled, frames), (expected, _) = opcodes(there), opcodes(ZIP4.save(state, tmp_path / "back" / "net.pth"))
    assert spelled == expected
    assert len(frames) > 1
    assert list(load(there)) == list(state)
    back.unlink()
    convert(there, back, 3)
    assert opcodes(back) == opcodes(original)
