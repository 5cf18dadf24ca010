"""The normalization that configurations state: mean and std, or the scale and offset of keras-hub's image converters."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from chkpt_channels.containers.json.editor import Json
from chkpt_channels.containers.json.editor import Path as Keys
from chkpt_channels.core.errors import Location
from chkpt_channels.folders.config_files import ConfigFile
from chkpt_channels.folders.library_tables import CONFIG, NORMALIZATION_KEYS, PREPROCESSORS, SCALING_KEYS
from chkpt_channels.transform.mixing.normalization import Normalization
from chkpt_channels.transform.options import Options

_WHITE = 255
"""The images of keras-hub's converters are bytes. Source: keras_hub/layers/preprocessing/image_converter.py."""


def normalization_keys(document: Json) -> Iterator[tuple[Keys, Keys]]:
    """The paths of mean and std, or of offset and scale, for each pair that a configuration states."""
    for path, value in document.walk():
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


def with_normalization(options: Options, configs: Sequence[ConfigFile], location: Location) -> Options:
    """The options with the mean and std that configurations state, those of image processors first. Raises UnsupportedError where
    none does."""
    order = [*(s for s in configs if s.name != CONFIG), *(s for s in configs if s.name == CONFIG)]
    pairs = ((config.document.location, pair) for config in order for pair in normalizations(config))
    location, pair = next(pairs, (location, None))
    if pair and min(pair[1]) <= 0:
        raise location.unsupported("its std is not positive")
    if pair is None:
        raise location.unsupported(
            f"no {PREPROCESSORS[0]} or {CONFIG} beside it states mean and std", hint="--norm imagenet, or --mean and --std"
        )
    return options._replace(norm=options.norm._replace(name="", mean=pair[0], std=pair[1]).validated())


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
    numbers = value if isinstance(value, list) else [value]
    if not all(isinstance(n, int | float) and not isinstance(n, bool) and abs(n) < 1e6 for n in numbers):
        return ()
    return tuple(float(n) for n in numbers)
