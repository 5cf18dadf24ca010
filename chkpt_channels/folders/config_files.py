"""Configuration files beside weights: the number of input channels that they state, and the preprocessing.

    config.json                transformers, diffusers, smp: num_channels, in_channels, in_chans, also in the configurations of
                               parts (vision_config, backbone_config)
                               timm: pretrained_cfg (input_size, mean, std, first_conv), model_args.in_chans
    preprocessor_config.json   transformers: image_mean, image_std, do_convert_rgb

Source: transformers 5.23 (configuration_utils.py, image_processing_utils.py), timm 1.0.31 (models/_hub.py, models/_builder.py).
"""

# Both matter as much as the weights. transformers with ignore_mismatched_sizes=True loads a stale num_channels without an error,
# and without the kernel; a mean of three numbers breaks the first gray image in timm and transformers.

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from chkpt_channels.containers.json.editor import Json, Value
from chkpt_channels.containers.json.editor import Path as Keys
from chkpt_channels.core.errors import DamagedError, Location, UsageError
from chkpt_channels.core.limits import LIMITS
from chkpt_channels.core.tensors import Declaration
from chkpt_channels.discovery.request import ConfigHints
from chkpt_channels.folders.library_tables import (
    CHANNEL_KEYS,
    CONFIG,
    COUNTS,
    FIRST_CONV,
    FIXED_CHANNELS,
    NORMALIZATION_KEYS,
    PREPROCESSORS,
    SIZE_KEYS,
    TIMM_WRAPPERS,
    VISION,
    WIDTH_KEYS,
)
from chkpt_channels.storage.source import contents
from chkpt_channels.transform.mixing.normalization import Normalization
from chkpt_channels.transform.option_table import OPTIONS
from chkpt_channels.transform.options import Options


class ConfigFile(NamedTuple):
    """A configuration file, by its name in the folder."""

    name: str
    document: Json


def read(path: Path) -> Json:
    """A JSON document. Raises DamagedError, FileSystemError."""
    return Json(contents(path, LIMITS.sidecar_bytes), Location(str(path)))


class ConfigReader:
    """Reads every configuration once, so that the content that is edited is the one that the search used."""

    def __init__(self) -> None:
        self._documents: dict[Path, Json | DamagedError] = {}

    def read(self, folder: Path, *, strict: bool) -> list[ConfigFile]:
        """The configurations of a folder, as far as they are JSON: a file of that name may be something else. Raises
        DamagedError for those that are not, if `strict`."""
        configs = []
        for name in names(folder):
            document = self._document(folder / name)
            if isinstance(document, Json):
                configs.append(ConfigFile(name, document))
            elif strict:
                raise document
        return configs

    def _document(self, path: Path) -> Json | DamagedError:
        if path not in self._documents:
            try:
                self._documents[path] = read(path)
            except DamagedError as error:
                self._documents[path] = error
        return self._documents[path]


def names(folder: Path) -> list[str]:
    """The names of the configuration files in a folder."""
    with Location(str(folder)).wrapping_os_errors("cannot be read"):
        return [name for name in (CONFIG, *PREPROCESSORS) if (folder / name).is_file()]


def counts(document: Json) -> Iterator[tuple[Keys, int]]:
    """The input channels that a configuration states: (path, count)."""
    for path, value in document.walk():
        key = path[-1] if path else ""
        if key in COUNTS and type(value.value) is int:
            yield path, value.value
        elif isinstance(value.value, list) and _begins_with_channels(document, path) and type(value.value[0].value) is int:
            yield (*path, 0), value.value[0].value


def _begins_with_channels(document: Json, path: Keys) -> bool:
    """Whether a list is timm's [channels, height, width], or the widths of a network from the image on."""
    key = str(path[-1]) if path else ""
    if key in SIZE_KEYS:
        return len(document.at(path).value) == 3
    home = document.at(path[:-1]).value if path else None
    kind = home.get("model_type") if isinstance(home, dict) else None
    return kind is not None and kind.value in WIDTH_KEYS.get(key, ()) and bool(document.at(path).value)


def image_counts(document: Json) -> Iterator[tuple[str, int]]:
    """The counts that are certainly the image's: those at the root, of the vision part, and timm's."""
    homes = {(), _vision(document), ("pretrained_cfg",), ("model_args",)}
    for path, count in counts(document):
        home = path[:-2] if path[-1] == 0 else path[:-1]
        if home in homes:
            yield _dotted(path), count


def normalization_keys(document: Json) -> Iterator[tuple[Keys, Keys]]:
    """The paths of mean and std, for each pair that a configuration states."""
    for path, value in document.walk():
        if isinstance(value.value, dict):
            for mean, std in NORMALIZATION_KEYS:
                both = [value.value[key].plain for key in (mean, std) if key in value.value]
                # trap: a plain number "mean" beside "std" may be that of a weight initializer
                if len(both) == 2 and all(_numbers(n) and (mean == "image_mean" or isinstance(n, list)) for n in both):
                    yield (*path, mean), (*path, std)


def search_hints(configs: Sequence[ConfigFile]) -> ConfigHints:
    """The hints that configurations give the search: timm's and diffusers' names of first convs, and the number of input channels
    where all state the same."""
    channels: set[int] = set()
    names: tuple[str, ...] = ()
    for config in configs:
        channels |= {count for _, count in counts(config.document)}
        for path, value in config.document.walk():
            if path and path[-1] == "first_conv" and value.plain:
                listed = value.plain if isinstance(value.plain, list) else [value.plain]
                names = tuple(name for name in listed if isinstance(name, str))
            if path == ("_class_name",) and value.value in FIRST_CONV:
                names = (FIRST_CONV[value.value],)
    return ConfigHints(names, channels.pop() if len(channels) == 1 else 0)


def declarations(config: ConfigFile) -> list[Declaration]:
    """The counts as declarations."""
    return [Declaration(_dotted(path), count) for path, count in counts(config.document)]


def edits(config: ConfigFile, old: int, new: int, pipeline: Normalization | None) -> dict[Keys, Any]:
    """The edits of a configuration: channel counts from `old` to `new`, mean and std to `pipeline`, and do_convert_rgb off.
    Raises UnsupportedError for models that their library does not build with other channel counts."""
    document = config.document
    changed = _count_edits(config, old, new) if old != new else {}
    if pipeline:
        for mean, std in normalization_keys(document):
            changed |= _normalization_edits(document, mean, std, pipeline)
    for path, value in document.walk():
        if old != new != 3 and isinstance(value.value, dict) and _converts_to_rgb(config.name, value.value):
            changed[*path, "do_convert_rgb"] = False
    return {path: value for path, value in changed.items() if not _has_value(document, path, value)}


def _count_edits(config: ConfigFile, old: int, new: int) -> dict[Keys, Any]:
    """The counts that change, and those that were left to a default: transformers' is 3."""
    document = config.document
    _check_built(document)
    changed: dict[Keys, Any] = {path: new for path, count in counts(document) if count == old}
    if Path(config.name).name != CONFIG:
        return changed
    home = _vision(document)
    part = document.at(home).value
    is_transformers = isinstance(part, dict) and "model_type" in part
    if not changed and is_transformers and not any(path[: len(home)] == home for path, _ in counts(document)):
        changed |= _default_edit(document, home, new)
    return changed | (_timm_edit(document, (), new) if ("pretrained_cfg", "input_size", 0) in changed else {})


def _default_edit(document: Json, home: Keys, new: int) -> dict[Keys, Any]:
    kind = document.at((*home, "model_type")).value
    key = next((key for key, kinds in CHANNEL_KEYS.items() if kind in kinds), "num_channels")
    return _timm_edit(document, home, new) if kind in TIMM_WRAPPERS else {(*home, key): new}


def _timm_edit(document: Json, home: Keys, new: int) -> dict[Keys, Any]:
    """timm reads input_size, which in_chans overrides; transformers' wrapper of timm reads model_args alone."""
    path, arguments = (*home, "model_args"), document.at(home).value.get("model_args")
    return {(*path, "in_chans"): new} if arguments and isinstance(arguments.value, dict) else {path: {"in_chans": new}}


def _check_built(document: Json) -> None:
    """Raise UnsupportedError for models that their library does not build with other channel counts."""
    for path, value in document.walk():
        if path and path[-1] == "model_type" and value.value in FIXED_CHANNELS:
            hint = "the weights file alone converts, for code of your own"
            raise document.location.at(_dotted(path)).unsupported(f"{FIXED_CHANNELS[value.value]} ({value.value})", hint=hint)


def _converts_to_rgb(name: str, part: Mapping[str, Value]) -> bool:
    """Whether an image processor converts every image to RGB. Many do by default, where do_convert_rgb is missing."""
    stated = part["do_convert_rgb"].value if "do_convert_rgb" in part else None
    if stated is not None:
        return stated is True
    return Path(name).name in PREPROCESSORS and "image_mean" in part


def _normalization_edits(document: Json, mean: Keys, std: Keys, pipeline: Normalization) -> dict[Keys, Any]:
    """mean and std as the library applies them: to images in 0..1, or, for image processors of transformers, to bytes with
    rescaling switched off."""
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


def _has_value(document: Json, path: Keys, value: Any) -> bool:
    try:
        return bool(document.at(path).plain == value)
    except (KeyError, IndexError):
        return False


def _vision(document: Json) -> Keys:
    """The path of the part that takes the image; () where there is none of its own."""
    root = document.root.value
    return next(
        ((name,) for name in VISION if isinstance(root, dict) and name in root and isinstance(root[name].value, dict)), ()
    )


def _dotted(path: Keys) -> str:
    return ".".join(str(step) for step in path)


def _numbers(value: Any) -> tuple[float, ...]:
    numbers = value if isinstance(value, list) else [value]
    if not all(isinstance(n, int | float) and not isinstance(n, bool) and abs(n) < 1e6 for n in numbers):
        return ()
    return tuple(float(n) for n in numbers)


def normalizations(config: ConfigFile, *, strict: bool = True) -> Iterator[tuple[tuple[float, ...], tuple[float, ...]]]:
    """Each (mean, std) that a configuration states. If `strict`, raises UnsupportedError where the preprocessing does more than
    that."""
    for mean, std in normalization_keys(config.document):
        if strict:
            _check_plain(config.document.location, config.document.at(mean[:-1]).plain)
        pair = tuple(_numbers(config.document.at(path).plain) for path in (mean, std))
        if all(pair):
            yield pair[0], pair[1]


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


def options_in_report(path: Path) -> dict[str, Any]:
    """The options in the report of one conversion (`convert --report`). Raises UsageError for other files."""
    document = read(path).root.plain
    results = document.get("results") if isinstance(document, dict) else None
    conversions = [r.get("options") for r in results if isinstance(r, dict)] if isinstance(results, list) else []
    if len(conversions) != 1 or not isinstance(conversions[0], dict):
        raise UsageError("is not the report of one conversion", file=str(path), hint="convert --report FILE writes one")
    known = {option.name: option for option in OPTIONS}
    options = {name: value for name, value in conversions[0].items() if name != "to"}
    wrong = next((name for name, value in options.items() if name not in known or not known[name].takes(value)), None)
    if wrong is not None or not isinstance(conversions[0].get("to"), str | int | None):
        raise UsageError(f"its option {(wrong or 'to')[:40]!r} is not an option of convert", file=str(path))
    return conversions[0]
