"""The lines of Python that load an output: what is loaded, which the format says, times what is built for it, which the
catalogue, the file or only the user knows. They run as they stand; what they cannot say is a comment.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from keyword import iskeyword

from chkpt_channels.api.report import KernelReport
from chkpt_channels.core.errors import printable
from chkpt_channels.core.records import NamedTuple
from chkpt_channels.core.tensors import Tensor
from chkpt_channels.discovery.catalogue.entry import Architecture, KnownStem, Recognized
from chkpt_channels.formats.base import Loading, NamedNetwork

CHANNELS, CLASSES = "{channels}", "{classes}"
TWIN = "torchvision"
"""The library whose network is printed too where another's has the same names and shapes."""
MOST_NAMES = 8
USUAL_CHANNELS = 3
"""Of the image of a network whose constructor does not count them."""
_WRAPPERS = ("module.", "_orig_mod.")
"""What DistributedDataParallel and torch.compile put before every name."""
_CONVS = ("Conv1d", "Conv2d", "Conv3d")


class Loaded(NamedTuple):
    """The lines, and the network as far as it is known."""

    lines: tuple[str, ...]
    network: NamedNetwork | None


def load_lines(
    loading: Loading,
    recognized: Recognized | None,
    tensors: Mapping[str, Tensor],
    kernels: Sequence[KernelReport],
    channels: tuple[int, int],
) -> Loaded:
    """How the output is loaded whose file is loaded so. `tensors` are those of the source, by name, `kernels` its first convs
    with their new shapes, `channels` the counts before and after."""
    network = loading.network or _network(recognized)
    if not loading.state:
        lines = [*loading.imports, *_comments(loading.remark)]
        if loading.needs_model:
            lines += _to_be_built(loading, kernels, channels)
        return Loaded((*lines, *filter(None, [loading.statement])), network)
    if recognized is None:
        names = _names_in(loading.group, tensors)
        lines = [*_to_be_built(loading, kernels, channels), *_into_model(loading, _wrapper(names), names)]
        return Loaded((*loading.imports, *_comments(loading.remark), *lines), network)
    builder = _Builder(recognized, tensors, kernels, channels[1])
    first, *others = recognized.architectures
    built = builder.lines(first)
    remarks = [*_others(first, others, builder)]
    imports = sorted({*loading.imports, *_imports(first, built, remarks)}, key=lambda line: (line.split()[1], line))
    names = _names_in(recognized.group, tensors)
    loads = _into_model(loading, recognized.prefix, names, recognized)
    lines = [*(line for line in built if not _is_import(line)), *remarks]
    return Loaded((*imports, *_comments(loading.remark), *lines, *loads), network)


def _network(recognized: Recognized | None) -> NamedNetwork | None:
    """The record of a recognized network: names of another library than the first one's have it before them."""
    if recognized is None:
        return None
    library = recognized.architectures[0].library
    names = [a.name if a.library == library else f"{a.library}.{a.name}" for a in recognized.architectures]
    return NamedNetwork(library, tuple(dict.fromkeys(names)), "catalogue")


def _names_in(group: str, tensors: Mapping[str, Tensor]) -> list[str]:
    """The names of the tensors of a state dict in it."""
    start = len(group) + 1 if group else 0
    return [tensor.name[start:] for tensor in tensors.values() if tensor.group == group]


def _comments(*sentences: str) -> list[str]:
    return [f"# {sentence}" for sentence in sentences if sentence]


def _to_be_built(loading: Loading, kernels: Sequence[KernelReport], channels: tuple[int, int]) -> list[str]:
    """The sentence about the network that the user has to build."""
    before, after = channels
    instead = f" in place of {before}" if before not in (0, after) else ""
    kernel = next((k for k in kernels if k.shape_after not in (None, k.conv.tensor.shape)), None)
    shape = f": {printable(kernel.conv.tensor.key)} has the shape {list(kernel.shape_after or ())} now" if kernel else ""
    return _comments(f"model: {loading.model}, built for {_counted(after)}{instead}{shape}")


def _counted(channels: int) -> str:
    return f"{channels} input channel{'s' if channels != 1 else ''}"


def _wrapper(names: Sequence[str]) -> str:
    """What a wrapper put before all names."""
    prefix = ""
    while found := next((w for w in _WRAPPERS if names and all(n.startswith(prefix + w) for n in names)), ""):
        prefix += found
    return prefix


def _into_model(loading: Loading, prefix: str, names: Sequence[str], known: Recognized | None = None) -> list[str]:
    """The lines that load the state dict into `model`, without a prefix of its names, and without a child that the known network
    has not, or a last layer that is another one."""
    head, layer = (known.head, known.architectures[0].head.partition(".")[0]) if known else ("whole", "")
    left = (known.other_child if head == "whole" else layer if head == "exchanged" else "") if known else ""
    if not prefix and not left and head == "whole":
        return [f"model.load_state_dict({loading.state})"]
    lines = [f"state = {loading.state}"]
    if prefix:
        others = "" if all(name.startswith(prefix) for name in names) else f" if key.startswith({prefix!r})"
        lines.append(f"state = {{key.removeprefix({prefix!r}): value for key, value in state.items(){others}}}")
    if left:
        lines.append(f"state = {{key: value for key, value in state.items() if key.partition('.')[0] != {left!r}}}")
    if head == "whole":
        remark = [f"# the file holds {printable(left)} too, which this network has not"] if left else []
        return [*lines, *remark, "model.load_state_dict(state)"]
    named = f", {layer}," if layer else ""
    what = "has no last layer" if head == "cut" else "has another last layer"
    return [
        *lines,
        f"# the file {what}: that of model{named} keeps its random weights",
        "model.load_state_dict(state, strict=False)",
    ]


def _is_import(line: str) -> bool:
    return line.startswith(("import ", "from "))


def _imports(architecture: Architecture, lines: Sequence[str], remarks: Sequence[str]) -> list[str]:
    """The imports that these lines take: their own, or that of the library, and what `remarks` take beside theirs."""
    own = [line for line in lines if _is_import(line)] or [f"import {architecture.library}"]
    return [*own, *(["import torch"] if any("torch.nn." in line for line in (*lines, *remarks)) else [])]


def _others(first: Architecture, others: Sequence[Architecture], builder: _Builder) -> Iterator[str]:
    """The comments on the other networks of these names and shapes."""
    twin = next((a for a in others if a.library == TWIN != first.library), None)
    if twin:
        yield f"# or {TWIN}'s: {'; '.join(dict.fromkeys([f'import {TWIN}', *builder.lines(twin)]))}"
    rest = [a.name if a.library == first.library else f"{a.library}'s {a.name}" for a in others if a is not twin]
    names = [name for name in dict.fromkeys(rest) if name != first.name]
    if names:
        more = [f"{len(names) - MOST_NAMES} more"] if len(names) > MOST_NAMES else []
        listed = " or ".join(filter(None, [", ".join([*names[:MOST_NAMES], *more][:-1]), [*names[:MOST_NAMES], *more][-1]]))
        yield f"# or {listed}: the file does not say; take the one it was made with"


class _Builder:
    """What builds networks for the new kernels."""

    def __init__(
        self, recognized: Recognized, tensors: Mapping[str, Tensor], kernels: Sequence[KernelReport], channels: int
    ) -> None:
        self._recognized, self._tensors, self._channels = recognized, tensors, channels
        self._kernels = {kernel.conv.tensor.name: kernel for kernel in kernels}

    def lines(self, architecture: Architecture) -> list[str]:
        """The lines that build it: with the argument that counts channels, or with first layers put in the place of its own."""
        filled = [
            line.replace(CHANNELS, str(self._channels)).replace(CLASSES, str(self._classes(architecture)))
            for line in architecture.lines
        ]
        if any(CHANNELS in line for line in architecture.lines):
            return filled
        return [*filled, *(line for stem in architecture.stems for line in self._replaced(stem, architecture))]

    def _name(self, key: str) -> str:
        return "/".join(filter(None, [self._recognized.group, self._recognized.prefix + key]))

    def _classes(self, architecture: Architecture) -> int:
        """The file's number of classes, where its head is the architecture's."""
        if architecture.classes is None:
            return 0
        key, usual = architecture.classes
        head = self._tensors.get(self._name(key)) if self._recognized.head == "whole" else None
        return head.shape[0] if head and head.shape else usual

    def _replaced(self, stem: KnownStem, architecture: Architecture) -> list[str]:
        kernel = self._kernels.get(self._name(stem.key))
        shape = kernel.shape_after if kernel else None
        if kernel is None or shape is None or (shape == kernel.conv.tensor.shape and self._channels == USUAL_CHANNELS):
            return []
        path = stem.key.rpartition(".")[0]
        if layer := _layer(stem, shape, self._channels):
            return [f"{_attribute(path)} = {layer}"]
        kind = stem.kind if "." in stem.kind else f"torch.nn.{stem.kind}"
        what = f"{path} of {architecture.name} is a {kind}: build that with {_counted(self._channels)} and put it there"
        return _comments(what)


def _attribute(path: str) -> str:
    """A layer as an expression: features.0.0 is model.features[0][0]."""
    steps = path.split(".")
    if not all(step.isdecimal() or (step.isidentifier() and not iskeyword(step)) for step in steps):
        return f"model.get_submodule({'.'.join(steps[:-1])!r})._modules[{steps[-1]!r}]"
    return "model" + "".join(f"[{step}]" if step.isdecimal() else f".{step}" for step in steps)


def _layer(stem: KnownStem, shape: tuple[int, ...], channels: int) -> str:
    """The layer of torch.nn that takes a kernel of this shape; "" where it is none."""
    bias = [] if stem.bias else ["bias=False"]
    if stem.kind == "Linear" and len(shape) == 2:
        return f"torch.nn.Linear({', '.join([str(shape[1]), str(shape[0]), *bias])})"
    if stem.kind not in _CONVS or len(shape) < 3 or channels % shape[1]:
        return ""
    arguments = [str(channels), str(shape[0]), f"kernel_size={_sides(shape[2:])}"]
    for name, sides, usual in (("stride", stem.stride, 1), ("padding", stem.padding, 0), ("dilation", stem.dilation, 1)):
        if isinstance(sides, str):
            arguments.append(f"{name}={sides!r}")
        elif any(side != usual for side in sides):
            arguments.append(f"{name}={_sides(sides)}")
    groups = [f"groups={channels // shape[1]}"] if shape[1] != channels else []
    return f"torch.nn.{stem.kind}({', '.join([*arguments, *groups, *bias])})"


def _sides(sides: Sequence[int]) -> str:
    return str(sides[0]) if len(set(sides)) == 1 else str(tuple(sides))
