"""What a file holds: every tensor's name, dtype, shape and bytes, by this package's reader and by the real frameworks."""

import io
import os
import pickle
import re
import types
import zipfile

os.environ.setdefault("KERAS_BACKEND", "torch")

import h5py
import numpy as np
import onnx
import safetensors
import torch
from onnx import TensorProto, numpy_helper

from chkpt_channels.core.dtypes import BY_TORCH
from chkpt_channels.formats import known
from tests.frameworks.oracle import leaves
from tests.support.files import brought, opened

BY_NUMPY = {row.numpy: row.name for row in reversed(BY_TORCH.values()) if row.numpy}
ALLOWED = (
    r"collections\.OrderedDict|torch\.(_utils\._rebuild_\w+|storage\.\w+|\w+Storage|Size|device|dtype|\w+int\w*|\w*float\w*|per_\w+_affine)|"
    r"torch\.(_tensor\._rebuild_from_type_v2|nn\.parameter\.Parameter|\w*Tensor|_utils|_utils\._rebuild_\w+)|"
    r"torch\.serialization\._get_layout|_codecs\.encode|argparse\.Namespace|__builtin__\.set|torch\.nn\.modules\.\w+\.\w+|torch_networks\.\w+|torch_objects\.\w+"
)


def ours(path):
    """By this package's reader."""
    with opened(path) as checkpoint:
        return {
            name: (tensor.dtype.name, tensor.shape, b"".join(checkpoint.chunks(name)))
            for name, tensor in checkpoint.tensors.items()
        }


def of_torch(tensor):
    """A tensor of torch, and what belongs to it where it is quantized."""
    dtype, tensor = BY_TORCH[str(tensor.dtype).removeprefix("torch.")].name, tensor.detach().resolve_neg().resolve_conj()
    numbers = tensor.int_repr() if tensor.is_quantized else tensor
    raw = numbers.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes() if numbers.numel() else b""
    return dtype, tuple(tensor.shape), raw


def parts(name, tensor):
    """The scales and zero points of a quantized tensor, as this package names them."""
    if not tensor.is_quantized:
        return {}
    if tensor.qscheme() == torch.per_tensor_affine:
        return {f"{name}/scale": of_torch(torch.tensor(tensor.q_scale(), dtype=torch.float64))}
    return {
        f"{name}/scales": of_torch(tensor.q_per_channel_scales()),
        f"{name}/zero_points": of_torch(tensor.q_per_channel_zero_points()),
    }


class Guarded(types.ModuleType):
    """pickle for torch.load, which reads more opcodes than its own reader of weights; what it may call is listed here."""

    class Unpickler(pickle.Unpickler):
        def find_class(self, module, name):
            if not re.fullmatch(ALLOWED, f"{module}.{name}"):
                raise pickle.UnpicklingError(f"{module}.{name} is not allowed here")
            return super().find_class(module, name)

    @classmethod
    def load(cls, file, **options):
        return cls.Unpickler(file, **options).load()


def by_torch(path):
    scripted = False
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            scripted = any(name.endswith("/constants.pkl") for name in archive.namelist())
    made = torch.jit.load(path) if scripted else torch.load(path, weights_only=False, pickle_module=Guarded)
    found = {}
    for name, leaf in leaves(made):
        if isinstance(leaf, torch.Tensor):
            found |= {name: of_torch(leaf)} | parts(name, leaf)
    return found


def by_safetensors(path):
    with safetensors.safe_open(path, "pt") as file:
        return {name: of_torch(file.get_tensor(name)) for name in file.keys()}  # noqa: SIM118


def by_onnx(path):
    model = onnx.load(path)
    stored = [(tensor.name, tensor) for tensor in model.graph.initializer]
    for node in model.graph.node:
        if node.op_type == "Constant" and not node.domain:
            stored += [
                (node.output[0], one.t) for one in node.attribute if node.output and one.name == "value" and one.HasField("t")
            ]
    return {name: of_numpy(numpy_helper.to_array(tensor)) for name, tensor in stored if tensor.data_type != TensorProto.STRING}


def of_numpy(array):
    return BY_NUMPY.get(array.dtype.name, array.dtype.name), tuple(array.shape), np.ascontiguousarray(array).tobytes()


def by_h5py(file, names):
    """The arrays of numbers, by those names that this package gives them, and by their own where it gives them none."""
    found, seen, todo = {}, [file], [("", file)]
    while todo:
        path, group = todo.pop()
        for name in group:
            where = f"{path}/{name}" if path else name
            try:
                if not isinstance(group.get(name, getlink=True), h5py.HardLink):
                    continue
                item = group[name]
                known = item in seen
            except RuntimeError:  # damaged, and no tensor: those of `names` are read below
                continue
            if isinstance(item, h5py.Group) and not known:
                seen.append(item)
                todo.append((where, item))
            elif isinstance(item, h5py.Dataset) and item.shape is not None and is_numbers(item):
                found[identity(item, where)] = where
    found |= {identity(file[name], name): name for name in names}
    return {where: numbers(file[where]) for where in found.values()}


def identity(item, where):
    """What is the same for all names of a dataset; its name, where the library cannot tell."""
    try:
        return hash(item.id)
    except (RuntimeError, TypeError):
        return where


def leads(file, where):
    """Whether something stands there; `in` asks for more than reading needs."""
    try:
        return file[where] is not None
    except KeyError:
        return False


def is_numbers(item):
    return item.dtype.kind in "biufc" or is_bfloat16(item)


def is_bfloat16(item):
    return item.dtype.itemsize == 2 and item.dtype.kind == "V" and item.attrs.get("dtype") in ("bfloat16", b"bfloat16")


def numbers(item):
    array = np.asarray(item[()])
    if is_bfloat16(item):
        return "BF16", array.shape, array.tobytes()
    return of_numpy(array.astype(array.dtype.newbyteorder("=")))


def by_keras_h5(path):
    with h5py.File(path) as file:
        whole = "model_weights" in file and any(name.startswith("model_config") for name in file.attrs)
        paths = {name: f"model_weights/{name}" if whole and leads(file, f"model_weights/{name}") else name for name in ours(path)}
        named = {where: name for name, where in paths.items()}
        return {named.get(where, where): read for where, read in by_h5py(file, named).items()}


def by_keras_zip(path):
    with zipfile.ZipFile(path) as archive, h5py.File(io.BytesIO(archive.read("model.weights.h5"))) as file:
        return by_h5py(file, ours(path))


THEIRS = {
    "torch_zip": by_torch,
    "torch_legacy": by_torch,
    "safetensors": by_safetensors,
    "onnx": by_onnx,
    "keras_h5": by_keras_h5,
    "keras_zip": by_keras_zip,
}
THEIRS |= {form.name: brought(form.name, "readings", "theirs") for form in known() if form.name not in THEIRS}
"""A format that is not listed brings its own: `theirs` of tests/formats/<format>/readings.py."""
