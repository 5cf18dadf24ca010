"""The objects that people save: a state dict, one in a training checkpoint, a whole module."""

import torch
from torch import nn

from fixtures.generate.torch_networks import resnet, sequential
from fixtures.generate.torch_objects import imagenet_example, training, ultralytics
from tests.frameworks.oracle import Sample

KERNEL = "conv1.weight"


def wide() -> nn.Module:
    """A kernel whose counts and strides need one, two or four bytes in a pickle, as the channels go."""
    return nn.Sequential(nn.Conv2d(3, 64, 7, bias=False), nn.BatchNorm2d(64), nn.ReLU(), nn.Conv2d(64, 8, 1))


SAMPLES = {
    "state_dict": Sample(lambda: resnet().state_dict(), [KERNEL]),
    "state_dict_half": Sample(lambda: resnet().half().state_dict(), [KERNEL]),
    "state_dict_bfloat16": Sample(lambda: resnet().bfloat16().state_dict(), [KERNEL]),
    "state_dict_double": Sample(lambda: resnet().double().state_dict(), [KERNEL]),
    "state_dict_float8": Sample(
        lambda: {k: v.to(torch.float8_e4m3fn) if k == KERNEL else v for k, v in resnet().state_dict().items()}, [KERNEL]
    ),
    "state_dict_channels_last": Sample(lambda: resnet().to(memory_format=torch.channels_last).state_dict(), [KERNEL]),
    "state_dict_wide": Sample(lambda: wide().state_dict(), ["0.weight"]),
    "wrapped_adamw": Sample(
        training,
        ["model/module.conv1.weight", "model_ema/conv1.weight"],
        [f"optimizer/state/0/{slot}" for slot in ("step", "exp_avg", "exp_avg_sq")],
    ),
    "wrapped_sgd": Sample(imagenet_example, [f"state_dict/module.{KERNEL}"], ["optimizer/state/0/momentum_buffer"]),
    "module": Sample(sequential, [KERNEL], declaring=lambda net: [net.conv1]),
    "module_in_dict": Sample(ultralytics, [f"model/{KERNEL}"], declaring=lambda obj: [obj["model"].conv1]),
}
