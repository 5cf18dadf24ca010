"""An open pickle of numpy arrays: its index, the elements where they are in the file, and edits of shape and elements."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Iterator, Mapping, Sequence
from typing import Any

from chkpt_channels.containers.pickle import editor
from chkpt_channels.containers.pickle.nodes import PickleNode
from chkpt_channels.containers.pickle.reader import Tree
from chkpt_channels.containers.pickle.window import FileBytes
from chkpt_channels.core.records import pattern
from chkpt_channels.core.tensors import Edits, OptimizerEntry, Tensor, TensorEdit
from chkpt_channels.formats.base import Format, Loading
from chkpt_channels.formats.jax_names import NamedCheckpoint, layout_of, optimizer_entries
from chkpt_channels.formats.numpy_pickle.arrays import Array, LatinText
from chkpt_channels.formats.numpy_pickle.walk import PARAMETER_NAMES, Walk
from chkpt_channels.storage.source import Source
from chkpt_channels.storage.splice import Checksum, Splice

_TEXTS = (b"X", b"\x8c", b"\x8d")
_FAMILIES = (
    ((b"U", 8), (b"T", 31)),
    ((b"X", 32), (b"\x8d", 64)),
    ((b"\x8c", 8), (b"X", 32), (b"\x8d", 64)),
    ((b"C", 8), (b"B", 32), (b"\x8e", 64)),
    ((b"\x96", 64),),
)
"""The opcodes of one meaning with the bits of their lengths: strings of Python 2, texts of protocol 2 and of 4, bytes,
bytearrays."""
_HEADS = {opcode: 1 + -(-bits // 8) for family in _FAMILIES for opcode, bits in family}
"""The bytes before a text or byte string: its opcode and its length."""
_SLOT = pattern(
    r"(?P<parameter>.+)_(?P<slot>moment[12]?(_max)?|beta[12]_pow_acc|velocity|inf_norm|momentum|mean_square|mean_grad"
    r"|_avg_squared_(grad|update))(_\d+)?"
)
"""Optimizer state by name: Paddle's conv2d_0.w_0_moment1_0, Detectron's conv1_w_momentum. Source: paddle/optimizer of 3.3."""
_MODULES_OWN = pattern(r"(?:^|/)(?:kernel|w)\Z")
"""What modules of Flax and Haiku call their kernels: such a dict is no state dict but a module, and the file a tree of them."""
_KNOWN = pattern(
    r"numpy\..*|jax\..*\._reconstruct_array|ml_dtypes\..*|_codecs\.encode|(builtins|__builtin__)\.(bytes|set|tuple)|collections\.\w+"
)


class NumpyPickle(NamedCheckpoint):
    """One pickle of arrays. The dict of a framework that is known keeps the order of the modules, but in Python 2; JAX sorts its
    own by name, and is a tree of modules, one network."""

    like_hint = "--like LIKE.pkl, made by pickle.dump of the same network's arrays"

    def __init__(self, source: Source, form: Format) -> None:
        super().__init__(source, form)
        self._tree = Tree.whole(FileBytes(source), self.location)
        walk = Walk(self._tree, self.location)
        self._arrays, self._marks, self.opaque = walk.arrays, walk.marks, tuple(walk.opaque)
        nodes = [named.array.payload for named in walk.arrays.values() if named.array.payload is not None]
        self._opcodes = {node: source.read(node.start, node.start + 1) for node in nodes}
        shapes = {name: named.array.shape for name, named in walk.arrays.items()}
        is_tree = not walk.marks and any(_MODULES_OWN.search(name) for name, shape in shapes.items() if len(shape) > 2)
        for name, named in walk.arrays.items():
            self._check_size(name, named.array)
            group, layout = ("", layout_of(name, shapes)) if is_tree else (named.group, None)
            self.tensors[name] = Tensor(name, named.array.dtype, named.array.shape, group, layout=layout)
        self.globals = tuple(sorted(n for n in map(".".join, self._tree.globals) if not _KNOWN.fullmatch(n)))
        self._python2 = any(opcode in (b"U", b"T") for opcode in self._opcodes.values())
        self.ordered = self.torch and not self._python2
        self.optimizer_entries = optimizer_entries(self.tensors) if is_tree else _entries(walk, self.tensors)

    @property
    def torch(self) -> bool:
        return bool(self._marks)

    def _span(self, array: Array) -> tuple[int, int]:
        """The bytes that encode an array's elements."""
        if array.payload is None:
            return 0, 0
        return array.payload.start + _HEADS.get(self._opcodes[array.payload], 0), array.payload.stop

    def _check_size(self, name: str, array: Array) -> None:
        """Raise DamagedError for elements that cannot be so many; as text each byte takes one byte or two."""
        begin, stop = self._span(array)
        if array.payload is not None and (self._opcodes[array.payload] in _TEXTS) is not array.latin1:
            raise self.location.at(name).damaged("its elements are encoded as no array's are", at=begin)
        if not array.size <= stop - begin <= array.size * (2 if array.latin1 else 1):
            what = f"its elements have {stop - begin} bytes; {list(array.shape)} of {array.dtype.name} need {array.size}"
            raise self.location.at(name).damaged(what, at=begin)

    def chunks(self, name: str) -> Iterator[bytes]:
        array = self._arrays[name].array
        pieces = self._stored(name, array)
        if array.in_order:
            yield from pieces
            return
        import numpy as np

        stored = np.frombuffer(b"".join(pieces), f"V{array.dtype.bits // 8}").reshape([array.shape[axis] for axis in array.axes])
        yield stored.transpose([array.axes.index(axis) for axis in range(stored.ndim)]).tobytes()

    def _stored(self, name: str, array: Array) -> Iterator[bytes]:
        """An array's elements in the order of the file."""
        pieces = self.source.chunks(*self._span(array))
        if not array.latin1:
            yield from pieces
            return
        text = LatinText(self.location.at(name), self._span(array), array.size)
        yield from map(text.taken, pieces)
        text.finish()

    def checks(self) -> Sequence[Checksum]:
        texts = ((self._span(n.array), n.array.size, name) for name, n in self._arrays.items() if n.array.latin1)
        spans = {span: LatinText(self.location.at(name), span, size) for span, size, name in sorted(texts)}
        return list(spans.values())

    def memory(self, name: str) -> Hashable:
        return self._arrays[name].call.start

    def shared(self, names: Sequence[str]) -> tuple[str, str] | None:
        first: dict[Hashable, str] = {}
        return next(((first[m], n) for n in names if first.setdefault(m := self.memory(n), n) != n), None)

    def loading(self, path: str, group: str | None = None) -> Loading:
        group = next((tensor.group for tensor in self.model_tensors()), "") if group is None else group
        steps = group.split("/") if group else ()
        keys = "".join(f"[{int(step) if step.isdecimal() else step!r}]" for step in steps)
        if PARAMETER_NAMES in self._marks:
            return Loading(("import paddle",), f"model.set_state_dict(paddle.load({path!r}){keys})", needs_model=True)
        encoding = ", encoding='latin1'" if self._python2 else ""
        return Loading(("import pickle",), f"arrays = pickle.load(open({path!r}, 'rb'){encoding}){keys}")

    def splices(self, edits: Edits) -> list[Splice]:
        by_call: defaultdict[PickleNode, dict[str, TensorEdit]] = defaultdict(dict)
        for name, edit in edits.tensors.items():
            by_call[self._arrays[name].call][name] = edit
        shapes: dict[PickleNode, Any] = {}
        payloads = []
        for call, edited in by_call.items():
            name, edit = next(iter(edited.items()))
            self._check_alone(name, call, edited)
            array = self._arrays[name].array
            shapes[array.shape_node] = array.listed(edit.shape)
            if array.payload is not None:
                payloads.append(self._payload(array, array.payload, edit))
        dropped = {t.name for e in self.optimizer_entries if e.where in edits.dropped for t in e.tensors.values()}
        spans = [named.span for name, named in self._arrays.items() if named.span and name in dropped]
        return editor.splices(self._tree, shapes, spans, payloads)

    def _check_alone(self, name: str, call: PickleNode, edited: Mapping[str, TensorEdit]) -> None:
        """Raise UnsupportedError where another name has the same elements, and would keep or lose them."""
        payload = self._arrays[name].array.payload
        sharing = [n for n, other in self._arrays.items() if n not in edited and other.array.payload is payload is not None]
        if sharing:
            layers = " ".join(f"--layer {each}" for each in (*edited, *sharing))
            raise self.location.at(name).unsupported(f"shares its elements with {sharing[0]}, which would change", hint=layers)

    def _payload(self, array: Array, node: PickleNode, edit: TensorEdit) -> Splice:
        """The new elements, in the order and the kind of opcode of the old ones."""

        def encoded() -> bytes:
            return edit.values().transpose(array.axes).tobytes()

        if array.latin1:  # how long the text is only its values show
            text = encoded().decode("latin-1").encode()
            return Splice.of(node.start, node.stop, self._head(node, len(text)) + text)
        size = array._replace(shape=edit.shape).size
        head = self._head(node, size)
        return Splice(node.start, node.stop, len(head) + size, lambda: head + encoded())

    def _head(self, node: PickleNode, size: int) -> bytes:
        """The shortest opcode of the same meaning for so many bytes. Raises UnsupportedError where there is none."""
        family = next((f for f in _FAMILIES if any(self._opcodes[node] == opcode for opcode, _ in f)), ())
        for opcode, bits in family:
            if size >> bits == 0:
                return opcode + size.to_bytes(_HEADS[opcode] - 1, "little")
        raise self.location.unsupported(f"a string of Python 2 cannot hold {size} bytes", hint="pickle it anew in Python 3")


def _entries(walk: Walk, tensors: Mapping[str, Tensor]) -> tuple[OptimizerEntry, ...]:
    """The arrays that an optimizer keeps. The parameter is called as in the state dict, where that is known."""
    slots: defaultdict[tuple[str, str], dict[str, Tensor]] = defaultdict(dict)
    for name, named in walk.arrays.items():
        prefix = f"{named.group}/" if named.group else ""
        if match := _SLOT.fullmatch(name.removeprefix(prefix)):
            where = prefix + match["parameter"]
            known = walk.parameters.get(match["parameter"], where)
            if known in walk.arrays or match[4] or PARAMETER_NAMES in walk.marks:
                slots[where, known][match["slot"]] = tensors[name]
    return tuple(OptimizerEntry(where, parameter, kept, {}) for (where, parameter), kept in slots.items())
