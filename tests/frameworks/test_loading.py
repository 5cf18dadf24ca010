"""Every way of torch.load reads the output; torch computes the offsets of storages and finds them where they are."""

import re
import zipfile

import pytest
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.serialization import config as torch_config

from chkpt_channels import convert
from fixtures.generate.torch_networks import resnet
from fixtures.generate.torch_objects import flat_buffer, tied
from tests.frameworks.oracle import ZIP, Format, Sample, assert_same, load, stored, tensors
from tests.frameworks.samples import KERNEL, SAMPLES

SOURCES = {
    **{name: SAMPLES[name] for name in ("state_dict", "state_dict_float8", "state_dict_wide", "wrapped_adamw", "module")},
    "flat_buffer": Sample(flat_buffer, [KERNEL]),
    "tied": Sample(tied, [KERNEL]),
}


def debugging(path):
    """In this mode torch.load computes every storage's offset and asserts that the archive says the same."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TORCH_SERIALIZATION_DEBUG", "1")
        return load(path)


def mapped_by_computed_offsets(path):
    with pytest.MonkeyPatch.context() as patch, torch_config.patch("load.calculate_storage_offsets", True):
        patch.setenv("TORCH_SERIALIZATION_DEBUG", "1")
        return load(path, mmap=True)


def fake(path):
    with FakeTensorMode():
        return load(path)


REAL = {
    "mmap": lambda path: load(path, mmap=True),
    "debugging": debugging,
    "mapped by computed offsets": mapped_by_computed_offsets,
}
UNREAL = {
    "meta": lambda path: load(path, map_location="meta"),
    "fake": fake,
}
CASES = [(source, form, to) for source in SOURCES for form in (ZIP, Format(4, 4096)) for to in (1, 4, 13, 32)]


@pytest.fixture(params=CASES, ids=lambda case: "-".join(map(str, case)))
def output(request, tmp_path):
    source, form, to = request.param
    convert(form.save(SOURCES[source].build(), tmp_path / "net.pth"), tmp_path / "new.pth", to)
    return tmp_path / "new.pth"


def test_every_way_loads_the_same(output):
    plain, content = load(output), output.read_bytes()
    for way in REAL.values():
        assert_same(way(output), plain)
    for way in UNREAL.values():
        found, expected = tensors(way(output)), tensors(plain)
        assert list(found) == list(expected)
        for name, tensor in expected.items():
            other = found[name]
            assert (other.shape, other.stride(), other.dtype) == (tensor.shape, tensor.stride(), tensor.dtype)
            at, size = other.untyped_storage()._checkpoint_offset, other.untyped_storage().nbytes()
            assert content[at : at + size] == stored(tensor)


@pytest.mark.parametrize("form", [ZIP, Format(3), Format(zipped=False)], ids=str)
@pytest.mark.parametrize("source", [name for name in SOURCES if name not in ("module", "wrapped_adamw")])
@pytest.mark.parametrize("to", [1, 4])
def test_state_dicts_load_with_weights_only(tmp_path, source, form, to):
    if source == "state_dict_float8" and not form.zipped:
        pytest.skip("torch cannot load its own legacy files with float8 tensors")
    convert(form.save(SOURCES[source].build(), tmp_path / "net.pth"), tmp_path / "new.pth", to)
    assert_same(load(tmp_path / "new.pth", weights_only=True), load(tmp_path / "new.pth"))


def test_the_debugging_assertion_fires_where_offsets_are_wrong(tmp_path):
    """Else the tests above would prove nothing."""
    original, shifted = ZIP.save(resnet().state_dict(), tmp_path / "net.pth"), tmp_path / "shifted.pth"
    with zipfile.ZipFile(original) as source, zipfile.ZipFile(shifted, "w") as out:
        for name in source.namelist():
            out.writestr(name, source.read(name))
    load(shifted)
    with pytest.raises(RuntimeError, match=re.escape("Incorrect offset for data/")):
        debugging(shifted)
