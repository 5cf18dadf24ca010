"""How a kernel changes: its mixing, seen through what precedes it in the file, its new shape, and the edits that follow."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from functools import cache, partial
from math import isfinite, prod

from chkpt_channels.core.errors import Location
from chkpt_channels.core.layout import Layout
from chkpt_channels.core.tensors import Edits, FirstConv, PreprocessingOp, TensorEdit
from chkpt_channels.discovery import bias_target, preprocessing
from chkpt_channels.formats.base import TensorStore
from chkpt_channels.transform import kernels, parametrizations, quantization
from chkpt_channels.transform.kernels import KernelChange
from chkpt_channels.transform.mixing import window
from chkpt_channels.transform.mixing.matrix import Mixing
from chkpt_channels.transform.optimizer_state import OptimizerEdits
from chkpt_channels.transform.options import Options
from chkpt_channels.transform.patch_norm import NormedPatch


def kernel_change(
    checkpoint: TensorStore, conv: FirstConv, rule: Mixing, operations: Sequence[PreprocessingOp], to: int, method: str
) -> KernelChange:
    """The change by `rule` toward `to` channels, or by the graph's `method`. Raises UnsupportedError where no edit is right."""
    location = checkpoint.location.at(conv.tensor.name)
    if method or rule.is_identity:
        stays = rule if rule.is_identity else rule._replace(method=method)
        return KernelChange(conv, conv.layout or Layout("OIHW"), stays, conv.tensor.shape)
    chosen = _chosen_constants(rule)
    if not rule.passes(operations):
        scale, shift = _composed(checkpoint.location, operations, conv.in_channels)
        rule = rule.compose((scale, shift), ([scale[c] for c in chosen], [0.0 if rule.window else shift[c] for c in chosen]))
    if conv.layout is None:
        from chkpt_channels.discovery.law import patch_embeddings

        raise location.unsupported("its axis order is ambiguous", hint=patch_embeddings.spellings(conv.tensor.shape))
    parametrization = parametrizations.parametrization_of(checkpoint, conv)
    if norm := preprocessing.patch_norm(checkpoint, conv):
        parametrization = NormedPatch(checkpoint, conv, conv.layout, rule, norm)
    if conv.groups == 1:
        # the usual case: one channel axis grows or shrinks
        shape = window.grown(rule, conv.layout, conv.layout.with_channels(conv.tensor.shape, conv.in_channels, to))
        return KernelChange(conv, conv.layout, rule, shape, chosen, parametrization)
    # toward one channel a depthwise kernel keeps its bytes: every filter reads the one channel that is left (Keras'
    # DepthwiseConv2D (h, w, 3, m) is (h, w, 1, 3m), ONNX' group 3 becomes 1)
    grouped = checkpoint.graph.dense_shape(conv, to)
    if grouped is None or (to == 1 and conv.groups != conv.in_channels):
        raise location.unsupported(f"is a convolution in {conv.groups} groups, which is only converted to one channel")
    return KernelChange(conv, conv.layout, rule, window.grown(rule, conv.layout, grouped), chosen, parametrization)


def joined_changes(checkpoint: TensorStore, modules: Sequence[str], rule: Mixing) -> list[KernelChange]:
    """The changes of kernels [O, I_old + features, H, W] that take the image joined to features, as ViTMatte's last fusion does:
    the image's channels come first and change by its mixing, those of the features stay. Raises UnsupportedError for modules
    without such a kernel. Source: transformers/models/vitmatte/modeling_vitmatte.py of 5.23, VitMatteFusionBlock."""
    found = []
    for module in modules:
        tensor = checkpoint.tensors.get(f"{module}.weight")
        if tensor is None or len(tensor.shape) != 4 or tensor.shape[1] <= rule.old:
            raise checkpoint.location.at(f"{module}.weight").unsupported("should take the image joined to features")
        filters, channels, *window = tensor.shape
        whole, layout = rule.beside(channels - rule.old), Layout("OIHW")
        shape = (filters, whole.new, *window)
        found.append(KernelChange(FirstConv(tensor, layout, channels, "sidecar"), layout, whole, shape))
    return found


def _composed(location: Location, operations: Sequence[PreprocessingOp], channels: int) -> tuple[list[float], list[float]]:
    """All operations as one y = scale · x + shift. Raises UnsupportedError for one that is not affine in each channel, or that
    cannot be inverted, as composing it needs."""
    scale, shift = [1.0] * channels, [0.0] * channels
    for op in operations:
        if op.scale is None or op.shift is None or len(op.scale) not in (1, channels):
            raise location.at(op.where).unsupported(f"this {op.kind} {op.why}: no kernel edit is exact", hint=op.hint)
        if not all(isfinite(s) and s for s in op.scale) or not all(map(isfinite, op.shift)):
            raise location.at(op.where).unsupported(
                f"this {op.kind} multiplies a channel by zero or no number, and composing it into the kernel divides by that"
            )
        times, plus = (c * channels if len(c) == 1 else c for c in (op.scale, op.shift))
        scale = [a * s for a, s in zip(times, scale, strict=True)]
        shift = [a * b + c for a, b, c in zip(times, shift, plus, strict=True)]
    return scale, shift


def _chosen_constants(rule: Mixing) -> tuple[int, ...]:
    """For each new channel the old one whose per-channel constants it takes: the one with the largest coefficient. A sum of means
    would be nonsense: the mixing accounts for the difference."""
    sizes = [[abs(value) for value in column] for column in zip(*rule.matrix, strict=True)]
    return tuple(column.index(max(column)) for column in sizes)


def tensor_edits(
    checkpoint: TensorStore,
    changed: Sequence[KernelChange],
    joined: Sequence[KernelChange],
    operations: Sequence[PreprocessingOp],
    options: Options,
) -> Edits:
    """The edits of tensors: kernels, those that take the image joined to features, and what follows them. Where the graph makes
    the old channels there are none."""
    if not changed:
        return Edits()
    every = [*changed, *joined]
    edits = _with_constants(checkpoint, _kernel_edits(checkpoint, every, options), operations, changed)
    edits = _with_state(checkpoint, edits, every, options.plain["optimizer"])
    shapes = checkpoint.graph.shape_edits([kernel.conv for kernel in changed], options.to)
    return edits._replace(tensors={**edits.tensors, **shapes})


def _kernel_edits(checkpoint: TensorStore, changed: Sequence[KernelChange], options: Options) -> Edits:
    """The edits that follow from the kernels alone: their values, and the constants for their biases."""
    tensors: dict[str, TensorEdit] = {}
    for kernel in changed:
        values = cache(partial(kernels.mixed_kernel, checkpoint, kernel, allow_nonfinite=options.plain["allow_nonfinite"]))
        edit = TensorEdit(kernel.shape, values)
        tensors |= quantization.kernel_edits(checkpoint, kernel.conv, edit)
        tensors |= kernel.parametrization.edits(edit)
    biases = _constants(checkpoint, changed, tensors, options)
    return Edits(tensors, biases=biases)


def _constants(
    checkpoint: TensorStore, changed: Sequence[KernelChange], tensors: dict[str, TensorEdit], options: Options
) -> dict[str, TensorEdit]:
    """The constants that kernels leave, put into their bias targets among the edits, or as new biases, which are returned. Raises
    UnsupportedError where nothing can take one, DamagedError for a target of another size."""
    biases: dict[str, TensorEdit] = {}
    targets: set[str] = set()
    for kernel in changed:
        if not kernel.mixing.offset:
            continue
        # the windows of a transposed convolution overlap unevenly: Σ W · t differs from pixel to pixel
        if kernel.layout.transposed:
            raise checkpoint.location.at(kernel.conv.tensor.name).unsupported(
                "is a transposed convolution: a constant in its input is not a constant in its output, and no bias takes it"
            )
        filters = kernel.shape[kernel.layout.axes.index("O")]
        if bias := bias_target.find(checkpoint, kernel.conv):
            if bias[0] in targets:  # exporters merge equal initializers, and tied stems share a bias
                what = "is the bias target of two first convs, and each adds a constant"
                raise checkpoint.location.at(bias[0]).unsupported(what)
            targets.add(bias[0])
            if prod(held := checkpoint.tensors[bias[0]].shape) != filters:
                what = f"has the shape {list(held)}, not one number for each of the {filters} filters"
                raise checkpoint.location.at(bias[0]).damaged(what)
            values = cache(partial(kernels.shifted_bias, checkpoint, kernel, bias, tensors.get(bias[0])))
            tensors[bias[0]] = TensorEdit((filters,), values, "bias" if bias[1] > 0 else "running mean")
        elif checkpoint.adds_tensors:
            shift = cache(partial(kernels.bias_shift, checkpoint, kernel))
            biases[kernel.conv.tensor.name] = TensorEdit((filters,), shift, "bias")
        else:
            raise checkpoint.location.at(kernel.conv.tensor.name).unsupported(
                "has no bias, and no BatchNorm is known to follow it: nothing can take the constant that different "
                "means, or an adapter's bias, leave",
                hint="leave --norm out, and keep the preprocessing" if options.norm else "",
            )
    return biases


def _with_constants(
    checkpoint: TensorStore, edits: Edits, operations: Sequence[PreprocessingOp], changed: Sequence[KernelChange]
) -> Edits:
    """The edits, and those of the constants that precede the kernels with one number for each channel: each new channel takes
    the numbers of the old one that it replaces, or zero, where the kernel has a window that moves them behind it."""
    chosen = changed[0].constants
    zeros = {name for kernel in changed if kernel.mixing.window for name in kernel.mixing.window.zeros}
    axes: defaultdict[str, list[int]] = defaultdict(list)
    for name, axis in dict.fromkeys(pair for op in operations for pair in op.tensors):
        axes[name].append(axis)
    constants = {}
    for name, channel_axes in axes.items():
        shape = checkpoint.tensors[name].shape
        least = min(shape[axis] if axis < len(shape) else 1 for axis in channel_axes)
        if least <= max(chosen) or max(channel_axes) >= len(shape):
            raise checkpoint.location.at(name).damaged(f"holds {least} numbers, not one for each channel of the image")
        shape = tuple(len(chosen) if axis in channel_axes else size for axis, size in enumerate(shape))
        values = partial(kernels.select_positions, checkpoint, name, channel_axes, chosen, as_zeros=name in zeros)
        constants[name] = TensorEdit(shape, cache(values), "statistics")
    places = {operation.where: chosen for operation in operations}
    return edits._replace(tensors={**edits.tensors, **constants}, constants=places)


def _with_state(checkpoint: TensorStore, edits: Edits, changed: Sequence[KernelChange], how: str) -> Edits:
    """The edits, and those of the optimizer's state for the kernels and for whatever else changes its shape."""
    shapes = {k.conv.tensor.name: k.shape for k in changed}
    shapes |= {name: e.shape for name, e in edits.tensors.items() if e.shape != checkpoint.tensors[name].shape}
    state = OptimizerEdits(checkpoint, shapes, how)
    return edits._replace(
        tensors={**edits.tensors, **state.tensors}, numbers={**edits.numbers, **state.numbers}, dropped=tuple(state.dropped)
    )
