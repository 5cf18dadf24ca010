"""convert_state_dict on torch's own tensors, on their device and in their dtype."""

import pytest
import torch
from torch import nn

from chkpt_channels import UnsupportedError, convert_state_dict


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.float8_e4m3fn], ids=str)
def test_tensors_stay_tensors(dtype: torch.dtype):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 16, 3))
    state = net.state_dict()
    state["0.weight"] = state["0.weight"].to(dtype)
    found = convert_state_dict(state, to="gray")
    assert list(found) == list(state)
    assert (found["0.weight"].dtype, found["0.weight"].shape) == (dtype, (8, 1, 3, 3))
    assert torch.allclose(found["0.weight"].double(), state["0.weight"].double().sum(1, keepdim=True), rtol=0.1, atol=1e-6)
    assert all(found[name] is state[name] for name in state if name != "0.weight")


def test_the_next_line_loads_it():
    gray = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Conv2d(8, 16, 3))
    rgb = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 16, 3))
    gray.load_state_dict(convert_state_dict(rgb.state_dict(), to="gray"))
    image = torch.rand(1, 1, 16, 16)
    assert torch.allclose(gray(image), rgb(image.repeat(1, 3, 1, 1)), atol=1e-5)
    parameters = dict(rgb.named_parameters())  # with requires_grad
    assert convert_state_dict(parameters, to=4)["0.weight"].shape == (8, 4, 3, 3)


def test_a_module_stands_for_its_state_dict():
    """Its parameters and its buffers, also behind a wrapper; as `like` too."""
    rgb = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 16, 3))
    gray = nn.Sequential(nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 16, 3))
    expected = convert_state_dict(rgb.state_dict(), to="gray")
    for found in (convert_state_dict(rgb, to="gray"), convert_state_dict(rgb, like=gray)):
        assert list(found) == list(expected)
        assert all(torch.equal(found[name], expected[name]) for name in expected)
    gray.load_state_dict(convert_state_dict(rgb, to="gray"))
    assert "module.0.weight" in convert_state_dict(nn.DataParallel(rgb), to="gray")


OPAQUE = {
    "sparse": (torch.Tensor.to_sparse, "of the layout torch.sparse_coo"),
    "meta": (lambda tensor: tensor.to("meta"), "on the meta device"),
    "lazy": (lambda tensor: nn.UninitializedParameter(), "is not initialized"),
    "fake": (lambda tensor: torch._subclasses.FakeTensorMode().from_tensor(tensor), "is a FakeTensor"),
    "integers": (lambda tensor: tensor.to(torch.int8), "its I8 numbers have no scale"),
}


@pytest.mark.parametrize(("change", "what"), OPAQUE.values(), ids=OPAQUE)
def test_a_first_conv_that_is_no_dense_tensor_is_refused(change, what):
    state = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 16, 3)).state_dict()
    with pytest.raises(UnsupportedError, match=f"state dict: 0.weight: .*{what}"):
        convert_state_dict({**state, "0.weight": change(state["0.weight"])}, to="gray")
    if what != "is not initialized":  # of which not even the shape is known
        found = convert_state_dict({**state, "2.weight": change(state["2.weight"])}, to="gray")
        assert found["0.weight"].shape == (8, 1, 3, 3)


def test_a_subclass_with_a_storage_is_a_tensor():
    class Image(torch.Tensor):
        pass

    weight = torch.rand(8, 3, 3, 3)
    found = convert_state_dict({"conv.weight": weight.as_subclass(Image)}, to="gray")
    assert torch.allclose(found["conv.weight"], weight.sum(1, keepdim=True))


def test_a_bit_that_negates_is_read():
    plain = torch.arange(108.0).reshape(4, 3, 3, 3)
    for negated in (torch._neg_view(plain), torch.complex(plain, plain).conj().imag):
        assert negated.is_neg()
        assert torch.equal(convert_state_dict({"conv1.weight": negated}, to="gray")["conv1.weight"], -plain.sum(1, keepdim=True))
