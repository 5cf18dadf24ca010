"""Files drawn at random that say one thing in many ways, and what two readers make of each: ours, and the framework's.

Each way is one in which readers once differed: what a pickle does to a tensor after it is made, lists that grow after they were
read, zip names in other letters, datasets on the same bytes, names that are stored twice.
"""

import io
from collections.abc import Callable
from dataclasses import replace
from random import Random
from typing import Any, NamedTuple

import h5py
import numpy as np
import onnxruntime
import torch

from chkpt_channels.formats.torch.checkpoint import MAIN
from fixtures.generate.hostile import readings as rows
from fixtures.generate.hostile.hdf5 import changed, kernel, kernel_path
from fixtures.generate.hostile.models import model
from fixtures.generate.hostile.readings import NO_HOOKS, PARAMETER, TENSOR, TYPED, again, built, parameter
from tests.frameworks import readings
from tests.frameworks.oracle import leaves
from tests.support.builders import Call, Global, Raw, Zipped, c_strides, spelled, storage, torch_legacy, torch_zip, zipped
from tests.support.files import opened
from tests.support.mutations import zips

Reading = dict[str, Any]
KINDS = {"Float": "<f4", "Double": "<f8", "Half": "<f2", "Int": "<i4", "ComplexFloat": "<c8"}
SHAPES = ((4, 3, 3, 3), (4, 3, 3, 3), (4, 3, 3, 3), (5, 4, 3, 3), (4,), (2, 0))


class Pair(NamedTuple):
    """How a file of a kind is drawn, how this package reads it, and how the framework does, in each of its ways."""

    draw: Callable[[Random], bytes]
    suffix: str
    ours: Callable[[Any], Reading]
    theirs: tuple[Callable[[Any], Reading], ...]


# torch: what is done to a tensor


class Drawing:
    """One pickle: its storages, and the tensors over them, spelled in some way."""

    def __init__(self, chance: Random) -> None:
        self.chance, self.stored, self.counts = chance, dict[str, bytes](), dict[str, int]()

    def maybe(self, odds: float) -> bool:
        return self.chance.random() < odds

    def store(self, kind: str, count: int) -> Any:
        key = str(len(self.stored))
        numbers = np.random.default_rng(self.chance.randrange(1 << 30)).normal(size=2 * count) * 9
        wide = numbers[:count] + 1j * numbers[count:] if kind == "ComplexFloat" else numbers[:count]
        self.stored[key], self.counts[key] = wide.astype(KINDS[kind]).tobytes(), count
        made = storage(key, count, kind)
        return built(made, {"dtype": Global("torch", "int32")}) if self.maybe(0.01) else made

    def arguments(self) -> tuple[Any, ...]:
        """Storage, offset, size, stride, and what goes with them; the first is a kernel."""
        if not self.stored:
            return self.store("Float", 108), 0, (4, 3, 3, 3), (27, 9, 3, 1), False, NO_HOOKS
        kind = self.chance.choice(("Float",) * 6 + (*KINDS,))
        shape, offset = self.chance.choice(SHAPES), self.chance.choice((0, 0, 0, 3))
        stride: Any = c_strides(shape)
        if len(shape) == 4 and self.maybe(0.2):
            stride = (27, 1, 9, 3) if shape[1] == 3 else (36, 1, 12, 4)
        size: Any = [*shape] if self.maybe(0.02) else shape
        return self.store(kind, offset + int(np.prod(shape))), offset, size, stride, self.maybe(0.2), NO_HOOKS

    def tensor(self) -> Any:
        """A call of one of torch's functions, and what wraps or changes it."""
        given, name = self.arguments(), "_rebuild_tensor_v2"
        if self.maybe(0.3):
            given = (*given, self.chance.choice(BITS))
        elif self.maybe(0.1):
            given, name = given[:4], "_rebuild_tensor"
        function = Global("torch", f"_utils.{name}") if self.maybe(0.1) else Global("torch._utils", name)
        if self.maybe(0.1):
            made: Any = parameter(Call(function, given), {"data": Call(function, given), "blocksize": 64})
        elif self.maybe(0.2):
            made = Call(TYPED, (function, self.chance.choice((TENSOR, PARAMETER)), given, self.state()))
        else:
            made = Raw(spelled(function) + spelled([*given]) + b"R") if self.maybe(0.02) else Call(function, given)
        for _ in range(self.chance.choice((0, 0, 1, 1, 2))):
            made = self.chance.choice((self.in_parameter, self.in_class, self.changed))(made)
        return made

    def in_parameter(self, made: Any) -> Any:
        return parameter(made, self.state())

    def in_class(self, made: Any) -> Any:
        return Call(PARAMETER, (made, self.maybe(0.5)))

    def changed(self, made: Any) -> Any:
        """BUILD or SETITEM on it, now and then."""
        if self.maybe(0.8):
            return made
        if self.maybe(0.3):
            return Raw(spelled(made) + spelled(0) + spelled(1.5) + b"s")
        other = self.arguments()
        state = self.chance.choice(
            ((*other[:4],), (Call(rows.V2, other), None, NO_HOOKS, False, False), (False, False, NO_HOOKS))
        )
        return built(made, state)

    def state(self) -> Any:
        if self.maybe(0.1):
            other = {
                self.chance.choice(("data", "real", "grad", "note", self.chance.choice(ATTRIBUTES))): Call(
                    rows.V2, self.arguments()
                )
            }
            return self.chance.choice((other, (None, other), ({}, other)))
        return self.chance.choice((None, {}, {"note": 1}, ({"note": 1}, None), {"requires_grad": False}))

    def root(self) -> Any:
        """A state dict in some form, in which tensors are repeated, replaced or added late."""
        named = {
            name: self.tensor() for name in ("conv1.weight", "k0", "conv2.weight", "bias")[: self.chance.choice((1, 1, 2, 3, 4))]
        }
        first = next(iter(named))
        if self.maybe(0.1):
            named[first], named["again"] = again(named[first])
        match self.chance.randrange(8):
            case 0:
                return Call(Global("collections", "OrderedDict"), (named,))
            case 1:
                pairs, same = again([*named.items()])
                late = Raw(spelled(same) + spelled(("late", self.tensor())) + b"a")
                made = Call(Global("collections", "OrderedDict"), (pairs,))
                return {"state_dict": made} | ({"rest": late} if self.maybe(0.3) else {})
            case 2:
                return {"state_dict": named, "epoch": 3}
            case 5:
                ghost = [("conv0.weight", Call(rows.V2, self.arguments()))]
                made = (
                    spelled(Global("collections", "OrderedDict"))
                    + spelled((ghost,))
                    + self.chance.choice((b"\x81", b"}\x92", b"R"))
                )
                return Raw(made + b"(" + b"".join(spelled(name) + spelled(value) for name, value in named.items()) + b"u")
            case 6:
                inner: Any = Call(Global("collections", "OrderedDict"), ([*named.items()],))
                return Raw(
                    spelled(Call(Global("collections", "OrderedDict"), (inner,)))
                    + spelled("late")
                    + spelled(self.tensor())
                    + b"s"
                )
            case 3 if self.maybe(0.5):
                more = self.chance.choice((None, self.tensor()))
                return Raw(spelled(named) + spelled(first) + spelled(more) + b"s")
            case 4:
                weights = {"weight": self.tensor(), "bias": None}
                state = {"training": False, "_parameters": weights, "_buffers": {}, "_modules": {}, "in_channels": 3, "groups": 1}
                states = [state, {"_parameters": {"weight": self.tensor()}}][: 1 + self.maybe(0.3)]
                if self.maybe(0.3):
                    states[0] = self.chance.choice(
                        (Call(Global("collections", "OrderedDict"), ([*state.items()],)), (*state.items(),))
                    )
                return {"m": built(Call(Global("torch.nn.modules.conv", "Conv2d"), (3, 4, 3)), *states)} | named
            case _:
                return named


ATTRIBUTES = dir(torch.nn.Parameter)
BITS: tuple[Any, ...] = (
    None,
    {},
    {"neg": True},
    {"neg": True},
    {"neg": False},
    {"conj": True},
    {"neg": True, "conj": True},
    {"x": True},
    [("neg", True)],
)


def torch_file(chance: Random) -> bytes:
    drawing = Drawing(chance)
    return torch_zip(drawing.root(), drawing.stored)


def legacy_file(chance: Random) -> bytes:
    drawing = Drawing(chance)
    raw = b"\x80\x02" + spelled(drawing.root()) + b"."
    return torch_legacy(raw.replace(b"tQ", b"NtQ"), drawing.stored, counts=drawing.counts)


def our_tensors(path: Any) -> Reading:
    """Type, shape and elements of each tensor, its stride, and its bits."""
    with opened(path) as checkpoint:
        views = checkpoint.objects[MAIN].views
    return {name: (*reading, views[name].stride, *bits(views[name])) for name, reading in readings.ours(path).items()}


def bits(view: Any) -> tuple[bool, bool]:
    """Whether it is negated, and conjugated."""
    half = len(view.signs) // 2
    if view.signs and view.dtype.name.startswith("C"):
        return view.signs[half - 1] != 0, view.signs[half - 1] != view.signs[-1]
    return bool(view.signs), False


def by_torch(weights_only: bool) -> Callable[[Any], Reading]:
    def read(path: Any) -> Reading:
        options = {} if weights_only else {"pickle_module": readings.Guarded}
        made = torch.load(path, weights_only=weights_only, **options)
        return {
            name: (*readings.of_torch(one), tuple(one.stride()), one.is_neg(), one.is_conj())
            for name, one in leaves(made)
            if isinstance(one, torch.Tensor)
        }

    return read


# zip: names


def zip_file(chance: Random) -> bytes:
    """An archive of torch, some of its members under other names."""
    drawn = torch_zip(
        {"conv1.weight": rows.conv(), "other": rows.FLAT}, rows.STORED, chance.choice(({}, {"byteorder": b"little"}))
    )
    members = zips.parsed(drawn)
    for _ in range(chance.choice((0, 1, 1, 2))):
        i = chance.randrange(len(members))
        one = members[i]
        match chance.randrange(5):
            case 0:
                members[i] = replace(one, name=other_letters(one.name, chance))
            case 1:
                others = [member.data for member in members if len(member.data) == len(one.data)]
                members.insert(
                    chance.randrange(len(members) + 1), Zipped(other_letters(one.name, chance), chance.choice((b"big", *others)))
                )
            case 2:
                name = chance.choice(("byteorder", "version", ".data/version", ".format_version", "constants.pkl", "data/2"))
                members.append(Zipped("archive/" + other_letters(name, chance), chance.choice((b"big", b"3\n", b"1"))))
            case _:
                field = {chance.choice(("extra", "central")): rows.unicode_path(one.name, chance.choice((one.name, "archive/x")))}
                members[i] = replace(one, **field)
    return zipped(*members)


def other_letters(name: str, chance: Random) -> str:
    """The name, one or all of its letters in the other case."""
    letters = [i for i, letter in enumerate(name) if letter.isalpha()]
    chosen = set(letters if chance.random() < 0.5 else chance.sample(letters, 1))
    return "".join(letter.swapcase() if i in chosen else letter for i, letter in enumerate(name))


# HDF5: addresses


def hdf5_file(chance: Random) -> bytes:
    """A Keras model with more datasets, some of them on the bytes of others."""
    packed = {"chunks": (3, 3, 3, 8), "compression": "gzip"}
    count, libver = chance.randrange(1, 4), chance.choice(("earliest", "v108", "latest"))

    def change(file: h5py.File) -> None:
        del file[kernel_path()]
        file.create_dataset(kernel_path(), data=kernel(), **chance.choice(({}, packed, packed, packed | {"shuffle": True})))
        for i in range(count):
            numbers = np.random.default_rng(i).normal(size=kernel().shape).astype("f4")
            texts, records = np.array([b"x" * 16] * 54), np.zeros(99, [("a", "i4"), ("b", "S5")])
            options = chance.choice(({}, packed))
            data = numbers if options else chance.choice((numbers.ravel(), texts, records))
            file.create_dataset(f"aside{i}", data=data, **options)
            if chance.random() < 0.3:
                file[f"aside{i}"].attrs["note"] = np.zeros(chance.choice((0, 10, 50_000)), "u1")

    held = io.BytesIO(changed_bytes(change, libver))
    for i in range(count):
        if chance.random() < 0.3:
            one = chance.choice([kernel_path(), *(f"aside{k}" for k in range(count) if k != i)])
            held = io.BytesIO(rows.moved(held.getvalue(), f"aside{i}", one))
    return held.getvalue()


def changed_bytes(change: Callable[[h5py.File], None], libver: str) -> bytes:
    from pathlib import Path
    from tempfile import TemporaryDirectory

    with TemporaryDirectory() as folder:
        changed(change, libver=libver)(Path(folder))
        return (Path(folder) / "a.h5").read_bytes()


# ONNX: names


def onnx_file(chance: Random) -> bytes:
    """A model that stores more, under the names that it has or under new ones."""

    def change(made: Any) -> None:
        for _ in range(chance.choice((0, 1, 1, 2, 3))):
            name = chance.choice(("W", "other", "t", "s", "out"))
            match chance.randrange(4):
                case 0:
                    made.graph.sparse_initializer.append(rows.sparse(name))
                case 1:
                    made.graph.initializer.insert(chance.randrange(3), rows.text(name))
                case 2:
                    made.graph.node.insert(
                        0, rows.helper.make_node("Constant", [], [name], value=rows.numpy_helper.from_array(rows.W))
                    )
                case 3:
                    made.graph.initializer.append(rows.numpy_helper.from_array(rows.W[::-1].copy(), name))

    return model(change)


def our_weights(path: Any) -> Reading:
    """The answer of the network whose kernel is the one that is read here."""
    kernel_read = torch.tensor(np.frombuffer(readings.ours(path)["W"][2], "f4").reshape(readings.ours(path)["W"][1]))
    return {
        "out": np.round(torch.nn.functional.conv2d(torch.tensor(image(kernel_read.shape[1])), kernel_read).numpy(), 3).tolist()
    }


def by_onnxruntime(path: Any) -> Reading:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    channels = session.get_inputs()[0].shape[1]
    return {"out": np.round(session.run(None, {"image": image(channels)})[0], 3).tolist()}


def image(channels: int) -> np.ndarray:
    return np.repeat(np.random.default_rng(1).normal(size=(1, 1, 8, 8)).astype("f4"), channels, 1)


TORCH = (by_torch(False), by_torch(True))
PAIRS = {
    "tensors of torch": Pair(torch_file, ".pth", our_tensors, TORCH),
    "tensors of old torch": Pair(legacy_file, ".pth", our_tensors, TORCH),
    "zip names": Pair(zip_file, ".pth", our_tensors, TORCH),
    "HDF5 addresses": Pair(hdf5_file, ".h5", readings.ours, (readings.by_keras_h5,)),
    "ONNX names": Pair(onnx_file, ".onnx", our_weights, (by_onnxruntime,)),
}
