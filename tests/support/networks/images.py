"""Networks that make images: their last kernels have few filters, and may stand in front of other networks."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - as everybody calls it

from tests.support.networks.draw import Draw, Net, row
from tests.support.networks.layers import act, conv, norm, pooled, resized, unit, up
from tests.support.networks.traps import Trap
from tests.support.networks.trunks import named, trunk


def autoencoder(d: Draw) -> Net:
    """A latent map of few channels between two halves: VAE, VQ."""
    d.reach(Trap.IMAGE_OUTPUT)
    body = trunk(d, d.pick(2, 3))
    w, wide, latent = body.widths[-1], body.widths[0], d.pick(3, 4, 4, 8, 16)
    if latent in (3, 4):
        d.reach(Trap.INNER_THREE)
    quantized = d.often(0.5)
    last, quant, post = (
        conv(d, w, 2 * latent, bias=True),
        conv(d, 2 * latent, 2 * latent, 1, bias=True),
        conv(d, latent, latent, 1, bias=True),
    )
    first, mids = conv(d, latent, w, bias=True), [unit(d, w, w), up(d, w, wide), unit(d, wide, wide)]
    out = conv(d, wide, d.produced, bias=True)

    def run(x: Tensor) -> Tensor:
        y = last(body(x)[-1])
        y = quant(y) if quantized else y
        y = y.chunk(2, 1)[0]
        y = first(post(y) if quantized else y)
        for step in mids:
            y = step(y)
        return out(y)

    d.reach(Trap.TRANSPOSED_INSIDE)
    parts = {f"decoder.up.{n}": step for n, step in enumerate(mids)}
    quants = {"quant_conv": quant, "post_quant_conv": post} if quantized else {}
    both = {
        **named(d, body, "encoder", "encoder.down"),
        "encoder.conv_out": last,
        "decoder.conv_in": first,
        **parts,
        "decoder.conv_out": out,
    }
    return Net(run, {**both, **quants} if d.often(0.5) else {**quants, **both})


def plain_autoencoder(d: Draw) -> Net:
    """A tutorial's: convolutions down, transposed ones up."""
    d.reach(Trap.IMAGE_OUTPUT, Trap.TRANSPOSED_INSIDE)
    w = d.pick(8, 16, 32)
    down = [
        conv(d, d.channels, w, 3, 2, bias=True),
        conv(d, w, 2 * w, 3, 2, bias=True),
        conv(d, 2 * w, d.pick(3, 4, 8, 64), 3, 1, bias=True),
    ]
    rise = [conv(d, down[-1].out_channels, 2 * w, bias=True), up(d, 2 * w, w), up(d, w, d.produced)]
    if down[-1].out_channels in (3, 4):
        d.reach(Trap.INNER_THREE)

    def run(x: Tensor) -> Tensor:
        for step in down + rise:
            x = F.relu(step(x))
        return x

    steps = {f"encoder.{2 * n}": step for n, step in enumerate(down)} | {f"decoder.{2 * n}": step for n, step in enumerate(rise)}
    return Net(run, steps)


def super_resolution(d: Draw) -> Net:
    """Residual blocks at the size of the image, and a pixel shuffle: EDSR, RCAN, SRResNet, ESPCN, Real-ESRGAN."""
    d.reach(Trap.IMAGE_OUTPUT)
    w, shifted, factor = d.pick(16, 32, 48, 64), d.often(0.35), d.pick(2, 3, 4)
    middle = d.produced if shifted else d.channels
    head = conv(d, middle, w, d.pick(3, 3, 5, 9), bias=True)
    shift, back = (
        (conv(d, d.channels, d.produced, 1, bias=True), conv(d, d.produced, d.produced, 1, bias=True))
        if shifted
        else (nn.Identity(),) * 2
    )
    body = [row([conv(d, w, w, bias=True), act(d), conv(d, w, w, bias=True)]) for _ in range(d.number(1, 4))]
    rise = conv(d, w, factor**2 * (d.produced if (short := d.often(0.3)) else w), bias=True)
    tail = nn.Identity() if short else conv(d, w, d.produced, bias=True)

    def run(x: Tensor) -> Tensor:
        y = x = head(shift(x))
        for step in body:
            y = y + step(y)
        return back(tail(F.pixel_shuffle(rise(x + y), factor)))

    words = d.pick(
        ("head.0", "body", "tail.0.0", "tail.1"),
        ("conv_first", "body", "upconv1", "conv_last"),
        ("conv1", "blocks", "upsample.0", "conv_out"),
    )
    front = {"sub_mean": shift, "add_mean": back} if shifted else {}
    if shifted:
        d.reach(Trap.MEAN_SHIFT)
    blocks = {f"{words[1]}.{n}.{(d.style.wide % 2 and 'body') or 'conv'}": step for n, step in enumerate(body)}
    return Net(run, {**front, words[0]: head, **blocks, words[2]: rise, **({} if short else {words[3]: tail})})


def without(x: Tensor, y: Tensor) -> Tensor:
    """The image less what was made; its mean, where it has come to have channels of another number."""
    return (x if x.shape[1] == y.shape[1] else x.mean(1, keepdim=True)) - y


def denoiser(d: Draw) -> Net:
    """Kernels in a row that make the noise, to be taken from the image: DnCNN."""
    d.reach(Trap.IMAGE_OUTPUT)
    w = d.pick(32, 48, 64)
    steps = [
        conv(d, d.channels, w, bias=True),
        *[unit(d, w, w) for _ in range(d.number(1, 6))],
        conv(d, w, d.produced, bias=True),
    ]
    whole = row(steps)

    return Net(lambda x: without(x, whole(x)), {d.pick("dncnn", "model", "layers", "net"): whole})


def generator(d: Draw) -> Net:
    """From a vector or from noise to an image, by transposed kernels; it reads none."""
    w, z = d.pick(16, 32, 64), d.pick(64, 100, 128)
    steps = [up(d, z, 2 * w, 4), norm(d, 2 * w), nn.ReLU(), up(d, 2 * w, w, 4), norm(d, w), nn.ReLU(), up(d, w, d.produced, 4)]
    return row(steps)


def discriminator(d: Draw, i: int) -> Net:
    w = d.pick(16, 32, 64)
    steps = [
        conv(d, i, w, 4, 2, bias=True),
        nn.LeakyReLU(),
        conv(d, w, 2 * w, 4, 2),
        norm(d, 2 * w),
        nn.LeakyReLU(),
        conv(d, 2 * w, 1, 4, bias=True),
    ]
    return row(steps)


def translator(d: Draw) -> Net:
    """From an image to an image: Johnson's, CycleGAN's generator."""
    d.reach(Trap.IMAGE_OUTPUT)
    w = d.pick(16, 32, 64)
    down, rise = (
        [unit(d, d.channels, w, 7), unit(d, w, 2 * w, 3, 2)],
        [up(d, 2 * w, w, 4), norm(d, w), nn.ReLU(), conv(d, w, d.produced, 7, bias=True)],
    )
    middle = [
        row([unit(d, 2 * w, 2 * w), conv(d, 2 * w, 2 * w), norm(d, 2 * w)], ("conv1", "conv2", "norm2"))
        for _ in range(d.number(1, 4))
    ]

    def run(x: Tensor) -> Tensor:
        for step in down:
            x = step(x)
        for step in middle:
            x = x + step(x)
        for step in rise:
            x = step(x)
        return x

    every = {f"model.{n}": step for n, step in enumerate([*down, *middle, *rise])}
    named_parts = {
        f"{word}{n + 1}": step for word, group in (("down", down), ("res", middle), ("up", rise)) for n, step in enumerate(group)
    }
    return Net(run, every if d.often(0.5) else named_parts)


def gan(d: Draw) -> Net:
    """A generator from noise, and the discriminator that sees images."""
    d.reach(Trap.IMAGE_OUTPUT, Trap.TRANSPOSED_INSIDE)
    make, judge = generator(d), discriminator(d, d.channels)
    names = d.pick(("generator", "discriminator"), ("netG", "netD"), ("G", "D"))
    z = make.get_submodule("0").in_channels

    def run(x: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        return make(noise), judge(x)

    net = Net(run, dict(zip(names, (make, judge), strict=True)))
    net.inputs = (d.image(), (1, z, *[4] * d.dims))
    return net


def conditional_gan(d: Draw) -> Net:
    """pix2pix: the discriminator sees the image and what was made of it, at once."""
    d.reach(Trap.TWO_COUNTS, Trap.IMAGE_OUTPUT)
    make, judge = translator(d), discriminator(d, d.channels + d.produced)
    d.beside.append(judge.get_submodule("0"))
    names = d.pick(("generator", "discriminator"), ("netG", "netD"))

    def run(x: Tensor) -> Tensor:
        return judge(torch.cat([x, resized(make(x), x)], 1))

    return Net(run, dict(zip(names, (make, judge), strict=True)))


def in_a_row(d: Draw) -> Net:
    """The second takes only what the first has made: refiners, cascades, W-Net. No shape tells it from one of its own image."""
    d.reach(Trap.NETS_IN_ROW, Trap.IMAGE_OUTPUT, Trap.INNER_THREE)
    d.refusable = True
    make = d.pick(translator, plain_autoencoder, denoiser)
    first = make(d)
    channels, d.channels = d.channels, d.produced
    second = make(d)
    d.channels = channels
    names = d.pick(("coarse", "refine"), ("stage1", "stage2"), ("body.0", "body.1"), ("net1", "net2"), ("g_ab", "g_ba"))
    return Net(lambda x: second(first(x)), dict(zip(names, (first, second), strict=True)))


def diffusion(d: Draw) -> Net:
    """A U-Net that is told the time."""
    d.reach(Trap.IMAGE_OUTPUT)
    body = trunk(d, 2)
    w, time = body.widths[0], d.pick(64, 128)
    one, two, last = nn.Linear(time, 4 * time), nn.Linear(4 * time, body.widths[-1]), conv(d, w, d.produced, bias=True)
    rise = unit(d, body.widths[-1] + w, w)

    def run(x: Tensor, t: Tensor) -> Tensor:
        skip, *_, y = body(x)
        told = two(F.silu(one(t)))
        y = y + told.reshape(*told.shape, *[1] * d.dims)
        return last(rise(torch.cat([skip, resized(y, skip)], 1)))

    times = d.pick(
        ("time_embed.0", "time_embed.2"), ("time_embedding.linear_1", "time_embedding.linear_2"), ("time_mlp.1", "time_mlp.3")
    )
    timed = dict(zip(times, (one, two), strict=True))
    parts = {"out_blocks.0": rise, d.pick("out.2", "conv_out", "final_conv"): last}
    trunks = named(d, body, "", "input_blocks", "down_blocks")
    net = Net(run, {**timed, **trunks, **parts} if d.often(0.5) else {**trunks, **timed, **parts})
    net.inputs = (d.image(), (1, time))
    return net


def control(d: Draw) -> Net:
    """Latents and the image that they are to follow, each by a kernel of its own; the latents have four channels."""
    d.reach(Trap.CONTROL, Trap.INNER_THREE)
    d.refusable = True
    w = d.pick(32, 64)
    latent = conv(d, 4, w, bias=True)
    d.others.append((latent, 4))
    hint = row([conv(d, d.channels, 16, bias=True), act(d), conv(d, 16, 32, 3, 2, bias=True), act(d), conv(d, 32, w, bias=True)])
    body, zero = row([unit(d, w, w), unit(d, w, 2 * w, 3, 2)]), conv(d, 2 * w, 2 * w, 1, bias=True)

    def run(z: Tensor, x: Tensor) -> Tensor:
        y = latent(z)
        return zero(body(y + resized(hint(x), y)))

    parts = {"conv_in": latent, "controlnet_cond_embedding": hint, "down_blocks.0": body, "controlnet_down_blocks.0": zero}
    net = Net(run, parts)
    net.inputs = (d.image(4), d.image())
    return net


def style_vector(d: Draw) -> Net:
    """A style is read from one image and laid over another of the same kind."""
    d.reach(Trap.IMAGE_OUTPUT, Trap.TWO_ENCODERS)
    content, style = trunk(d, 2), trunk(d, 1)
    w = content.widths[-1]
    told, last = nn.Linear(style.widths[-1], 2 * w), conv(d, w, d.produced, bias=True)

    def run(x: Tensor, y: Tensor) -> Tensor:
        gain, shift = told(pooled(style(y)[-1])).chunk(2, 1)
        z = content(x)[-1]
        ones = [1] * d.dims
        return last(z * gain.reshape(*gain.shape, *ones) + shift.reshape(*shift.shape, *ones))

    names = d.pick(("content_encoder", "style_encoder", "mlp", "decoder.out"), ("enc_content", "enc_style", "mlp.0", "dec.conv"))
    net = Net(run, dict(zip(names, (content, style, told, last), strict=True)))
    net.inputs = (d.image(), d.image())
    return net
