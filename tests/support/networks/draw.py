"""What a network is drawn with: chance by the seed, the style of its library, and what is noted on the way."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from random import Random
from typing import Any, NamedTuple, TypeVar

from torch import Tensor, nn

from tests.support.networks.traps import Trap

T = TypeVar("T")


class Style(NamedTuple):
    """The habits of one author, the same in all blocks of a network."""

    norm: str
    act: str
    unit: tuple[str, str, str] | None
    """Attributes of convolution, norm and activation; None for numbers in a Sequential."""
    shortcut: str
    """The name of a projecting shortcut, `.0` and `.1` where it ends in a dot."""
    bias: bool
    """Convolutions have a bias even before a norm."""
    wide: int
    """The width of the first stage."""
    aliased: bool
    """Each part of a unit has a second name, in a list of all: nnU-Net."""


def drawn_style(chance: Random) -> Style:
    names = [("conv", "bn", "relu"), ("conv", "norm", "act"), ("c", "bn", "act"), ("conv", "adn.N", "adn.A"), ("0", "1", "2")]
    return Style(
        chance.choices(["batch", "group", "instance", "none"], [10, 2, 1, 1])[0],
        chance.choices(["relu", "silu", "gelu", "leaky", "prelu"], [8, 2, 2, 1, 1])[0],
        chance.choice([None, None, *names]),
        chance.choice(["downsample.", "downsample.", "shortcut.", "skip", "proj", "conv3", "residual.", "identity_conv"]),
        chance.random() < 0.2,
        chance.choice([6, 8, 10, 12, 16, 20, 24, 32, 32, 40, 48, 64, 64, 64, 96, 128]),
        chance.random() < 0.04,
    )


class Draw:
    """`channels` are those of the image that is read, `produced` those of an image that the network makes. No choice depends on
    either: one seed gives one network, whatever they are."""

    def __init__(self, seed: int, channels: int, produced: int) -> None:
        self.chance = Random(seed)
        self.channels, self.produced = channels, produced
        self.dims = 2
        self.style = drawn_style(self.chance)
        self.traps: set[Trap] = set()
        self.refuse = False
        """Nothing may be named."""
        self.refusable = False
        """To name nothing is right too."""
        self.beside: list[nn.Module] = []
        """Kernels over the image and something else, where a state dict cannot tell: to name them is right, and to refuse."""
        self.behind: list[nn.Module] = []
        """Kernels that change with the image, and are behind another that is to be named instead of them; or a refusal."""
        self.layouts: list[tuple[nn.Module, str]] = []
        """Those of folded axes."""
        self.others: list[tuple[nn.Module, int]] = []
        """Kernels over another image, and its channels."""

    def pick(self, *options: T) -> T:
        return self.chance.choice(options)

    def weighted(self, options: dict[T, float]) -> T:
        return self.chance.choices(list(options), list(options.values()))[0]

    def often(self, probability: float) -> bool:
        return self.chance.random() < probability

    def number(self, low: int, high: int) -> int:
        return self.chance.randint(low, high)

    def reach(self, *traps: Trap) -> None:
        self.traps |= {*traps}

    def size(self) -> tuple[int, ...]:
        """Of an image, by the number of its axes."""
        return {1: (1024,), 2: (64, 64), 3: (32, 64, 64)}[self.dims]

    def image(self, channels: int | None = None) -> tuple[int, ...]:
        return (1, self.channels if channels is None else channels, *self.size())

    def again(self, make: Callable[[Draw], T]) -> tuple[T, T]:
        """The same twice, with weights of their own."""
        state = self.chance.getstate()
        first = make(self)
        self.chance.setstate(state)
        return first, make(self)


class Net(nn.Module):
    """A module whose forward is a function of its children. `inputs` are the shapes that the forward takes."""

    inputs: tuple[tuple[int, ...], ...] = ()

    def __init__(self, run: Callable[..., Any], children: dict[str, nn.Module | Tensor | None]) -> None:
        super().__init__()
        self.run = run
        for name, child in children.items():
            put(self, name, child)

    def forward(self, *arguments: Any) -> Any:
        return self.run(*arguments)


def put(root: nn.Module, name: str, child: nn.Module | Tensor | None) -> None:
    """Register it under a dotted name, making what is between. A parameter is a parameter, a tensor a buffer."""
    *path, last = name.split(".")
    for step in path:
        if step not in root._modules:
            root.add_module(step, nn.Module())
        root = root.get_submodule(step)
    if isinstance(child, nn.Parameter):
        root.register_parameter(last, child)
    elif isinstance(child, Tensor):
        root.register_buffer(last, child)
    elif child is not None:
        assert last not in root._modules, name
        root.add_module(last, child)


def row(steps: Sequence[nn.Module], names: Sequence[str] | None = None) -> Net:
    """One after the other, numbered where they have no names."""

    def run(x: Tensor) -> Tensor:
        for step in steps:
            x = step(x)
        return x

    return Net(run, dict(zip(names or [str(i) for i in range(len(steps))], steps, strict=True)))
