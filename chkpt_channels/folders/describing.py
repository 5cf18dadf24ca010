"""Which configurations describe a file of weights, and which files are the same model in other formats: a folder may hold several
models, and a configuration of one of them alone."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from chkpt_channels.containers.json.editor import Json
from chkpt_channels.core.errors import DamagedError, FileSystemError, Location, UnsupportedError
from chkpt_channels.core.records import NamedTuple, pattern
from chkpt_channels.folders.channel_counts import dotted, vision
from chkpt_channels.folders.config_files import ConfigFile, as_list
from chkpt_channels.folders.library_tables import CONFIG
from chkpt_channels.formats import LFS_POINTER, foreign_weights, is_claimed, weights_suffixes
from chkpt_channels.formats.base import TensorStore
from chkpt_channels.storage.opening import open_file

_LIBRARY_NAME = pattern(
    r"(open_clip_)?((diffusion_)?(pytorch|tf|flax)_)?(?P<model>model(-[^.]*)?)(\..*)?"
    r"(?<=\.)(safetensors|bin|h5|msgpack|onnx)(\.index(\.\w+)?\.json)?"
    r"|model\.weights\.json"
)
"""What transformers, diffusers, timm, open_clip and keras-hub call the weights that a configuration beside them is for."""
_WIDTHS = ("hidden_size", "hidden_sizes", "embed_dim", "block_out_channels", "num_features")
"""Keys of widths that the layers of a described network have."""


class Description(NamedTuple):
    """The configurations that describe a file; where others stand beside it, `why` they do not."""

    configs: tuple[ConfigFile, ...]
    why: str = ""


def described(configs: Sequence[ConfigFile], name: str, beside: Collection[str], store: TensorStore) -> Description:
    """What describes the weights file, or index, `name`, among all the configurations of its folder, whose files are `beside` it.
    Configurations of one folder belong together."""
    others = [] if _LIBRARY_NAME.fullmatch(name) else library_files(beside)
    if configs and others:
        return Description((), f"is that of {others[0]}")
    for config in configs:
        if Path(config.name).name == CONFIG and (missing := _missing_width(config.document, store)):
            return Description((), f"states {missing}, and no tensor is that wide")
    return Description(tuple(configs))


def library_files(names: Collection[str]) -> list[str]:
    """The files, of these names, that a library wrote beside a configuration; sorted."""
    return sorted(filter(_LIBRARY_NAME.fullmatch, names))


def named_models(beside: Collection[str], *, by_stem: bool) -> dict[str, list[str]]:
    """The files, or indexes, of a folder by the model that their names say: model.safetensors and flax_model.msgpack are one;
    with `by_stem` also net.pth and net.onnx, as in the folder of one model."""
    named: dict[str, list[str]] = {}
    for file in sorted(beside):
        if model := _model_name(file, by_stem=by_stem):
            named.setdefault(model, []).append(file)
    return named


def copies(name: str, named: Mapping[str, Sequence[str]], *, by_stem: bool) -> list[str]:
    """The other files of the model that `name` is, among the `named_models` of a folder."""
    return [file for file in named.get(_model_name(name, by_stem=by_stem), ()) if file != name]


def _model_name(name: str, *, by_stem: bool) -> str:
    """What a model is called by the name of its file, whatever the format: of libraries' names the word "model"."""
    match = _LIBRARY_NAME.fullmatch(name)
    if match and match["model"]:
        return match["model"]
    stem = os.path.splitext(re.sub(r"(\.index(\.\w+)?|\.weights)\.json\Z", "", name))[0].removesuffix(".weights")
    return stem if by_stem else ""


def _missing_width(document: Json, store: TensorStore) -> str:
    """A width that a configuration states and no tensor has; "" where there is none."""
    home = vision(document)
    part = document.at(home).plain
    if not isinstance(part, dict):
        return ""
    stated = [(key, number) for key in _WIDTHS for number in as_list(part.get(key)) if type(number) is int]
    if not stated:
        return ""
    sizes = {size for tensor in store.tensors.values() for size in tensor.shape}
    sizes |= {size for weight in store.opaque for size in weight.shape or ()}
    return next((f"{dotted((*home, key))} {number}" for key, number in stated if number not in sizes), "")


def weights_in(folder: Path, *, foreign: bool = False) -> list[Path]:
    """The weights right in a folder, by what their bytes are or by their ending; with `foreign` others too."""
    with Location(str(folder)).wrapping_os_errors("cannot be read"):
        files = [folder / name for name in next(os.walk(folder), ("", [], []))[2]]
        return sorted(file for file in files if file.is_file() and (_is_weights(file) or (foreign and is_foreign(file))))


def _is_weights(file: Path) -> bool:
    if file.suffix.lower() in weights_suffixes():
        return True
    with suppress(FileSystemError), open_file(file) as source:
        return is_claimed(source)
    return False


def is_foreign(file: Path) -> bool:
    """Whether a file holds weights of a format that is not converted."""
    with suppress(FileSystemError), open_file(file) as source:
        return not is_claimed(source) and not source.head.startswith(LFS_POINTER) and foreign_weights(source) is not None
    return False


def leaving_out(name: str) -> str:
    """The option that leaves a file of a folder out."""
    return f"--leave-out {shlex.quote(name)}"


@contextmanager
def or_leave_out(name: str) -> Iterator[None]:
    """Offer to leave a file out where it cannot be read or planned."""
    try:
        yield
    except (DamagedError, UnsupportedError) as error:
        error.hint = "   or   ".join(filter(None, (error.hint, leaving_out(name))))
        raise
