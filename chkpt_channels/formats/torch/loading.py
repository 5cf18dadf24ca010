"""How Python loads what torch.save wrote: a whole network, a state dict, or one of those that a training checkpoint holds.

Source: torch/serialization.py and `_get_allowed_globals()` of torch/_weights_only_unpickler.py of torch 2.13; Model._load of
ultralytics/engine/model.py, which takes a file only under .pt.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Iterator, Sequence

from chkpt_channels.containers.pickle.nodes import Kind, PickleNode
from chkpt_channels.core.errors import printable
from chkpt_channels.core.records import pattern
from chkpt_channels.formats.base import Loading, NamedNetwork
from chkpt_channels.formats.torch.entries import is_module
from chkpt_channels.formats.torch.object_tree import TorchObject

_WEIGHTS_ONLY = pattern(
    r"""
    torch\.(cuda\.)?(sparse\.)?[A-Z][A-Za-z0-9]*(Tensor|Storage)      # typed tensors and storages
  | torch\.(Size|Tensor|device|nn\.parameter\.Parameter)
  | torch\.storage\.(Untyped|Typed)Storage | torch\.UntypedStorage
  | torch\.(bool|bfloat16|u?int\d+|float\d+(_\w+)?|complex\d+|bits\w+|q?u?int\dx\d|qint\d+|quint\w+|per_(channel|tensor)_\w+)
  | torch\._utils\._rebuild_(parameter(_with_state)?|tensor(_v[23])?|qtensor|sparse_tensor|nested_tensor|meta_tensor_no_storage
      |wrapper_subclass|device_tensor_from_(numpy|cpu_tensor))
  | torch\._tensor\._rebuild_from_type_v2 | torch\.serialization\._get_layout
  | collections\.(OrderedDict|Counter) | _codecs\.encode
  | (builtins|__builtin__)\.(set|bytearray|complex)
    """,
    re.VERBOSE,
)
_SCRIPT = pattern(r"(__torch__|torch\.jit\._pickle)\b.*")
"""TorchScript's classes are code inside the archive, not imports."""
LISTS = (Kind.LIST, Kind.TUPLE)
_TORCH = ("import torch",)
TRUST = "loading runs what its pickle names: only for a file that you trust"
_HERE = frozenset({"cpu", "meta"})
"""Where a storage is that every machine can load."""
_ALWAYS_THERE = frozenset({"torch", "numpy", "__builtin__", "copy_reg"}) | sys.stdlib_module_names
_YOLO = {"RTDETRDetectionModel": "RTDETR", "WorldModel": "YOLOWorld"}
"""Ultralytics' classes that load its modules, where it is not YOLO."""


def of_script(main: TorchObject, path: str) -> Loading:
    """Of a TorchScript archive."""
    return Loading(_TORCH, f"model = torch.jit.load({path!r}{_mapped(main)})")


def of_object(main: TorchObject, path: str, group: str | None, foreign: Sequence[str]) -> Loading:
    """Of a pickled object: the state dict `group` of it, or the module or state dict that it has first. `foreign` are the globals
    that weights-only loading refuses."""
    root, keys = main.tree.root.target, ""
    group = _first_model(main) if group is None else group
    if root.state is None or root.items is not None:
        for step in group.split("/") if group else ():
            keys += f"[{int(step)}]" if root.kind in LISTS and step.isdecimal() else f"[{step!r}]"
            root = _child(root, step) or root
    loaded = f"torch.load({path!r}{_mapped(main)}, weights_only={not foreign}){keys}"
    if not is_module(root) and (root.state is None or root.items is not None):
        remark = "; ".join(filter(None, (_trainer(main.tree.root.target), _remark(foreign))))
        state = f"dict({loaded})" if root.kind in LISTS else loaded
        return Loading(_TORCH, state=state, group=group, remark=remark)
    module, name = _class_of(root)
    library = module.partition(".")[0]
    network = NamedNetwork(library, (name,), "object") if library not in (*_ALWAYS_THERE, "__main__", "") else None
    if module.startswith("ultralytics.nn.") and path.endswith(".pt"):
        loader = _YOLO.get(name, "YOLO")
        return Loading((f"from ultralytics import {loader}",), f"model = {loader}({path!r})", remark=TRUST, network=network)
    return Loading(_TORCH, f"model = {loaded}", remark=_remark(foreign), network=network)


def _first_model(main: TorchObject) -> str:
    """The path of the first state dict or module that is no optimizer's."""
    within_optimizers = {node.where[:at] for node in main.optimizers for at in ends(node.where)}
    return next((group for group in dict.fromkeys(main.groups.values()) if group not in within_optimizers), "")


def ends(where: str) -> Iterator[int]:
    """The indices at which the steps of a path end, that of the empty path first."""
    yield 0
    yield from (i for i, letter in enumerate(where) if letter == "/")
    yield len(where)


def _child(node: PickleNode, step: str) -> PickleNode | None:
    if node.kind in LISTS and step.isdecimal() and int(step) < len(node.children):
        return node.children[int(step)].target
    child = node.lookup(step)
    return child.target if child else None


def _class_of(node: PickleNode) -> tuple[str, str]:
    """The module and the name of an object's class."""
    if node.kind is not Kind.CALL:
        return "", ""
    made_by, arguments = (part.target for part in node.value[:2])
    if made_by.is_global("copyreg", "_reconstructor") or made_by.is_global("copy_reg", "_reconstructor"):
        made_by = next((child.target for child in arguments.children), made_by)
    return made_by.value if made_by.kind is Kind.GLOBAL else ("", "")


def _mapped(main: TorchObject) -> str:
    """The argument without which storages of a GPU load on machines alone that have one."""
    elsewhere = any(storage.location not in _HERE for storage in main.storages.values())
    return ", map_location='cpu'" if elsewhere else ""


def _remark(foreign: Sequence[str]) -> str:
    """What loading runs, and whose code it takes: packages to install, classes that a script defined."""
    own = sorted(name.removeprefix("__main__.") for name in foreign if name.startswith("__main__."))
    if own:
        where = "in __main__: define it first, as where the file was saved"
        return f"torch.load looks for {printable(', '.join(own))} {where}; {TRUST}"
    packages = sorted({name.partition(".")[0] for name in foreign} - _ALWAYS_THERE)
    return f"torch.load imports {printable(', '.join(packages))}; {TRUST}" if packages else TRUST if foreign else ""


def _trainer(root: PickleNode) -> str:
    """What else loads a file of a training framework that is known by its keys."""
    if root.lookup("pytorch-lightning_version"):
        return "Lightning wrote it: load_from_checkpoint of the class that was trained loads it too"
    meta = root.lookup("meta")
    if meta and any(meta.target.lookup(key) for key in ("cfg", "mmengine_version", "mmcv_version")):
        return "mmengine wrote it: meta.cfg is the text of the configuration that builds its network"
    return ""


def foreign(names: Iterable[tuple[str, str]], *, scripted: bool) -> tuple[str, ...]:
    """The (module, name) pairs that weights-only loading would refuse, as dotted names."""
    dotted = {f"{module}.{name}" for module, name in names}
    return tuple(sorted(n for n in dotted if not _WEIGHTS_ONLY.fullmatch(n) and not (scripted and _SCRIPT.fullmatch(n))))
