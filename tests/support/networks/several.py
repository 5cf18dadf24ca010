"""Several networks in a file, or several images."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tests.support.networks.draw import Draw, Net, row
from tests.support.networks.layers import conv, pooled, resized, unit
from tests.support.networks.tasks import classes, classifier, u_net
from tests.support.networks.traps import Trap
from tests.support.networks.trunks import named, trunk


def two_encoders(d: Draw) -> Net:
    """Of one image, or of two of one kind: features and context, left and right, local and global."""
    d.reach(Trap.TWO_ENCODERS)
    names = d.pick(
        ("fnet", "cnet"),
        ("feature_encoder", "context_encoder"),
        ("encoder1", "encoder2"),
        ("spatial_path", "context_path"),
        ("global_branch", "local_branch"),
    )
    first, second = d.again(lambda d: trunk(d, 2)) if d.often(0.5) else (trunk(d, 2), trunk(d, 3))
    a, b = first.widths[-1], second.widths[-1]
    join, last = unit(d, a + b, 64), conv(d, 64, classes(d), 1, bias=True)

    def run(x: Tensor) -> Tensor:
        y = first(x)[-1]
        return last(join(torch.cat([y, resized(second(x)[-1], y)], 1)))

    return Net(run, {**dict(zip(names, (first, second), strict=True)), "fusion": join, "head": last})


def localized(d: Draw) -> Net:
    """A spatial transformer's localization net reads the image, and the classifier reads it turned."""
    d.reach(Trap.TWO_ENCODERS)
    local = row([conv(d, d.channels, 8, 7, bias=True), nn.ReLU(), conv(d, 8, 10, 5, 2, bias=True)])
    turn, net = row([nn.Linear(10, 32), nn.ReLU(), nn.Linear(32, 6)]), classifier(d)

    def run(x: Tensor) -> Tensor:
        return net(x * turn(pooled(local(x))).mean())

    children = {"localization": local, "fc_loc": turn}
    body = named(d, net, "", "net")
    return Net(run, {**body, **children} if d.often(0.5) else {**children, **body})


def apart(d: Draw) -> Net:
    """Whole networks one beside another, each of which reads the image: MTCNN, ensembles."""
    d.reach(Trap.NETS_APART)
    nets = [classifier(d) for _ in range(d.pick(2, 3))]
    names = d.pick(("pnet", "rnet", "onet"), ("models.0", "models.1", "models.2"), ("net_a", "net_b", "net_c"))
    return Net(lambda x: [net(x) for net in nets], dict(zip(names, nets, strict=False)))


def pathways(d: Draw) -> Net:
    """SlowFast: few frames in wide kernels, many in narrow ones; the fast features are handed over."""
    d.reach(Trap.PATHWAYS, Trap.CONV3D)
    d.dims = 3
    w = d.pick(32, 64)
    thin = w // 8
    slow, fast = unit(d, d.channels, w, (1, 7, 7), (1, 2, 2)), unit(d, d.channels, thin, (5, 7, 7), (1, 2, 2))
    over = conv(d, thin, 2 * thin, (5, 1, 1), (4, 1, 1))
    slow2, fast2 = unit(d, w + 2 * thin, 2 * w, (1, 3, 3)), unit(d, thin, 2 * thin)
    last = nn.Linear(2 * w + 2 * thin, classes(d))

    def run(x: Tensor) -> Tensor:
        y, z = slow(x[:, :, ::4]), fast(x)
        return last(torch.cat([pooled(slow2(torch.cat([y, over(z)], 1))), pooled(fast2(z))], 1))

    first, second = d.pick(
        ("s1.pathway0_stem", "s1.pathway1_stem"), ("blocks.0.multipathway_blocks.0", "blocks.0.multipathway_blocks.1")
    )
    parts = {
        first: slow,
        second: fast,
        "s1_fuse.conv_f2s": over,
        "s2.pathway0": slow2,
        "s2.pathway1": fast2,
        "head.projection": last,
    }
    return Net(run, parts)


def other_image(d: Draw) -> Net:
    """A second image of one channel, by an encoder of its own: depth, thermal, elevation, a mask."""
    d.reach(Trap.OTHER_IMAGE)
    d.refusable = True
    first = trunk(d, 2)
    channels, d.channels = d.channels, 1
    second = trunk(d, 2, lambda d, w: unit(d, 1, w, d.pick(3, 7), 2))
    d.channels = channels
    d.others.append((next(m for m in second.modules() if isinstance(m, nn.Conv1d | nn.Conv2d | nn.Conv3d)), 1))
    last = nn.Linear(first.widths[-1] + second.widths[-1], classes(d))

    def run(x: Tensor, y: Tensor) -> Tensor:
        return last(torch.cat([pooled(first(x)[-1]), pooled(second(y)[-1])], 1))

    names = d.pick(
        ("rgb", "depth"), ("encoder_rgb", "encoder_depth"), ("image_encoder", "dem_encoder"), ("backbone", "backbone_t")
    )
    net = Net(run, {**dict(zip(names, (first, second), strict=True)), "fc": last})
    net.inputs = (d.image(), d.image(1))
    return net


def with_sound(d: Draw) -> Net:
    """Sound by 1-D kernels, in front of or behind the image."""
    d.reach(Trap.AUDIO)
    body = trunk(d, 2)
    shape, d.dims = d.image(), 1
    sound = row([unit(d, 1, 32, d.pick(10, 80, 251), d.pick(4, 5)), unit(d, 32, 64, 3, 2)])
    d.dims = len(shape) - 2
    last = nn.Linear(body.widths[-1] + 64, classes(d))

    def run(x: Tensor, y: Tensor) -> Tensor:
        return last(torch.cat([pooled(body(x)[-1]), pooled(sound(y))], 1))

    parts = {d.pick("audio_encoder", "audio_tower", "wave"): sound, d.pick("visual", "vision_tower", "video_encoder"): body}
    order = dict(parts) if d.often(0.6) else dict(reversed(parts.items()))
    net = Net(run, {**order, "classifier": last})
    net.inputs = (shape, (1, 1, 4096))
    return net


def poses(d: Draw) -> Net:
    """monodepth: a depth network of one frame, and a pose network of two."""
    d.reach(Trap.TWO_COUNTS)
    depth = u_net(d)
    channels, d.channels = d.channels, 2 * d.channels
    pose = trunk(d, 2)
    d.channels = channels
    d.refusable = True
    last = nn.Linear(pose.widths[-1], 6)

    def run(x: Tensor) -> tuple[Tensor, Tensor]:
        return depth(x), last(pooled(pose(torch.cat([x, x], 1))[-1]))

    names = d.pick(("depth", "pose_encoder", "pose"), ("disp_net", "pose_net", "pose_pred"))
    return Net(run, dict(zip(names, (depth, pose, last), strict=True)))


def momentum(d: Draw) -> Net:
    """MoCo and BYOL: a second encoder follows the first; a queue of vectors, a predictor of the online one alone."""
    d.reach(Trap.EMA)
    first, second = d.again(lambda d: trunk(d, 2))
    w = first.widths[-1]
    heads, last = [nn.Linear(w, 128), nn.Linear(w, 128)], nn.Linear(128, 128)

    def run(x: Tensor) -> Tensor:
        return last(heads[0](pooled(first(x)[-1]))) + heads[1](pooled(second(x)[-1]))

    names = d.pick(("encoder_q", "encoder_k"), ("student.backbone", "teacher.backbone"), ("online_encoder", "target_encoder"))
    tops = [f"{name.removesuffix('.backbone')}.fc" for name in names]
    queue = {"queue": torch.zeros(128, 256), "queue_ptr": torch.zeros(1)} if d.often(0.5) else {}
    return Net(run, {**queue, names[0]: first, tops[0]: heads[0], names[1]: second, tops[1]: heads[1], "predictor": last})
