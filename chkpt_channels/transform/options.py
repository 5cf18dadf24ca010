"""What the user asked for: one list of options for the library, the command line and manifests, by the same long names."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, NamedTuple, TypedDict

from chkpt_channels.core.errors import UsageError
from chkpt_channels.core.layout import Layout
from chkpt_channels.transform.mixing import rules
from chkpt_channels.transform.mixing.matrix_file import parse_matrix
from chkpt_channels.transform.mixing.normalization import Norm
from chkpt_channels.transform.mixing.rules import GRAPH_METHODS, Rule


class Words(TypedDict, total=False):
    """The options of a conversion as they are spelled; each may be left out.

    luma            "bt709", "bt601", or weights: how gray and colours are made of each other
    method          "auto", "sum", "mean", "luma", "repeat", "zero", "broadcast" or "stack"
    select          the old channels that the new ones are, by name or number: "0,2", "R"
    bands           the new channels, each with the old one that it stands in for: "B,G,R,NIR=R,D=mean"
    matrix          A itself, [I_old, I_new]: rows of numbers, or the path of a .npy, .csv or .json file
    channel_order   "rgb" or "bgr": the order of the side that is in colour
    norm            the pipeline that the network was trained with, by name: "imagenet", "clip", "openai-siglip", "half",
                    "none", or "auto" for what a configuration beside the file says
    mean, std       the same in numbers, one for each old channel, for images in 0..1
    new_mean, new_std  the pipeline that will feed it
    input_range     what white is in the new pipeline: 255 for bytes that are fed as they are
    layers          the first convs, by key, suffix or glob
    layout          how they lie where the file does not say: "OIHW", "HWIO", …
    from_channels   how many input channels there are now, where that is open
    inputs          the inputs of the graph that are images, by name
    optimizer       "reset" or "drop": what becomes of the state kept for the kernels
    strict          refuse pickles that name what torch's weights-only loading would not
    set_hparams     set the number of channels in a training script's hyper-parameters too
    allow_nonfinite  pass NaN and infinity through in channels that are copied
    follow_links    read files through links that leave the model's folder
    """

    luma: str | Sequence[float] | None
    method: str
    select: str | Sequence[str | int] | None
    bands: str | Sequence[str] | None
    matrix: str | os.PathLike[str] | Sequence[Sequence[float]] | None
    channel_order: str
    norm: str | None
    mean: str | Sequence[float] | None
    std: str | Sequence[float] | None
    new_mean: str | Sequence[float] | None
    new_std: str | Sequence[float] | None
    input_range: float | None
    layers: Sequence[str]
    layout: str | None
    from_channels: int | None
    inputs: Sequence[str]
    optimizer: str
    strict: bool
    set_hparams: bool
    allow_nonfinite: bool
    follow_links: bool


KINDS: dict[str, tuple[type, ...]] = {
    **dict.fromkeys(("strict", "set_hparams", "allow_nonfinite", "follow_links"), (bool,)),
    **dict.fromkeys(("method", "channel_order", "norm", "layout", "optimizer"), (str,)),
    **dict.fromkeys(("luma", "select", "bands", "matrix", "mean", "std", "new_mean", "new_std"), (str, list)),
    **dict.fromkeys(("layers", "inputs"), (list,)),
    "from_channels": (int,),
    "input_range": (int, float),
}
"""What each option takes where it stands in a document: a manifest, or a report."""


def fits(name: str, value: Any) -> bool:
    """Whether a value from a document can be an option's: of its kind, and a list of words, of numbers, or of rows of numbers."""
    kinds = KINDS.get(name, ())
    if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
        return False
    rows = [value, *(part for part in value if isinstance(part, list))] if isinstance(value, list) else []
    items = [part for row in rows for part in row if not (row is value and isinstance(part, list))]
    allowed = (str,) if name in ("layers", "inputs") else (str, int, float)
    return all(isinstance(item, allowed) and not isinstance(item, bool) for item in items)


class Beside(NamedTuple):
    """What a configuration beside the file says: the modules of the first convs (timm), and the number of channels, 0 where it
    says none or several."""

    first_conv: tuple[str, ...] = ()
    channels: int = 0


class Options(NamedTuple):
    """The same, understood; `beside` is not asked for but found."""

    rule: Rule = Rule()
    norm: Norm = Norm()
    layers: tuple[str, ...] = ()
    layout: Layout | None = None
    optimizer: str = "reset"
    strict: bool = False
    from_channels: int | None = None
    allow_nonfinite: bool = False
    inputs: tuple[str, ...] = ()
    set_hparams: bool = False
    follow_links: bool = False
    beside: Beside = Beside()

    @property
    def to(self) -> int:
        """The number of channels asked for. Raises UsageError where it is not known."""
        if self.rule.to is None:
            raise UsageError("a target is needed: --to gray, rgb, bgr, rgba or a number of channels")
        return self.rule.to

    def checked(self) -> Options:
        """The same options. Raises UsageError where they contradict each other."""
        if self.optimizer not in ("reset", "drop"):
            raise UsageError(f"--optimizer is reset or drop, not {self.optimizer!r}")
        if self.from_channels is not None and self.from_channels < 1:
            raise UsageError(f"--from is the number of channels now, not {self.from_channels}")
        if self.norm and self.rule.method in GRAPH_METHODS:
            raise UsageError(f"--method {self.rule.method} changes no kernel that could take a pipeline over")
        return self._replace(rule=self.rule.checked(), norm=self.norm.checked())


def tells_channels(words: Words) -> bool:
    """Whether one of the rules says how many channels there will be, so that no target is needed."""
    return any(words.get(rule) is not None for rule in ("select", "bands", "matrix"))


def aimed(to: str | int | None, words: Words) -> Options:
    """The options of a conversion: toward gray, where neither a target nor such a rule is given."""
    return make("gray" if to is None and not tells_channels(words) else to, **words)


def make(
    to: str | int | None,
    *,
    luma: str | Sequence[float] | None = None,
    method: str = "auto",
    select: str | Sequence[str | int] | None = None,
    bands: str | Sequence[str] | None = None,
    matrix: str | os.PathLike[str] | Sequence[Sequence[float]] | None = None,
    channel_order: str = "rgb",
    norm: str | None = None,
    mean: str | Sequence[float] | None = None,
    std: str | Sequence[float] | None = None,
    new_mean: str | Sequence[float] | None = None,
    new_std: str | Sequence[float] | None = None,
    input_range: float | None = None,
    layers: Sequence[str] = (),
    layout: str | None = None,
    from_channels: int | None = None,
    inputs: Sequence[str] = (),
    optimizer: str = "reset",
    strict: bool = False,
    set_hparams: bool = False,
    allow_nonfinite: bool = False,
    follow_links: bool = False,
) -> Options:
    """The words of `Words` as Options; `to` is the target, None where another option or another file tells it. Raises
    UsageError for words that mean nothing, SystemProblem for a matrix that cannot be read."""
    channels, order = rules.target(to) if to is not None else (None, "")
    rule = Rule(
        channels,
        method,
        order,
        channel_order,
        rules.luma_weights(luma) if luma is not None else (),
        rules.names(select) if select is not None else (),
        rules.stand_ins(bands) if bands is not None else (),
        parse_matrix(matrix) if matrix is not None else (),
    ).checked()
    spelled = len(rule.chosen or rule.bands or (rule.matrix[0] if rule.matrix else ()))
    norm_words = {"--mean": mean, "--std": std, "--new-mean": new_mean, "--new-std": new_std}
    old_mean, old_std, its_mean, its_std = (
        rules.numbers(words, option) if words is not None else () for option, words in norm_words.items()
    )
    top = rules.numbers([input_range], "--input-range")[0] if input_range is not None else 1.0
    return Options(
        rule._replace(to=rule.to or spelled or None),
        Norm(norm or "", old_mean, old_std, its_mean, its_std, top),
        tuple(layers),
        _layout(layout),
        optimizer,
        strict,
        from_channels,
        allow_nonfinite,
        tuple(inputs),
        set_hparams,
        follow_links,
    ).checked()


def words(options: Options) -> dict[str, Any]:
    """The same options as words that `make` understands, without those that are left as they were."""
    rule, norm = options.rule, options.norm
    spelled: dict[str, Any] = {
        "to": rule.order or rule.to,
        "luma": list(rule.luma),
        "method": rule.method,
        "select": list(rule.chosen),
        "bands": [f"{name}={of}" for name, of in rule.bands],
        "matrix": [list(row) for row in rule.matrix],
        "channel_order": rule.source,
        "norm": norm.name,
        "mean": list(norm.mean),
        "std": list(norm.std),
        "new_mean": list(norm.new_mean),
        "new_std": list(norm.new_std),
        "input_range": norm.top,
        "layers": list(options.layers),
        "layout": str(options.layout or ""),
        "from_channels": options.from_channels,
        "inputs": list(options.inputs),
        "optimizer": options.optimizer,
        "strict": options.strict,
        "set_hparams": options.set_hparams,
        "allow_nonfinite": options.allow_nonfinite,
        "follow_links": options.follow_links,
    }
    usual = {"method": "auto", "channel_order": "rgb", "input_range": 1.0, "optimizer": "reset"}
    return {name: value for name, value in spelled.items() if value and value != usual.get(name)}


def _layout(spelling: str | None) -> Layout | None:
    try:
        return Layout(spelling) if spelling else None
    except ValueError as error:
        raise UsageError(f"--layout: {error}") from None
