"""The normalization that a network was trained with, as it is stated beside its weights: by configurations, in mean and std or in
the scale and offset of keras-hub's image converters, or by the catalogue, for pretrained weights of its architecture."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from chkpt_channels.containers.json.editor import Json
from chkpt_channels.containers.json.editor import Path as Keys
from chkpt_channels.core.errors import Location
from chkpt_channels.core.records import NamedTuple
from chkpt_channels.discovery.catalogue.entry import Recognized
from chkpt_channels.folders.config_files import ConfigFile, as_list
from chkpt_channels.folders.library_tables import CONFIG, NORMALIZATION_KEYS, PREPROCESSORS, SCALING_KEYS
from chkpt_channels.transform.mixing.normalization import LARGEST, Normalization, color_order, named
from chkpt_channels.transform.notices import listing
from chkpt_channels.transform.options import Options

_WHITE = 255
"""The images of keras-hub's converters are bytes. Source: keras_hub/layers/preprocessing/image_converter.py."""


def normalization_keys(document: Json) -> Iterator[tuple[Keys, Keys]]:
    """The paths of mean and std, or of offset and scale, for each pair that a configuration states."""
    for path, value in document.values:
        if isinstance(value.value, dict):
            converter = document.at(path[:-1]).plain if path[-1:] == ("config",) else {}
            scales = str(converter.get("class_name")).endswith("ImageConverter") if isinstance(converter, dict) else False
            for mean, std in (*NORMALIZATION_KEYS, *([SCALING_KEYS] if scales else [])):
                both = [value.value[key].plain for key in (mean, std) if key in value.value]
                # trap: a plain number "mean" beside "std" may be that of a weight initializer
                if len(both) == 2 and all(_numbers(n) and (mean == "image_mean" or isinstance(n, list)) for n in both):
                    yield (*path, mean), (*path, std)


def normalization_edits(document: Json, mean: Keys, std: Keys, pipeline: Normalization) -> dict[Keys, Any]:
    """mean and std as the library applies them: to images in 0..1, or, for image processors of transformers, to bytes with
    rescaling switched off. keras-hub computes bytes · scale + offset."""
    if mean[-1] == SCALING_KEYS[0]:
        whole = pipeline.input_range
        return {
            mean: [-whole * m / s for m, s in zip(pipeline.mean, pipeline.std, strict=True)],
            std: [whole / (_WHITE * s) for s in pipeline.std],
        }
    if pipeline.input_range == 1 or mean[-1] == "mean":
        edits: dict[Keys, Any] = {mean: list(pipeline.mean), std: [value / pipeline.input_range for value in pipeline.std]}
    else:
        edits = {mean: [value * pipeline.input_range for value in pipeline.mean], std: list(pipeline.std)}
        edits[*mean[:-1], "do_rescale"] = False
    # a number that held for all channels stays a number
    for path in (mean, std):
        if not isinstance(document.at(path).value, list) and len(set(edits[path])) == 1:
            edits[path] = edits[path][0]
    return edits


def normalizations(config: ConfigFile, *, strict: bool = True) -> Iterator[tuple[tuple[float, ...], tuple[float, ...]]]:
    """Each (mean, std) that a configuration states. If `strict`, raises UnsupportedError where the preprocessing does more than
    that."""
    for mean, std in normalization_keys(config.document):
        if strict:
            _check_plain(config.document.location, config.document.at(mean[:-1]).plain)
        first, second = (_numbers(config.document.at(path).plain) for path in (mean, std))
        if mean[-1] == SCALING_KEYS[0] and len(first) == len(second) and all(second):
            pairs = list(zip(first, second, strict=True))
            first, second = tuple(-o / s / _WHITE for o, s in pairs), tuple(1 / s / _WHITE for _, s in pairs)
        if first and second:
            yield first, second


class Stated(NamedTuple):
    """A normalization that a network was trained with: `by` is the configuration that states it, or names the pretrained weights;
    `order` is that of the network's colors, and of the numbers."""

    by: str
    norm: Normalization
    order: str = "rgb"


def stated(configs: Sequence[ConfigFile], recognized: Recognized | None) -> tuple[Stated, ...]:
    """What configurations state, those of image processors first; without any, each normalization of the pretrained weights of
    the architectures that fit. Raises UnsupportedError where a configuration's is not plain, or not for images in 0..1."""
    ordered = [*(s for s in configs if s.name != CONFIG), *(s for s in configs if s.name == CONFIG)]
    for config, (mean, std) in ((one, pair) for one in ordered for pair in normalizations(one)):
        if min(std) <= 0:
            raise config.document.location.unsupported("its std is not positive")
        if max(*mean, *std) > LARGEST:
            raise config.document.location.unsupported(f"its mean or std is above {LARGEST}: that is not for images in 0..1")
        return (Stated(config.name, Normalization(mean, std)),)
    tags: defaultdict[tuple[Normalization, str], list[str]] = defaultdict(list)
    for architecture in recognized.architectures if recognized else ():
        for tag, mean, std, top in architecture.norms:
            tags[Normalization(mean, std, top), architecture.order].append(f"{architecture.library} {architecture.name}.{tag}")
    return tuple(Stated(listing(names, 2), *known) for known, names in tags.items())


def with_normalization(
    options: Options, configs: Sequence[ConfigFile], location: Location, recognized: Recognized | None = None
) -> Options:
    """The options with the mean and std that are stated. Raises UnsupportedError where none are, or pretrained weights of the
    architecture differ in them."""
    known = stated(configs, recognized)
    if not known:
        raise location.unsupported(
            f"no {PREPROCESSORS[0]} or {CONFIG} beside it states mean and std", hint="--norm imagenet, or --mean and --std"
        )
    if len(known) > 1:
        listed = "; ".join(f"{_listed(one.norm.mean)} and {_listed(one.norm.std)} of {one.by}" for one in known)
        hint = "   or   ".join(option(one) for one in known)
        raise location.unsupported(f"pretrained weights of this architecture differ in mean and std: {listed}", hint=hint)
    ((_, norm, order),) = known
    if name := named(norm, order) if norm.input_range != 1 else "":
        spec = options.norm._replace(name=name)
    else:  # white is 1 in what is stated by numbers, so that std takes another range
        spec = options.norm._replace(name="", mean=norm.mean, std=tuple(s / norm.input_range for s in norm.std))
    rule = options.rule._replace(source="bgr") if order == "bgr" else options.rule
    return options._replace(norm=spec.validated(), rule=rule)


def option(known: Stated) -> str:
    """The option that asks for this normalization; numbers are those of red, green and blue."""
    name, turn = named(known.norm, known.order), -1 if known.order == "bgr" else 1
    usual = color_order(name)
    order = f" --channel-order {known.order}" if known.order != usual else ""
    if name:
        return f"--norm {name}{order}"
    mean, std = known.norm.mean[::turn], [value / known.norm.input_range for value in known.norm.std[::turn]]
    return f"--mean {_listed(mean)} --std {_listed(std)}{order}"


def _listed(numbers: Sequence[float]) -> str:
    return ",".join(f"{number:.6g}" for number in numbers)


def _check_plain(location: Location, part: Mapping[str, Any]) -> None:
    """Raise UnsupportedError where an image processor leaves out a step, or does another: then mean and std are not all."""
    for key, usual in (("do_normalize", True), ("do_rescale", True), ("do_flip_channel_order", False)):
        if part.get(key) is (not usual):
            message = f"{key} is {'off' if usual else 'on'}, so that mean and std are not all of its preprocessing"
            raise location.unsupported(message, hint="--mean and --std, and --channel-order")
    factor = part.get("rescale_factor", 1 / 255)
    if not isinstance(factor, int | float) or not abs(factor - 1 / 255) <= 1e-6:
        raise location.unsupported("rescale_factor is not 1/255", hint="--mean and --std in units of 0..1")


def _numbers(value: Any) -> tuple[float, ...]:
    numbers = as_list(value)
    if not all(isinstance(n, int | float) and not isinstance(n, bool) and abs(n) < 1e6 for n in numbers):
        return ()
    return tuple(float(n) for n in numbers)
