"""The channel rule that the user states in words, and the matrix that it is for a number of old channels."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from chkpt_channels.core.errors import UsageError, did_you_mean, unlisted
from chkpt_channels.core.records import NamedTuple
from chkpt_channels.transform.mixing import matrix as mixing
from chkpt_channels.transform.mixing.matrix import LUMA, MEAN, ZERO, Matrix, Mixing

TARGETS = {"gray": 1, "grey": 1, "grayscale": 1, "l": 1, "rgb": 3, "bgr": 3, "rgba": 4}
NAMES = {1: "gray", 3: "rgb"}
ORDERS, RGBA = ("rgb", "bgr"), "rgba"
REPEATING = ("broadcast", "stack")
"""Ways to one channel that leave kernels alone: the file's own graph repeats the new channel as the old ones."""
ADAPTER = "adapter"
"""A way to any number of channels that leaves kernels alone: a 1×1 convolution in front makes the old ones by the matrix A."""
GATHER = "gather"
"""A way that leaves kernels alone and is not asked for: a node in front picks the old channels out of the new ones."""
FOLDED = "fold-adapter"
"""The rule that a trained convolution is, which goes into the kernels behind it."""
GRAPH_METHODS = (*REPEATING, ADAPTER, GATHER)
METHODS = ("auto", "sum", "mean", "luma", "repeat", "zero", *REPEATING, ADAPTER)


class ChannelRule(NamedTuple):
    """How new channels make up the old ones, x_old = A · x_new; `mixing(I_old)` is the matrix A [I_old, I_new], by the formulas
    of `matrix` (docs/methods.md). `to` is I_new, None where it is read off a second file.

    order     the color order of the target: "rgb", "bgr", "rgba", or "" for the source's own
    source    the color order of the side that is in color: "rgb" or "bgr"
    luma      the weights of `luma`; empty for BT.709
    chosen    for each new channel the old channel that it copies, by name or number
    bands     for each new channel its name and the old channel that it replaces, "mean", or "zero"
    named     what the old channels are called; empty where gray and RGB say it
    matrix    the user's own: I_old rows of I_new numbers
    """

    to: int | None = 1
    method: str = "auto"
    order: str = ""
    source: str = "rgb"
    luma: tuple[float, ...] = ()
    chosen: tuple[str, ...] = ()
    bands: tuple[tuple[str, str], ...] = ()
    matrix: Matrix = ()
    named: tuple[str, ...] = ()

    @property
    def explicit(self) -> bool:
        """Whether the user gave every new channel, so that an equal number of channels need not be the identity."""
        return bool(self.chosen or self.bands or self.matrix)

    @property
    def colors(self) -> str:
        """The order of the colors, on the side that has any."""
        return "bgr" if "bgr" in (self.order, self.source) else "rgb"

    @property
    def orders(self) -> tuple[str, str]:
        """The order of three colors on the old side, and on the new one where the old one is gray."""
        return self.source, self.colors

    @property
    def word(self) -> str:
        """The canonical word for the target, as default output names use it: gray, rgb, bgr, 4ch; "like" for one that is unknown
        as nothing differs from the file that shows it."""
        return "bgr" if self.order == "bgr" else target_word(self.to) if self.to else "like"

    def validated(self) -> ChannelRule:
        """The same rule. Raises UsageError where it contradicts itself, whatever the file holds."""
        given = [name for name in ("chosen", "bands", "matrix") if getattr(self, name)]
        flags = [{"chosen": "select"}.get(name, name) for name in given]
        is_rule = self.method not in ("auto", ADAPTER)
        if len(flags) > 1 or (flags and (self.luma or is_rule)):
            others = ["--luma"] * bool(self.luma) + [f"--method {self.method}"] * is_rule
            raise UsageError(f"{' and '.join([*('--' + w for w in flags), *others])} are different rules: give one of them")
        counts = {"chosen": len(self.chosen), "bands": len(self.bands), "matrix": len(next(iter(self.matrix), ()))}
        if given and self.to not in (None, counts[given[0]]):
            raise UsageError(f"--{flags[0]} makes {counts[given[0]]} channels, and --to asks for {self.to}")
        if self.named and not (self.chosen or self.bands):
            raise UsageError("--bands-from names the old channels for --bands or --select: give one of them too")
        if self.method not in METHODS:
            raise unlisted("--method", self.method, METHODS)
        if self.method in ("sum", *REPEATING) and self.to not in (1, None):
            raise UsageError(f"--method {self.method} makes one channel; the target has {self.to}")
        if self.luma and self.method not in ("auto", "luma", ADAPTER):
            raise UsageError(f"--luma gives weights, which --method {self.method} does not use")
        if self.luma and self.to not in (None, 1, len(self.luma)):
            raise UsageError(f"--luma has {len(self.luma)} weights for {self.to} channels")
        if self.source not in ORDERS:
            raise unlisted("--channel-order", self.source, ORDERS)
        return self

    def mixing(self, old: int) -> Mixing:
        """The matrix for `old` channels. Raises UsageError where the rule does not apply to so many."""
        if self.named and len(self.named) != old:
            raise UsageError(f"--bands-from names {len(self.named)} channels, and the kernel takes {old}")
        if self.matrix:
            if len(self.matrix) != old:
                raise UsageError(f"--matrix has {len(self.matrix)} rows, one for each old channel, and the kernel takes {old}")
            return Mixing("matrix", self.matrix)
        if self.chosen:
            return mixing.select(old, [self._channel(word, old) for word in self.chosen])
        if self.bands:
            return mixing.bands(old, [of if of in _NO_CHANNEL else self._channel(of, old) for _, of in self.bands])
        new = self.to or old
        if new == old:
            return mixing.select(3, [2, 1, 0], "bgr") if self._swaps(old) else mixing.identity(old)
        if self.order == "bgr" and old != 1:
            raise UsageError(f"--to bgr swaps three colors or splits one, and the kernel takes {old}: --select chooses channels")
        method = self.method if self.method not in ("auto", *GRAPH_METHODS) else "luma" if self.luma else self.default(old)
        return _MAKERS[method](self, old, new)

    def default(self, old: int) -> str:
        """The method that auto chooses for other numbers of channels: sum to one, luma from one to three, repeat otherwise."""
        return "sum" if self.to == 1 else "luma" if old == 1 and self.to == len("rgb") else "repeat"

    def why(self, old: int) -> str:
        """Why this method, in a few words; empty where the user asked for it or nothing changes."""
        if self.explicit or self.luma or self.method != "auto" or self.to in (old, None):
            return ""
        return _REASONS[self.default(old)].format(old=old, new=self.to)

    def _swaps(self, old: int) -> bool:
        return old == 3 and self.order in ORDERS and self.order != self.source

    @property
    def _weights(self) -> tuple[float, ...]:
        """The luma weights in the order of the colors."""
        weights = self.luma or LUMA["bt709"]
        return weights[::-1] if len(weights) == 3 and self.colors == "bgr" else weights

    def _luma(self, old: int, new: int) -> Mixing:
        weights = self._weights
        if (1, len(weights)) not in ((old, new), (new, old)):
            raise UsageError(
                f"luma with {len(weights)} weights is between one channel and {len(weights)}; the kernel takes {old}, "
                f"and the target is {new}"
            )
        return mixing.luma(weights) if old == 1 else mixing.weighted(weights)

    def _zero(self, old: int, new: int) -> Mixing:
        if new < old:
            raise UsageError(f"--method zero adds channels, and {new} are fewer than {old}: --select chooses which stay")
        return mixing.zero(old, new)

    def _channel(self, word: str, old: int) -> int:
        """The number of the old channel that is called so."""
        names = [name.lower() for name in self.named] or {1: ["gray", "l", "y"], 3: list(self.source)}.get(old, [])
        if word.lower() in names:
            return 0 if old == 1 and not self.named else names.index(word.lower())
        if word.isdecimal() and len(word) < 6 and int(word) < old:
            return int(word)
        known = list(self.named) or [name.upper() for name in names if old == 3]
        listed = f"{', '.join(known)} or " if known else ""
        hint = "--bands-from names the old channels in their order"
        if (word, word) in self.bands:  # a band that is new
            begun = f"{word[:40]}={(known or ['0'])[0]} begins as that channel, {word[:40]}=zero at zero"
            hint = f"{begun}, --from N says how many there are now, {hint}"
        raise UsageError(f"{word[:40]!r} is not one of the kernel's {old} channels: {listed}0 to {old - 1}", hint=hint)


_NO_CHANNEL = {MEAN: MEAN, ZERO: ZERO, "none": ZERO}
"""What a band may replace that is no old channel, as it is written and as it is meant."""
_MAKERS: dict[str, Callable[[ChannelRule, int, int], Mixing]] = {
    "sum": lambda rule, old, new: mixing.sum_(old),
    "mean": lambda rule, old, new: mixing.mean(old, new),
    "luma": ChannelRule._luma,
    "repeat": lambda rule, old, new: mixing.repeat(old, new),
    "zero": ChannelRule._zero,
}
_CALLED = dict.fromkeys(("mono", "monochrome", "greyscale", "bw", "luminance"), "gray")
_CALLED |= dict.fromkeys(("color", "colour"), "rgb")
"""What people call targets."""
_REASONS = {
    "sum": "exact for a gray image stacked {old} times",
    "luma": "exact for a network trained on luma",
    "repeat": "new channel j takes old channel j mod {old}, times {old}/{new}, as timm and smp do",
}


def target(to: str | int, option: str = "--to") -> tuple[int, str]:
    """(number of channels, color order or "") of a target word: gray, grey, grayscale, L, rgb, bgr, rgba, or a number. Raises
    UsageError that names the option."""
    text = str(to).strip().lower()
    # fewer than 6 digits: int() takes quadratic time for endless ones
    channels = TARGETS.get(text) or (int(text) if text.isdecimal() and len(text) < 6 else 0)
    if not channels:
        known = "gray, rgb, bgr, rgba or a number of channels from 1 to 99999"
        raise UsageError(f"{option} {text[:40]!r} is not a target: {known}", hint=_meant(text, option))
    return channels, text if text in (*ORDERS, RGBA) else ""


def _meant(word: str, option: str) -> str:
    """The target that was probably meant: "4ch" is a number, "rgbn" colors and bands that have names; "" where none is."""
    if counted := re.fullmatch(r"(\d{1,5})\s*[-_]?\s*(c|ch|channels?|bands?)", word):
        return f"{option} {counted[1]}"
    if option == "--to" and (banded := re.fullmatch(r"(rgb|bgr)[+_-]?([a-z]{1,8})", word)):
        colors, band = ",".join(banded[1].upper()), banded[2].upper()
        return f"--bands {colors},{band}=R, where {band} begins as red, or {band}=zero"
    known = dict.fromkeys(("gray", "rgb", "bgr", RGBA)) | _CALLED
    close = did_you_mean(word, known)
    return f"{option} {known[close] or close}" if close else ""


def target_word(channels: int) -> str:
    """gray, rgb, 4ch."""
    return NAMES.get(channels, f"{channels}ch")


def luma_weights(luma: str | Sequence[float]) -> tuple[float, ...]:
    """Weights from a preset's name, from "a,b,c", or from numbers."""
    return LUMA[luma] if isinstance(luma, str) and luma in LUMA else numbers(luma, "--luma", f"{', '.join(LUMA)} or ")


def numbers(words: str | Sequence[float], option: str, others: str = "") -> tuple[float, ...]:
    """Finite numbers from "a,b,c" or from a sequence. Raises UsageError that names the option."""
    parts = words.split(",") if isinstance(words, str) else words
    try:
        values = tuple(float(part) for part in parts)
    except (TypeError, ValueError):
        raise UsageError(f"{option} is {others}numbers separated by commas, not {words!r}") from None
    if not values or any(value != value or abs(value) == float("inf") for value in values):
        raise UsageError(f"{option} takes finite numbers")
    return values


def names(words: str | Sequence[str | int], option: str = "--select") -> tuple[str, ...]:
    """Channel names or numbers from "R,G" or from a sequence. Raises UsageError that names the option."""
    parts = words.split(",") if isinstance(words, str) else [str(word) for word in words]
    if not all(part.strip() for part in parts):
        raise UsageError(f"{option} is channels separated by commas, not {words!r}")
    return tuple(part.strip() for part in parts)


def stand_ins(words: str | Sequence[str]) -> tuple[tuple[str, str], ...]:
    """("NIR", "R") for each "NIR=R"; a lone "R" replaces itself; none is another word for zero."""
    parts = words.split(",") if isinstance(words, str) else words
    pairs = [tuple(side.strip() for side in part.split("=")) for part in parts]
    if not all(1 <= len(pair) <= 2 and all(pair) for pair in pairs):
        raise UsageError(f"--bands is NAME or NAME=CHANNEL, separated by commas, not {words!r}")
    named = tuple((pair[0], _NO_CHANNEL.get(pair[-1].lower(), pair[-1])) for pair in pairs)
    if len({name for name, _ in named}) != len(named):
        raise UsageError("--bands names a band twice")
    return named
