"""Optimizers as libraries store them: after a conversion the next training step works, or the state is refused by its name."""

import copy

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)

from chkpt_channels import UnsupportedError, convert, inspect, verify
from tests.frameworks.oracle import LEGACY, ZIP, assert_same, load

ZEROS = ("Adam", "NAdam", "RAdam", "Adamax", "Adadelta", "Adagrad", "RMSprop")
"""Optimizers of torch whose moments begin with zeros."""
OTHERS = {"Adafactor": "0/row_var", "LBFGS": "0/d", "Rprop": "0/step_size", "ASGD": "0/eta"}
"""Those whose state does not, and what is refused first."""


def net(channels=3):
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(channels, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 16, 3))


def step(model, optimizer, channels):
    def loss():
        optimizer.zero_grad()
        value = model(torch.rand(4, channels, 9, 9)).square().mean()
        value.backward()
        return value

    assert torch.isfinite(optimizer.step(loss))


def trained(name, **options):
    model = net()
    optimizer = getattr(torch.optim, name)(model.parameters(), lr=0.01, **options)
    for _ in range(2):
        step(model, optimizer, 3)
    return model, optimizer


def resumed(checkpoint, name, channels, **options):
    """One step of training from a converted checkpoint; the optimizer before that step."""
    model = net(channels)
    model.load_state_dict(checkpoint["model"])
    optimizer = getattr(torch.optim, name)(model.parameters(), lr=0.01, **options)
    optimizer.load_state_dict(checkpoint["optimizer"])
    before = copy.deepcopy(optimizer.state_dict()["state"])
    step(model, optimizer, channels)
    return before


def converted(folder, obj, to="gray", form=ZIP, **options):
    folder.mkdir(exist_ok=True)
    source = form.save(obj, folder / "last.pth")
    convert(source, folder / "new.pth", to, **options)
    assert verify(source, folder / "new.pth", to, **options).ok
    return load(folder / "new.pth")


@pytest.mark.parametrize("form", [ZIP, LEGACY], ids=str)
@pytest.mark.parametrize("name", ZEROS)
def test_a_reset_entry_is_that_of_a_new_kernel(name, form, tmp_path):
    model, optimizer = trained(name)
    new = converted(tmp_path, {"model": model.state_dict(), "optimizer": optimizer.state_dict()}, form=form)
    state = resumed(new, name, 1)[0]
    model = net(1)
    fresh = getattr(torch.optim, name)(model.parameters(), lr=0.0)
    model(torch.zeros(1, 1, 9, 9)).sum().mul(0).backward()
    fresh.step()
    for slot, value in fresh.state_dict()["state"][0].items():
        if slot == "mu_product":
            assert state[slot] == 1
            continue
        assert state[slot].shape == value.shape, slot
        assert not state[slot].any(), slot


@pytest.mark.parametrize("form", [ZIP, LEGACY], ids=str)
@pytest.mark.parametrize("to", [1, 4])
@pytest.mark.parametrize("name", OTHERS)
def test_state_that_is_not_zeros_of_the_kernels_shape_can_be_dropped(name, to, form, tmp_path):
    model, optimizer = trained(name)
    checkpoint = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
    source = form.save(checkpoint, tmp_path / "a.pth")
    with pytest.raises(UnsupportedError, match=f"optimizer/state/{OTHERS[name]}") as caught:
        convert(source, tmp_path / "b.pth", to)
    assert caught.value.hint.startswith("--optimizer drop")
    new = converted(tmp_path, checkpoint, to, form, optimizer="drop")
    rest = {key: value for key, value in checkpoint["optimizer"]["state"].items() if key != 0}
    assert_same(new["optimizer"]["state"], rest)
    assert 0 not in resumed(new, name, to)


@pytest.mark.parametrize("how", ["reset", "drop"])
def test_one_entry_for_two_kernels_that_change_alike(how, tmp_path):
    """MoCo's query encoder is trained, and its key encoder is not."""
    query = net()
    optimizer = torch.optim.SGD(query.parameters(), lr=0.01, momentum=0.9)
    step(query, optimizer, 3)
    weights = {f"module.encoder_{which}.{k}": v for which in "qk" for k, v in copy.deepcopy(query.state_dict()).items()}
    obj = {"epoch": 1, "state_dict": {**weights, "module.queue": torch.rand(16, 32)}, "optimizer": optimizer.state_dict()}
    new = converted(tmp_path, obj, 5, select=[2, 1, 0, 1, 0], optimizer=how)
    for which in "qk":
        kernel = new["state_dict"][f"module.encoder_{which}.0.weight"]
        assert torch.equal(kernel, query[0].weight[:, [2, 1, 0, 1, 0]].detach())
    state = new["optimizer"]["state"]
    assert (0 in state) == (how == "reset")
    assert how == "drop" or torch.equal(state[0]["momentum_buffer"], torch.zeros(8, 5, 3, 3))
    query_only = {k.removeprefix("module.encoder_q."): v for k, v in new["state_dict"].items() if "_q." in k}
    resumed({"model": query_only, "optimizer": new["optimizer"]}, "SGD", 5, momentum=0.9)


def fastai(model):
    """What its Learner.save writes: one dict of state for each parameter, in a list."""
    state = [{"grad_avg": torch.ones_like(p), "sqr_avg": torch.ones_like(p), "step": 3} for p in model.parameters()]
    hypers = [{"lr": 0.001, "mom": 0.9, "sqr_mom": 0.99, "eps": 1e-5, "wd": 0.01}]
    return {"model": model.state_dict(), "opt": {"state": state, "hypers": hypers}}


@pytest.mark.parametrize("form", [ZIP, LEGACY], ids=str)
@pytest.mark.parametrize(("dtype", "to"), [(torch.float32, 1), (torch.float16, 4)])
def test_the_state_that_fastai_keeps_in_a_list(dtype, to, form, tmp_path):
    old = fastai(net().to(dtype))
    reset, dropped = (converted(tmp_path / how, old, to, form, optimizer=how)["opt"] for how in ("reset", "drop"))
    for slot in ("grad_avg", "sqr_avg"):
        assert torch.equal(reset["state"][0][slot], torch.zeros(8, to, 3, 3, dtype=dtype))
    assert reset["state"][0]["step"] == 0
    assert dropped["state"][0] == {}  # it goes by position: an entry that is gone would shift the others
    for opt in (reset, dropped):
        assert_same(opt["state"][1:], old["opt"]["state"][1:])


def distributed(flat):
    model, optimizer = trained("Adam")
    options = StateDictOptions(flatten_optimizer_state_dict=flat)
    return model, get_optimizer_state_dict(model, optimizer, options=options), options


def is_loaded(weights, state, options):
    model = net(1)
    model.load_state_dict(weights)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    set_optimizer_state_dict(model, optimizer, state, options=options)
    kernel = optimizer.state[model[0].weight]
    assert kernel["exp_avg"].shape == (8, 1, 3, 3)
    assert not kernel["exp_avg"].any()
    assert not kernel["step"].any()
    assert optimizer.state[model[3].weight]["step"] == 2
    step(model, optimizer, 1)


@pytest.mark.parametrize("wrapper", ["", "module."])
@pytest.mark.parametrize("flat", [True, False])
def test_state_by_the_names_of_parameters(flat, wrapper, tmp_path):
    model, state, options = distributed(flat)
    weights = {f"{wrapper}{k}": v for k, v in model.state_dict().items()}
    new = converted(tmp_path, {"model": weights, "optimizer": state})
    is_loaded({k.removeprefix(wrapper): v for k, v in new["model"].items()}, new["optimizer"], options)


@pytest.mark.parametrize("safe", [True, False])
def test_state_in_one_dict_with_the_weights(safe, tmp_path):
    model, state, options = distributed(flat=True)
    whole = {f"model.{k}": v for k, v in model.state_dict().items()} | {f"optimizer.{k}": v for k, v in state.items()}
    before, after = (tmp_path / f"{stem}.{'safetensors' if safe else 'pth'}" for stem in "ab")
    if safe:
        save_file({k: v for k, v in whole.items() if isinstance(v, torch.Tensor)}, before, {"format": "pt"})
    else:
        torch.save(whole, before)
    convert(before, after, "gray")
    new = load_file(after) if safe else load(after)
    numbers = {k.removeprefix("optimizer."): v for k, v in whole.items() if not isinstance(v, torch.Tensor)}
    new_state = {k.removeprefix("optimizer."): v for k, v in new.items() if k.startswith("optimizer.")}
    is_loaded({k.removeprefix("model."): v for k, v in new.items() if k.startswith("model.")}, numbers | new_state, options)
    with pytest.raises(UnsupportedError, match=r"optimizer\.state\.0\.weight: torch loads") as caught:
        convert(before, tmp_path / "c.pth" if not safe else tmp_path / "c.safetensors", "gray", optimizer="drop")
    assert caught.value.hint == "--optimizer reset"


@pytest.mark.parametrize("how", ["reset", "drop"])
@pytest.mark.parametrize("name", ["Adam", "SGD"])
@pytest.mark.parametrize("whole", [True, False])
def test_an_optimizer_that_was_pickled_whole_is_refused(whole, name, how, tmp_path):
    model, optimizer = trained(name)
    path = ZIP.save({"model": model if whole else model.state_dict(), "run": {"optimizer": optimizer}}, tmp_path / "a.pth")
    with pytest.raises(UnsupportedError, match="run/optimizer: is a whole optimizer") as caught:
        convert(path, tmp_path / "b.pth", "gray", optimizer=how)
    assert "optimizer.state_dict()" in caught.value.hint
    assert len(inspect(path).first_convs) == 1


@pytest.mark.parametrize("how", ["reset", "drop"])
def test_flat_master_weights_are_refused(how, tmp_path):
    """DeepSpeed keeps all parameters in one vector beside the state."""
    model, optimizer = trained("Adam")
    flat = torch.cat([p.detach().reshape(-1) for p in model.parameters()])
    state = {"base_optimizer_state": optimizer.state_dict(), "single_partition_of_fp32_groups": [flat]}
    path = ZIP.save({"module": model.state_dict(), "optimizer_state_dict": state}, tmp_path / "a.pth")
    with pytest.raises(UnsupportedError, match="optimizer_state_dict/single_partition_of_fp32_groups/0: belongs to an optimizer"):
        convert(path, tmp_path / "b.pth", "gray", optimizer=how)


def test_the_state_of_a_norm_in_front_follows_it(tmp_path):
    """Its γ and β are parameters too, and change their length with the kernel."""

    class Normed(nn.Module):
        def __init__(self, channels):
            super().__init__()
            self.bn_data, self.conv0 = nn.BatchNorm2d(channels), nn.Conv2d(channels, 8, 3)
            self.bn0, self.conv1 = nn.BatchNorm2d(8), nn.Conv2d(8, 16, 3)

        def forward(self, image):
            return self.conv1(self.bn0(self.conv0(self.bn_data(image))).relu())

    model = Normed(3)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    step(model, optimizer, 3)
    new = converted(tmp_path, {"model": model.state_dict(), "optimizer": optimizer.state_dict()})
    gray = Normed(1)
    gray.load_state_dict(new["model"])
    optimizer = torch.optim.Adam(gray.parameters(), lr=0.01)
    optimizer.load_state_dict(new["optimizer"])
    assert [tuple(optimizer.state[p]["exp_avg"].shape) for p in gray.parameters()] == [tuple(p.shape) for p in gray.parameters()]
    step(gray, optimizer, 1)
