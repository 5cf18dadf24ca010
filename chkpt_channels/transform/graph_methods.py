"""Whether the graph makes the old channels of the new ones, and no kernel changes: asked for, better, or all that is left.

broadcast, stack   toward one channel, where an edit of kernels would be inexact
gather             for another order of the channels, where an edit of kernels would be refused
adapter            for any count, where an edit of kernels would be refused, and neither stack nor gather would do

Or the reverse: a convolution that a user trained in front of the network is folded into its kernels.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

from chkpt_channels.core.errors import AmbiguousError, Candidate
from chkpt_channels.core.records import NamedTuple
from chkpt_channels.core.tensors import Adapter, FirstConv, Notice, PreprocessingOp
from chkpt_channels.discovery import layer_selector
from chkpt_channels.discovery.find import select_first_convs
from chkpt_channels.discovery.request import SearchRequest
from chkpt_channels.formats.base import TensorStore
from chkpt_channels.transform import kernels, notices
from chkpt_channels.transform.mixing.matrix import Mixing
from chkpt_channels.transform.mixing.rules import ADAPTER, FOLDED, GATHER, REPEATING
from chkpt_channels.transform.options import Options


def preferred(
    store: TensorStore, convs: Sequence[FirstConv], operations: Sequence[PreprocessingOp], options: Options
) -> tuple[str, str]:
    """(method, reason) of a conversion by the graph, where the user asks for it, or where per-channel preprocessing, a quantized
    kernel or an ambiguous layout would make an edit toward one channel inexact. ("", "") where kernels are to be edited. Raises
    UnsupportedError where the graph does not allow what the user asks for."""
    method = options.rule.method
    if method == ADAPTER:
        if all(_is_pointwise(store, conv) for conv in convs) and not operations:
            return "", ""  # such a convolution is in front already, and two of them are one
        if obstacle := store.graph.adapter_obstacle(convs):
            hint = "leave --method out, and the kernel is edited"
            raise store.location.unsupported(f"{obstacle}: --method adapter puts none in front", hint=hint)
        return method, ""
    if not _may_repeat(convs, options):
        return "", ""
    allowed = store.graph.graph_methods(convs)
    if method != "auto":
        if method not in allowed:
            what = "its graph does not allow" if allowed or store.graph.decides else "holds no graph to change by"
            hint = f"--method {' or '.join(allowed)}" if allowed else "leave --method out, and the kernel is edited"
            raise store.location.unsupported(f"{what} --method {method}", hint=hint)
        return method, ""
    obstacles = [f"{op.kind} {op.where}".strip() for op in operations if not op.uniform]
    obstacles += [f"the kernel {c.tensor.name} in {c.tensor.dtype.name}" for c in convs if not c.tensor.dtype.floating]
    obstacles += [f"the ambiguous layout of {c.tensor.name}" for c in convs if not c.layout]
    return (allowed[0], f"exact everywhere, despite {notices.listing(obstacles)}") if allowed and obstacles else ("", "")


def instead(store: TensorStore, convs: Sequence[FirstConv], options: Options) -> str:
    """The method by which the graph makes the old channels where no kernel can be edited; "" where none is allowed, or the user
    chose an edit of kernels."""
    if options.rule.method != "auto":
        return ""
    if _may_repeat(convs, options) and (allowed := store.graph.graph_methods(convs)):
        return allowed[0]
    places = options.rule.mixing(convs[0].in_channels).places
    if places and not options.norm and store.graph.gathers(convs, places):
        return GATHER
    return "" if store.graph.adapter_obstacle(convs) else ADAPTER


class Folding(NamedTuple):
    """A convolution that a user trained in front of a network, and the first convs of that network."""

    conv: FirstConv
    adapter: Adapter
    behind: tuple[FirstConv, ...]


def trained_adapter(store: TensorStore, request: SearchRequest) -> Folding:
    """The convolution of the image that is to be folded, a 1×1 one where there is one: the graph shows what is behind it, or the
    user names both. Raises AmbiguousError with candidates where several could be it, UnsupportedError where none is."""
    if not store.graph.folds:
        return _named_adapter(store, request)
    tensors, hint = store.model_tensors(), store.like_hint
    matches = (layer_selector.match(store.location, tensors, layer, hint) for layer in request.layers)
    named = {tensor.name for found in matches for tensor in found}
    convs = select_first_convs(store, request._replace(layers=())).first_convs
    asked = [conv for conv in convs if conv.tensor.name in named or not named]
    direct = [conv for conv in asked if conv.layout and not conv.layout.folded and conv.tensor.dtype.floating]
    adapters = [conv for conv in direct if _is_pointwise(store, conv)] or direct
    if len(adapters) > 1:
        raise _several(store, adapters, "   or   ".join(f"--layer {conv.tensor.name}" for conv in adapters))
    if not adapters:
        where = min(named) if named else asked[0].tensor.name if asked else ""
        what = "is no convolution of the image's channels in floating-point numbers: there is no adapter to fold"
        raise store.location.at(where).unsupported(what)
    adapter = store.graph.fold(adapters[0])
    behind = tuple(store.graph.first_convs())
    if not behind:
        what = "is followed by no convolution that it could be folded into"
        raise store.location.at(adapters[0].tensor.name).unsupported(what)
    return Folding(adapters[0], adapter, behind)


def _named_adapter(store: TensorStore, request: SearchRequest) -> Folding:
    """By the layers that the user names: the adapter is the one of which the others take the channels. A state dict does not say
    what is between them: naming both says that nothing is."""
    if not store.takes_out or store.optimizer_entries:
        holds = "its optimizer numbers the parameters" if store.takes_out else "its tensors cannot be taken out"
        raise store.location.unsupported(f"{holds}: --fold-adapter takes ONNX files, Keras models in .h5 and plain state dicts")
    if len(request.layers) < 2:
        what = "does not show what takes what an adapter gives: --fold-adapter needs both by name"
        raise store.location.unsupported(what, hint="--layer ADAPTER --layer STEM")
    finding = select_first_convs(store, request)
    convs = finding.first_convs
    fitting = [conv for conv in convs if _is_pointwise(store, conv) and _gives(conv, convs)]
    if len(fitting) > 1:
        raise _several(store, fitting, "--layer, with no other 1×1 convolution")
    if not fitting:
        listed = ", ".join(f"{conv.tensor.name} {list(conv.tensor.shape)}" for conv in convs)
        raise store.location.unsupported(f"no 1×1 convolution among {listed} gives the channels that the others take")
    name = fitting[0].tensor.name
    module = name.removesuffix("weight")
    own = tuple(each for each in store.tensors if each.startswith(module))
    plain = {name, f"{module}bias"} if module != name else {name}
    if others := [each for each in (*own, *(vector.name for vector in finding.input_vectors)) if each not in plain]:
        raise store.location.at(name).unsupported(f"is no plain convolution alone: {notices.listing(others)}")
    bias = f"{module}bias" if f"{module}bias" in own else ""
    return Folding(fitting[0], Adapter("", bias, own), tuple(conv for conv in convs if conv is not fitting[0]))


def _gives(conv: FirstConv, among: Sequence[FirstConv]) -> bool:
    """Whether the others among these kernels take as many channels as it has filters."""
    filters = conv.tensor.shape[conv.layout.axes.index("O")] if conv.layout else 0
    others = [other for other in among if other is not conv]
    return len(conv.tensor.shape) > 2 and bool(others) and all(other.in_channels == filters for other in others)


def _several(store: TensorStore, convs: Sequence[FirstConv], hint: str) -> AmbiguousError:
    candidates = [Candidate(conv.tensor.name, conv.tensor.shape, "is a convolution of the image") for conv in convs]
    what = f"{len(convs)} convolutions could be the adapter"
    return AmbiguousError(what, file=store.location.file, candidates=candidates, hint=hint)


def folding(store: TensorStore, conv: FirstConv, adapter: Adapter, into: str) -> Mixing:
    """What an adapter in front of the kernel `into` computes: its kernel is A [I_old, I_new] for each of its taps, as its outputs
    are the old channels, and its bias is t."""
    import numpy as np

    if conv.layout is None:
        raise TypeError(f"{conv.tensor.name} has no layout, and is no convolution of the image's channels")
    axes = conv.layout.axes.index("O"), conv.layout.channel_axis
    kernel = np.moveaxis(kernels.dense(kernels.values(store, conv), conv, conv.layout), axes, (0, 1)).astype(np.float64)
    taps = np.moveaxis(kernel.reshape(*kernel.shape[:2], -1), -1, 0)
    offset = store.load(adapter.bias).astype(np.float64).reshape(-1) if adapter.bias else np.zeros(len(kernel))
    if not (np.isfinite(kernel).all() and np.isfinite(offset).all()):
        raise store.location.at(conv.tensor.name).unsupported("holds NaN or infinity, or its bias does: it is not folded")
    matrix, *matrices = (tuple(map(tuple, numbers.tolist())) for numbers in (taps.sum(axis=0), *taps))
    window = adapter.windows.get(into)
    window = window and window._replace(matrices=tuple(matrices))
    return Mixing(FOLDED, matrix, tuple(offset.tolist()) if offset.any() else (), window)


def folded_notice(conv: FirstConv, adapter: Adapter, into: Sequence[FirstConv]) -> Notice:
    """What became of the adapter."""
    names = notices.listing([each.tensor.name for each in into])
    gone = f"{notices.listing(adapter.tensors)} {'is' if len(adapter.tensors) == 1 else 'are'} gone"
    rest = gone if adapter.tensors else "its tensors stay, as others read them"
    return Notice("folded", f"the convolution of {conv.tensor.name} is folded into {names}: {rest}")


def _may_repeat(convs: Sequence[FirstConv], options: Options) -> bool:
    """Whether one new channel is to be each old one, as it is: a normalization can only be folded into a convolution."""
    rule = options.rule
    is_asked = rule.to == 1 and rule.method in ("auto", *REPEATING) and not (rule.explicit or rule.luma or options.norm)
    return is_asked and any(conv.in_channels != 1 for conv in convs)


def _is_pointwise(store: TensorStore, conv: FirstConv) -> bool:
    """Whether a first conv is 1×1 over the image's own channels, and pads nothing: an adapter could be composed into it."""
    if conv.layout is None or conv.layout.folded or conv.groups > 1 or not conv.tensor.dtype.floating:
        return False
    window = [conv.tensor.shape[axis] for axis, letter in enumerate(conv.layout.axes) if letter in "DHW"]
    spans = store.graph.padding(conv)
    return prod(window) == 1 and all(span == (0, 1) for each in spans or () for span in each)
