"""The inputs of an ONNX graph that are images.

The layout may be NCHW or NHWC (tf2onnx): both axes are traced, and the convolution that is reached decides.
"""

from __future__ import annotations

from collections.abc import Sequence

from chkpt_channels.formats.onnx.dataflow.shape_values import Load
from chkpt_channels.formats.onnx.dataflow.trace import CONVOLUTIONS, ImageTrace
from chkpt_channels.formats.onnx.model import Info, OnnxModel

MOST_CHANNELS = 32
"""Of an image, as in discovery: the widest public pretrained input has 13 bands."""


def image_traces(model: OnnxModel, load: Load, named: Sequence[str] = ()) -> list[ImageTrace]:
    """One trace for each input that looks like an image and reaches a convolution as data, or that is `named`."""
    traces, several = [], len(model.inputs) > 1
    for info in model.inputs:
        if named and info.name not in named:
            continue
        if len(info.dims) < 2 or (not named and (len(info.dims) not in (4, 5) or (several and _is_constant_like(info)))):
            continue
        candidates = [ImageTrace(model, info, axis, load) for axis in dict.fromkeys((1, len(info.dims) - 1))]
        candidates = [path for path in candidates if path.reached and _may_be_channels(path)]
        direct = [path for path in candidates if any(reached.layout for reached in path.reached)]
        if direct or candidates:
            traces.append((direct or sorted(candidates, key=lambda p: info.dims[p.channel] or MOST_CHANNELS + 1))[0])
    return traces


def _is_constant_like(info: Info) -> bool:
    """Whether an input is not an image: tf2onnx leaks the constants of Keras 3's Normalization as required inputs [1, 1, 1, 3],
    and an image is larger than one pixel."""
    return sum(n is None or n > 1 for n in info.dims[1:]) < 2


def _may_be_channels(path: ImageTrace) -> bool:
    """Whether the axis could hold channels. A convolution shows which axis does; where only products are reached, the
    shortest."""
    channels, layouts = path.image.dims[path.channel], {r.node.op for r in path.reached if r.layout}
    if channels is None:
        return True
    shortest = min(n for n in path.image.dims[1:] if n is not None)
    return 1 <= channels <= MOST_CHANNELS and (channels == shortest or not layouts or bool(layouts & CONVOLUTIONS.keys()))
