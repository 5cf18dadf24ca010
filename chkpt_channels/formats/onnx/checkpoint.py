"""ONNX: a protobuf message whose graph holds nodes, stored tensors and declared shapes.

    ModelProto { graph: GraphProto { node*, initializer*, input*, output*, value_info* } }

Read as spans of the wire format (`_onnx_model`), followed from the image on (`_onnx_path`), edited by whole fields: unknown
fields, field order and everything else stay as they are, at any size. The judge is onnx's own schema.
Source: onnx/onnx.proto and docs/IR.md of onnx 1.23.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chkpt_channels.core import lazy
from chkpt_channels.core.errors import UsageError
from chkpt_channels.formats.base import Checkpoint, Declaration, Edits, FirstConv, Front, Notice, Tensor, TensorEdit
from chkpt_channels.storage.source import Source, check_link
from chkpt_channels.storage.splice import Splice
from chkpt_channels.transform.quantization import Quantiser

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from chkpt_channels.formats.onnx import edits as _onnx_edits
    from chkpt_channels.formats.onnx import external_data as _onnx_beside
    from chkpt_channels.formats.onnx import model as _onnx_model
    from chkpt_channels.formats.onnx import quantization as _onnx_quantised
    from chkpt_channels.formats.onnx import schema as _onnx_schema
    from chkpt_channels.formats.onnx import tensor_data as _onnx_payload
    from chkpt_channels.formats.onnx.dataflow import image_inputs as _onnx_images
    from chkpt_channels.formats.onnx.dataflow import padding as _onnx_border
    from chkpt_channels.formats.onnx.dataflow import trace as _onnx_path
    from chkpt_channels.formats.onnx.dataflow import values as _onnx_flow
else:
    _onnx_beside = lazy.module("chkpt_channels.formats.onnx.external_data", __package__)
    _onnx_border = lazy.module("chkpt_channels.formats.onnx.dataflow.padding", __package__)
    _onnx_edits = lazy.module("chkpt_channels.formats.onnx.edits", __package__)
    _onnx_images = lazy.module("chkpt_channels.formats.onnx.dataflow.image_inputs", __package__)
    _onnx_model = lazy.module("chkpt_channels.formats.onnx.model", __package__)
    _onnx_path = lazy.module("chkpt_channels.formats.onnx.dataflow.trace", __package__)
    _onnx_payload = lazy.module("chkpt_channels.formats.onnx.tensor_data", __package__)
    _onnx_quantised = lazy.module("chkpt_channels.formats.onnx.quantization", __package__)
    _onnx_schema = lazy.module("chkpt_channels.formats.onnx.schema", __package__)

CHUNK = 4 << 20
VARINT, BYTES = 0, 2  # wire types
GRAPH = 7  # the field of a ModelProto


class Onnx(Checkpoint):
    """One ONNX model, with the files beside it that hold its external data."""

    format = "onnx"
    title = "ONNX"
    suffixes = frozenset({".onnx"})
    ordered = True
    adds_tensors = True

    @classmethod
    def sniff(cls, source: Source) -> bool:
        """A protobuf whose first fields could be a ModelProto's, and which has a graph."""
        head = source.read(0, min(16, source.size))
        if not head or head[0] not in (0x08, 0x12, 0x1A, 0x22, 0x28, 0x32, 0x3A, 0x42):
            return False
        if head[4:9] == b"\0\0\0\0{":  # the length of a JSON header, as safetensors has it, may look like a graph's
            return False
        return _top_fields_look_right(source)

    def __init__(self, source: Source) -> None:
        super().__init__(source)
        self.model = _onnx_model.OnnxModel(source)
        self._folder = Path(source.name).parent
        self._payloads: dict[str, _onnx_payload.Payload] = {}
        self._others: dict[Path, Source] = {}
        self._named: tuple[str, ...] = ()
        for weight in self.model.weights.values():
            self._payloads[weight.name] = _onnx_payload.payload(weight, source.place, self._folder)
            self.tensors[weight.name] = Tensor(weight.name, weight.dtype, weight.shape)
        if not source.made_here:  # the files that go with what was made are published with it
            _onnx_beside.check(self.model.weights, self._payloads)
        if self.model.graph.fields.get(_onnx_schema.GRAPH_SPARSE):
            self.warnings.append(Notice("sparse", "sparse initializers are copied as they are"))

    def chunks(self, name: str) -> Iterator[bytes]:
        weight, found = self.model.weights[name], self._payloads[name]
        source, start, stop = self._where(weight, found)
        if source is None:
            yield _onnx_payload.typed_elements(weight)
            return
        for at in range(start, stop, CHUNK):
            yield source.read(at, min(at + CHUNK, stop))

    def _where(self, weight: _onnx_model.Weight, found: _onnx_payload.Payload) -> tuple[Source | None, int, int]:
        if found.path is not None:
            return self._beside(found.path), found.start, found.stop
        if found.field is not None and found.field.number == 9:
            return self.source, found.field.value, found.field.stop
        return None, 0, 0

    def _beside(self, path: Path) -> Source:
        if path not in self._others:
            self._check_link(path)
            self._others[path] = self.source.keep(Source(path))
        return self._others[path]

    def _check_link(self, path: Path) -> None:
        if not self.follows_links:
            check_link(self.source.place, path, self._folder, f"its data file {path.name} is")

    def load_weight(self, weight: _onnx_model.Weight) -> NDArray[Any]:
        """A stored tensor as an array."""
        return self.load(weight.name)

    @cached_property
    def paths(self) -> list[_onnx_path.ImagePath]:
        """From each image input on. Raises UnsupportedError where it runs into one of the model's own functions."""
        paths = _onnx_images.image_paths(self.model, self.load_weight, self._named)
        for path in paths:
            self._refuse_inner_kernels(path)
            for constants in path.fronts:
                node = constants.node
                if (node.domain, node.op) in self.model.functions:
                    raise self.source.place.inside(node.label).unsupported(
                        f"the image runs into the model's own function {node.op}"
                    )
        return paths

    def _refuse_inner_kernels(self, path: _onnx_path.ImagePath) -> None:
        """Kernels of subgraphs' own stay: only those of the main graph are edited."""
        for reached in path.reached:
            name = next((name for name in reached.node.inputs if name in self.model.inner), None)
            if name and reached.kernel is None:
                what = f"its weights stand in a subgraph of {self.model.inner[name]}, and only those of the main graph are edited"
                raise self.source.place.inside(reached.node.label).unsupported(what)

    def name_images(self, names: Sequence[str]) -> None:
        known = [info.name for info in self.model.inputs]
        for name in names:
            if name not in known:
                raise UsageError(f"no input is called {name!r}; it has {', '.join(known)}", file=self.source.name)
        self._named = tuple(names)

    def first_convs(self) -> Sequence[FirstConv]:
        found: dict[str, FirstConv] = {}
        for path in self.paths:
            for reached in path.reached:
                if conv := self._first_conv(path, reached):
                    found.setdefault(conv.tensor.name, conv)
        direct = [conv for conv in found.values() if conv.layout]
        return direct or list(found.values())

    def _first_conv(self, path: _onnx_path.ImagePath, reached: _onnx_flow.Reached) -> FirstConv | None:
        if reached.kernel is None:
            return None
        why = f"the image {path.image.name!r} reaches it" + (f" through {_listed(path)}" if path.fronts else "")
        tensor, channels = self.tensors[reached.kernel.name], reached.channels or path.image.dims[path.channel] or 0
        groups = reached.node.integer("group", 1) if reached.layout else 1
        return FirstConv(tensor, reached.layout, channels, "graph", why, groups)

    def fronts(self, first_convs: Sequence[FirstConv]) -> Sequence[Front]:
        found = [front for conv in first_convs for reached in self._users(conv) for front in reached.fronts]
        # what mixes channels elsewhere on the way concerns every kernel
        found += [c.front for path in self.paths for c in path.fronts if c.front.scale is None]
        return list(dict.fromkeys(found))

    def graph_methods(self, first_convs: Sequence[FirstConv]) -> Sequence[str]:
        broadcasts = self.model.opset >= 7 and all(path.broadcasts and path.fronts for path in self.paths)
        return ("broadcast", "stack") if broadcasts else ("stack",)

    def shift_taker(self, conv: FirstConv) -> tuple[str, int] | None:
        users = self._users(conv)
        return _onnx_edits.shift_taker(self.model, users[0].node) if len(users) == 1 else None

    def insides(self, conv: FirstConv) -> Sequence[tuple[tuple[int, int], ...]]:
        return [spans for reached in self._users(conv) for spans in _onnx_border.insides(reached)]

    def _users(self, conv: FirstConv) -> list[_onnx_flow.Reached]:
        """Those that take the image with this kernel."""
        reached = [r for path in self.paths for r in path.reached if r.layout and r.kernel]
        return [r for r in reached if r.kernel and r.kernel.name == conv.tensor.name]

    def _quantised(self, conv: FirstConv) -> _onnx_quantised.Quantised | None:
        users = [] if conv.tensor.dtype.floating else self._users(conv)
        return _onnx_quantised.quantised(self.model, users[0].node, self.model.weights[conv.tensor.name]) if users else None

    def quantiser(self, conv: FirstConv) -> Quantiser | None:
        found = self._quantised(conv)
        return Quantiser(found.scale.name, found.zero.name if found.zero else 0) if found else None

    def kernel_edits(self, conv: FirstConv, edit: TensorEdit) -> dict[str, TensorEdit]:
        made, found = super().kernel_edits(conv, edit), self._quantised(conv)
        return made | _onnx_quantised.bias_edits(found, made[found.scale.name], self.load_weight) if found else made

    def ungrouped(self, conv: FirstConv, channels: int) -> tuple[int, ...] | None:
        shape = conv.tensor.shape
        return shape if channels == 1 else (shape[0], channels, *shape[2:])

    def count_edits(self, channels: int) -> dict[str, TensorEdit]:
        counts = [count for path in self.paths for count in path.counts]
        return _onnx_edits.count_edits(counts, channels, self.load_weight)

    def declarations(self, first_convs: Sequence[FirstConv]) -> Sequence[Declaration]:
        found = []
        for path in self.paths:
            channels = path.image.dims[path.channel]
            if channels is not None:
                found.append(Declaration(f"graph.input {path.image.name}", channels))
        return found

    def contradictions(self, first_convs: Sequence[FirstConv]) -> Sequence[tuple[Declaration, int]]:
        return [
            (Declaration(f"graph.input {path.image.name}", channels), width)
            for path in self.paths
            for width in path.widths
            if (channels := path.image.dims[path.channel]) is not None
        ]

    def load_line(self, path: str) -> str:
        return f"session = onnxruntime.InferenceSession({path!r})"

    def splices(self, edits: Edits) -> list[Splice]:
        if edits:
            return _onnx_edits.OnnxEdits(self.model, self.paths, edits, self.source.place, self.load_weight).splices()
        return _onnx_edits.renamed(self.model, edits.companions)  # a copy names no file but those that were made with it

    def companions(self, path: Path, *, edited: bool) -> dict[str, str]:
        names = list(_onnx_edits.locations(self.model))
        for weight in self.model.weights.values():
            if (beside := self._payloads[weight.name].path) is not None:
                self._check_link(beside)
                _onnx_beside.check_sum(beside, weight)
        if not edited and path.parent.resolve() == self._folder.resolve():
            return {}
        # every name is made of the output's: a model that could choose one would write files of its own choice
        if len(names) == 1:
            return {names[0]: path.name + ".data"}
        return {name: f"{path.name}.{Path(name).name}" for name in names}

    def call_judge(self) -> None:
        onnx_schema()

    def is_refused(self) -> bool:
        try:
            self.judge("")
        except Exception:  # whatever protobuf raises
            return True
        return False

    def judge(self, path: str) -> None:
        schema = onnx_schema()
        parsed = schema.ModelProto()
        parsed.ParseFromString(_onnx_payload.skeleton(self.model.root))
        if len(parsed.graph.initializer) != len(self.model.graph.fields.get(_onnx_schema.GRAPH_INITIALIZERS, ())):
            raise RuntimeError("onnx's schema reads another number of initializers")


def onnx_schema() -> Any:
    """onnx's protobuf classes without the rest of the package, which takes twice as long to import."""
    if "onnx.onnx_ml_pb2" in sys.modules or "onnx" in sys.modules:
        return importlib.import_module("onnx.onnx_ml_pb2")
    package = importlib.util.find_spec("onnx")
    folder = Path(next(iter(package.submodule_search_locations or ()))) if package else Path()
    spec = importlib.util.spec_from_file_location("onnx.onnx_ml_pb2", folder / "onnx_ml_pb2.py")
    if spec is None or spec.loader is None:
        raise ImportError("onnx is not installed")
    module = importlib.util.module_from_spec(spec)
    sys.modules["onnx.onnx_ml_pb2"] = module  # a later `import onnx` shares these classes
    spec.loader.exec_module(module)
    return module


def _listed(path: _onnx_path.ImagePath) -> str:
    kinds = list(dict.fromkeys(constants.front.kind for constants in path.fronts))
    return ", ".join(kinds[:4])


def _top_fields_look_right(source: Source) -> bool:
    """Walk the top-level fields: known numbers of a ModelProto with their wire types, one of them the graph."""
    at = 0
    while at < source.size:
        head = source.read(at, min(at + 20, source.size))
        tag, length = _peek(head)
        if _WIRES.get(tag >> 3, tag & 7) != tag & 7 or not tag >> 3 or not length:
            return False
        if tag >> 3 == GRAPH:
            return True
        value, more = _FIXED.get(tag & 7) or _peek(head[length:])
        at += length + more + (value if tag & 7 == BYTES else 0)
    return False


_WIRES = {1: VARINT, 2: BYTES, 3: BYTES, 4: BYTES, 5: VARINT, 6: BYTES, 7: BYTES, 8: BYTES, 14: BYTES, 20: BYTES, 25: BYTES}
_FIXED = {1: (0, 8), 5: (0, 4)}


def _peek(raw: bytes) -> tuple[int, int]:
    """(value, length) of the varint at the beginning; length 0 where there is none."""
    value = 0
    for i, byte in enumerate(raw[:10]):
        value |= (byte & 0x7F) << (7 * i)
        if byte < 0x80:
            return value, i + 1
    return 0, 0
