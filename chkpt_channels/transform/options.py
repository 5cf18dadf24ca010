"""The options of a conversion, parsed and checked: from what the user gave to what the transform works with, and back."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any, Unpack, cast

from chkpt_channels.core.errors import UsageError, did_you_mean, unlisted
from chkpt_channels.core.layout import KNOWN, Layout
from chkpt_channels.core.records import NamedTuple
from chkpt_channels.discovery.request import SearchRequest
from chkpt_channels.transform.mixing import rules
from chkpt_channels.transform.mixing.matrix_file import parse_matrix
from chkpt_channels.transform.mixing.normalization import NormalizationSpec, color_order
from chkpt_channels.transform.mixing.rules import REPEATING, ChannelRule
from chkpt_channels.transform.option_spec import Option
from chkpt_channels.transform.option_table import OPTIMIZER, OPTIONS, ConvertOptions


class Options(NamedTuple):
    """The options of a conversion, parsed: the mixing rule, the normalization to fold, the request for the search, and, as
    `plain`, each option that is used as it is given, defaults included."""

    rule: ChannelRule
    norm: NormalizationSpec
    search: SearchRequest
    plain: ConvertOptions

    @property
    def to(self) -> int:
        """The target number of channels. Raises UsageError where it is not known."""
        if self.rule.to is None:
            raise UsageError("a target is needed: --to gray, rgb, bgr, rgba or a number of channels")
        return self.rule.to

    @property
    def word(self) -> str:
        """What default output names call the result."""
        return "folded" if self.plain["fold_adapter"] else self.rule.word

    def validated(self) -> Options:
        """The same options. Raises UsageError where they contradict each other."""
        if self.plain["optimizer"] not in OPTIMIZER:
            raise unlisted("--optimizer", self.plain["optimizer"], OPTIMIZER)
        if self.search.from_channels is not None and self.search.from_channels < 1:
            raise UsageError(f"--from is the number of channels now, not {self.search.from_channels}")
        if self.norm and self.rule.method in REPEATING:
            raise UsageError(f"--method {self.rule.method} edits no kernel, so that no normalization can be folded")
        others = self.rule != ChannelRule(to=None) or self.norm or self.plain["like"] is not None
        if self.plain["fold_adapter"] and others:
            raise UsageError(
                "--fold-adapter takes the channels from the convolution that it folds: no target or rule goes with it"
            )
        if self.plain["like"] is not None and self.search.layers:
            raise UsageError("--like shows the first convs, and --layer names them: give one of the two")
        return self._replace(rule=self.rule.validated(), norm=self.norm.validated())


def build_options(to: str | int | None, table: Sequence[Option] = OPTIONS, **given: Unpack[ConvertOptions]) -> Options:
    """The options as they are given, parsed; `to` is the target, None where another option or another file determines it. Raises
    UsageError for values that are not understood, FileSystemError for a matrix that cannot be read."""
    defaults = {option.name: option.default for option in table}
    if unknown := given.keys() - defaults:
        name = min(unknown)
        raise TypeError(f"{name!r} is not an option of a conversion{_meant(name, given[name], table)}")  # type: ignore[literal-required] # it is none
    merged = cast("ConvertOptions", defaults | {name: value for name, value in given.items() if value is not None})
    rule, search = _rule(to, merged), _search(merged)
    norm = _norm(merged, rule.source)
    parsed = _as_keywords(rule, norm, search)
    plain = cast("ConvertOptions", {name: value for name, value in merged.items() if name not in parsed})
    return Options(rule=rule, norm=norm, search=search, plain=plain).validated()


_CALLED = dict.fromkeys(("target", "mode", "channels", "num_channels", "n_channels", "out_channels"), "to")
_CALLED |= dict.fromkeys(("in_channels", "in_chans", "input_channels"), "to")
_CALLED |= dict.fromkeys(("output", "out", "destination", "path"), "dst")
_CALLED |= {"overwrite": "force", "sidecars": "with_sidecars", "rule": "method", "normalization": "norm", "input_layer": "layers"}
"""What people call keywords of `convert`, beside the flags of the command line."""
_OTHERS = ("dry_run", "hard_link", "sha256", "hash_name", "state_dict", "progress", "heads")
"""Its keywords that are neither options nor often called otherwise."""


def _meant(name: str, value: object, table: Sequence[Option]) -> str:
    """The keyword that was meant, as it is written; else where all of them are."""
    names = _CALLED | {option.long_name.replace("-", "_"): option.name for option in table}
    close = did_you_mean(name, [*_OTHERS, *names, *names.values()])
    meant = next((names.get(word, word) for word in (name, close) if word in names or word not in ("", name)), "")
    written = repr(value) if len(repr(value)) <= 60 else "…"
    return f"; did you mean {meant}={written}?" if meant else "; docs/options.md lists them, and help(chkpt_channels.convert)"


def sets_channels(given: ConvertOptions) -> bool:
    """Whether one of the options determines the number of new channels, so that no target is needed."""
    return any(given.get(rule) is not None for rule in ("select", "bands", "matrix", "like")) or bool(given.get("fold_adapter"))


def options_toward(to: str | int | None, given: ConvertOptions) -> Options:
    """The options of a conversion: toward gray, where neither a target nor such a rule is given."""
    return build_options("gray" if to is None and not sets_channels(given) else to, **given)


def as_keywords(options: Options, table: Sequence[Option] = OPTIONS) -> dict[str, Any]:
    """The same options, and the target, in a form that a report can hold and `build_options` understands; those that are left
    at their defaults are left out."""
    target = {"to": options.rule.order or options.rule.to}
    keywords = target | _as_keywords(options.rule, options.norm, options.search) | options.plain | _like(options.plain["like"])
    defaults = {option.name: option.default for option in table} | _as_keywords(
        ChannelRule(source=color_order(options.norm.name)), NormalizationSpec(), SearchRequest()
    )
    return {name: value for name, value in keywords.items() if value and value != defaults.get(name)}


def spelled(keywords: Mapping[str, Any], table: Sequence[Option] = OPTIONS) -> str:
    """Options of one value each as they are typed: "--norm imagenet --input-range 255"."""
    flags = {"to": "--to"} | {option.name: option.flag for option in table}
    numbers = {name: f"{value:g}" if isinstance(value, float) else value for name, value in keywords.items()}
    return " ".join(f"{flags[name]} {value}" for name, value in numbers.items())


def _like(given: Any) -> dict[str, Any]:
    """LIKE as a report can name it: a path; a state dict in memory it cannot."""
    return {"like": os.fspath(given) if isinstance(given, str | os.PathLike) else None}


def _rule(to: str | int | None, options: ConvertOptions) -> ChannelRule:
    channels, order = rules.target(to) if to is not None else (None, "")
    luma, select, bands, matrix = options["luma"], options["select"], options["bands"], options["matrix"]
    rule = ChannelRule(
        to=channels,
        method=options["method"],
        order=order,
        source=options["channel_order"] or color_order(options["norm"]),
        luma=rules.luma_weights(luma) if luma is not None else (),
        chosen=rules.names(select) if select is not None else (),
        bands=rules.stand_ins(bands) if bands is not None else (),
        matrix=parse_matrix(matrix) if matrix is not None else (),
        named=rules.names(options["bands_from"], "--bands-from") if options["bands_from"] is not None else (),
    )
    listed = len(rule.chosen or rule.bands or (rule.matrix[0] if rule.matrix else ()))
    return rule._replace(to=rule.to or listed or None)


def _norm(options: ConvertOptions, order: str) -> NormalizationSpec:
    input_range = options["input_range"]
    return NormalizationSpec(
        name=options["norm"] or "",
        mean=_in_order(_numbers(options["mean"], "--mean"), order),
        std=_in_order(_numbers(options["std"], "--std"), order),
        new_mean=_numbers(options["new_mean"], "--new-mean"),
        new_std=_numbers(options["new_std"], "--new-std"),
        input_range=None if input_range is None else _numbers([input_range], "--input-range")[0],
    )


def _in_order(numbers: tuple[float, ...], order: str) -> tuple[float, ...]:
    """Numbers of red, green and blue in the order of the network's channels, or back."""
    return numbers[::-1] if order == "bgr" and len(numbers) == 3 else numbers


def _numbers(words: str | Sequence[float] | None, flag: str) -> tuple[float, ...]:
    return rules.numbers(words, flag) if words is not None else ()


def _search(options: ConvertOptions) -> SearchRequest:
    layout, count, named = options["layout"], options["from_channels"], options["bands_from"]
    if layout and layout not in KNOWN:
        raise unlisted("--layout", layout, KNOWN)
    if count is None and named is not None:
        count = len(rules.names(named, "--bands-from"))
    return SearchRequest(tuple(options["layers"]), Layout(layout) if layout else None, count, tuple(options["inputs"]))


def _as_keywords(rule: ChannelRule, norm: NormalizationSpec, search: SearchRequest) -> dict[str, Any]:
    """What was parsed, as options again."""
    return {
        "luma": list(rule.luma),
        "method": rule.method,
        "select": list(rule.chosen),
        "bands": [f"{name}={of}" for name, of in rule.bands],
        "matrix": [list(row) for row in rule.matrix],
        "bands_from": list(rule.named),
        "channel_order": rule.source,
        "norm": norm.name,
        "mean": list(_in_order(norm.mean, rule.source)),
        "std": list(_in_order(norm.std, rule.source)),
        "new_mean": list(norm.new_mean),
        "new_std": list(norm.new_std),
        "input_range": norm.input_range,
        "layers": list(search.layers),
        "layout": str(search.layout or ""),
        "from_channels": search.from_channels,
        "inputs": list(search.inputs),
    }
