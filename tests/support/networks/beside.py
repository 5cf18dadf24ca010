"""Something else than an image beside it: numbers, points, optical flow, a prompt."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tests.support.networks.draw import Draw, Net, row
from tests.support.networks.layers import conv, pooled, resized, unit
from tests.support.networks.tasks import classes
from tests.support.networks.traps import Trap
from tests.support.networks.trunks import named, trunk


def in_either_order(d: Draw, *parts: dict[str, nn.Module | Tensor]) -> dict[str, nn.Module | Tensor]:
    """The children of one part, and of another."""
    first, second = parts if d.often(0.5) else parts[::-1]
    return {**first, **second}


def with_table(d: Draw) -> Net:
    """Numbers about the patient, by Linears: skin lesions, scans."""
    d.reach(Trap.TABLE)
    body, numbers = trunk(d), d.pick(1, 3, 3, 4, 9)
    table = row([nn.Linear(numbers, 32), nn.ReLU(), nn.Linear(32, 16)])
    last = nn.Linear(body.widths[-1] + 16, classes(d))

    def run(x: Tensor, y: Tensor) -> Tensor:
        return last(torch.cat([pooled(body(x)[-1]), table(y)], 1))

    side = {d.pick("meta", "tabular", "fc_meta", "clinical"): table}
    net = Net(run, {**in_either_order(d, named(d, body, "", "backbone", "cnn"), side), "fc_out": last})
    net.inputs = (d.image(), (1, numbers))
    return net


def with_points(d: Draw) -> Net:
    """PointNet beside a trunk: 1-D kernels of one tap over coordinates."""
    d.reach(Trap.POINTS, Trap.CONV1D_OVER_THREE)
    body, shape, d.dims = trunk(d), d.image(), 1
    points = row([conv(d, 3, 64, 1, bias=True), nn.ReLU(), conv(d, 64, 128, 1, bias=True)], ("conv1", "relu", "conv2"))
    d.dims = len(shape) - 2
    last = nn.Linear(body.widths[-1] + 128, d.pick(4, 7, 40))

    def run(x: Tensor, y: Tensor) -> Tensor:
        return last(torch.cat([pooled(body(x)[-1]), points(y).amax(-1)], 1))

    side = {d.pick("feat", "pointnet", "point_encoder", "lidar.stn"): points}
    net = Net(run, {**in_either_order(d, named(d, body, "cnn", "image_encoder", "img_backbone"), side), "head": last})
    net.inputs = (shape, (1, 3, 500))
    return net


def with_flow(d: Draw) -> Net:
    """Two streams: frames, and a stack of optical flow in a network of the same kind."""
    d.reach(Trap.FLOW_IMAGE)
    d.refusable = True
    flow = d.pick(2, 10, 20)
    state = d.chance.getstate()
    first = trunk(d, 2)
    d.chance.setstate(state)
    channels, d.channels = d.channels, flow
    layouts = len(d.layouts)
    second = trunk(d, 2)
    d.channels = channels
    del d.layouts[layouts:]
    last = nn.Linear(first.widths[-1] + second.widths[-1], classes(d))

    def run(x: Tensor, y: Tensor) -> Tensor:
        return last(torch.cat([pooled(first(x)[-1]), pooled(second(y)[-1])], 1))

    names = d.pick(("rgb_stream", "flow_stream"), ("spatial", "temporal"), ("base_model", "flow_model"))
    net = Net(run, {**dict(zip(names, (first, second), strict=True)), "fc": last})
    net.inputs = (d.image(), d.image(flow))
    return net


def prompted(d: Draw) -> Net:
    """Segment Anything: a mask of one channel may be given with the image."""
    d.reach(Trap.OTHER_IMAGE)
    body, w = trunk(d, 2), d.pick(32, 64)
    first = conv(d, 1, 4, 2, 2, bias=True, p=0)
    d.others.append((first, 1))
    mask = row([first, nn.GELU(), conv(d, 4, 16, 2, 2, bias=True, p=0), nn.GELU(), conv(d, 16, w, 1, bias=True)])
    neck, last = unit(d, body.widths[-1], w, 1), conv(d, w, d.pick(1, 3), 1, bias=True)

    def run(x: Tensor, y: Tensor) -> Tensor:
        z = neck(body(x)[-1])
        return last(z + resized(mask(y), z))

    parts = {"image_encoder": body, "image_encoder.neck": neck}
    side = {"prompt_encoder.mask_downscaling": mask, "prompt_encoder.no_mask_embed": nn.Embedding(1, w)}
    net = Net(run, {**in_either_order(d, parts, side), "mask_decoder.out": last})
    net.inputs = (d.image(), d.image(1))
    return net
