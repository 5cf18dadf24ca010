"""How the library of a model folder loads it: by its configuration, or one of the files that are its own alone.

Source: transformers 5.23, diffusers 0.42, timm 1.0.31 (models/_hub.py), segmentation-models 0.6, keras-hub 0.32, peft 0.21,
open_clip 3.4.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, TypeGuard

from chkpt_channels.core.errors import printable
from chkpt_channels.folders.channel_counts import reconstructs
from chkpt_channels.folders.library_tables import PIPELINE
from chkpt_channels.formats.base import Loading, NamedNetwork

ADAPTER, OPEN_CLIP = "adapter_config.json", "open_clip_config.json"
_CONFIGURATION = "configuration"


def by_library(path: str, files: Collection[str], config: Mapping[str, Any], adapter: Mapping[str, Any]) -> Loading | None:
    """How the library that saved the folder loads it from `path`; None where its files and its configuration name none.
    `adapter` is the configuration of an adapter (PEFT)."""
    if ADAPTER in files:
        return _of_adapter(path, adapter)
    if PIPELINE in files:
        return _call("diffusers", "DiffusionPipeline.from_pretrained", path, name="pipeline")
    if str(config.get("registered_name")).startswith("keras_hub>"):
        return _call("keras_hub", "models.Backbone.from_preset", path)
    if "pretrained_cfg" in config or ("architecture" in config and "model_type" not in config):
        return _of_timm(path, config.get("architecture"))
    if "_model_class" in config and "encoder_name" in config:
        names = tuple(f"{config[key]}" for key in ("_model_class", "encoder_name") if _is_name(config[key]))
        return _call("segmentation_models_pytorch", "from_pretrained", path, names)
    if _is_name(kind := config.get("_class_name")):
        return _call("diffusers", f"{kind}.from_pretrained", path, (kind,))
    architectures = config.get("architectures")
    if "model_type" in config and isinstance(architectures, list) and architectures and _is_name(architectures[0]):
        # the class that reconstructs no longer fits: its decoder has the old channels
        kind = "AutoModel" if reconstructs(config) else architectures[0]
        return _call("transformers", f"{kind}.from_pretrained", path, (architectures[0],))
    return None


def _is_name(text: object) -> TypeGuard[str]:
    """Whether that is the name of a class: what a configuration holds is pasted as code."""
    return isinstance(text, str) and text.isascii() and text.isidentifier()


def _call(library: str, function: str, path: str, names: tuple[str, ...] = (), *, name: str = "model") -> Loading:
    network = NamedNetwork(library, names, _CONFIGURATION) if names else None
    return Loading((f"import {library}",), f"{name} = {library}.{function}({path!r})", network=network)


def _of_timm(path: str, architecture: object) -> Loading:
    statement = f"model = timm.create_model({f'local-dir:{path}'!r}, pretrained=True)"
    names = (printable(architecture),) if isinstance(architecture, str) else ()
    return Loading(("import timm",), statement, network=NamedNetwork("timm", names, _CONFIGURATION))


def _of_adapter(path: str, config: Mapping[str, Any]) -> Loading:
    """Of an adapter, which goes onto a base model whose image has the new channels too."""
    base = config.get("base_model_name_or_path")
    named = f", {printable(base)}," if isinstance(base, str) and base else ""
    statement = f"model = peft.PeftModel.from_pretrained(model, {path!r})"
    return Loading(("import peft",), statement, needs_model=True, model=f"the base model{named} converted alike")
