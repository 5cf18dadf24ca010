"""Tensors that share, skip or reorder memory, in every dtype: the values are those that torch computes."""

import pytest
import torch

from chkpt_channels import UnsupportedError, convert, verify
from fixtures.generate.torch_networks import resnet, student_teacher
from fixtures.generate.torch_objects import flat_buffer, tied
from tests.frameworks.oracle import LEGACY, ZIP, assert_same, load, mixed, sharing
from tests.frameworks.samples import KERNEL

DTYPES = (
    *(torch.float64, torch.float32, torch.float16, torch.bfloat16),
    *(torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e4m3fnuz, torch.float8_e5m2fnuz),
)


def state(**changes):
    return {**resnet().state_dict(), **changes}


def kernel():
    return torch.randn(8, 3, 7, 7)


def tied_kernel():
    """One storage under two names, as the same tensor and as another one."""
    made = resnet().state_dict()
    return {KERNEL: made[KERNEL], "same.weight": made[KERNEL], "other.weight": made[KERNEL].detach(), **made}


def flat_in_the_middle():
    """The kernel between other views of one storage."""
    made = resnet().state_dict()
    flat = torch.randn(2000)
    views = {"first.bias": flat[:8], KERNEL: flat[8 : 8 + 1176].view(8, 3, 7, 7), "last.bias": flat[1300:1310]}
    return {**views, **{k: v for k, v in made.items() if k not in views}}


def two_models_on_one_buffer():
    """Both kernels, and nothing else of either model, lie in one storage."""
    made = student_teacher().state_dict()
    names = [f"{who}.backbone.{KERNEL}" for who in ("student", "teacher")]
    pair = torch.stack([made[name] for name in names])
    return {**made, **dict(zip(names, pair, strict=True))}


STATES = {
    "views of one buffer": flat_buffer,
    "a view between views": flat_in_the_middle,
    "tied weights elsewhere": tied,
    "two models on one buffer": two_models_on_one_buffer,
    "channels_last": lambda: resnet().to(memory_format=torch.channels_last).state_dict(),
    "part of a larger storage": lambda: state(**{KERNEL: torch.randn(20, 3, 7, 7)[5:13]}),
    "every second filter": lambda: state(**{KERNEL: torch.randn(16, 3, 7, 7)[::2]}),
    "three of four channels": lambda: state(**{KERNEL: torch.randn(8, 4, 7, 7)[:, :3]}),
    "transposed": lambda: state(**{KERNEL: kernel().transpose(2, 3)}),
    "flipped axes order": lambda: state(**{KERNEL: torch.randn(7, 7, 3, 8).permute(3, 2, 1, 0)}),
    "a Parameter": lambda: state(**{KERNEL: torch.nn.Parameter(kernel())}),
    "requires_grad": lambda: state(**{KERNEL: kernel().requires_grad_()}),
}


def expected(original, new, names):
    """The original with its kernels mixed; tensors that were one stay one."""
    made = {}

    def convert_one(tensor):
        if id(tensor) not in made:
            values = mixed(tensor, new)
            made[id(tensor)] = values.requires_grad_(tensor.requires_grad)
        return made[id(tensor)]

    return {name: convert_one(tensor) if name in names else tensor for name, tensor in original.items()}


def assert_converted(found, original, new, names):
    assert_same({k: v.clone() for k, v in found.items()}, {k: v.clone() for k, v in expected(original, new, names).items()})
    assert [(type(v), v.requires_grad) for v in found.values()] == [(type(v), v.requires_grad) for v in original.values()]
    assert sharing(found) == sharing(original)
    for name, tensor in original.items():
        if name not in names:
            assert (found[name].stride(), found[name].storage_offset()) == (tensor.stride(), tensor.storage_offset()), name
        elif tensor.is_contiguous():
            assert found[name].is_contiguous(), name
        elif tensor.is_contiguous(memory_format=torch.channels_last):
            assert found[name].is_contiguous(memory_format=torch.channels_last), name


@pytest.mark.parametrize("to", [1, 3, 4])
@pytest.mark.parametrize("form", [ZIP, LEGACY], ids=str)
@pytest.mark.parametrize("name", STATES)
def test_shared_and_strided_memory(tmp_path, name, form, to):
    original = STATES[name]()
    path = form.save(original, tmp_path / "net.pth")
    convert(path, tmp_path / "new.pth", to)
    kernels = [k for k in original if k.endswith(KERNEL) and "layer" not in k]
    assert_converted(load(tmp_path / "new.pth"), original, to, kernels)
    assert verify(path, tmp_path / "new.pth").ok


@pytest.mark.parametrize("form", [ZIP, LEGACY], ids=str)
def test_a_kernel_under_several_names_is_one_afterwards(tmp_path, form):
    original, names = tied_kernel(), [KERNEL, "same.weight", "other.weight"]
    convert(form.save(original, tmp_path / "net.pth"), tmp_path / "new.pth", 1, layers=names)
    found = load(tmp_path / "new.pth")
    assert_converted(found, original, 1, names)
    assert found[KERNEL] is found["same.weight"]


@pytest.mark.parametrize("form", [ZIP, LEGACY], ids=str)
@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda: {KERNEL: torch.randn(1, 3, 7, 7).expand(8, 3, 7, 7)}, id="expanded"),
        pytest.param(lambda: (lambda k: {KERNEL: k, "tail.bias": k.flatten()[-8:]})(kernel()), id="overlapping"),
    ],
)
def test_memory_that_would_keep_old_values_is_refused(tmp_path, form, change):
    with pytest.raises(UnsupportedError):
        convert(form.save(state(**change()), tmp_path / "net.pth"), tmp_path / "new.pth", 1)
    assert not (tmp_path / "new.pth").exists()


@pytest.mark.parametrize("form", [ZIP, LEGACY], ids=str)
@pytest.mark.parametrize("to", [1, 4])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_dtypes(tmp_path, dtype, to, form):
    if dtype.itemsize == 1 and not form.zipped:
        pytest.skip("torch cannot load its own legacy files with float8 tensors")
    wide = torch.randn(64, 3, 7, 7, dtype=torch.float64) * 2.0 ** torch.randint(-6, 4, (64, 3, 7, 7))
    original = state(**{KERNEL: wide.to(dtype)})
    convert(form.save(original, tmp_path / "net.pth"), tmp_path / "new.pth", to)
    assert_converted(load(tmp_path / "new.pth"), original, to, [KERNEL])


class Tied(torch.nn.Module):
    """Two layers with one kernel, as siamese stems have."""

    def __init__(self):
        super().__init__()
        self.a, self.b = torch.nn.Conv2d(3, 8, 3), torch.nn.Conv2d(3, 8, 3)
        self.b.weight = self.a.weight


@pytest.mark.parametrize("form", [ZIP, LEGACY], ids=str)
@pytest.mark.parametrize("make", [Tied, lambda: Tied().state_dict(keep_vars=True)], ids=["module", "parameters"])
def test_a_tied_kernel_is_named_by_all_its_names(tmp_path, make, form):
    path = form.save(make(), tmp_path / "net.pth")
    with pytest.raises(UnsupportedError, match=r"a\.weight: shares its memory with b\.weight") as refused:
        convert(path, tmp_path / "new.pth", 1, layers=["a.weight"])
    assert "--layer a.weight --layer b.weight" in refused.value.hint
    assert not (tmp_path / "new.pth").exists()
    convert(path, tmp_path / "new.pth", 1, layers=["a.weight", "b.weight"])
    found = torch.load(tmp_path / "new.pth", weights_only=False)
    tensors = dict(found.named_parameters(remove_duplicate=False)) if isinstance(found, torch.nn.Module) else found
    assert tensors["a.weight"] is tensors["b.weight"]
    assert tensors["a.weight"].shape == (8, 1, 3, 3)
