"""Which inputs of an ONNX graph are images."""

from __future__ import annotations

from collections.abc import Sequence

from chkpt_channels.formats.onnx.dataflow.shape_values import Load
from chkpt_channels.formats.onnx.dataflow.trace import CONVOLUTIONS, ImageTrace
from chkpt_channels.formats.onnx.model import Info, OnnxModel

MOST_CHANNELS = 32


def image_traces(model: OnnxModel, load: Load, named: Sequence[str] = ()) -> list[ImageTrace]:
    """One path for each input that looks like an image and reaches a convolution as data, or that is `named`."""
    found, several = [], len(model.inputs) > 1
    for info in model.inputs:
        if named and info.name not in named:
            continue
        if len(info.dims) < 2 or (not named and (len(info.dims) not in (4, 5) or (several and _is_constant_like(info)))):
            continue
        paths = [ImageTrace(model, info, axis, load) for axis in dict.fromkeys((1, len(info.dims) - 1))]
        paths = [path for path in paths if path.reached and _declares(path)]
        direct = [path for path in paths if any(reached.layout for reached in path.reached)]
        if direct or paths:
            found.append((direct or sorted(paths, key=lambda p: info.dims[p.channel] or MOST_CHANNELS + 1))[0])
    return found


def _is_constant_like(info: Info) -> bool:
    """Constants that an exporter leaked as inputs ([1, 1, 1, 3]) beside the image are none: an image is larger than one pixel."""
    return sum(n is None or n > 1 for n in info.dims[1:]) < 2


def _declares(path: ImageTrace) -> bool:
    """Whether the axis could hold channels. A convolution says which axis does; where only products are reached, it is the
    shortest one."""
    channels, layouts = path.image.dims[path.channel], {r.node.op for r in path.reached if r.layout}
    if channels is None:
        return True
    shortest = min(n for n in path.image.dims[1:] if n is not None)
    return 1 <= channels <= MOST_CHANNELS and (channels == shortest or not layouts or bool(layouts & CONVOLUTIONS.keys()))
