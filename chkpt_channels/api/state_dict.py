"""A state dict in memory: numpy arrays, or torch tensors of the caller's torch, which is never imported here."""

from __future__ import annotations

import os
import sys
from collections.abc import Hashable, Iterator, Mapping
from typing import Any, Protocol, Unpack

from chkpt_channels.core.dtypes import BY_NAME, BY_TORCH, DType, numpy_dtype
from chkpt_channels.core.errors import Location, UsageError
from chkpt_channels.core.tensors import OpaqueTensor, Tensor
from chkpt_channels.discovery.find import compare_with_like
from chkpt_channels.folders.like_file import memory_of, open_like, settled, state_dict_of
from chkpt_channels.formats.base import TensorStore
from chkpt_channels.transform.option_table import ConvertOptions
from chkpt_channels.transform.options import Options, options_toward
from chkpt_channels.transform.plan import build_plan

NAME = "state dict"
HEADS = ("like", "keep")
"""What becomes of a head whose shape differs from LIKE's: LIKE's own tensors, or those that are there."""


class StateDict(TensorStore):
    """A flat mapping of names to arrays or tensors. Raises UsageError for anything else."""

    title = NAME
    ordered = True
    takes_out = True

    def __init__(self, arrays: Mapping[str, Any]) -> None:
        super().__init__(Location(NAME))
        self.arrays = arrays
        for name, array in arrays.items():
            if what := _opaque(array):
                shape = None if what == _LAZY else tuple(array.shape)
                self.opaque += (OpaqueTensor(name, shape, what, "pass dense tensors with values", follows=len(self.tensors)),)
                continue
            if not isinstance(name, str) or not hasattr(array, "shape") or not hasattr(array, "dtype"):
                hint = f"pass state_dict[{name!r}]" if isinstance(array, Mapping) else ""
                raise UsageError(f"{name!r} is of type {type(array).__name__}, not an array", file=NAME, hint=hint)
            self.tensors[name] = Tensor(name, _dtype(array, name), tuple(int(size) for size in array.shape))

    @property
    def torch(self) -> bool:
        """Whether the values are PyTorch's, whose kernels have the layout OIHW."""
        return any(_is_torch(array) for array in self.arrays.values())

    def chunks(self, name: str) -> Iterator[bytes]:
        """The whole tensor at once: it is in memory."""
        yield _raw(self.arrays[name])

    def memory(self, name: str) -> Hashable:
        """Where the array is: two names of one parameter have one answer."""
        return memory_of(name, self.arrays[name])


class HasStateDict(Protocol):
    """A module, as those of torch are: its state dict is what is converted."""

    def state_dict(self) -> Mapping[str, Any]:
        """Its tensors by name."""


def convert_state_dict(
    state_dict: Mapping[str, Any] | HasStateDict,
    to: str | int | None = None,
    *,
    heads: str | None = None,
    **options: Unpack[ConvertOptions],
) -> dict[str, Any]:
    """A new dict with the first convs changed to `to` input channels ("gray" without it, as in `convert`) and the options of
    `ConvertOptions`. What does not change is the very same object; what does is an array, or a tensor on the same device.

    With `like=model.state_dict()` the result is for `model.load_state_dict`. That raises on a head of another shape, also with
    strict=False: so does this function, unless `heads` is "like" (the head becomes that of `like`) or "keep" (it stays).

    A module stands for its state dict, here and as `like`. Raises UsageError, AmbiguousError, UnsupportedError as `convert` does.
    """
    state_dict = _mapping(state_dict)
    if "like" in options:
        options["like"] = state_dict_of(options["like"])
    checkpoint = StateDict(state_dict)
    parsed = options_toward(to, options)
    given = parsed.plain["like"]
    if heads not in (None, *HEADS) or (heads and given is None):
        raise UsageError(f"heads is {' or '.join(map(repr, HEADS))}, and goes with like", file=NAME)
    if given is not None:
        parsed = settled(parsed, open_like(given), [checkpoint], checkpoint.location)
    plan = build_plan(checkpoint, parsed)
    changed = _heads(checkpoint, parsed, heads) | {
        name: _like(state_dict[name], edit.values(), checkpoint.tensors[name].dtype) for name, edit in plan.edits.tensors.items()
    }
    return {name: changed.get(name, array) for name, array in state_dict.items() if name not in plan.edits.removed}


def _mapping(given: Any) -> Mapping[str, Any]:
    """The state dict that is meant. Raises UsageError for what has none."""
    found = state_dict_of(given)
    if isinstance(found, Mapping):
        return found
    hint = "chkpt_channels.convert(path)" if isinstance(given, str | os.PathLike) else "pass model.state_dict()"
    what = f"the class {given.__name__}" if isinstance(given, type) else f"a {type(given).__name__}"
    raise UsageError(f"is {what}, not a mapping of names to arrays", file=NAME, hint=hint)


def _heads(checkpoint: StateDict, options: Options, choice: str | None) -> dict[str, Any]:
    """LIKE's tensors for the heads that differ, by name. Raises UnsupportedError where the caller has not chosen, UsageError
    where LIKE has no values."""
    heads, given = compare_with_like(checkpoint, options.search).heads, options.plain["like"]
    if not heads or choice == "keep":
        return {}
    name, after = heads[0].tensor.name, list(heads[0].shape)
    if choice is None:
        what = f"is a head of another shape, {list(heads[0].tensor.shape)} here and {after} in LIKE, and would not load"
        raise checkpoint.location.at(name).unsupported(what, hint='heads="like"   or   heads="keep"')
    if not isinstance(given, Mapping) or any(getattr(given[head.key], "is_meta", False) for head in heads):
        what = 'heads="like" takes the values of LIKE, which must be a state dict with values'
        raise UsageError(what, file=NAME, where=name, hint="like=model.state_dict()")
    return {head.tensor.name: given[head.key] for head in heads}


def _is_torch(array: Any) -> bool:
    """Whether it is a tensor, of torch's own class or of a library's."""
    return type(getattr(array, "dtype", None)).__module__ == "torch"


_LAZY = "is not initialized: its lazy module never ran"


def _opaque(array: Any) -> str:
    """What a tensor is that has no dense values of its own; "" for one that has."""
    if not _is_torch(array):
        masked = type(array).__module__ in ("numpy.ma", "numpy.ma.core")  # the second in older numpy
        return "is a masked array, of which some numbers do not count" if masked else ""
    if type(array).__name__ in ("UninitializedParameter", "UninitializedBuffer"):
        return _LAZY
    if str(array.layout) != "torch.strided":
        return f"is a tensor of the layout {array.layout}, and only dense ones are converted"
    if array.device.type == "meta":
        return "is on the meta device and has no values"
    plain = sys.modules["torch"].Tensor  # whoever made the tensor has imported it
    if type(array).__torch_dispatch__ is not plain.__torch_dispatch__:
        return f"is a {type(array).__name__}, whose values only its own class can read"
    return ""


def _dtype(array: Any, name: str) -> DType:
    dtype_name = str(array.dtype).removeprefix("torch.")
    rows = BY_TORCH if _is_torch(array) else {row.numpy: row for row in reversed(BY_NAME.values()) if row.numpy}
    if dtype_name not in rows:
        raise UsageError(f"{name} is of the type {dtype_name}, which is not known", file=NAME)
    return rows[dtype_name]


def _raw(array: Any) -> bytes:
    if not _is_torch(array):
        import numpy as np

        return np.ascontiguousarray(array).tobytes()
    torch = sys.modules["torch"]  # whoever made the tensor has imported it
    plain = array.detach().cpu().resolve_conj().resolve_neg().contiguous().reshape(-1)
    raw: bytes = plain.view(torch.uint8).numpy().tobytes()  # as bytes: numpy knows neither bfloat16 nor FP8
    return raw


def _like(old: Any, values: Any, dtype: DType) -> Any:
    """The new values as the type of the old ones: an array, or a tensor on the same device."""
    if not _is_torch(old):
        return values.astype(numpy_dtype(dtype), copy=False)
    torch = sys.modules["torch"]
    tensor = torch.frombuffer(bytearray(values.tobytes()), dtype=old.dtype).reshape(values.shape)
    return tensor.to(old.device)
