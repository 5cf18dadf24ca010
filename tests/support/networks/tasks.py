"""What a trunk is for: classes, masks, boxes, vectors, images."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tests.support.networks.draw import Draw, Net, row
from tests.support.networks.layers import act, conv, pooled, resized, unit, up
from tests.support.networks.traps import Trap
from tests.support.networks.trunks import named, trunk


def classes(d: Draw) -> int:
    """How many; now and then exactly as many as the image has channels when it is as it was trained."""
    if d.often(0.12):
        d.reach(Trap.HEAD_AS_WIDE)
        return d.produced
    number = d.weighted({1: 2, 2: 2, 3: 2, 4: 1, 10: 2, 19: 1, 21: 1, 100: 1, 1000: 3})
    if number in (3, 4):
        d.reach(Trap.NARROW_OUTPUT)
    return number


def classifier(d: Draw) -> Net:
    body = trunk(d)
    w, n = body.widths[-1], classes(d)
    kind = d.pick("linear", "linear", "mlp", "conv")
    if kind == "linear":
        head, names = nn.Linear(w, n), ("fc", "classifier", "head", "head.fc", "classifier.1", "last_linear")
    elif kind == "mlp":
        head, names = row([nn.Linear(w, 128), nn.ReLU(), nn.Dropout(), nn.Linear(128, n)]), ("classifier", "head", "fc")
    else:
        head, names = nn.Conv1d(w, n, 1), ("final_conv", "classifier", "head.conv")

    def run(x: Tensor) -> Tensor:
        y = pooled(body(x)[-1])
        return head(y[..., None] if kind == "conv" else y)

    return Net(run, {**named(d, body, "", "", "", "backbone", "encoder", "base"), d.pick(*names): head})


def tutorial(d: Draw) -> Net:
    """LeNet, AlexNet, VGG and what beginners write: kernels, and Linears over all that is left of the image."""
    names = d.pick(("conv{}", "fc{}"), ("features.{}", "classifier.{}"), ("conv{}", "linear{}"), ("layer{}.0", "fc{}"))
    count, first = d.pick(2, 2, 3, 4), d.pick(6, 10, 16, 20, 32)
    widths = [first * d.pick(1, 2) ** n for n in range(count)]
    kernels = [conv(d, d.channels if n == 0 else widths[n - 1], w, d.pick(3, 5), 2, bias=True) for n, w in enumerate(widths)]
    side = 64 // 2**count
    flat, hidden = widths[-1] * side**2 * (32 // 2**count if d.dims == 3 else 1), d.pick(50, 84, 128, 512)
    linears = [nn.Linear(flat, hidden), nn.Linear(hidden, classes(d))]

    def run(x: Tensor) -> Tensor:
        for kernel in kernels:
            x = torch.relu(kernel(x))
        return linears[1](torch.relu(linears[0](x.flatten(1))))

    step = d.pick(2, 3) if names[0] == "features.{}" else 1
    start = 0 if step > 1 else 1
    parts = {names[0].format(start + step * n): kernel for n, kernel in enumerate(kernels)}
    return Net(run, {**parts, **{names[1].format(start + step * n): linear for n, linear in enumerate(linears)}})


def u_net(d: Draw) -> Net:
    """Skips are concatenated on the way up."""
    body = trunk(d, d.pick(2, 3, 4))
    ws, n = body.widths, classes(d)
    by_kernel = d.often(0.4)
    if by_kernel:
        d.reach(Trap.TRANSPOSED_INSIDE)
    ups, convs = [], []
    for low, high in zip(ws[::-1], ws[-2::-1], strict=False):
        ups.append(up(d, low, high, d.pick(2, 4)) if by_kernel else conv(d, low, high, 1, bias=True))
        convs.append(row([unit(d, 2 * high, high), unit(d, high, high)]))
    last = conv(d, ws[0], n, d.pick(1, 1, 3), bias=True)

    def run(x: Tensor) -> Tensor:
        *skips, y = body(x)
        for step, both, skip in zip(ups, convs, skips[::-1], strict=True):
            y = both(torch.cat([skip, resized(step(y), skip)], 1))
        return last(y)

    words = d.pick(
        ("up{}.up", "up{}.conv"),
        ("decoder.blocks.{}.up", "decoder.blocks.{}.conv"),
        ("upconv{}", "decoder{}"),
        ("ups.{}", "up_blocks.{}"),
    )
    parts = {word.format(k): part for k in range(len(ups)) for word, part in zip(words, (ups[k], convs[k]), strict=True)}
    trunks = named(d, body, "", "", "encoder", "backbone")
    if trunks.get("encoder") is body and d.often(0.3 if not d.style.aliased else 1):
        d.reach(Trap.ALIASES)
        trunks["decoder.encoder"] = body
    return Net(
        run,
        {
            **trunks,
            **parts,
            d.pick("outc.conv", "final", "segmentation_head.0", "out", "conv_last"): last,
        },
    )


def segmenter(d: Draw) -> Net:
    """A head with context on the coarsest features, and perhaps another on those before."""
    body = trunk(d, d.pick(2, 3, 4))
    ws, n, mid = body.widths, classes(d), d.pick(32, 64, 128)
    paths = [unit(d, ws[-1], mid, k) for k in (1, 3, 3)]
    join, last = unit(d, 3 * mid, mid), conv(d, mid, n, 1, bias=True)
    aux = row([unit(d, ws[-2], mid // 2), conv(d, mid // 2, n, 1, bias=True)]) if d.often(0.5) else None

    def run(x: Tensor) -> Tensor:
        *_, before, y = body(x)
        mask = last(join(torch.cat([path(y) for path in paths], 1)))
        return resized(mask, x) if aux is None else resized(mask, x) + resized(aux(before), x)

    head = d.pick("classifier", "decode_head", "head", "aspp")
    parts = {f"{head}.0.convs.{k}": path for k, path in enumerate(paths)}
    return Net(
        run, {**named(d, body, "backbone", "", "encoder"), **parts, f"{head}.1": join, f"{head}.4": last, "aux_classifier": aux}
    )


def detector(d: Draw) -> Net:
    """A pyramid over the features, and heads that are shared by its levels; three anchors."""
    d.reach(Trap.NARROW_OUTPUT)
    body = trunk(d, d.pick(3, 4))
    ws, mid, anchors = body.widths[-3:], d.pick(32, 64, 128, 256), d.pick(1, 3, 3, 9)
    lateral = [conv(d, w, mid, 1, bias=True) for w in ws]
    smooth = [conv(d, mid, mid, bias=True) for _ in ws]
    tower = row([conv(d, mid, mid, bias=True), act(d)])
    scores, boxes = conv(d, mid, anchors * classes(d), bias=True), conv(d, mid, anchors * 4, bias=True)

    def run(x: Tensor) -> list[Tensor]:
        levels = [step(y) for step, y in zip(lateral, body(x)[-3:], strict=True)]
        for n in (1, 0):
            levels[n] = levels[n] + resized(levels[n + 1], levels[n])
        levels = [tower(step(y)) for step, y in zip(smooth, levels, strict=True)]
        return [head(y) for head in (scores, boxes) for y in levels]

    fpn, head = (
        d.pick(("fpn.inner_blocks", "fpn.layer_blocks"), ("neck.lateral_convs", "neck.fpn_convs")),
        d.pick("rpn.head", "bbox_head", "head"),
    )
    parts = {f"{name}.{n}": part for name, group in zip(fpn, (lateral, smooth), strict=True) for n, part in enumerate(group)}
    anchored = {"anchors": torch.zeros(3, 3, 2)} if d.often(0.4) else {}
    heads = {f"{head}.conv": tower, f"{head}.cls_logits": scores, f"{head}.bbox_pred": boxes}
    return Net(run, {**anchored, **named(d, body, "backbone", "backbone.body", ""), **parts, **heads})


def recurrent(d: Draw) -> Net:
    """Columns of features are read in a row: text lines."""
    body = trunk(d, 2)
    w, hidden = body.widths[-1], d.pick(64, 128, 256)
    cells, last = nn.LSTM(w, hidden, batch_first=True, bidirectional=True), nn.Linear(2 * hidden, d.pick(37, 80, 97))

    def run(x: Tensor) -> Tensor:
        y = body(x)[-1].mean(tuple(range(2, x.dim() - 1))).transpose(1, 2)
        return last(cells(y)[0])

    return Net(
        run,
        {
            **named(d, body, "cnn", "FeatureExtraction.ConvNet", "backbone"),
            d.pick("rnn", "SequenceModeling.0.rnn", "lstm"): cells,
            "fc": last,
        },
    )
