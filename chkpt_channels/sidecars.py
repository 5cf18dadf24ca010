"""What the configuration beside a weights file says of the pipeline that feeds the model.

    preprocessor_config.json   transformers: image_mean, image_std, for images in 0..1 (do_rescale and do_normalize on)
    config.json                timm: pretrained_cfg (mean, std), or the same keys at the root

Source: transformers/image_processing_utils.py of 5.23, timm/models/_hub.py of 1.0.31.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from . import strictjson
from .errors import Place, UsageError
from .limits import LIMITS
from .options import Options
from .pipelines import AUTO

NAMES = ("preprocessor_config.json", "config.json")
_KEYS = (("image_mean", "image_std"), ("mean", "std"))


def resolved(options: Options, file: str) -> Options:
    """The options with `--norm auto` replaced by what stands beside `file`. Raises UnsupportedError where nothing does."""
    if options.norm.name != AUTO:
        return options
    place = Place(file)
    folder = Path(file).parent
    for name in NAMES:
        document = read(folder / name) if (folder / name).is_file() else None
        for part in _parts(document):
            for keys in _KEYS:
                mean, std = (_numbers(part.get(key)) for key in keys)
                if mean and std:
                    _check_plain(Place(str(folder / name)), part)
                    return options._replace(norm=options.norm._replace(name="", mean=mean, std=std).checked())
    raise place.unsupported(f"no {' or '.join(NAMES)} beside it says mean and std", hint="--norm imagenet, or --mean and --std")


def read(path: Path) -> Any:
    """A JSON document. Raises DamagedError, SystemProblem."""
    place = Place(str(path))
    try:
        with path.open("rb") as file:
            raw = file.read(LIMITS.sidecar_bytes + 1)
    except OSError as error:
        raise place.system(f"cannot be read: {(error.strerror or str(error)).lower()}") from error
    place.within("bytes", len(raw), LIMITS.sidecar_bytes)
    return strictjson.document(raw, place, 0)


def _parts(document: Any) -> Iterator[Mapping[str, Any]]:
    """The objects that may hold mean and std: the one at the root, and timm's."""
    if isinstance(document, dict):
        yield document
        if isinstance(inner := document.get("pretrained_cfg"), dict):
            yield inner


def _numbers(value: Any) -> tuple[float, ...]:
    numbers = value if isinstance(value, list) else [value]
    if not all(isinstance(n, int | float) and not isinstance(n, bool) and abs(n) < 1e6 for n in numbers):
        return ()
    return tuple(float(n) for n in numbers)


def _check_plain(place: Place, part: Mapping[str, Any]) -> None:
    """An image processor may leave out steps: then mean and std are not what is done."""
    for key in ("do_normalize", "do_rescale"):
        if part.get(key) is False:
            raise place.unsupported(
                f"{key} is off, so that mean and std do not say what feeds the model", hint="--mean and --std"
            )
    factor = part.get("rescale_factor")
    if isinstance(factor, int | float) and abs(factor - 1 / 255) > 1e-6:
        raise place.unsupported(f"rescale_factor is {factor:g}, not 1/255", hint="--mean and --std in units of 0..1")


def words_of(path: Path) -> dict[str, Any]:
    """The options of the conversion that a report tells of (`convert --report`). Raises UsageError for other files."""
    document = read(path)
    results = document.get("results") if isinstance(document, dict) else None
    words = [r.get("options") for r in results if isinstance(r, dict)] if isinstance(results, list) else []
    if len(words) != 1 or not isinstance(words[0], dict):
        raise UsageError("is no report of one conversion", file=str(path), hint="convert --report FILE writes one")
    return words[0]
