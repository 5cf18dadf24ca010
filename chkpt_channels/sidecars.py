"""The configuration files beside weights: how many channels they say a model has, and what feeds it.

    config.json                transformers, diffusers, smp: num_channels, in_channels, in_chans, also in the configurations of
                               parts (vision_config, backbone_config)
                               timm: pretrained_cfg (input_size, mean, std, first_conv), model_args.in_chans
    preprocessor_config.json   transformers: image_mean, image_std, do_convert_rgb

Source: transformers 5.23 (configuration_utils.py, image_processing_utils.py), timm 1.0.31 (models/_hub.py, models/_builder.py).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any, NamedTuple

from .containers.jsontree import Json
from .containers.jsontree import Path as Keys
from .errors import DamagedError, Place, UsageError
from .limits import LIMITS
from .model import Declaration
from .options import Beside, Options
from .pipelines import AUTO, Pipeline

CONFIG = "config.json"
PREPROCESSORS = ("preprocessor_config.json", "processor_config.json", "image_processor_config.json")
COUNTS = frozenset(
    {
        "num_channels",
        "in_channels",
        "in_chans",
        "in_chan",
        "input_channels",
        "num_input_channels",
        "image_channels",
        "img_channels",
    }
)
"""What configurations call the number of input channels."""
SIZES = frozenset({"input_size", "test_input_size"})
"""timm's [channels, height, width]."""
PIPELINES = (("image_mean", "image_std"), ("mean", "std"))
VISION = ("vision_config", "backbone_config", "vision_encoder", "encoder")
"""Where a configuration of several parts keeps the one that sees the image."""
OTHERWISE = {
    "in_channels": frozenset(
        {
            "chameleon_vqgan", "cohere_compass_vision", "emu3_vqgan", "ernie4_5_vl_moe_vision", "exaone4_5_vision",
            "florence_vision", "glm4v_moe_vision", "glm4v_vision", "glm5_next_vision", "glm_image_vision",
            "glm_image_vqmodel", "glm_ocr_vision", "janus_vqgan", "lfm3_vl_vision", "qwen2_5_omni_vision_encoder",
            "qwen2_5_vl_vision", "qwen2_vl_vision", "qwen3_5_moe_vision", "qwen3_5_vision", "qwen3_omni_moe_vision_encoder",
            "qwen3_vl_moe_vision", "qwen3_vl_vision", "qwen4_exp_vision",
        }
    ),
    "in_chans": frozenset({"vjepa2"}),
    "input_channels": frozenset({"flava_image_codebook"}),
}  # fmt: skip
"""transformers' models by the key that counts their channels, where it is not num_channels."""


class Sidecar(NamedTuple):
    """A configuration file, by its name in the folder."""

    name: str
    document: Json


def read(path: Path) -> Json:
    """A JSON document. Raises DamagedError, SystemProblem."""
    place = Place(str(path))
    try:
        with path.open("rb") as file:
            raw = file.read(LIMITS.sidecar_bytes + 1)
    except OSError as error:
        raise place.system(f"cannot be read: {(error.strerror or str(error)).lower()}") from error
    if len(raw) > LIMITS.sidecar_bytes:
        raise place.damaged(f"is longer than the {LIMITS.sidecar_bytes} bytes that are read")
    return Json(raw, place)


def beside(folder: Path, *, strict: bool = False) -> list[Sidecar]:
    """The configuration files of a folder, as far as they are JSON: a file of that name may be something else. Raises
    DamagedError for those that are not, if they are needed."""
    found = []
    for name in (CONFIG, *PREPROCESSORS):
        if (folder / name).is_file():
            with nullcontext() if strict else suppress(DamagedError):
                found.append(Sidecar(name, read(folder / name)))
    return found


def counts(document: Json) -> Iterator[tuple[Keys, int]]:
    """Where a configuration says how many channels the image has."""
    for path, value in document.walk():
        key = path[-1] if path else ""
        if key in COUNTS and type(value.value) is int:
            yield path, value.value
        elif key in SIZES and isinstance(value.value, list) and len(value.value) == 3 and type(value.value[0].value) is int:
            yield (*path, 0), value.value[0].value


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
                if mean in value.value and std in value.value and _numbers(value.value[mean].plain):
                    yield (*path, mean), (*path, std)


def evidence(sidecars: list[Sidecar]) -> Beside:
    """What the configuration says of the first convs: timm's names of them, and the number of channels where it says one only."""
    found: set[int] = set()
    names: tuple[str, ...] = ()
    for sidecar in sidecars:
        found |= {count for _, count in counts(sidecar.document)}
        for path, value in sidecar.document.walk():
            if path and path[-1] == "first_conv" and value.plain:
                listed = value.plain if isinstance(value.plain, list) else [value.plain]
                names = tuple(name for name in listed if isinstance(name, str))
    return Beside(names, found.pop() if len(found) == 1 else 0)


def declarations(sidecar: Sidecar) -> list[Declaration]:
    """The same as declarations: where, and how many."""
    return [Declaration(_spelled(path), count) for path, count in counts(sidecar.document)]


def edits(sidecar: Sidecar, old: int, new: int, pipeline: Pipeline | None) -> dict[Keys, Any]:
    """What changes in a configuration: channel counts equal to `old`, and mean and std to `pipeline`."""
    document = sidecar.document
    changed: dict[Keys, Any] = {path: new for path, count in counts(document) if count == old != new}
    if sidecar.name == CONFIG and old != new and not any(True for _ in counts(document)):
        changed |= {(*path, _key(document, path)): new for path in [_vision(document)] if _is_transformers(document, path)}
    if pipeline:
        for mean, std in pipelines(document):
            changed |= _fed(mean, std, pipeline)
    for path, value in document.walk():
        if path and path[-1] == "do_convert_rgb" and value.value is True and new != 3:
            changed[path] = False
    return {path: value for path, value in changed.items() if not _is_there(document, path, value)}


def _fed(mean: Keys, std: Keys, pipeline: Pipeline) -> dict[Keys, Any]:
    """mean and std as this configuration's reader applies them: to images in 0..1, or to bytes once rescaling is off."""
    if pipeline.top == 1 or mean[-1] == "mean":
        return {mean: list(pipeline.mean), std: [value / pipeline.top for value in pipeline.std]}
    return {mean: [value * pipeline.top for value in pipeline.mean], std: list(pipeline.std), (*mean[:-1], "do_rescale"): False}


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
    sidecars = beside(path if path.is_dir() else path.parent, strict=options.norm.name == AUTO)
    options = options._replace(beside=evidence(sidecars))
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


def words_of(path: Path) -> dict[str, Any]:
    """The options of the conversion that a report tells of (`convert --report`). Raises UsageError for other files."""
    document = read(path).root.plain
    results = document.get("results") if isinstance(document, dict) else None
    words = [r.get("options") for r in results if isinstance(r, dict)] if isinstance(results, list) else []
    if len(words) != 1 or not isinstance(words[0], dict):
        raise UsageError("is no report of one conversion", file=str(path), hint="convert --report FILE writes one")
    if wrong := next((name for name, value in words[0].items() if name not in _USUAL or not _is_like(value, _USUAL[name])), None):
        raise UsageError(f"its option {wrong[:40]!r} is none of a conversion", file=str(path))
    return words[0]


def size_of(path: str) -> int:
    """The bytes of a file, or of all files in a folder; 0 where there is none."""
    try:
        if Path(path).is_dir():
            return sum(file.stat().st_size for file in Path(path).rglob("*") if file.is_file())
        return Path(path).stat().st_size
    except OSError:
        return 0


def _is_like(value: Any, usual: Any) -> bool:
    """Whether a value has the type that `options.words` gives it. Lists hold words or numbers, or rows of numbers."""
    if isinstance(usual, list):
        parts = [v for part in value for v in (part if isinstance(part, list) else [part])] if isinstance(value, list) else [None]
        return all(isinstance(part, str | int | float) for part in parts)
    if usual is None:
        return isinstance(value, str | int | float)
    return isinstance(value, type(usual))


_USUAL: dict[str, Any] = {
    **dict.fromkeys(("to", "from_channels", "input_range")),
    **{key: [] for key in ("luma", "select", "bands", "matrix", "mean", "std", "new_mean", "new_std", "layers", "inputs")},
    **dict.fromkeys(("method", "channel_order", "norm", "layout", "optimizer"), ""),
    **dict.fromkeys(("strict", "set_hparams", "allow_nonfinite"), False),
}
