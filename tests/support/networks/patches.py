"""Transformers, and other networks that see an image in patches."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - as everybody calls it

from tests.support.networks.draw import Draw, Net, row
from tests.support.networks.layers import conv, parameter, resized, unit, up
from tests.support.networks.tasks import classes
from tests.support.networks.transformers import CLIP, HF, LUCID, TIMM, WORDS, placed, tokens, tower
from tests.support.networks.traps import Trap
from tests.support.networks.trunks import children_of, trunk


def vision_transformer(d: Draw) -> Net:
    """A patch embedding by one strided kernel."""
    words, w, p = d.pick(*WORDS), d.pick(64, 96, 192, 384, 768), d.pick(4, 8, 16, 16)
    patch = conv(d, d.channels, w, p, p, bias=words is not CLIP, p=0)
    places, body, head = placed(d, w, words, (64 // p) ** 2, 64 // p), tower(d, w, words), nn.Linear(w, classes(d))

    def run(x: Tensor) -> Tensor:
        return head(body.run(tokens(patch(x))).mean(1))

    front = {**places, words.patch: patch} if d.often(0.7) else {words.patch: patch, **places}
    pre = {"ln_pre": nn.LayerNorm(w)} if words is CLIP else {}
    return Net(run, {**front, **pre, **body.children, words.head: head})


def cut(x: Tensor, p: int, color_last: bool) -> Tensor:
    """Patches [N, L, p·p·C], the color fastest or slowest."""
    n, c, h, w = x.shape
    x = x.reshape(n, c, h // p, p, w // p, p)
    order = (0, 2, 4, 3, 5, 1) if color_last else (0, 2, 4, 1, 3, 5)
    return x.permute(order).reshape(n, (h // p) * (w // p), p * p * c)


def linear_patches(d: Draw) -> Net:
    """A patch embedding by a Linear over cut patches, with LayerNorms around it now and then."""
    words, w, p, last = d.pick(TIMM, HF, LUCID), d.pick(128, 192, 384, 768), d.pick(4, 8, 14, 16), d.often(0.5)
    d.reach(Trap.LINEAR_HWI if last else Trap.LINEAR_IHW)
    side = 56 if p == 14 else 64
    embed, normed = nn.Linear(p * p * d.channels, w), d.often(0.4)
    d.layouts.append((embed, "O(HWI)" if last else "O(IHW)"))
    places, body, head = placed(d, w, words, (side // p) ** 2, side // p), tower(d, w, words), nn.Linear(w, classes(d))
    before, after = (nn.LayerNorm(p * p * d.channels), nn.LayerNorm(w)) if normed else (nn.Identity(), nn.Identity())

    def run(x: Tensor) -> Tensor:
        return head(body.run(after(embed(before(cut(x, p, last))))).mean(1))

    name = words.patch
    parts = {name: embed}
    if normed:
        d.reach(Trap.PATCH_NORM)
        parts = {f"{name}.1": before, f"{name}.2": embed, f"{name}.3": after}
    net = Net(run, {**places, **parts, **body.children, words.head: head})
    net.inputs = ((1, d.channels, side, side),)
    return net


def unfolded(d: Draw) -> Net:
    """Linears over the whole image: a tutorial's classifier or VAE."""
    d.reach(Trap.UNFOLDED_MLP)
    side, w = d.pick(28, 32), d.pick(128, 400, 512)
    first, second, last = nn.Linear(d.channels * side * side, w), nn.Linear(w, w // 2), nn.Linear(w // 2, d.pick(2, 10, 100))
    d.layouts.append((first, "O(IHW)"))
    names = d.pick(
        ("fc1", "fc2", "fc3"),
        ("layers.0", "layers.2", "layers.4"),
        ("linear_relu_stack.0", "linear_relu_stack.2", "linear_relu_stack.4"),
    )
    net = Net(lambda x: last(F.relu(second(F.relu(first(x.flatten(1)))))), dict(zip(names, (first, second, last), strict=True)))
    net.inputs = ((1, d.channels, side, side),)
    return net


def two_scales(d: Draw) -> Net:
    """CrossViT: two patch embeddings, each with a tower."""
    d.reach(Trap.SEVERAL_PATCHES)
    widths, sizes = d.pick((96, 192), (192, 384), (128, 256)), d.pick((8, 16), (4, 8), (4, 16))
    embeds = [conv(d, d.channels, w, p, p, bias=True, p=0) for w, p in zip(widths, sizes, strict=True)]
    towers = [tower(d, w, TIMM._replace(block=f"blocks.{n}.{{}}", last=f"norm.{n}"), 2) for n, w in enumerate(widths)]
    heads = [nn.Linear(w, 10) for w in widths]

    def run(x: Tensor) -> Tensor:
        return sum(head(body.run(tokens(embed(x))).mean(1)) for embed, body, head in zip(embeds, towers, heads, strict=True))

    places = {f"pos_embed_{n}": parameter(1, (64 // p) ** 2, w) for n, (w, p) in enumerate(zip(widths, sizes, strict=True))}
    name = d.pick("patch_embed.{}.proj", "patch_embeds.{}.proj", "embed{}.projection")
    patches = {name.format(n): embed for n, embed in enumerate(embeds)}
    bodies = {key: part for one in towers for key, part in one.children.items()}
    return Net(run, {**places, **patches, **bodies, **{f"head.{n}": head for n, head in enumerate(heads)}})


def two_towers(d: Draw) -> Net:
    """Text beside the image: CLIP, SigLIP, LLaVA."""
    words, w, text = d.pick(CLIP, HF, TIMM), d.pick(64, 192, 384), d.pick(64, 128, 512)
    p = d.pick(8, 14, 16)
    side = 56 if p == 14 else 64
    patch, body, spoken = conv(d, d.channels, w, p, p, bias=words is not CLIP, p=0), tower(d, w, words), tower(d, text, words)
    table, out, back = nn.Embedding(1000, text), nn.Linear(w, 64), nn.Linear(text, 64)

    def run(x: Tensor, y: Tensor) -> Tensor:
        return out(body.run(tokens(patch(x))).mean(1)) + back(spoken.run(table(y.long())).mean(1))

    vision, language = d.pick(("visual", "transformer"), ("vision_model", "text_model"), ("vision_tower", "language_model"))
    seen = {f"{vision}.{name}": part for name, part in {words.token: parameter(w), words.patch: patch, **body.children}.items()}
    said = {f"{language}.token_embedding": table, **{f"{language}.{name}": part for name, part in spoken.children.items()}}
    order = {**seen, **said} if d.often(0.5) else {**said, **seen}
    net = Net(run, {"logit_scale": parameter(1), **order, "visual_projection": out, "text_projection": back})
    net.inputs = ((1, d.channels, side, side), (1, 16))
    return net


def masked(d: Draw) -> Net:
    """MAE and SimMIM: a decoder makes the pixels of patches."""
    d.reach(Trap.IMAGE_OUTPUT)
    w, narrow, p = d.pick(192, 384, 768), d.pick(64, 128, 512), d.pick(8, 16)
    patch, body = conv(d, d.channels, w, p, p, bias=True, p=0), tower(d, w, TIMM)
    over, second = nn.Linear(w, narrow), tower(d, narrow, TIMM._replace(block="decoder_blocks.{}", last="decoder_norm"))
    pred = nn.Linear(narrow, p * p * d.produced)

    def run(x: Tensor) -> Tensor:
        return pred(second.run(over(body.run(tokens(patch(x))))))

    places = {
        "cls_token": parameter(1, 1, w),
        "pos_embed": parameter(1, (64 // p) ** 2 + 1, w),
        "mask_token": parameter(1, 1, narrow),
    }
    return Net(
        run,
        {**places, "patch_embed.proj": patch, **body.children, "decoder_embed": over, **second.children, "decoder_pred": pred},
    )


def mixer(d: Draw) -> Net:
    """Linears over places and over channels in turn."""
    w, p, depth = d.pick(64, 128, 256), d.pick(8, 16), d.number(1, 3)
    n = (64 // p) ** 2
    patch, head = conv(d, d.channels, w, p, p, bias=True, p=0), nn.Linear(w, classes(d))
    pairs = [
        [nn.LayerNorm(w), nn.Linear(n, 2 * n), nn.Linear(2 * n, n), nn.LayerNorm(w), nn.Linear(w, 4 * w), nn.Linear(4 * w, w)]
        for _ in range(depth)
    ]

    def run(x: Tensor) -> Tensor:
        y = tokens(patch(x))
        for one, a, b, two, c, e in pairs:
            y = y + b(F.gelu(a(one(y).transpose(1, 2)))).transpose(1, 2)
            y = y + e(F.gelu(c(two(y))))
        return head(y.mean(1))

    words = ("norm1", "mlp_tokens.fc1", "mlp_tokens.fc2", "norm2", "mlp_channels.fc1", "mlp_channels.fc2")
    parts = {f"blocks.{k}.{word}": part for k, pair in enumerate(pairs) for word, part in zip(words, pair, strict=True)}
    return Net(run, {"stem.proj": patch, **parts, "head": head})


def detr(d: Draw) -> Net:
    """A trunk, a transformer with queries, and heads for classes and boxes of four numbers."""
    d.reach(Trap.NARROW_OUTPUT)
    body, w = trunk(d, 3), d.pick(64, 128, 256)
    over, queries = conv(d, body.widths[-1], w, 1, bias=True), nn.Embedding(d.pick(20, 100), w)
    encoder, decoder = (
        nn.TransformerEncoderLayer(w, 4, 2 * w, batch_first=True),
        nn.TransformerDecoderLayer(w, 4, 2 * w, batch_first=True),
    )
    scores, boxes = nn.Linear(w, 92), row([nn.Linear(w, w), nn.ReLU(), nn.Linear(w, 4)])

    def run(x: Tensor) -> tuple[Tensor, Tensor]:
        y = decoder(queries.weight[None], encoder(tokens(over(body(x)[-1]))))
        return scores(y), boxes(y)

    former = {"transformer.encoder.layers.0": encoder, "transformer.decoder.layers.0": decoder}
    heads = {"class_embed": scores, "bbox_embed.layers": boxes, "query_embed": queries, "input_proj": over}
    trunks = {"backbone.0.body": body} if d.often(0.6) else {"backbone.conv_encoder.model": body}
    return Net(run, {**former, **heads, **trunks} if d.often(0.5) else {**trunks, **former, **heads})


def unetr(d: Draw) -> Net:
    """A patch embedding for the transformer, and a residual block of kernels over the image itself for the last skip."""
    d.reach(Trap.ONE_CHANNEL_STEMS, Trap.RESIDUAL_PROJECTS, Trap.TRANSPOSED_INSIDE, Trap.CONV3D)
    w, f = d.pick(48, 96, 192), d.pick(16, 32)
    patch = conv(d, d.channels, w, 16, 16, bias=True, p=0)
    body = tower(d, w, TIMM._replace(block="vit.blocks.{}", last="vit.norm"), 2)
    one, two, side = conv(d, d.channels, f), conv(d, f, f), conv(d, d.channels, f, 1)
    rise = [up(d, w, f), up(d, f, f), up(d, f, f), up(d, f, f)]
    join, last = unit(d, 2 * f, f), conv(d, f, classes(d), 1, bias=True)

    def run(x: Tensor) -> Tensor:
        y = patch(x)
        y = body.run(tokens(y)).transpose(1, 2).reshape(y.shape)
        for step in rise:
            y = step(y)
        skip = two(F.relu(one(x))) + side(x)
        return last(join(torch.cat([resized(y, skip), skip], 1)))

    first = {
        "vit.patch_embedding.position_embeddings": parameter(1, 16, w),
        "vit.patch_embedding.patch_embeddings": patch,
        **body.children,
    }
    residual = {"encoder1.layer.conv1.conv": one, "encoder1.layer.conv2.conv": two, "encoder1.layer.conv3.conv": side}
    rising = {f"decoder{n + 1}.transp_conv.conv": step for n, step in enumerate(rise)}
    return Net(run, {**first, **residual, **rising, "decoder0.conv_block.conv1": join, "out.conv.conv": last})


def video_transformer(d: Draw) -> Net:
    """Tubes of frames: ViViT, VideoMAE, Qwen2-VL."""
    d.reach(Trap.CONV3D)
    words, w, p, t = d.pick(*WORDS[:3]), d.pick(192, 384, 1280), d.pick(8, 16), d.pick(2, 2, 4)
    patch = conv(d, d.channels, w, (t, p, p), (t, p, p), bias=d.often(0.6), p=0)
    body, head = tower(d, w, words), nn.Linear(w, classes(d))

    def run(x: Tensor) -> Tensor:
        return head(body.run(tokens(patch(x))).mean(1))

    holder = Net(run, {words.patch: patch, **body.children, words.head: head})
    return (
        holder
        if d.often(0.6)
        else Net(run, {"visual": row([]), **{f"visual.{name}": part for name, part in children_of(holder).items()}})
    )
