"""What the catalogue knows of an architecture, and how a checkpoint shows one."""

from __future__ import annotations

from chkpt_channels.core.records import NamedTuple


class KnownStem(NamedTuple):
    """A tensor that sees the image. `key` is its name in the architecture's state dict, `kind` the class of its module: one of
    torch.nn's by its name ("Conv2d", "Linear"), another by its full one. Stride, padding and dilation are empty for a Linear
    layer; a padding may be a word ("same")."""

    key: str
    layout: str
    kind: str
    stride: tuple[int, ...] = ()
    padding: tuple[int, ...] | str = ()
    dilation: tuple[int, ...] = ()
    bias: bool = False


class KnownNorm(NamedTuple):
    """The normalization that pretrained weights of this name were trained with: (raw - mean) / std, raw in 0..`input_range`, mean
    and std for images in 0..1, in the order in which the network takes its colors."""

    tag: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    input_range: float = 1.0


class Architecture(NamedTuple):
    """A network of a library. `lines` build it, with {channels} where an argument counts them and {classes} where one counts
    classes; `classes` is then the tensor whose first axis is that count, and the default; `order` is "bgr" where pretrained
    weights take colors so; `within` is what all its names begin with, `head` a tensor of the child that holds its head, ""
    where that is not set apart."""

    library: str
    name: str
    stems: tuple[KnownStem, ...]
    lines: tuple[str, ...]
    classes: tuple[str, int] | None = None
    norms: tuple[KnownNorm, ...] = ()
    order: str = "rgb"
    within: str = ""
    head: str = ""


class Recognized(NamedTuple):
    """The architectures whose names and shapes a state dict has. `group` is the state dict in the checkpoint, `prefix` what
    stands before the architecture's names ("module.", "model.backbone."). `head` says whether the last child is there as the
    architecture has it ("whole"), is missing ("cut"), or is another ("exchanged"); `other_child` is a child that the architecture
    has not: another head, a branch. The first architecture is the one to build; names and shapes do not tell which it is."""

    group: str
    prefix: str
    head: str
    architectures: tuple[Architecture, ...]
    other_child: str = ""
