"""The blocks that stages are made of: each takes i channels and gives o, at a stride of one or two."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tests.support.networks.draw import Draw, Net, row
from tests.support.networks.layers import LayerNormFirst, act, conv, norm, parameter, pooled, unit
from tests.support.networks.traps import Trap


def shortcut(d: Draw, i: int, o: int, s: int) -> tuple[dict[str, nn.Module], nn.Module]:
    """Its children and itself: a projection where width or stride change."""
    if i == o and s == 1:
        return {}, nn.Identity()
    name = d.style.shortcut
    steps = [conv(d, i, o, 1, s), norm(d, o)]
    both = row(steps)
    if name.endswith("."):
        return {name[:-1]: both}, both
    return {name: steps[0], {"conv3": "norm3"}.get(name, f"{name}_norm"): steps[1]}, both


def basic(d: Draw, i: int, o: int, s: int) -> Net:
    a, b, na, nb, relu = conv(d, i, o, 3, s), conv(d, o, o), norm(d, o), norm(d, o), act(d)
    children, side = shortcut(d, i, o, s)
    word = "norm" if "norm3" in children else "bn"
    named = {"conv1": a, f"{word}1": na, "conv2": b, f"{word}2": nb, "relu": relu, **children}
    return Net(lambda x: relu(nb(b(relu(na(a(x))))) + side(x)), named)


def bottleneck(d: Draw, i: int, o: int, s: int) -> Net:
    """With groups now and then, and then perhaps as many channels a group as an image has."""
    inner, groups = max(o // 4, 4), 1
    if i >= 16 and d.often(0.3):
        each = d.pick(3, 3, 4, 1, 8)
        groups = max(inner // each, 2)
        inner = groups * each
        if each in (3, 4):
            d.reach(Trap.GROUPED_THREE)
    convs = [conv(d, i, inner, 1), conv(d, inner, inner, 3, s, groups), conv(d, inner, o, 1)]
    norms, relu = [norm(d, inner), norm(d, inner), norm(d, o)], act(d)
    children, side = shortcut(d, i, o, s)
    if "norm3" in children:
        children = {f"{name}_side": child for name, child in children.items()}

    def run(x: Tensor) -> Tensor:
        y = relu(norms[1](convs[1](relu(norms[0](convs[0](x))))))
        return relu(norms[2](convs[2](y)) + side(x))

    named = {f"{word}{n + 1}": child for n in range(3) for word, child in (("conv", convs[n]), ("bn", norms[n]))}
    return Net(run, {**named, "relu": relu, **children})


def excite(d: Draw, c: int, names: tuple[str, str]) -> Net:
    """Squeeze and excitation, its kernels 1×1."""
    inner = max(c // d.pick(4, 8, 16), 1)
    down, again, relu = conv(d, c, inner, 1, bias=True), conv(d, inner, c, 1, bias=True), act(d)
    return Net(
        lambda x: x * torch.sigmoid(again(relu(down(x.mean(tuple(range(2, x.dim())), keepdim=True))))),
        {**dict(zip(names, (down, again), strict=True)), "act1": relu},
    )


def inverted(d: Draw, i: int, o: int, s: int) -> Net:
    """MobileNet's, in the names of one of three libraries."""
    d.reach(Trap.DEPTHWISE_INSIDE)
    inner = i * d.pick(1, 3, 4, 6)
    parts = [] if inner == i else [unit(d, i, inner, 1)]
    parts += [unit(d, inner, inner, d.pick(3, 3, 5), s, inner)]
    if d.often(0.3):
        parts += [excite(d, inner, d.pick(("fc1", "fc2"), ("conv_reduce", "conv_expand")))]
    parts += [conv(d, inner, o, 1), norm(d, o)]
    whole = row(parts)
    names = d.pick("conv", "block", "layers")
    return Net(lambda x: whole(x) + x if i == o and s == 1 else whole(x), {names: whole})


def separable(d: Draw, i: int, o: int, s: int) -> Net:
    """A depthwise and a pointwise convolution."""
    d.reach(Trap.DEPTHWISE_INSIDE)
    names = d.pick(("dw", "pw"), ("depthwise", "pointwise"), ("conv_dw", "conv_pw"), ("0", "1"))
    return row([unit(d, i, i, 3, s, i), unit(d, i, o, 1)], names)


def convnext(d: Draw, i: int, o: int, s: int) -> Net:
    """A depthwise 7×7, a norm, two Linears; in front a strided convolution where width or stride change."""
    d.reach(Trap.DEPTHWISE_INSIDE)
    names = d.pick(("dwconv", "norm", "pwconv1", "pwconv2", "gamma"), ("conv_dw", "norm", "mlp.fc1", "mlp.fc2", "gamma"))
    deep, ln, one, two = conv(d, o, o, 7, 1, o, True), nn.LayerNorm(o), nn.Linear(o, 4 * o), nn.Linear(4 * o, o)
    gain, front = parameter(o), {}
    if i != o or s != 1:
        front = {"downsample": row([LayerNormFirst(i), conv(d, i, o, s, s, bias=True, p=0)])}

    def run(x: Tensor) -> Tensor:
        x = front["downsample"](x) if front else x
        y = two(nn.functional.gelu(one(ln(deep(x).movedim(1, -1))))) * gain
        return x + y.movedim(-1, 1)

    return Net(run, {**front, **dict(zip(names, (deep, ln, one, two, gain), strict=True))})


def rep(d: Draw, i: int, o: int, s: int) -> Net:
    """RepVGG's branches, or MobileOne's."""
    names = d.pick(
        ("rbr_dense", "rbr_1x1", "rbr_identity"), ("conv_kxk", "conv_1x1", "identity"), ("conv_kxk.0", "conv_scale", "identity")
    )
    dense, point, relu = unit(d, i, o, 3, s), unit(d, i, o, 1, s), act(d)
    branches = [dense, point, *([norm(d, o)] if i == o and s == 1 else [])]
    children = {**dict(zip(names, branches, strict=False)), "nonlinearity": relu}
    return Net(lambda x: relu(sum(branch(x) for branch in branches)), children)


def dense_layer(d: Draw, i: int, o: int, s: int) -> Net:
    """DenseNet: two layers whose outputs are concatenated to their inputs, and a transition."""
    grow = d.pick(12, 16, 32)
    layers = [
        (norm(d, i + n * grow), conv(d, i + n * grow, 4 * grow, 1), norm(d, 4 * grow), conv(d, 4 * grow, grow)) for n in range(2)
    ]
    last, tail = norm(d, i + 2 * grow), conv(d, i + 2 * grow, o, 1, s)

    def run(x: Tensor) -> Tensor:
        for a, b, c, e in layers:
            x = torch.cat([x, e(torch.relu(c(b(torch.relu(a(x))))))], 1)
        return tail(torch.relu(last(x)))

    words = ("norm1", "conv1", "norm2", "conv2")
    named = {f"denselayer{n + 1}.{word}": part for n, parts in enumerate(layers) for word, part in zip(words, parts, strict=True)}
    return Net(run, {**named, "transition.norm": last, "transition.conv": tail})


def branches(d: Draw, i: int, o: int, s: int) -> Net:
    """Inception's: 1×1, 1×1 and 3×3, pooled; or windows that are no squares."""
    quarter = max(o // 4, 1)
    wide = (1, 7) if d.dims == 2 and d.often(0.5) else 3
    if wide != 3:
        d.reach(Trap.NOT_SQUARE)
    paths = [
        unit(d, i, o - 2 * quarter, 1, s),
        row([unit(d, i, quarter, 1), unit(d, quarter, quarter, wide, s)]),
        unit(d, i, quarter, 1, s),
    ]
    names = d.pick(("branch1", "branch2", "branch3"), ("branch1x1", "branch7x7", "branch_pool"), ("b1", "b2", "b3"))
    return Net(lambda x: torch.cat([path(x) for path in paths], 1), dict(zip(names, paths, strict=True)))


def attentive(d: Draw, i: int, o: int, s: int) -> Net:
    """A convolution, then attention over channels by a 1-D kernel (ECA), or over places by a kernel of two maps (CBAM)."""
    body = unit(d, i, o, 3, s)
    if d.often(0.5):
        d.reach(Trap.CONV1D_OVER_THREE)
        line = nn.Conv1d(1, 1, d.pick(3, 5), padding="same", bias=False)

        def channels(x: Tensor) -> Tensor:
            x = body(x)
            gate = line(pooled(x)[:, None]).sigmoid().reshape(*x.shape[:2], *[1] * (x.dim() - 2))
            return x * gate

        return Net(channels, {"conv": body, d.pick("eca.conv", "attn.conv", "eca"): line})
    place = conv(d, 2, 1, 7, bias=False)

    def places(x: Tensor) -> Tensor:
        x = body(x)
        return x * place(torch.cat([x.mean(1, keepdim=True), x.amax(1, keepdim=True)], 1)).sigmoid()

    return Net(places, {"conv": body, d.pick("sa.conv1", "spatial.conv", "attn.spatial.conv"): place})


def fire(d: Draw, i: int, o: int, s: int) -> Net:
    """SqueezeNet's: a narrow kernel, and two wide ones side by side."""
    inner, half = max(o // 8, 2), o // 2
    squeeze, one, three = (
        conv(d, i, inner, 1, s, bias=True),
        conv(d, inner, half, 1, bias=True),
        conv(d, inner, o - half, bias=True),
    )

    def run(x: Tensor) -> Tensor:
        y = torch.relu(squeeze(x))
        return torch.relu(torch.cat([one(y), three(y)], 1))

    return Net(run, {"squeeze": squeeze, "expand1x1": one, "expand3x3": three})


def shuffle(d: Draw, i: int, o: int, s: int) -> Net:
    """ShuffleNetV2's: half of the channels, or both at a stride, go through a depthwise kernel."""
    d.reach(Trap.DEPTHWISE_INSIDE)
    split = i == o and s == 1 and i % 2 == 0
    half, start = o // 2, i // 2 if split else i
    one = None if split else row([conv(d, i, i, 3, s, i), norm(d, i), conv(d, i, o - half, 1), norm(d, o - half)])
    kernels = [conv(d, start, half, 1), conv(d, half, half, 3, s, half), conv(d, half, half, 1)]
    two = row([step for kernel in kernels for step in (kernel, norm(d, half))])

    def run(x: Tensor) -> Tensor:
        first, second = x.chunk(2, 1) if split else (x, x)
        return torch.cat([first if one is None else one(first), two(second)], 1)

    return Net(run, {"branch1": one, "branch2": two})


def ghost(d: Draw, i: int, o: int, s: int) -> Net:
    """GhostNet's: half of the filters are made by cheap depthwise kernels out of the other half."""
    d.reach(Trap.DEPTHWISE_INSIDE)
    half = o // 2
    primary, cheap, last = unit(d, i, half, 1, s), unit(d, half, half, 3, 1, half), conv(d, 2 * half, o, 1)

    def run(x: Tensor) -> Tensor:
        y = primary(x)
        return last(torch.cat([y, cheap(y)], 1))

    return Net(run, {"ghost1.primary_conv": primary, "ghost1.cheap_operation": cheap, "conv_pwl": last})


def plain(d: Draw, i: int, o: int, s: int) -> Net:
    """Two units, as VGG's and U-Net's."""
    return row([unit(d, i, o, 3, s), unit(d, o, o)])


BLOCKS = {
    basic: 5, bottleneck: 5, inverted: 3, separable: 2, convnext: 2, rep: 2, dense_layer: 1, branches: 2, attentive: 1, plain: 4,
    fire: 1, shuffle: 1, ghost: 1,
}  # fmt: skip
