"""The edits of a configuration beside converted weights: channel counts, mean and std, and do_convert_rgb."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from chkpt_channels.containers.json.editor import Json, Value
from chkpt_channels.containers.json.editor import Path as Keys
from chkpt_channels.folders import library_tables as tables
from chkpt_channels.folders.channel_counts import counts, dotted, vision
from chkpt_channels.folders.config_files import ConfigFile, root
from chkpt_channels.folders.config_normalization import normalization_edits, normalization_keys
from chkpt_channels.transform.mixing.normalization import Normalization

_EDITED = {
    *tables.COUNTS, *tables.SIZE_KEYS, *tables.SHAPE_KEYS, *tables.WIDTH_KEYS, *tables.SCALING_KEYS,
    *(key for pair in tables.NORMALIZATION_KEYS for key in pair), "model_args", "do_convert_rgb", "do_rescale",
}  # fmt: skip
"""Keys of what `edits` changes, or adds."""


def edits(config: ConfigFile, old: int, new: int, pipeline: Normalization | None, convs: Collection[str] = ()) -> dict[Keys, Any]:
    """The edits of a configuration: channel counts from `old` to `new` of the first convs `convs`, mean and std to `pipeline`,
    and do_convert_rgb off. Raises UnsupportedError for models that their library does not build with other channel counts."""
    document = config.document
    changed = _count_edits(config, old, new, convs) if old != new else {}
    if pipeline:
        for mean, std in normalization_keys(document):
            changed |= normalization_edits(document, mean, std, pipeline)
    for path, value in document.values:
        if old != new != 3 and isinstance(value.value, dict) and _converts_to_rgb(config.name, value.value):
            changed[*path, "do_convert_rgb"] = False
    return {path: value for path, value in changed.items() if not _has_value(document, path, value)}


def without_channels(value: Any) -> Any:
    """A configuration without everything that a conversion may change: what is left says which model it describes."""
    if isinstance(value, list):
        return [without_channels(item) for item in value]
    if not isinstance(value, dict):
        return value
    return {key: without_channels(item) for key, item in value.items() if key not in _EDITED}


def _count_edits(config: ConfigFile, old: int, new: int, convs: Collection[str]) -> dict[Keys, Any]:
    """The counts that change, and those that were left to a default: transformers' is 3, as that of a ControlNet's condition."""
    document = config.document
    _check_built(document)
    changed: dict[Keys, Any] = {path: new for path, count in counts(document, convs) if count == old}
    if Path(config.name).name != tables.CONFIG:
        return changed
    stated = root(document)
    by_conv = tables.FIRST_CONV.get(str(stated.get("_class_name")), {})
    changed |= {(key,): new for conv, key in by_conv.items() if conv in convs and key not in stated}
    home = vision(document)
    part = document.at(home).value
    is_transformers = isinstance(part, dict) and "model_type" in part and part["model_type"].text
    if not changed and is_transformers and not any(path[: len(home)] == home for path, _ in counts(document)):
        changed |= _default_edit(document, home, new)
    return changed | (_timm_edit(document, (), new) if ("pretrained_cfg", "input_size", 0) in changed else {})


def _default_edit(document: Json, home: Keys, new: int) -> dict[Keys, Any]:
    kind = document.at((*home, "model_type")).value
    key = next((key for key, kinds in tables.CHANNEL_KEYS.items() if kind in kinds), "num_channels")
    return _timm_edit(document, home, new) if kind in tables.TIMM_WRAPPERS else {(*home, key): new}


def _timm_edit(document: Json, home: Keys, new: int) -> dict[Keys, Any]:
    """timm reads input_size, which in_chans overrides; transformers' wrapper of timm reads model_args alone."""
    path, arguments = (*home, "model_args"), document.at(home).value.get("model_args")
    return {(*path, "in_chans"): new} if arguments and isinstance(arguments.value, dict) else {path: {"in_chans": new}}


def _check_built(document: Json) -> None:
    """Raise UnsupportedError for models that their library does not build with other channel counts."""
    hint = "the weights file alone converts, for code of your own"
    for path, value in document.values:
        if path and path[-1] == "model_type" and value.text in tables.FIXED_CHANNELS:
            raise document.location.at(dotted(path)).unsupported(f"{tables.FIXED_CHANNELS[value.text]} ({value.text})", hint=hint)
        if path == ("unet_residual",) and value.value is True:  # CSBDeep
            raise document.location.at(dotted(path)).unsupported("the network adds the image to its output", hint=hint)


def _converts_to_rgb(name: str, part: Mapping[str, Value]) -> bool:
    """Whether an image processor converts every image to RGB. Many do by default, where do_convert_rgb is missing."""
    stated = part["do_convert_rgb"].value if "do_convert_rgb" in part else None
    if stated is not None:
        return stated is True
    return Path(name).name in tables.PREPROCESSORS and "image_mean" in part


def _has_value(document: Json, path: Keys, value: Any) -> bool:
    try:
        return bool(document.at(path).plain == value)
    except (KeyError, IndexError):
        return False
