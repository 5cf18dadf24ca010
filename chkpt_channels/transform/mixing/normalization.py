"""Normalization of images before a network, x = (raw - mean) / std with raw images in 0..1, and how it is folded into kernels.

With a mixing M of raw images, raw_old = M · raw_new, the mixing of normalized ones has A = diag(1/s_old) · M · diag(s_new) and
t = diag(1/s_old) · (M · m_new - m_old). Source of the presets: torchvision's and timm's data constants, OpenAI's CLIP, and
keras.applications.imagenet_utils.preprocess_input, whose modes are caffe, tf and torch.
"""

from __future__ import annotations

from collections.abc import Sequence

from chkpt_channels.core.errors import UsageError, unlisted
from chkpt_channels.core.records import NamedTuple
from chkpt_channels.transform.mixing.matrix import Mixing

Numbers = tuple[float, ...]

AUTO = "auto"

Orders = tuple[str, str]
"""The order of three colors, "rgb" or "bgr", on the old side and on the new one."""


class Normalization(NamedTuple):
    """(raw - mean) / std for each channel; `input_range` is the value of white in raw images: 1, or 255 for bytes. Mean and std
    are for images in 0..1 in either case."""

    mean: Numbers
    std: Numbers
    input_range: float = 1.0

    @property
    def affine(self) -> tuple[Numbers, Numbers]:
        """(scale, shift) with x = scale · raw + shift."""
        scale = tuple(self.input_range / s for s in self.std)
        return scale, tuple(-m * a for m, a in zip(self.mean, scale, strict=True))


class Preset(NamedTuple):
    """A normalization that has a name: mean and std of red, green and blue, the value of white, and the order in which networks
    that were trained with it take their colors."""

    mean: Numbers
    std: Numbers
    input_range: float = 1.0
    order: str = "rgb"


NORMS: dict[str, Preset] = {
    "imagenet": Preset((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "half": Preset((0.5,) * 3, (0.5,) * 3),
    "clip": Preset((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
    "caffe": Preset((123.68 / 255, 116.779 / 255, 103.939 / 255), (1.0,) * 3, 255.0, "bgr"),
    "none": Preset((0.0,) * 3, (1.0,) * 3),
    "openai-siglip": Preset((0.5,) * 3, (0.5,) * 3),
    "tf": Preset((0.5,) * 3, (0.5,) * 3),
    "torch": Preset((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
}
"""By name; of those with the same numbers the first has the most telling one."""

LARGEST = 1.5
"""The largest number that a mean or std for images in 0..1 has: larger ones are those for 0..255."""


class NormalizationSpec(NamedTuple):
    """The normalizations that the user states: the old one by a preset or by mean and std; mean and std of the new one."""

    name: str = ""
    mean: Numbers = ()
    std: Numbers = ()
    new_mean: Numbers = ()
    new_std: Numbers = ()
    input_range: float | None = None

    def __bool__(self) -> bool:
        return self._replace(input_range=self.input_range or 1.0) != NormalizationSpec(input_range=1.0)

    @property
    def white(self) -> float:
        """The value of white in the new images: as stated, or as in the old ones."""
        return self.input_range or (NORMS[self.name].input_range if self.name in NORMS else 1.0)

    def validated(self) -> NormalizationSpec:
        """The same. Raises UsageError for contradictions that do not depend on the file."""
        if self.name and self.name != AUTO and self.name not in NORMS:
            raise unlisted("--norm", self.name, (*NORMS, AUTO), otherwise="--mean a,b,c --std a,b,c, which take numbers")
        if self.name and (self.mean or self.std):
            raise UsageError("--norm and --mean, --std state the same normalization: give one of them")
        if self and not (self.name or self.mean or self.std):
            hint = "--norm imagenet, half, clip, caffe or none, or --mean and --std"
            raise UsageError("a new normalization needs the old one that the network was trained with", hint=hint)
        for option, values in (("--std", self.std), ("--new-std", self.new_std), ("--input-range", (self.input_range,))):
            if any(value is not None and value <= 0 for value in values):
                raise UsageError(f"{option} takes positive numbers")
        stated = {"--mean": self.mean, "--std": self.std, "--new-mean": self.new_mean}
        for option, values in (stated | ({"--new-std": self.new_std} if self.white == 1 else {})).items():
            if max(values, default=0) > LARGEST:
                what = f"{option} is for images in 0..1, and {max(values):g} looks like one for 0..255"
                raise UsageError(what, hint="--norm caffe, or divide by 255")
        return self

    def old(self, channels: int, order: str) -> Normalization:
        """The normalization of the network as it is, with so many channels and colors in this order. For a gray network a preset
        is the mean of its three numbers. A stated mean and std have the order of the channels already."""
        if self.name:
            return self._preset(channels, order)
        mean = _per_channel(self.mean or (0.0,), channels, "--mean", "old")
        std = _per_channel(self.std or (1.0,), channels, "--std", "old")
        return Normalization(mean, std)

    def new(self, rule: Mixing, orders: Orders) -> Normalization:
        """The normalization of the network as it will be: as the user stated it, or the means of the old one's numbers. A channel
        that replaces one old channel keeps its numbers; from gray to color a preset is that of the new side."""
        default = self._default(rule, orders)
        mean = _per_channel(self.new_mean, rule.new, "--new-mean", "new") if self.new_mean else default.mean
        std = _per_channel(self.new_std, rule.new, "--new-std", "new") if self.new_std else default.std
        return Normalization(mean, std, self.white)

    def _default(self, rule: Mixing, orders: Orders) -> Normalization:
        old = self.old(rule.old, orders[0])
        if self.white != 1:  # bytes are fed as they are: no mean, no std, unless --new-mean and --new-std state them
            return Normalization((0.0,) * rule.new, (1.0,) * rule.new)
        if self.name and rule.old == 1 and rule.new == 3:
            return self._preset(3, orders[1])
        mean, std = (tuple(_mean(v) if i is None else v[i] for i in rule.sources) for v in (old.mean, old.std))
        return Normalization(mean, std)

    def _preset(self, channels: int, order: str) -> Normalization:
        preset = NORMS[self.name]
        mean, std = (values[::-1] if order == "bgr" else values for values in preset[:2])
        top = preset.input_range
        if channels == 3:
            return Normalization(mean, std, top)
        if channels == 1 or len({*mean, *std}) <= 2:  # one mean and one std for all colors hold for any number of channels
            return Normalization((_mean(mean),) * channels, (_mean(std),) * channels, top)
        raise UsageError(
            f"--norm {self.name} is for three channels, and the kernel takes {channels}: --mean and --std state theirs"
        )


def color_order(name: str | None) -> str:
    """The order of colors that a network takes which was trained with this preset."""
    return NORMS[name].order if name in NORMS else "rgb"


def named(norm: Normalization, order: str) -> str:
    """The preset that a normalization is, of channels in this order; "" where it has no name."""
    turn = -1 if order == "bgr" else 1
    colors = Preset(norm.mean[::turn], norm.std[::turn], norm.input_range)
    return next((name for name, preset in NORMS.items() if preset[:3] == colors[:3]), "")


def fold_normalization(rule: Mixing, norm: NormalizationSpec, orders: Orders) -> Mixing:
    """The mixing of normalized images that a mixing of raw images becomes."""
    return rule.compose(norm.old(rule.old, orders[0]).affine, norm.new(rule, orders).affine)


def _mean(values: Sequence[float]) -> float:
    return values[0] if len(set(values)) == 1 else sum(values) / len(values)


def _per_channel(values: Numbers, channels: int, option: str, side: str) -> Numbers:
    """One value for each channel; a single one is for all."""
    if len(values) == 1:
        return values * channels
    if len(values) != channels:
        raise UsageError(f"{option} has {len(values)} values for {channels} {side} channels")
    return values
