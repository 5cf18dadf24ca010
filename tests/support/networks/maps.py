"""Networks whose maps of few classes are taken up again: fused, gated, concatenated, handed to the next part."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tests.support.networks.draw import Draw, Net, row
from tests.support.networks.layers import conv, norm, resized, unit, up
from tests.support.networks.tasks import classes
from tests.support.networks.traps import Trap
from tests.support.networks.trunks import named, trunk


def side_outputs(d: Draw) -> Net:
    """HED, U²-Net: a map at each depth, and a 1×1 kernel over all of them."""
    d.reach(Trap.SIDE_OUTPUTS, Trap.NARROW_OUTPUT)
    body, n = trunk(d, d.pick(2, 2, 3)), d.pick(1, 1, 2)
    sides = [conv(d, w, n, d.pick(1, 3), bias=True) for w in body.widths]
    fuse = conv(d, n * len(sides), n, 1, bias=True)

    def run(x: Tensor) -> Tensor:
        return fuse(torch.cat([resized(side(y), x) for side, y in zip(sides, body(x), strict=True)], 1))

    name, last = d.pick(("side{}", "outconv"), ("score_dsn{}", "score_final"), ("side_output{}", "fuse"))
    parts = {name.format(k + 1): side for k, side in enumerate(sides)}
    return Net(run, {**named(d, body, "", "encoder", "backbone"), **parts, last: fuse})


def heatmaps(d: Draw) -> Net:
    """A stacked hourglass: features and maps of each stack are both taken back by 1×1 kernels."""
    d.reach(Trap.HEATMAPS, Trap.INNER_THREE)
    body, n = trunk(d, 1), d.pick(1, 3, 3, 4, 17)
    w = body.widths[-1]
    stacks = [row([unit(d, w, w), unit(d, w, w)]) for _ in range(2)]
    scores = [conv(d, w, n, 1, bias=True) for _ in range(2)]
    back, over = conv(d, n, w, 1, bias=True), conv(d, w, w, 1, bias=True)

    def run(x: Tensor) -> list[Tensor]:
        x = body(x)[-1]
        y = stacks[0](x)
        first = scores[0](y)
        return [first, scores[1](stacks[1](x + over(y) + back(first)))]

    words = d.pick(
        ("hgs.{}", "outs.{}", "merge_preds.0.conv", "merge_features.0.conv"), ("hg.{}", "score.{}", "score_.0", "fc_.0")
    )
    parts = {word.format(k): part for k in range(2) for word, part in ((words[0], stacks[k]), (words[1], scores[k]))}
    return Net(run, {**named(d, body, "", "pre"), **parts, words[2]: back, words[3]: over})


def disparity(d: Draw) -> Net:
    """SfMLearner, FlowNet: what was estimated at one size is concatenated to the features of the next."""
    d.reach(Trap.GROWN, Trap.NARROW_OUTPUT, Trap.TRANSPOSED_INSIDE)
    body, n = trunk(d, 2), d.pick(1, 2, 3)
    small, large = body.widths[-1], body.widths[-2]
    rise, first = up(d, small, large), conv(d, small, n, bias=True)
    join, second = unit(d, 2 * large + n, large), conv(d, large, n, bias=True)

    def run(x: Tensor) -> Tensor:
        *_, skip, y = body(x)
        parts = [resized(rise(y), skip), skip, resized(first(y), skip)]
        return resized(second(join(torch.cat(parts, 1))), x)

    words = d.pick(("upconv2", "disp2", "iconv2", "disp1"), ("deconv2", "predict_flow2", "inter_conv2", "predict_flow1"))
    return Net(run, {**named(d, body, "", "encoder"), **dict(zip(words, (rise, first, join, second), strict=True))})


def gated(d: Draw) -> Net:
    """Attention U-Net: a gate of one map on each skip."""
    d.reach(Trap.GATED, Trap.NARROW_OUTPUT)
    body = trunk(d, 2)
    small, large = body.widths[-1], body.widths[-2]
    inner = max(large // 2, 1)
    one, two, psi = conv(d, small, inner, 1, bias=True), conv(d, large, inner, 1, bias=True), conv(d, inner, 1, 1, bias=True)
    over, join, last = conv(d, small, large, 1, bias=True), unit(d, 2 * large, large), conv(d, large, classes(d), 1, bias=True)

    def run(x: Tensor) -> Tensor:
        *_, skip, y = body(x)
        y = resized(y, skip)
        gate = psi(torch.relu(one(y) + two(skip))).sigmoid()
        return last(join(torch.cat([over(y), skip * gate], 1)))

    words = d.pick(("Att2.W_g.0", "Att2.W_x.0", "Att2.psi.0"), ("att.W_gate", "att.W_x", "att.psi"))
    gates = {**dict(zip(words, (one, two, psi), strict=True)), f"{words[2].rpartition('.')[0]}.bn": norm(d, 1)}
    return Net(run, {**named(d, body, "", "encoder"), **gates, "Up2.up.1": over, "Up_conv2": join, "Conv_1x1": last})


def nested(d: Draw) -> Net:
    """U-Net++: every node of a grid takes all that precede it at its size."""
    body, n = trunk(d, 2), classes(d)
    a, b, c = body.widths
    first, second, third = unit(d, a + b, a), unit(d, b + c, b), unit(d, 2 * a + b, a)
    last = [conv(d, a, n, 1, bias=True) for _ in range(2)]

    def run(x: Tensor) -> list[Tensor]:
        x0, x1, x2 = body(x)
        y0 = first(torch.cat([x0, resized(x1, x0)], 1))
        y1 = second(torch.cat([x1, resized(x2, x1)], 1))
        z0 = third(torch.cat([x0, y0, resized(y1, x0)], 1))
        return [last[0](y0), last[1](z0)]

    steps: dict[str, nn.Module] = {"conv0_1": first, "conv1_1": second, "conv0_2": third, "final1": last[0], "final2": last[1]}
    return Net(run, {**named(d, body, "", "encoder"), **steps})
