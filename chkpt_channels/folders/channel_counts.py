"""The numbers of channels in a configuration: which are the image's, by the names that libraries give them."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from chkpt_channels.containers.json.editor import Json
from chkpt_channels.containers.json.editor import Path as Keys
from chkpt_channels.core.records import pattern
from chkpt_channels.core.tensors import Declaration
from chkpt_channels.discovery.request import ConfigHints
from chkpt_channels.folders import library_tables as tables
from chkpt_channels.folders.config_files import ConfigFile, as_list, root

_LOOKS_LIKE_CHANNELS = pattern(r"chan|(^|_)n?ch(s|_|$)|(^|_)(in|input)_(nc|dims?|planes|depth|features)$|bands|colou?rs?(_|$)")
_OF_SOMETHING_ELSE = pattern(
    r"out|hidden|latent|embed|block|dec|mid|class|attn|model|head|audio|text|time|cross|skip|base|inter|proj|lateral|fpn|mask"
)
_LOOKS_LIKE_SHAPE = pattern(r"(input|image|img)_?(shape|size|dims?)$")
"""Names of numbers that could be those of the image's channels, but for names of others."""


def counts(document: Json, convs: Collection[str] = ()) -> Iterator[tuple[Keys, int]]:
    """The input channels that a configuration states: (path, count). Of a network that takes several images or latents, those of
    the first convs `convs`, without them those of the image."""
    by_conv = tables.FIRST_CONV.get(str(root(document).get("_class_name")), {})
    keys = [key for conv, key in by_conv.items() if conv in convs] or [*by_conv.values()][:1]
    for path, value in document.values:
        key = path[-1] if path else ""
        if type(value.value) is int and (path in [(k,) for k in keys] if keys else key in tables.COUNTS):
            yield path, value.value
        at = _channel_place(document, path) if isinstance(value.value, list) else None
        if at is not None and type(value.value[at].value) is int:
            yield (*path, at), value.value[at].value


def _channel_place(document: Json, path: Keys) -> int | None:
    """Where a list holds the image's channels: timm's [channels, height, width], a shape, or the widths of a network from the
    image on; None in others."""
    key, numbers = str(path[-1]) if path else "", [child.value for child in document.at(path).value]
    if key in tables.SIZE_KEYS and len(numbers) == 3:
        return 0
    if key in tables.SHAPE_KEYS and len(numbers) >= 3:
        # channels stand last, or first: at the end that has a number, the smaller one
        ends = [(number, at) for number, at in ((numbers[-1], len(numbers) - 1), (numbers[0], 0)) if type(number) is int]
        return min(ends, key=lambda end: end[0])[1] if ends else None
    home = document.at(path[:-1]).value if path else None
    kind = home.get("model_type") if isinstance(home, dict) else None
    return 0 if kind is not None and kind.text in tables.WIDTH_KEYS.get(key, ()) and numbers else None


def image_counts(document: Json) -> Iterator[tuple[str, int]]:
    """The counts that are certainly the image's: those at the root, of the vision part, timm's, and shapes of images."""
    homes = {(), vision(document), ("pretrained_cfg",), ("model_args",)}
    for path, count in counts(document):
        home, key = (path[:-2], path[-2]) if isinstance(path[-1], int) else (path[:-1], path[-1])
        if home in homes or key in tables.SHAPE_KEYS:
            yield dotted(path), count


def unknown_counts(document: Json, number: int, known: Collection[Keys], names: Collection[str] = tables.COUNTS) -> Iterator[str]:
    """The places of this number under names that look like channels, and at the ends of lists that look like shapes of the image,
    but for those that are `known`, and for `names` whose numbers are looked after otherwise."""
    for path, value in document.values:
        key = str(path[-1]).lower() if path else ""
        if isinstance(value.value, list):
            ends = (0, len(value.value) - 1) if _LOOKS_LIKE_SHAPE.search(key) and len(value.value) > 2 else ()
            places = [(*path, end) for end in ends]
        else:
            looks = _LOOKS_LIKE_CHANNELS.search(key) and not _OF_SOMETHING_ELSE.search(key)
            places = [path] if looks and key not in names else []
        yield from (dotted(place) for place in places if place not in known and _is_number(document, place, number))


def _is_number(document: Json, place: Keys, number: int) -> bool:
    found = document.at(place).value
    return type(found) is int and found == number


def search_hints(configs: Sequence[ConfigFile]) -> ConfigHints:
    """The hints that configurations give the search: timm's and diffusers' names of first convs, and the number of input channels
    where all state the same."""
    channels: set[int] = set()
    names: tuple[str, ...] = ()
    joined: tuple[str, ...] = ()
    for config in configs:
        channels |= {count for _, count in counts(config.document)}
        for path, value in config.document.values:
            if path and path[-1] == "first_conv" and value.plain:
                names = tuple(name for name in as_list(value.plain) if isinstance(name, str))
            if path == ("_class_name",) and value.text in tables.FIRST_CONV:
                names = (next(iter(tables.FIRST_CONV[value.text])),)
            if path == ("model_type",) and value.text in tables.JOINED:
                names, (layer, key, usual) = tables.JOINED[value.text]
                layers = root(config.document).get(key)
                joined = (layer.format((len(layers) if isinstance(layers, list) else usual) - 1),)
    return ConfigHints(names, channels.pop() if len(channels) == 1 else 0, joined)


def declarations(config: ConfigFile) -> list[Declaration]:
    """The counts as declarations."""
    return [Declaration(dotted(path), count) for path, count in counts(config.document)]


def reconstructs(config: Mapping[str, Any]) -> bool:
    """Whether a configuration describes a network that gives the image back."""
    names = [*as_list(config.get("architectures")), config.get("_class_name")]
    return any(isinstance(name, str) and re.search(tables.RECONSTRUCTS, name) for name in names)


def vision(document: Json) -> Keys:
    """The path of the part that takes the image; () where there is none of its own."""
    whole = root(document)
    return next(((name,) for name in tables.VISION if isinstance(whole.get(name), dict)), ())


def dotted(path: Keys) -> str:
    """A place in a document, as messages write it."""
    return ".".join(str(step) for step in path)
