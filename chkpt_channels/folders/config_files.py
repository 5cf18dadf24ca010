"""Configuration files beside weights: which there are, and what each is a configuration of.

    config.json                transformers, diffusers, smp: num_channels, in_channels, in_chans, also in the configurations of
                               parts (vision_config, backbone_config)
                               timm: pretrained_cfg (input_size, mean, std, first_conv), model_args.in_chans
                               keras-hub: image_shape; StarDist, CSBDeep: n_channel_in, net_input_shape
    preprocessor_config.json   transformers: image_mean, image_std, do_convert_rgb
    preprocessor.json          keras-hub: scale and offset of an image converter; task.json has both

Source: transformers 5.23 (configuration_utils.py, image_processing_utils.py), timm 1.0.31 (models/_hub.py, models/_builder.py),
keras-hub 0.32 (utils/preset_utils.py), csbdeep 0.8 (models/base_model.py).
"""

# Both matter as much as the weights. transformers with ignore_mismatched_sizes=True loads a stale num_channels without an error,
# and without the kernel; a mean of three numbers breaks the first gray image in timm and transformers.

from __future__ import annotations

from pathlib import Path
from typing import Any

from chkpt_channels.containers.json.editor import Json
from chkpt_channels.core.errors import DamagedError, Location, UsageError
from chkpt_channels.core.limits import LIMITS
from chkpt_channels.core.records import NamedTuple
from chkpt_channels.folders.library_tables import CONFIG, PREPROCESSORS
from chkpt_channels.storage.opening import contents, named
from chkpt_channels.transform.option_table import OPTIONS


class ConfigFile(NamedTuple):
    """A configuration file, by its name in the folder."""

    name: str
    document: Json


def root(document: Json) -> dict[str, Any]:
    """The object that a document is; an empty one where it is none."""
    plain = document.plain
    return plain if isinstance(plain, dict) else {}


def as_list(value: Any) -> list[Any]:
    """A list, of what a configuration may state for one channel or for each."""
    return value if isinstance(value, list) else [value]


def read(path: Path) -> Json:
    """A configuration. Raises DamagedError, FileSystemError."""
    return Json(contents(path, LIMITS.sidecar_bytes), Location(named(path)))


def read_index(path: Path) -> Json:
    """The list of a model's shards, which names every tensor. Raises DamagedError, FileSystemError."""
    return Json(contents(path, LIMITS.index_bytes), Location(named(path)))


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

    @property
    def unread(self) -> list[DamagedError]:
        """Why files that were passed over are no configurations."""
        return [document for document in self._documents.values() if isinstance(document, DamagedError)]

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


def options_in_report(path: Path) -> dict[str, Any]:
    """The options in the report of one conversion (`convert --report`). Raises UsageError for other files."""
    results = root(read(path)).get("results")
    conversions = [r.get("options") for r in results if isinstance(r, dict)] if isinstance(results, list) else []
    if len(conversions) != 1 or not isinstance(conversions[0], dict):
        raise UsageError("is not the report of one conversion", file=str(path), hint="convert --report FILE writes one")
    known = {option.name: option for option in OPTIONS}
    options = {name: value for name, value in conversions[0].items() if name != "to"}
    wrong = next((name for name, value in options.items() if name not in known or not known[name].takes(value)), None)
    if wrong is not None or not isinstance(conversions[0].get("to"), str | int | None):
        raise UsageError(f"its option {(wrong or 'to')[:40]!r} is not an option of convert", file=str(path))
    return conversions[0]
