"""What stands beside the kernels in files of torch: copies, adapters, norms, counts. The network answers as before."""

import copy

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from chkpt_channels import AmbiguousError, UnsupportedError, check, convert, verify
from tests.frameworks.oracle import LEGACY, ZIP, as_old, load, relative_error


def saved(weights, folder, form):
    folder.mkdir(exist_ok=True)
    if form == "safetensors":
        save_file({k: v.contiguous() for k, v in weights.items()}, folder / "a.safetensors", {"format": "pt"})
        return folder / "a.safetensors"
    return form.save(weights, folder / "a.pth")


def converted(weights, folder, form, to, **options):
    """The new state dict, after `verify`, and the report."""
    before = saved(weights, folder, form)
    after = before.with_name(f"b{before.suffix}")
    report = convert(before, after, to, **options)
    assert verify(before, after, to, **options).ok
    return load_file(after) if form == "safetensors" else load(after), report


FORMS = pytest.mark.parametrize("form", [ZIP, LEGACY, "safetensors"], ids=str)


# A norm inside its convolution


class NormedConv(nn.Conv2d):
    """detectron2's: the norm of the output is a part of the convolution."""

    def __init__(self, *sizes, norm, **options):
        super().__init__(*sizes, bias=False, **options)
        self.norm = norm

    def forward(self, image):
        return self.norm(super().forward(image)).relu()


class Detector(nn.Module):
    def __init__(self, channels, raw):
        super().__init__()
        self.raw = raw
        if raw:
            self.register_buffer("pixel_mean", torch.tensor([103.53, 116.28, 123.675])[:channels].reshape(-1, 1, 1))
            self.register_buffer("pixel_std", torch.tensor([57.375, 57.12, 58.395])[:channels].reshape(-1, 1, 1))
        self.stem = nn.Module()
        self.stem.conv1 = NormedConv(channels, 8, 7, stride=2, norm=nn.BatchNorm2d(8))
        self.res2 = NormedConv(8, 16, 3, norm=nn.BatchNorm2d(16))

    def forward(self, image):
        return self.res2(self.stem.conv1((image - self.pixel_mean) / self.pixel_std if self.raw else image))


def detector(channels, *, raw):
    torch.manual_seed(0)
    model = Detector(channels, raw).double().eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor, low in {module.weight: 0.5, module.bias: -1, module.running_mean: -1, module.running_var: 0.5}.items():
                nn.init.uniform_(tensor, low, 2)
    return model


@FORMS
@pytest.mark.parametrize("to", [1, 2])
@torch.no_grad()
def test_the_norm_inside_a_convolution_takes_the_constant(to, form, tmp_path):
    old = detector(3, raw=True)
    weights, report = converted(old.state_dict(), tmp_path, form, to)
    new = detector(to, raw=True)
    new.load_state_dict(weights)
    image = torch.rand(2, to, 33, 33, dtype=torch.float64) * 255
    assert relative_error(new(image), old(as_old(image, 3))) < 1e-12
    assert "stem.conv1.norm.running_mean" in report.changed


@pytest.mark.parametrize("form", [ZIP, LEGACY], ids=str)
@torch.no_grad()
def test_the_norm_inside_takes_a_normalization_outside(form, tmp_path):
    old = detector(3, raw=False)
    weights, _ = converted(old.state_dict(), tmp_path, form, 1, norm="imagenet")
    new = detector(1, raw=False)
    new.load_state_dict(weights)
    mean, std = (torch.tensor(v, dtype=torch.float64).reshape(3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    gray = torch.rand(2, 1, 33, 33, dtype=torch.float64)
    assert relative_error(new((gray - mean.mean()) / std.mean()), old((gray - mean) / std)) < 1e-12


# Copies whose names have lost their dots


class LitEma(nn.Module):
    """Latent diffusion's: buffers cannot have dots in their names."""

    def __init__(self, model):
        super().__init__()
        for name, parameter in model.named_parameters():
            self.register_buffer(name.replace(".", ""), parameter.detach() + 0.01)


class Diffusion(nn.Module):
    def __init__(self, channels=4):
        super().__init__()
        self.model = nn.Module()
        unet = nn.ModuleDict({"input_blocks": nn.Sequential(nn.Sequential(nn.Conv2d(channels, 32, 3)), nn.Conv2d(32, 32, 3))})
        unet["out"] = nn.Sequential(nn.GroupNorm(8, 32), nn.SiLU(), nn.Conv2d(32, 4, 3))
        self.model.diffusion_model = unet
        self.model_ema = LitEma(self.model)
        self.first_stage_model = nn.ModuleDict({"encoder": nn.Conv2d(3, 32, 3), "decoder": nn.Conv2d(32, 3, 3)})


@FORMS
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("to", [1, 9])
def test_an_average_without_dots_follows(to, dtype, form, tmp_path):
    torch.manual_seed(0)
    old = Diffusion().to(dtype).state_dict()
    kernel = "model.diffusion_model.input_blocks.0.0.weight"
    weights, _ = converted(old, tmp_path, form, to, layers=[kernel], method="zero" if to > 4 else "sum")
    for name in (kernel, "model_ema.diffusion_modelinput_blocks00weight"):
        wanted = old[name].double().sum(1, keepdim=True).to(dtype)
        if to > 4:
            wanted = torch.cat([old[name], torch.zeros(32, to - 4, 3, 3, dtype=dtype)], 1)
        assert torch.equal(weights[name], wanted)
    Diffusion(to).to(dtype).load_state_dict(weights)


def test_a_constant_goes_into_the_bias_of_the_average_too(tmp_path):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 16, 3))
            self.model_ema = LitEma(self.model)

    torch.manual_seed(0)
    old = Net().state_dict()
    weights, _ = converted(old, tmp_path, ZIP, 1, norm="imagenet")
    shift, average = ((weights[n] - old[n]).double() for n in ("model.0.bias", "model_ema.0bias"))
    mean, std = (torch.tensor(v, dtype=torch.float64).reshape(3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    for change, name in ((shift, "model.0.weight"), (average, "model_ema.0weight")):
        expected = (old[name].double() * (mean.mean() - mean) / std).sum((1, 2, 3))
        torch.testing.assert_close(change, expected, rtol=0, atol=1e-6)


# Kernels that are needed together


class Adapted(nn.Module):
    """A convolution with a low-rank adapter beside it, as peft wraps it."""

    def __init__(self, channels):
        super().__init__()
        self.projection = nn.Module()
        self.projection.base_layer = nn.Conv2d(channels, 32, 8, 8)
        self.projection.lora_A = nn.ModuleDict({"default": nn.Conv2d(channels, 4, 8, 8, bias=False)})
        self.projection.lora_B = nn.ModuleDict({"default": nn.Conv2d(4, 32, 1, bias=False)})
        self.layers = nn.ModuleList([nn.Linear(32, 32)])

    def forward(self, image):
        p = self.projection
        x = p.base_layer(image) + 2 * p.lora_B["default"](p.lora_A["default"](image))
        return self.layers[0](x.flatten(2).mT)


@FORMS
@pytest.mark.parametrize("to", [1, 5])
@torch.no_grad()
def test_an_adapter_and_its_layer_change_together(to, form, tmp_path):
    torch.manual_seed(0)
    old = Adapted(3).double()
    path = saved(old.state_dict(), tmp_path, form)
    options = {}
    try:
        convert(path, path.with_name("dry.x"), to, dry_run=True)
    except AmbiguousError as refused:  # the hint can be pasted
        options = {"layers": refused.hint.removeprefix("--layer ").split(" --layer ")}
    weights, report = converted(old.state_dict(), tmp_path / "new", form, to, **options)
    assert len([name for name in report.changed if name.startswith("projection")]) == 2
    new = Adapted(to).double()
    new.load_state_dict(weights)
    image = torch.rand(2, to, 32, 32, dtype=torch.float64)
    assert relative_error(new(image), old(as_old(image, 3))) < 1e-12


class Branches(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.stem = nn.ModuleDict({"a": nn.Conv2d(channels, 8, 3), "b": nn.Conv2d(channels, 8, 3)})
        self.body = nn.Sequential(nn.Conv2d(16, 16, 3), nn.Flatten(), nn.LazyLinear(5))

    def forward(self, image):
        return self.body(torch.cat([self.stem["a"](image), self.stem["b"](image)], 1))


@FORMS
def test_one_of_two_stems_is_not_enough(form, tmp_path):
    model = Branches(3)
    model(torch.rand(1, 3, 9, 9))
    path = saved(model.state_dict(), tmp_path, form)
    with pytest.raises(AmbiguousError, match=r"stem\.a\.weight: sees the image together with stem\.b\.weight") as refused:
        convert(path, path.with_name(f"no{path.suffix}"), layers=["stem.a"])
    assert refused.value.hint == "--layer stem.a.weight --layer stem.b.weight"
    weights, _ = converted(model.state_dict(), tmp_path / "new", form, 1, layers=["stem.a", "stem.b"])
    new = Branches(1)
    new(torch.rand(1, 1, 9, 9))
    new.load_state_dict(weights)


def test_one_of_two_networks_is_enough(tmp_path):
    """A generator of three channels and a discriminator of six, trained by one optimizer."""
    torch.manual_seed(0)
    g = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 3, 3, padding=1))
    d = nn.Sequential(nn.Conv2d(6, 16, 3), nn.ReLU(), nn.Conv2d(16, 1, 3))
    optimizer = torch.optim.Adam([*g.parameters(), *d.parameters()])
    image = torch.rand(1, 3, 16, 16)
    d(torch.cat([image, g(image)], 1)).sum().backward()
    optimizer.step()
    obj = {"netG": g.state_dict(), "netD": d.state_dict(), "optimizer": optimizer.state_dict()}
    new, _ = converted(copy.deepcopy(obj), tmp_path, ZIP, 1, layers=["netG/0.weight"])
    assert torch.equal(new["netD"]["0.weight"], d[0].weight)
    assert new["netG"]["0.weight"].shape == (16, 1, 3, 3)
    shapes = [tuple(s["exp_avg"].shape) for s in new["optimizer"]["state"].values()]
    assert shapes == [(16, 1, 3, 3), *(tuple(p.shape) for p in [*g.parameters(), *d.parameters()][1:])]


# Counts in the dicts of modules


class YamlModel(nn.Module):
    """A detector that is pickled whole and builds itself from a dict of its own."""

    def __init__(self, channels, key):
        super().__init__()
        self.yaml = {"nc": 3, "scales": {"n": [0.5, 0.25, 1024]}, key: channels}
        self.model = nn.Sequential(
            nn.Conv2d(channels, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16), nn.SiLU(), nn.Conv2d(16, 32, 3)
        )
        self.names = {0: "a", 1: "b", 2: "c"}

    def forward(self, image):
        assert image.shape[1] == next(self.yaml[key] for key in ("channels", "ch") if key in self.yaml)
        return self.model(image)


@pytest.mark.parametrize("form", [ZIP, LEGACY], ids=str)
@pytest.mark.parametrize("key", ["channels", "ch"])
@pytest.mark.parametrize(("old", "to"), [(3, 1), (3, 4), (1, 3)])
@torch.no_grad()
def test_the_dict_that_a_module_is_built_from(old, to, key, form, tmp_path):
    torch.manual_seed(0)
    model = YamlModel(old, key).half().eval()
    path = form.save({"epoch": -1, "model": None, "ema": model, "train_args": {"task": "detect"}}, tmp_path / "a.pt")
    assert check(path).ok
    report = convert(path, tmp_path / "b.pt", to)
    assert "hyper_parameters" not in {notice.code for notice in report.warnings}
    assert verify(path, tmp_path / "b.pt", to).ok
    assert check(tmp_path / "b.pt", to).ok
    names = {"torch": torch}
    exec("\n".join(report.load_lines), names)
    new = names["model"]
    assert (new.yaml[key], new.yaml["nc"], new.model[0].in_channels) == (to, 3, to)
    image = torch.rand(2, to, 16, 16)
    expected = model.model.float()(as_old(image, old))
    assert relative_error(new.float()(image), expected) < 2e-3
    new.yaml[key] = old
    stale = check(form.save({"epoch": -1, "model": new}, tmp_path / "stale.pt"))
    assert [(m.where, m.found, m.expected) for m in stale.mismatches] == [(f"model/yaml/{key}", old, to)]


# A norm over whole patches


class Patches(nn.Module):
    """A transformer's beginning as vit-pytorch has it: patches with the colors fastest, LayerNorm, Linear, LayerNorm."""

    def __init__(self, channels, dim=32, patch=8, bias=True):
        super().__init__()
        n = channels * patch * patch
        self.patch = patch
        self.pos_embedding = nn.Parameter(torch.randn(1, 16, dim))
        self.to_patch_embedding = nn.Sequential(nn.Identity(), nn.LayerNorm(n), nn.Linear(n, dim, bias=bias), nn.LayerNorm(dim))
        self.head = nn.Linear(dim, 10)

    def forward(self, image):
        x = image.unflatten(2, (-1, self.patch)).unflatten(4, (-1, self.patch))
        x = x.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)
        return self.head(self.to_patch_embedding(x) + self.pos_embedding)


def patches(channels, **options):
    torch.manual_seed(0)
    model = Patches(channels, **options)
    for parameter in model.to_patch_embedding[1].parameters():
        nn.init.normal_(parameter)
    return model.eval()


NAMED = {"layers": ["to_patch_embedding.2.weight"], "layout": "O(HWI)"}


@FORMS
@pytest.mark.parametrize(
    ("dtype", "bound"), [(torch.float64, 1e-12), (torch.float32, 1e-5), (torch.float16, 5e-3)], ids=["64", "32", "16"]
)
@pytest.mark.parametrize("dim", [32, 192], ids=["narrow", "as wide as its patches"])
@torch.no_grad()
def test_a_norm_over_patches_is_folded(dim, dtype, bound, form, tmp_path):
    old = patches(3, dim=dim).to(dtype)
    weights, _ = converted(old.state_dict(), tmp_path, form, "gray", **NAMED)
    new = Patches(1, dim=dim).to(dtype).eval()
    new.load_state_dict(weights)
    image = torch.rand(2, 1, 32, 32, dtype=dtype)
    assert relative_error(new.double()(image.double()), old.double()(image.expand(-1, 3, -1, -1).double())) < bound


@FORMS
@torch.no_grad()
def test_a_norm_over_patches_is_permuted(form, tmp_path):
    old = patches(3).double()
    weights, _ = converted(old.state_dict(), tmp_path, form, None, select=[1, 2, 0], **NAMED)
    new = Patches(3).double().eval()
    new.load_state_dict(weights)
    image = torch.rand(2, 3, 32, 32, dtype=torch.float64)
    assert relative_error(new(image), old(image[:, [2, 0, 1]])) < 1e-14


@pytest.mark.parametrize("options", [{"to": 4}, {"to": 1, "method": "mean"}, {"to": 1, "norm": "imagenet"}], ids=str)
def test_a_norm_over_patches_that_would_see_others_is_refused(options, tmp_path):
    path = saved(patches(3).state_dict(), tmp_path, ZIP)
    with pytest.raises(UnsupportedError, match=r"to_patch_embedding\.1: normalizes whole patches"):
        convert(path, tmp_path / "b.pth", **options, **NAMED)
    path = saved(patches(1).state_dict(), tmp_path, LEGACY)
    with pytest.raises(UnsupportedError, match=r"to_patch_embedding\.1: normalizes whole patches"):
        convert(path, tmp_path / "b.pth", "rgb", from_channels=1, **NAMED)


@pytest.mark.parametrize("kind", ["module", "script", "trace"])
def test_a_module_that_states_the_length_of_its_patches_is_refused(kind, tmp_path):
    model, path = patches(3), tmp_path / "a.pt"
    if kind == "module":
        torch.save(model, path)
    else:
        torch.jit.save(torch.jit.script(model) if kind == "script" else torch.jit.trace(model, torch.rand(1, 3, 32, 32)), path)
    with pytest.raises(UnsupportedError, match="its module states their length") as refused:
        convert(path, tmp_path / "b.pt", "gray", **NAMED)
    assert "state_dict()" in refused.value.hint


@pytest.mark.parametrize("how", ["reset", "drop"])
def test_the_optimizer_follows_a_norm_over_patches(how, tmp_path):
    model = patches(3)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.rand(2, 3, 32, 32)).square().mean().backward()
    optimizer.step()
    obj = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
    new, _ = converted(obj, tmp_path, ZIP, "gray", optimizer=how, **NAMED)
    gray = Patches(1)
    gray.load_state_dict(new["model"])
    optimizer = torch.optim.AdamW(gray.parameters())
    optimizer.load_state_dict(new["optimizer"])
    gray(torch.rand(2, 1, 32, 32)).square().mean().backward()
    optimizer.step()
    assert all(optimizer.state[p]["exp_avg"].shape == p.shape for p in gray.parameters())
