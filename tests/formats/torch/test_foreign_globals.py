"""Names in a pickle: those that weights-only loading resolves raise no warning, all others do."""

from __future__ import annotations

import pytest

from chkpt_channels.formats.torch.loading import foreign

SAFE = [
    ("torch._utils", "_rebuild_tensor_v2"),
    ("torch._utils", "_rebuild_parameter"),
    ("torch", "FloatStorage"),
    ("torch", "bfloat16"),
    ("torch", "float8_e4m3fn"),
    ("torch.storage", "UntypedStorage"),
    ("torch.nn.parameter", "Parameter"),
    ("collections", "OrderedDict"),
    ("_codecs", "encode"),
    ("__builtin__", "set"),
]
FOREIGN = [("os", "system"), ("builtins", "eval"), ("torch", "load"), ("torchvision.models.resnet", "ResNet"), ("numpy", "dtype")]


@pytest.mark.parametrize("name", SAFE, ids=".".join)
def test_names_that_weights_only_loading_resolves(name: tuple[str, str]):
    assert foreign([name], scripted=False) == ()


@pytest.mark.parametrize("name", FOREIGN, ids=".".join)
def test_other_names_are_foreign(name: tuple[str, str]):
    assert foreign([name], scripted=False) == foreign([name], scripted=True) == (".".join(name),)


def test_they_are_listed_once_and_in_order():
    assert foreign([("os", "system"), ("a", "b"), ("os", "system"), SAFE[0]], scripted=False) == ("a.b", "os.system")


def test_classes_of_a_script_are_code_inside_the_archive():
    name = ("__torch__.torch.nn.modules.conv", "Conv2d")
    assert foreign([name], scripted=True) == ()
    assert foreign([name], scripted=False) == (".".join(name),)
    assert foreign([("__torch__evil", "x")], scripted=True) == ("__torch__evil.x",)
