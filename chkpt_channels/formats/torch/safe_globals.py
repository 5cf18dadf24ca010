"""The names that a pickle may import without a warning: those that torch.load(weights_only=True) resolves.

Source: torch/_weights_only_unpickler.py of torch 2.13, `_get_allowed_globals()`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

_WEIGHTS_ONLY = re.compile(
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
_SCRIPT = re.compile(r"(__torch__|torch\.jit\._pickle)\b.*")
"""TorchScript's classes are code inside the archive, not imports."""


def foreign(names: Iterable[tuple[str, str]], *, scripted: bool) -> tuple[str, ...]:
    """The (module, name) pairs that weights-only loading would refuse, as dotted names."""
    dotted = {f"{module}.{name}" for module, name in names}
    return tuple(sorted(n for n in dotted if not _WEIGHTS_ONLY.fullmatch(n) and not (scripted and _SCRIPT.fullmatch(n))))
