"""The configuration files beside weights: how many channels they say a model has, and what feeds it.

    config.json                transformers, diffusers, smp: num_channels, in_channels, in_chans, also in the configurations of
                               parts (vision_config, backbone_config)
                               timm: pretrained_cfg (input_size, mean, std, first_conv), model_args.in_chans
    preprocessor_config.json   transformers: image_mean, image_std, do_convert_rgb

Source: transformers 5.23 (configuration_utils.py, image_processing_utils.py), timm 1.0.31 (models/_hub.py, models/_builder.py).
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any, NamedTuple

from chkpt_channels.containers.json.editor import Json, Value
from chkpt_channels.containers.json.editor import Path as Keys
from chkpt_channels.core.errors import DamagedError, Place, UsageError
from chkpt_channels.core.limits import LIMITS
from chkpt_channels.core.tensors import Declaration
from chkpt_channels.discovery.request import ConfigHints
from chkpt_channels.folders.library_tables import (
    CONFIG,
    COUNTS,
    FIRST_CONV,
    FIXED,
    OTHERWISE,
    PIPELINES,
    PREPROCESSORS,
    SIZES,
    VISION,
    WIDTHS,
)
from chkpt_channels.storage.source import contents
from chkpt_channels.transform.mixing.normalization import AUTO, Pipeline
from chkpt_channels.transform.option_table import OPTIONS
from chkpt_channels.transform.options import Options


class Sidecar(NamedTuple):
    """A configuration file, by its name in the folder."""

    name: str
    document: Json


def read(path: Path) -> Json:
    """A JSON document. Raises DamagedError, SystemProblem."""
    return Json(contents(path, LIMITS.sidecar_bytes), Place(str(path)))


def beside(folder: Path, *, strict: bool = False) -> list[Sidecar]:
    """The configuration files of a folder, as far as they are JSON: a file of that name may be something else. Raises
    DamagedError for those that are not, if they are needed."""
    found = []
    for name in names(folder):
        with nullcontext() if strict else suppress(DamagedError):
            found.append(Sidecar(name, read(folder / name)))
    return found


def names(folder: Path) -> list[str]:
    """What configuration files a folder has."""
    with Place(str(folder)).trying("cannot be read"):
        return [name for name in (CONFIG, *PREPROCESSORS) if (folder / name).is_file()]


def counts(document: Json) -> Iterator[tuple[Keys, int]]:
    """Where a configuration says how many channels the image has."""
    for path, value in document.walk():
        key = path[-1] if path else ""
        if key in COUNTS and type(value.value) is int:
            yield path, value.value
        elif isinstance(value.value, list) and _begins_with_channels(document, path) and type(value.value[0].value) is int:
            yield (*path, 0), value.value[0].value


def _begins_with_channels(document: Json, path: Keys) -> bool:
    """Whether a list is timm's [channels, height, width], or the widths of a network from the image on."""
    key = str(path[-1]) if path else ""
    if key in SIZES:
        return len(document.at(path).value) == 3
    home = document.at(path[:-1]).value if path else None
    kind = home.get("model_type") if isinstance(home, dict) else None
    return kind is not None and kind.value in WIDTHS.get(key, ()) and bool(document.at(path).value)


def image_counts(document: Json) -> Iterator[tuple[str, int]]:
    """The counts that are about the image for certain: those at the root, of the part that sees it, and timm's."""
    homes = {(), _vision(document), ("pretrained_cfg",), ("model_args",)}
    for path, count in counts(document):
        home = path[:-2] if path[-1] == 0 else path[:-1]
        if home in homes:
            yield _spelled(path), count


def pipelines(document: Json) -> Iterator[tuple[Keys, Keys]]:
    """Where it says mean and std, (path of the one, path of the other)."""
    for path, value in document.walk():
        if isinstance(value.value, dict):
            for mean, std in PIPELINES:
                both = [value.value[key].plain for key in (mean, std) if key in value.value]
                # a plain number called "mean" may be that of an initialiser
                if len(both) == 2 and all(_numbers(n) and (mean == "image_mean" or isinstance(n, list)) for n in both):
                    yield (*path, mean), (*path, std)


def evidence(sidecars: list[Sidecar]) -> ConfigHints:
    """What the configuration says of the first convs: timm's names of them, and the number of channels where it says one only."""
    found: set[int] = set()
    names: tuple[str, ...] = ()
    for sidecar in sidecars:
        found |= {count for _, count in counts(sidecar.document)}
        for path, value in sidecar.document.walk():
            if path and path[-1] == "first_conv" and value.plain:
                listed = value.plain if isinstance(value.plain, list) else [value.plain]
                names = tuple(name for name in listed if isinstance(name, str))
            if path == ("_class_name",) and value.value in FIRST_CONV:
                names = (FIRST_CONV[value.value],)
    return ConfigHints(names, found.pop() if len(found) == 1 else 0)


def declarations(sidecar: Sidecar) -> list[Declaration]:
    """The same as declarations: where, and how many."""
    return [Declaration(_spelled(path), count) for path, count in counts(sidecar.document)]


def edits(sidecar: Sidecar, old: int, new: int, pipeline: Pipeline | None) -> dict[Keys, Any]:
    """What changes in a configuration: channel counts equal to `old`, and mean and std to `pipeline`. Raises UnsupportedError for
    models that their library does not build for other channels."""
    document = sidecar.document
    changed = _counted(sidecar, old, new) if old != new else {}
    if pipeline:
        for mean, std in pipelines(document):
            changed |= _fed(document, mean, std, pipeline)
    for path, value in document.walk():
        if old != new != 3 and isinstance(value.value, dict) and _turns_into_colours(sidecar.name, value.value):
            changed[*path, "do_convert_rgb"] = False
    return {path: value for path, value in changed.items() if not _is_there(document, path, value)}


def _counted(sidecar: Sidecar, old: int, new: int) -> dict[Keys, Any]:
    """The counts that change, and those that were left to a default."""
    document = sidecar.document
    _check_built(document)
    changed: dict[Keys, Any] = {path: new for path, count in counts(document) if count == old}
    if Path(sidecar.name).name != CONFIG:
        return changed
    home = _vision(document)
    if not changed and _is_transformers(document, home) and not any(path[: len(home)] == home for path, _ in counts(document)):
        changed[*home, _key(document, home)] = new
    root = document.root.value
    if isinstance(root, dict) and "pretrained_cfg" in root and ("pretrained_cfg", "input_size", 0) in changed:
        # timm goes by input_size, and transformers' wrapper of timm by model_args alone
        arguments = root["model_args"].value if "model_args" in root else None
        changed |= {("model_args", "in_chans"): new} if isinstance(arguments, dict) else {("model_args",): {"in_chans": new}}
    return changed


def _check_built(document: Json) -> None:
    """Raises UnsupportedError for models that their library does not build for other channels."""
    for path, value in document.walk():
        if path and path[-1] == "model_type" and value.value in FIXED:
            hint = "the weights file alone converts, for code of your own"
            raise document.place.inside(_spelled(path)).unsupported(f"{FIXED[value.value]} ({value.value})", hint=hint)


def _turns_into_colours(name: str, part: Mapping[str, Value]) -> bool:
    """Whether an image processor makes three channels of any image: many do where their configuration does not say."""
    said = part["do_convert_rgb"].value if "do_convert_rgb" in part else None
    if said is not None:
        return said is True
    return Path(name).name in PREPROCESSORS and "image_mean" in part


def _fed(document: Json, mean: Keys, std: Keys, pipeline: Pipeline) -> dict[Keys, Any]:
    """mean and std as this configuration's reader applies them: to images in 0..1, or to bytes once rescaling is off."""
    if pipeline.top == 1 or mean[-1] == "mean":
        found: dict[Keys, Any] = {mean: list(pipeline.mean), std: [value / pipeline.top for value in pipeline.std]}
    else:
        found = {mean: [value * pipeline.top for value in pipeline.mean], std: list(pipeline.std)}
        found[*mean[:-1], "do_rescale"] = False
    # one number for all channels stays one
    for path in (mean, std):
        if not isinstance(document.at(path).value, list) and len(set(found[path])) == 1:
            found[path] = found[path][0]
    return found


def _is_there(document: Json, path: Keys, value: Any) -> bool:
    try:
        return bool(document.at(path).plain == value)
    except (KeyError, IndexError):
        return False


def _vision(document: Json) -> Keys:
    """Where the part stands that sees the image."""
    root = document.root.value
    return next(
        ((name,) for name in VISION if isinstance(root, dict) and name in root and isinstance(root[name].value, dict)), ()
    )


def _is_transformers(document: Json, path: Keys) -> bool:
    value = document.at(path).value
    return isinstance(value, dict) and "model_type" in value


def _key(document: Json, path: Keys) -> str:
    kind = document.at((*path, "model_type")).value
    return next((key for key, kinds in OTHERWISE.items() if kind in kinds), "num_channels")


def _spelled(path: Keys) -> str:
    return ".".join(str(step) for step in path)


def _numbers(value: Any) -> tuple[float, ...]:
    numbers = value if isinstance(value, list) else [value]
    if not all(isinstance(n, int | float) and not isinstance(n, bool) and abs(n) < 1e6 for n in numbers):
        return ()
    return tuple(float(n) for n in numbers)


def fed_by(sidecar: Sidecar, *, strict: bool = True) -> Iterator[tuple[tuple[float, ...], tuple[float, ...]]]:
    """(mean, std) of each pipeline that a configuration spells. Raises UnsupportedError where they are not all that is done, if
    that matters."""
    for mean, std in pipelines(sidecar.document):
        if strict:
            _check_plain(sidecar.document.place, sidecar.document.at(mean[:-1]).plain)
        found = tuple(_numbers(sidecar.document.at(path).plain) for path in (mean, std))
        if all(found):
            yield found[0], found[1]


def resolved(options: Options, path: Path) -> Options:
    """The options with what stands beside the weights, or in their folder: evidence for the first convs, and `--norm auto`.
    Raises UnsupportedError where that is asked for and nothing says it."""
    sidecars = beside(path if os.path.isdir(path) else path.parent, strict=options.norm.name == AUTO)
    options = options._replace(search=options.search._replace(hints=evidence(sidecars)))
    if options.norm.name != AUTO:
        return options
    order = [*(s for s in sidecars if s.name != CONFIG), *(s for s in sidecars if s.name == CONFIG)]
    pairs = ((sidecar.document.place, pair) for sidecar in order for pair in fed_by(sidecar))
    place, found = next(pairs, (Place(str(path)), None))
    if found and min(found[1]) <= 0:
        raise place.unsupported("its std is not positive")
    if found is None:
        raise place.unsupported(
            f"no {PREPROCESSORS[0]} or {CONFIG} beside it says mean and std", hint="--norm imagenet, or --mean and --std"
        )
    return options._replace(norm=options.norm._replace(name="", mean=found[0], std=found[1]).checked())


def _check_plain(place: Place, part: Mapping[str, Any]) -> None:
    """An image processor may leave out steps: then mean and std are not what is done."""
    for key, usual in (("do_normalize", True), ("do_rescale", True), ("do_flip_channel_order", False)):
        if part.get(key) is (not usual):
            told = f"{key} is {'off' if usual else 'on'}, so that mean and std alone do not say what feeds the model"
            raise place.unsupported(told, hint="--mean and --std, and --channel-order")
    factor = part.get("rescale_factor", 1 / 255)
    if not isinstance(factor, int | float) or not abs(factor - 1 / 255) <= 1e-6:
        raise place.unsupported("rescale_factor is not 1/255", hint="--mean and --std in units of 0..1")


def options_in_report(path: Path) -> dict[str, Any]:
    """The options of the conversion that a report tells of (`convert --report`). Raises UsageError for other files."""
    document = read(path).root.plain
    results = document.get("results") if isinstance(document, dict) else None
    told = [r.get("options") for r in results if isinstance(r, dict)] if isinstance(results, list) else []
    if len(told) != 1 or not isinstance(told[0], dict):
        raise UsageError("is no report of one conversion", file=str(path), hint="convert --report FILE writes one")
    known = {option.name: option for option in OPTIONS}
    given = {name: value for name, value in told[0].items() if name != "to"}
    wrong = next((name for name, value in given.items() if name not in known or not known[name].takes(value)), None)
    if wrong is not None or not isinstance(told[0].get("to"), str | int | None):
        raise UsageError(f"its option {(wrong or 'to')[:40]!r} is none of a conversion", file=str(path))
    return told[0]
