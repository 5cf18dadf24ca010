"""The parts of transformers, in the names of four libraries."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - as everybody calls it

from tests.support.networks.draw import Draw, Net, row
from tests.support.networks.layers import parameter
from tests.support.networks.traps import Trap


class Words(NamedTuple):
    """The names in one library."""

    patch: str
    block: str
    norms: tuple[str, str]
    qkv: str | tuple[str, str, str]
    out: str
    mlp: tuple[str, str]
    last: str
    token: str
    place: str
    head: str


TIMM = Words(
    "patch_embed.proj",
    "blocks.{}",
    ("norm1", "norm2"),
    "attn.qkv",
    "attn.proj",
    ("mlp.fc1", "mlp.fc2"),
    "norm",
    "cls_token",
    "pos_embed",
    "head",
)
HF = Words(
    "embeddings.patch_embeddings.projection", "encoder.layer.{}", ("layernorm_before", "layernorm_after"),
    ("attention.attention.query", "attention.attention.key", "attention.attention.value"), "attention.output.dense",
    ("intermediate.dense", "output.dense"), "layernorm", "embeddings.cls_token", "embeddings.position_embeddings", "classifier",
)  # fmt: skip
CLIP = Words(
    "conv1", "transformer.resblocks.{}", ("ln_1", "ln_2"), "attn.in_proj", "attn.out_proj", ("mlp.c_fc", "mlp.c_proj"), "ln_post",
    "class_embedding", "positional_embedding", "proj",
)  # fmt: skip
LUCID = Words(
    "to_patch_embedding", "transformer.layers.{}", ("0.norm", "1.net.0"), "0.to_qkv", "0.to_out.0", ("1.net.1", "1.net.4"),
    "transformer.norm", "cls_token", "pos_embedding", "mlp_head",
)  # fmt: skip
WORDS = (TIMM, TIMM, HF, CLIP, LUCID)


def block(d: Draw, w: int, words: Words) -> Net:
    """Attention and two Linears; the heads may be three, and the table of relative places as wide."""
    one, two, out, up_, down = nn.LayerNorm(w), nn.LayerNorm(w), nn.Linear(w, w), nn.Linear(w, 4 * w), nn.Linear(4 * w, w)
    names = (words.qkv,) if isinstance(words.qkv, str) else words.qkv
    qkv = [nn.Linear(w, 3 * w // len(names)) for _ in names]
    table = (
        {"attn.relative_position_bias_table": parameter(169, d.style.wide % 3 + 2)}
        if words is TIMM and d.style.wide % 5 == 2
        else {}
    )

    def run(x: Tensor) -> Tensor:
        y = one(x)
        q, k, v = torch.cat([part(y) for part in qkv], -1).chunk(3, -1)
        x = x + out(F.scaled_dot_product_attention(q, k, v))
        return x + down(F.gelu(up_(two(x))))

    first = {words.norms[0]: one, **dict(zip(names, qkv, strict=True)), words.out: out}
    return Net(run, {**table, **first, words.norms[1]: two, words.mlp[0]: up_, words.mlp[1]: down})


class Tower(NamedTuple):
    """Children in order, and the forward from [N, L, w] on."""

    children: dict[str, nn.Module | Tensor]
    run: Net


def tower(d: Draw, w: int, words: Words, depth: int | None = None) -> Tower:
    blocks = [block(d, w, words) for _ in range(depth or d.number(1, 4))]
    last = nn.LayerNorm(w)
    return Tower({**{words.block.format(n): one for n, one in enumerate(blocks)}, words.last: last}, row([*blocks, last]))


def placed(d: Draw, w: int, words: Words, length: int, side: int) -> dict[str, nn.Parameter]:
    """A class token and the embeddings of places, perhaps as a map [1, w, H, W]."""
    if d.often(0.25):
        d.reach(Trap.POS_EMBED_4D)
        return {words.place: parameter(1, *d.pick((w, side, side), (side, side, w)))}
    return {words.token: parameter(1, 1, w), words.place: parameter(1, length + 1, w)}


def tokens(x: Tensor) -> Tensor:
    """[N, L, C] of [N, C, ...]."""
    return x.flatten(2).transpose(1, 2)
