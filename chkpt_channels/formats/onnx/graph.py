"""What an ONNX graph says: which kernels the image reaches, which operations precede them, what counts its channels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property

from chkpt_channels.core.errors import UsageError
from chkpt_channels.core.tensors import Adapter, Declaration, FirstConv, Notice, PreprocessingOp, Quantization, Tensor, TensorEdit
from chkpt_channels.formats.graph import ModelGraph
from chkpt_channels.formats.onnx import edits as onnx_edits
from chkpt_channels.formats.onnx import front, metadata
from chkpt_channels.formats.onnx.dataflow import contradictions, folding, padding
from chkpt_channels.formats.onnx.dataflow.axes import NOWHERE
from chkpt_channels.formats.onnx.dataflow.image_inputs import COLORS, MOST_CHANNELS, Images, images, refusal
from chkpt_channels.formats.onnx.dataflow.trace import ImageTrace
from chkpt_channels.formats.onnx.dataflow.values import ReachedConv, count_edits
from chkpt_channels.formats.onnx.model import OnnxModel
from chkpt_channels.formats.onnx.quantization import quantization

NAMED_OPS = 4
"""How many of the operations before a kernel `why` names."""
FIRST_BROADCAST_OPSET = 7
"""Since then Add, Mul and their kin broadcast as numpy does. Source: onnx/docs/Changelog.md."""


class OnnxGraph(ModelGraph):
    """The main graph of a model; `tensors` are its stored ones."""

    knows_outputs = folds = True

    def __init__(self, model: OnnxModel, tensors: Mapping[str, Tensor]) -> None:
        self.model, self._tensors, self._location = model, tensors, model.location
        self._named: tuple[str, ...] = ()
        self._stated: int | None = None

    @cached_property
    def _images(self) -> Images:
        return images(self.model, self._named, self._stated)

    @cached_property
    def paths(self) -> Sequence[ImageTrace]:
        """From each image input on. Raises UnsupportedError where it runs into a kernel that a subgraph stores."""
        for path in self._images.traces:
            self._refuse_inner_kernels(path)
        return self._images.traces

    @property
    def decides(self) -> bool:
        return any(node.op != "Constant" for node in self.model.nodes)

    def check_reached(self, *, each: bool = False) -> None:
        known, is_strict = self.first_convs(), self._named or not self._images.traces
        kernels = {conv.tensor.name for conv in known}
        unfollowed = self._images.unfollowed
        if left := [one for one in unfollowed if is_strict or one.kernels & kernels or (each and not one.is_vector)]:
            raise refusal(left[0], self._location)
        seen = {name for conv in known for name in conv.inputs}
        paths = [path for path in self._images.traces if path.image.name not in seen] if each or not known else []
        computed = [reached.node for path in paths for reached in path.reached if not reached.kernel]
        if computed:
            raise self._location.at(computed[0].label).unsupported("its kernel is computed, and not stored in the file")
        if not known:
            names = ", ".join(info.name for info in self.model.inputs)
            what = f"none of its inputs ({names}) reaches the kernel of a convolution in its graph"
            raise self._location.unsupported(what, hint="convert the file that it was exported from")

    def _refuse_inner_kernels(self, path: ImageTrace) -> None:
        """Raise UnsupportedError where the image reaches a kernel that a subgraph stores."""
        for reached in path.reached:
            name = next((name for name in reached.node.inputs if name in self.model.inner), None)
            if name and reached.kernel is None and not reached.node.call:
                what = f"its weights are in a subgraph of {self.model.inner[name]}; only those of the main graph are edited"
                raise self._location.at(reached.node.label).unsupported(what)

    def select_inputs(self, names: Sequence[str]) -> bool:
        known = [info.name for info in self.model.inputs]
        for name in names:
            if name not in known:
                raise UsageError(f"no input is called {name!r}; it has {', '.join(known)}", file=self._location.file)
        self._named = tuple(names)
        self._forget()
        return True

    def state_channels(self, count: int) -> None:
        self._stated = count
        self._forget()

    def _forget(self) -> None:
        self.__dict__.pop("_images", None)  # what is known so far was found without what the user says now
        self.__dict__.pop("paths", None)

    def first_convs(self) -> Sequence[FirstConv]:
        convs: dict[str, FirstConv] = {}
        meant = self._stated or COLORS  # of images that one kernel takes joined; a mask or a depth map has one channel
        for path in sorted(self.paths, key=lambda path: (path.count != meant, path.count == 1)):
            for reached in path.reached:
                conv = self._first_conv(path, reached)
                if conv and (known := convs.setdefault(conv.tensor.name, conv)).in_channels == conv.in_channels:
                    inputs = tuple(dict.fromkeys((*known.inputs, path.image.name)))
                    convs[conv.tensor.name] = known._replace(inputs=inputs)
        direct = [conv for conv in convs.values() if conv.layout]
        return [*direct, *self._beside(direct, convs)] if direct else list(convs.values())

    def counts(self, conv: FirstConv) -> frozenset[int]:
        at = [path for path in self.paths if any(r.kernel and r.kernel.name == conv.tensor.name for r in path.reached)]
        joined = frozenset(path.count for path in at if path.count) if self._stated is None else frozenset()
        return joined or frozenset({conv.in_channels})

    def _beside(self, direct: Sequence[FirstConv], convs: Mapping[str, FirstConv]) -> list[FirstConv]:
        """The kernels of images that reach none as they are: they change with the others, or nothing does."""
        seen = {name for conv in direct for name in conv.inputs}
        others = [path for path in self.paths if path.image.name not in seen and path.count]
        left = {r.kernel.name for path in others for r in path.reached if r.kernel}
        return [conv for name, conv in convs.items() if name in left and not conv.layout]

    def _first_conv(self, path: ImageTrace, reached: ReachedConv) -> FirstConv | None:
        kernel = reached.kernel
        if kernel is None:
            return None
        why = f"the image {path.image.name!r} reaches it" + (f" through {_listed(path)}" if path.operations else "")
        # a constant of a function is no tensor of the file: it is not edited
        tensor = self._tensors.get(kernel.name) or Tensor(kernel.name, kernel.dtype, kernel.shape)
        channels = reached.channels or path.count
        groups = reached.node.integer("group", 1) if reached.layout else 1
        return FirstConv(tensor, reached.stored, channels, "graph", why, groups)

    def preprocessing(self, first_convs: Sequence[FirstConv]) -> Sequence[PreprocessingOp]:
        operations = [op for conv in first_convs for op in self._before(conv)]
        # what mixes channels anywhere between the image and a kernel makes every kernel edit wrong
        paths = self._toward(first_convs)
        operations += [c.operation for path in paths for c in path.operations if c.operation.scale is None]
        bare = [path.image.name for path in paths if path.channel == NOWHERE]
        operations += [PreprocessingOp(name, "input without an axis of channels") for name in bare]
        return list(dict.fromkeys(operations))

    def _toward(self, first_convs: Sequence[FirstConv]) -> Sequence[ImageTrace]:
        """The paths of the images that reach these kernels; all where a kernel is not known to be reached."""
        inputs = {name for conv in first_convs for name in conv.inputs}
        return [path for path in self.paths if path.image.name in inputs] if all(c.inputs for c in first_convs) else self.paths

    def _before(self, conv: FirstConv) -> list[PreprocessingOp]:
        """The operations between the images and a kernel. Where several values meet it they must have passed the same ones, and
        nothing else may read what nodes make of it."""
        users = self._users(conv)
        made = [maker.node for reached in users if reached.source for maker in reached.source.makers]
        readers = [node for maker in made for node, _ in self.model.consumers.get(maker.outputs[0], ())]
        known = {id(node) for node in (*made, *(reached.node for reached in users))}
        if any(id(node) not in known for node in readers):
            return [PreprocessingOp(conv.tensor.name, "kernel", why="is computed for other layers too")]
        ways = list(dict.fromkeys(reached.operations for reached in users))
        if len({tuple((op.scale, op.shift) for op in way) for way in ways}) > 1:
            operations = [op for way in ways for op in way]
            tensors = tuple(dict.fromkeys(tensor for op in operations for tensor in op.tensors))
            why = "meets several values, with different constants before them"
            apart = all(op.apart or op.scale for op in operations)
            return [PreprocessingOp(conv.tensor.name, "kernel", tensors=tensors, apart=apart, why=why)]
        return [
            alike[0]._replace(tensors=tuple(dict.fromkeys(tensor for op in alike for tensor in op.tensors)))
            for alike in zip(*ways, strict=True)
        ]

    def graph_methods(self, first_convs: Sequence[FirstConv]) -> Sequence[str]:
        paths = self._toward(first_convs)
        if any(path.channel == NOWHERE or (path.place and path.place.slower > 1) for path in paths):
            return ()  # a Concat along such an axis would not repeat channel by channel
        broadcasts = self.model.opset >= FIRST_BROADCAST_OPSET and all(path.broadcasts and path.operations for path in paths)
        return ("broadcast", "stack") if broadcasts else ("stack",)

    def gathers(self, first_convs: Sequence[FirstConv], places: tuple[int, ...]) -> Mapping[str, tuple[int, tuple[int, ...]]]:
        paths = self._toward(first_convs)
        alone = [path.place is not None and path.place[1:] == (len(places), 1, 1) for path in paths]
        is_read_alone = not any(path.image.name in self.model.outputs for path in paths)
        return {path.image.name: (path.channel, places) for path in paths} if all(alone) and is_read_alone else {}

    def gathered(self, image: str) -> tuple[int, tuple[int, ...]] | None:
        index, node = self.model.only_reader(image)
        if node is None or (node.op, node.domain, index) != ("Gather", "", 0):
            return None
        order = self.model.stored(node.given(1))
        return (node.integer("axis", 0), tuple(map(int, self.model.load(order).reshape(-1)))) if order else None

    def adapter_obstacle(self, first_convs: Sequence[FirstConv]) -> str:
        paths = self._toward(first_convs)
        if len(widths := sorted({path.count for path in paths})) > 1:
            return f"images of {' and '.join(map(str, widths))} channels reach its first convolutions (--input names one)"
        obstacles = [front.obstacle(self.model, path) for path in paths] or ["its graph shows no image"]
        return next(filter(None, obstacles), "")

    def fold(self, adapter: FirstConv) -> Adapter:
        taken_out, behind = folding.fold(self.model, self._users(adapter), self._location.at(adapter.tensor.name))
        self._forget()
        self._images = Images((behind,), ())
        return taken_out

    def bias_target(self, conv: FirstConv) -> tuple[str, int] | None:
        users = self._users(conv)
        if not all(user.keeps_constants for user in users):
            what = "is scaled, reshaped or of padded blocks: no constant can be folded into what follows it"
            raise self._location.at(conv.tensor.name).unsupported(what)
        return onnx_edits.bias_target(self.model, users[0].node) if len(users) == 1 else None

    def padding(self, conv: FirstConv) -> Sequence[tuple[tuple[int, int], ...]]:
        return [spans for reached in self._users(conv) for spans in padding.tap_spans(reached)]

    def _users(self, conv: FirstConv) -> list[ReachedConv]:
        """The convolutions that take the image with this kernel."""
        return [reached for path in self.paths for reached in path.stems.get(conv.tensor.name, ())]

    def readers(self, kernel: str) -> frozenset[tuple[str, int]] | None:
        found: set[tuple[str, int]] = set()
        for path in self.paths:
            readers = [r for r in path.reached if r.kernel and kernel in (r.kernel.name, *r.factors)]
            # one channel may have no axis of its own
            found |= {(r.node.outputs[0], r.channels or (path.count if path.channel == NOWHERE else 0)) for r in readers}
        return frozenset(found) if self.decides else None

    def quantization(self, conv: FirstConv) -> Quantization | None:
        users = [] if conv.tensor.dtype.floating else self._users(conv)
        return quantization(self.model, users[0].node, self.model.weights[conv.tensor.name]) if users else None

    def dense_shape(self, conv: FirstConv, channels: int) -> tuple[int, ...] | None:
        shape = conv.tensor.shape
        return shape if channels == 1 else (shape[0], channels, *shape[2:])

    def shape_edits(self, first_convs: Sequence[FirstConv], channels: int) -> dict[str, TensorEdit]:
        counts = [count for path in self._toward(first_convs) if path.count != channels for count in path.counts]
        return count_edits(counts, channels, self.model)

    def declarations(self, first_convs: Sequence[FirstConv]) -> Sequence[Declaration]:
        paths = self._toward(first_convs)
        inputs = [Declaration(f"graph.input {path.image.name}", path.count) for path in paths if _declares(path)]
        return [*inputs, *metadata.declarations(self.model.root, self._counts(first_convs))]

    def _counts(self, first_convs: Sequence[FirstConv]) -> set[int]:
        """The channels of the images: as they are declared, or as the kernels take them."""
        declared = {path.count for path in self._toward(first_convs) if _declares(path)}
        return declared or {conv.in_channels for conv in first_convs}

    def notices(self, first_convs: Sequence[FirstConv]) -> Sequence[Notice]:
        seen = {name for conv in first_convs for name in conv.inputs}
        left = [one.image.name for one in self._images.unfollowed if all(p.channels <= MOST_CHANNELS for p in one.places)]
        left += [path.image.name for path in self.paths if path.image.name not in seen and not path.count]
        what = "reaches convolutions too, and is left as it is: where its channels are, or how many, is not known"
        return [Notice("image_left", f"the input {name!r} {what}") for name in left]

    def contradictions(self, first_convs: Sequence[FirstConv]) -> Sequence[tuple[Declaration, int]]:
        stated = metadata.contradictions(self.model.root, self._counts(first_convs))
        return [*contradictions.of_graph(self.model, self.paths, first_convs, self._tensors), *stated]


def _declares(path: ImageTrace) -> bool:
    """Whether an input has a number of channels: of its axis, or one where it has no axis for them."""
    is_input = path.image.name in path.model.input_names
    return is_input and (path.channel == NOWHERE or (bool(path.image.dims) and path.image.dims[path.channel] is not None))


def _listed(path: ImageTrace) -> str:
    kinds = list(dict.fromkeys(constants.operation.kind for constants in path.operations))
    return ", ".join(kinds[:NAMED_OPS])
