"""The warnings of a plan: about the file itself, and about what the new kernels cannot preserve."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from chkpt_channels.core.records import pattern
from chkpt_channels.core.tensors import Declaration, FirstConv, Notice
from chkpt_channels.discovery import law
from chkpt_channels.discovery.find import find_first_convs, unexplained
from chkpt_channels.discovery.request import SearchRequest
from chkpt_channels.formats.base import TensorStore
from chkpt_channels.transform import kernels, parametrizations
from chkpt_channels.transform.kernels import KernelChange
from chkpt_channels.transform.mixing.matrix import Mixing
from chkpt_channels.transform.mixing.rules import ADAPTER, REPEATING, RGBA, ChannelRule
from chkpt_channels.transform.options import Options

_OF_TORCH = pattern(r"torch\.(nn|optim)(\.\w+)*\.[A-Z]\w*|torch\.torch_version\.TorchVersion")
"""Classes of torch's modules and optimizers, which a pickled network of torch names."""
SEARCHED = ("graph", "catalogue", "shapes", "names")
"""How first convs are found that leave no kernel unexplained."""


def of_file(checkpoint: TensorStore, first_convs: Sequence[FirstConv]) -> Iterator[Notice]:
    """The warnings about a file, whatever is done with it."""
    yield from checkpoint.warnings
    yield from checkpoint.graph.notices(first_convs)
    if names := listing([conv.tensor.name for conv in first_convs if conv.may_be_depthwise]):
        message = f"{names} takes gray, or filters R, G and B one by one (groups=3): a state dict does not say which"
        yield Notice("may_be_depthwise", f"{message}; in the second case --to gray alone is right, and changes no byte")
    if names := listing([name for name in checkpoint.globals if not _OF_TORCH.fullmatch(name)]):
        message = f"its pickle names {names}, which is copied and not run; loading the file resolves it"
        yield Notice("foreign_globals", message)


def _standardized(checkpoint: TensorStore, changed: Sequence[KernelChange]) -> Iterator[Notice]:
    """A network without BatchNorm and without biases may standardize its weights, as BiT does: standardizing undoes the scale of
    a sum, and the response becomes 0.33 to 0.59 times what it was."""
    narrower = [k for k in changed if k.mixing.new < k.mixing.old and k.conv.layout == "OIHW" and k.conv.tensor.dtype.floating]
    plain = [kernel for kernel in narrower if kernel.conv.tensor.name.endswith(".weight")]
    groups = {kernel.conv.tensor.group for kernel in plain}
    may_be = {group for group in groups if parametrizations.may_standardize(checkpoint, group)}
    for kernel in (k for k in plain if k.conv.tensor.group in may_be):
        new = kernels.mixed_kernel(checkpoint, kernel)
        least, most = parametrizations.shrinkage(kernels.stored(checkpoint, kernel), new)
        message = f"if {kernel.conv.tensor.name} is weight-standardized (BiT), its response becomes {least:.2f} to {most:.2f}"
        yield Notice("weight_standardised", f"{message} times what it was, and no weight can correct that")


def of_kernels(checkpoint: TensorStore, changed: Sequence[KernelChange], options: Options) -> Iterator[Notice]:
    """The warnings about numbers: quantization, zero padding, standardized weights."""
    if names := listing([k.conv.tensor.name for k in changed if not k.conv.tensor.dtype.floating]):
        message = f"{names} is quantized: mixed in float64 and quantized again; the parity includes the rounding"
        yield Notice("requantised", message)
    border = list(kernels.border_notices(checkpoint, changed))
    yield from border
    yield from _standardized(checkpoint, changed)
    if border and options.norm.white != 1 and not options.norm.new_mean:
        mean = options.norm.old(changed[0].mixing.old, options.rule.source).mean
        gray = sum(mean) / len(mean)
        hint = f"--new-mean {gray:.3g}, which preprocessing then subtracts, makes the border error smaller"
        yield Notice("black_padding", f"zero padding around raw images means black: {hint}")


def of_hyper_parameters(left: Sequence[Declaration]) -> Iterator[Notice]:
    """The warning that channel counts outside the model stay as they are."""
    if counts := listing([f"{d.where} = {d.channels}" for d in left]):
        yield Notice("hyper_parameters", f"{counts} stays, and a script may build the network from it: --set-hparams sets it")


def of_chosen(
    checkpoint: TensorStore, changing: Sequence[FirstConv], convs: Sequence[FirstConv], request: SearchRequest
) -> Iterator[Notice]:
    """The warnings about first convs that the user, LIKE or a configuration names: that none is what the search finds, and that
    kernels stay which take the image's channels too, as far as names and shapes tell. What it finds leaves none."""
    if all(conv.found_by in SEARCHED for conv in convs):
        return
    chosen = [conv.tensor for conv in convs if conv.found_by == "user" and not law.places.OTHER_SENSES.search(conv.tensor.key)]
    named = [tensor.name for tensor in chosen if tensor.key.rpartition(".")[0] not in request.hints.first_conv]
    found = [conv.tensor.name for conv in find_first_convs(checkpoint, request).first_convs] if named else []
    if found and not set(named).intersection(found):
        message = f"named by --layer, and not what sees the image, as far as can be told: that is {listing(found)}"
        yield Notice("not_first", f"{listing(named)} {'is' if len(named) == 1 else 'are'} {message}")
    widths = {conv.in_channels for conv in changing}
    left = [kernel for kernel in unexplained(checkpoint, convs) if kernel.channels in widths]
    if len(left) == 1:
        yield Notice("unexplained", f"{left[0].tensor.name} {left[0].what}, and stays as it is: {left[0].why}")
    elif left:
        verb, names = "could take" if any(k.is_open for k in left) else "take", listing([k.tensor.name for k in left])
        message = f"{names} {verb} the {left[0].channels} channels of the image too, and stay as they are"
        yield Notice("unexplained", message)


def of_mixing(mixing: Mixing, method: str, rule: ChannelRule) -> Iterator[Notice]:
    """The warnings about effects of the rule that a user may not expect."""
    alpha = [row[-1] for row in mixing.matrix] if rule.order == RGBA and rule.method in ("auto", ADAPTER) else []
    if any(alpha) and not rule.explicit:
        begun = f"alpha begins as {max(alpha):.3g} times the kernel of {'R' if mixing.old == len('rgb') else 'channel 0'}"
        yield Notice("alpha", f"{begun}, as the fourth of any four channels: --method zero starts it at zero")
    dropped = [i for i, row in enumerate(mixing.matrix) if not any(row)]
    if dropped and mixing.method in ("repeat", "bands") and method not in REPEATING:
        which = listing([str(i) for i in dropped])
        choice = "; --select chooses which of them stay" if mixing.method == "repeat" else ""  # bands were chosen
        message = f"{mixing.method} to {mixing.new} channels leaves out old channel {which}{choice}"
        yield Notice("dropped_channels", message)
    response = sum(value for row in mixing.matrix for value in row) / mixing.old
    if mixing.method in ("mean", "luma") and abs(response - 1) > 1e-6 and method not in REPEATING:
        message = f"{mixing.method} with these weights makes the response to equal channels {response:.3g} times what it was"
        yield Notice("response", message)
    if method == ADAPTER:
        message = f"a 1×1 convolution in front makes the {mixing.old} old channels of the new input"
        yield Notice("adapter", f"{message}: the kernel is as large as before")


def listing(names: Sequence[str], most: int = 5) -> str:
    """The first of many names, and how many more there are."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def of_joined(joined: Sequence[KernelChange], old: int) -> Iterator[Notice]:
    """What is said of kernels that take the image joined to features: they are no first convs."""
    for kernel in joined:
        shapes = " → ".join("×".join(map(str, shape)) for shape in (kernel.conv.tensor.shape, kernel.shape))
        message = f"{kernel.conv.tensor.name}: takes the image joined to features, and its first {old} channels changed: {shapes}"
        yield Notice("joined", message)
