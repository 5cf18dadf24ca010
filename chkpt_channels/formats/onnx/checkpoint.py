"""An open ONNX model: its stored tensors, in the file and in external data, and the spans that an edit changes."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chkpt_channels.containers.protobuf import WireEdits
from chkpt_channels.core.tensors import Edits, Notice, Tensor
from chkpt_channels.formats.base import Checkpoint, Format, Loading
from chkpt_channels.formats.onnx import edits as onnx_edits
from chkpt_channels.formats.onnx import external_data, tensor_data
from chkpt_channels.formats.onnx.graph import OnnxGraph
from chkpt_channels.formats.onnx.model import OnnxModel, Weight
from chkpt_channels.formats.onnx.schema import GRAPH_INITIALIZERS, GRAPH_SPARSE
from chkpt_channels.storage.opening import open_listed
from chkpt_channels.storage.source import Source, check_link, resolved, status
from chkpt_channels.storage.splice import Splice

if TYPE_CHECKING:
    from numpy.typing import NDArray


class Onnx(Checkpoint):
    """One ONNX model, with its external data."""

    ordered = True
    adds_tensors = True

    def __init__(self, source: Source, form: Format) -> None:
        super().__init__(source, form)
        self.model = OnnxModel(source)
        self.model.load = self.load_weight
        self._folder = source.folder
        self._payloads: dict[str, tensor_data.Payload | None] = {}
        self._others: dict[Path, Source] = {}
        self._original: dict[Path, tuple[Onnx, Path]] = {}
        for weight in self.model.weights.values():
            self._payloads[weight.name] = tensor_data.payload(weight, source.location, self._folder)
            self.tensors[weight.name] = Tensor(weight.name, weight.dtype, weight.shape)
        if not source.made_here:  # an output's external data is published with it, after this check
            external_data.check(self.model.weights, self._payloads, source)
        if self.model.graph.fields.get(GRAPH_SPARSE):
            self.warnings.append(Notice("sparse", "sparse initializers are copied as they are"))

    @cached_property
    def graph(self) -> OnnxGraph:
        return OnnxGraph(self.model, self.tensors)

    def chunks(self, name: str) -> Iterator[bytes]:
        return self._elements(self.model.weights[name], self._payloads[name])

    def _elements(self, weight: Weight, payload: tensor_data.Payload | None) -> Iterator[bytes]:
        if payload is None:
            yield tensor_data.typed_elements(weight)
            return
        source = self._external(payload.path) if payload.path else self.source
        yield from source.chunks(payload.start, payload.stop)

    def _external(self, path: Path) -> Source:
        if path in self._original:
            before, other = self._original[path]
            return before._external(other)
        if path not in self._others:
            listed = status(path)
            self._check_link(path)
            self._others[path] = self.source.keep(open_listed(path, listed))
        return self._others[path]

    def _check_link(self, path: Path) -> None:
        if not self.follows_links:
            check_link(self.location, path, self._folder, f"its data file {path.name} is")

    def load_weight(self, weight: Weight) -> NDArray[Any]:
        """A stored tensor as an array, a constant of a function too."""
        if weight.name in self.tensors:
            return self.load(weight.name)
        payload = tensor_data.payload(weight, self.location, self._folder)
        return self.array(Tensor(weight.name, weight.dtype, weight.shape), self._elements(weight, payload))

    def loading(self, path: str, group: str | None = None) -> Loading:
        return Loading(("import onnxruntime",), f"session = onnxruntime.InferenceSession({path!r})")

    def splices(self, edits: Edits) -> list[Splice]:
        if edits:
            return onnx_edits.OnnxEdits(self.model, self.graph.paths, edits).splices()
        wire = WireEdits()
        external_data.rename(wire, self.model, edits.companions)  # a copy refers to the copies of its data files
        return wire.splices()

    def companions(self, path: Path, *, edited: bool) -> dict[str, str]:
        names = list(external_data.locations(self.model))
        for name in names:
            self._check_link(self._folder / name)
        external_data.check_sums(self.model, self._folder)
        if not edited and resolved(path.parent) == resolved(self._folder):
            return {}
        # every name begins with the output's: a model that could choose one could overwrite any file of the folder
        if len(names) == 1:
            return {names[0]: path.name + ".data"}
        new: dict[str, str] = {}
        for name in names:  # a/w.bin and b/w.bin become m.onnx.w.bin and m.onnx.1.w.bin
            candidates = (f"{path.name}.{number}{Path(name).name}" for number in ("", *(f"{i}." for i in range(1, len(names)))))
            new[name] = next(candidate for candidate in candidates if candidate not in new.values())
        return new

    def companion(self, path: Path) -> Source:
        return Source.of_descriptor(self._external(path).fd, str(path))

    def read_companions_of(self, original: Checkpoint, companions: Mapping[str, str]) -> None:
        if isinstance(original, Onnx):
            names = external_data.locations(original.model)
            folder = original._folder
            self._original = {self._folder / companions.get(name, name): (original, folder / name) for name in names}

    def preload_validator(self) -> None:
        onnx_schema()

    def source_fails_validation(self) -> bool:
        try:
            self.validate("")
        except Exception:  # protobuf's DecodeError, and what its C extension raises for others
            return True
        return False

    def validate(self, path: str) -> None:
        schema = onnx_schema()
        parsed = schema.ModelProto()
        # the skeleton: parsing the whole file would hold it twice in memory, and fails above 2 GB
        parsed.ParseFromString(tensor_data.skeleton(self.model.root))
        if len(parsed.graph.initializer) != len(self.model.graph.fields.get(GRAPH_INITIALIZERS, ())):
            raise RuntimeError("onnx's schema reads another number of initializers")


def onnx_schema() -> Any:
    """onnx's protobuf classes without the rest of the package: 0.06 to 0.09 s to import instead of 0.13 to 0.24 s."""
    if "onnx.onnx_ml_pb2" in sys.modules or "onnx" in sys.modules:
        return importlib.import_module("onnx.onnx_ml_pb2")
    package = importlib.util.find_spec("onnx")
    folder = next(iter((package.submodule_search_locations if package else None) or ()), None)
    spec = importlib.util.spec_from_file_location("onnx.onnx_ml_pb2", Path(folder, "onnx_ml_pb2.py")) if folder else None
    if spec is None or spec.loader is None:
        raise ModuleNotFoundError("onnx is not installed", name="onnx")
    module = importlib.util.module_from_spec(spec)
    sys.modules["onnx.onnx_ml_pb2"] = module  # a later `import onnx` shares these classes
    spec.loader.exec_module(module)
    return module
