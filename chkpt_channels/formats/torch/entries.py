"""What a pickled object holds: the entries of dict-like objects, however they came in, and the attributes of others.

An entry comes with SETITEM, with the pairs that an OrderedDict is called with, or with a list of pairs that stands for a dict; an
attribute comes with the state that BUILD gives, which may be any of these.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from chkpt_channels.containers.pickle.nodes import Kind, PickleNode

Entry = tuple[PickleNode, PickleNode]
_MOST_COPIES = 8
"""An OrderedDict that is made of another one: torch itself makes none."""


class DuplicateKey(Exception):
    """A key that occurs twice in one dict."""


def attributes(node: PickleNode) -> Iterator[tuple[str, PickleNode]]:
    """The instance attributes of an object, from the state that BUILD gave it: a dict, pairs, or a tuple of such."""
    for state in states(node):
        for key, value in pairs_of(state):
            if key.kind is Kind.TEXT:
                yield key.value, value


def is_module(node: PickleNode) -> bool:
    """Whether this is a torch.nn.Module."""
    return any(name == "_modules" for name, _ in attributes(node))


def states(node: PickleNode) -> list[PickleNode]:
    """What BUILD gave an object, and each part of it where that is a tuple: a dict, and what its slots hold."""
    state = node.state.target if node.state is not None else None
    if state is None or state.kind is not Kind.TUPLE:
        return [state] if state is not None else []
    return [state, *(child.target for child in state.children)]


def pairs_of(node: PickleNode) -> Iterator[Entry]:
    """The entries of a dict-like object; Python 2 pickled an OrderedDict as a call with a list of pairs. A list of pairs, as
    list(state_dict.items()) is, is read like a dict."""
    yield from node.entries()
    if node.kind in (Kind.LIST, Kind.TUPLE):
        yield from _named_values(node)
    for argument in read_pairs(node)[0]:
        yield from argument.entries()
        for pair in argument.children if argument.kind is not Kind.CALL else ():
            if len(pair.target.children) >= 2:  # torch refuses more, but for those that came after the call
                yield pair.target.children[0].target, pair.target.children[1]


def read_pairs(node: PickleNode) -> tuple[list[PickleNode], list[PickleNode]]:
    """What the entries of an OrderedDict are from, and from what another OrderedDict that it is made of has them; and what it is
    made of and is neither: an object of another class."""
    read = list[PickleNode]()
    for _ in range(_MOST_COPIES):
        if not is_ordered_dict(node):
            break
        inner = [child.target for child in node.value[1].target.children]
        read += inner
        if len(inner) != 1:
            return read, [part for part in inner if part.kind is Kind.CALL]
        node = inner[0]
    return read, [node] if read and node.kind is Kind.CALL else []


def is_ordered_dict(node: PickleNode) -> bool:
    """Whether this is a call of OrderedDict."""
    return node.kind is Kind.CALL and node.value[0].is_global("collections", "OrderedDict")


def _named_values(node: PickleNode) -> list[Entry]:
    """The (name, value) pairs of a list that holds nothing else, each name once; none of another list."""
    pairs = []
    for child in node.children:
        pair = child.target
        # lengths first: many lists may hold one long list, and children are copied
        if pair.kind not in (Kind.LIST, Kind.TUPLE) or len(pair.value or ()) + len(pair.items or ()) != 2:
            return []
        key, value = pair.children
        if key.target.kind is not Kind.TEXT:
            return []
        pairs.append((key.target, value))
    return pairs if len({key.value for key, _ in pairs}) == len(pairs) else []


def once(pairs: Iterator[Entry]) -> list[Entry]:
    """The entries of a dict, of which a reader keeps the last one of each key. Raises DuplicateKey where one occurs twice."""
    found = list(pairs)
    keys = Counter(key.value for key, _ in found if key.kind in (Kind.TEXT, Kind.INT, Kind.CONST, Kind.FLOAT))
    if len(keys) < len(found) and keys and (most := keys.most_common(1)[0])[1] > 1:
        raise DuplicateKey(str(most[0]))
    return found
