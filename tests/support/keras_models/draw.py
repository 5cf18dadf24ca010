"""What a Keras model is drawn with: chance by the seed, and the image as far as it is followed."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from random import Random
from typing import Any, NamedTuple, TypeVar

os.environ.setdefault("KERAS_BACKEND", "torch")

import keras  # behind the choice of the backend
import numpy as np

T = TypeVar("T")
L = keras.layers
MOST_CHANNELS = 64
SIZES = {1: 48, 2: 26, 3: 12}
"""Of an axis of the image, by the number of axes."""


class Flow(NamedTuple):
    """A value on the way: `axis` is that of its channels, `dims` counts the axes that a convolution moves over, which `time` may
    precede."""

    x: Any
    axis: int
    dims: int
    time: bool = False

    @property
    def channels(self) -> int:
        return int(self.x.shape[self.axis])

    @property
    def first(self) -> bool:
        """Channels stand before the axes that a convolution moves over."""
        return self.axis != len(self.x.shape) - 1

    @property
    def format(self) -> str:
        return "channels_first" if self.first else "channels_last"


class Step(NamedTuple):
    """A layer, or a function of operations; `axis` is that of the channels afterwards, None where it stays."""

    call: Callable[[Any], Any]
    axis: int | None = None


class Draw:
    """No choice depends on `channels`: a seed gives one model, whatever they are. `plain` is one whose code holds no constants of
    channels, as weights alone ask for."""

    def __init__(self, seed: int, channels: int, plain: bool) -> None:
        self.chance = Random(seed)
        self.channels, self.plain = channels, plain
        self.names: list[str] = []
        """Of everything drawn."""

    def pick(self, *options: T) -> T:
        return self.chance.choice(options)

    def often(self, probability: float) -> bool:
        return self.chance.random() < probability

    def weighted(self, options: dict[T, float]) -> T:
        return self.chance.choices(list(options), list(options.values()))[0]

    def one_of(self, options: dict[Callable[..., T], float], *arguments: Any) -> T:
        """One of the rules, noted by its name."""
        rule = self.weighted(options)
        self.names.append(rule.__name__)
        return rule(self, *arguments)

    def numbers(self, count: int, low: float, high: float) -> list[float]:
        """As many of them are drawn whatever the count is."""
        return [self.chance.uniform(low, high) for _ in range(MOST_CHANNELS)][:count]

    def order(self, count: int) -> list[int]:
        """So many numbers, shuffled."""
        order = list(range(MOST_CHANNELS))
        self.chance.shuffle(order)
        return [number for number in order if number < count]

    def activation(self) -> str:
        """One that hides no difference."""
        return self.pick("silu", "tanh", "elu", "gelu", "softplus", "leaky_relu")


def size_of(flow: Flow) -> Sequence[int | None]:
    """Of the axes that a convolution moves over."""
    return [n for k, n in enumerate(flow.x.shape) if k not in (0, flow.axis)][1 if flow.time else 0 :]


def shaped(flow: Flow, values: Sequence[float]) -> np.ndarray:
    """Constants, one for each channel, so that they fit an operation on the value."""
    return np.array(values, "float32").reshape([-1] + [1] * (len(flow.x.shape) - 1 - flow.axis))
