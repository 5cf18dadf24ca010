"""The entries and attributes of pickled objects, however they came in."""

import pytest

from chkpt_channels.containers.pickle.reader import Tree
from chkpt_channels.core.errors import Location
from chkpt_channels.formats.torch.entries import DuplicateKey, attributes, once, pairs_of, read_pairs
from tests.support.builders import Call, Global, Raw, pickled, spelled

ORDERED = Global("collections", "OrderedDict")
AB = [("a", 1), ("b", 2)]


def root(value):
    return Tree.whole(pickled(value), Location("a.pth")).root


def named(pairs):
    return [(key.value, value.target.value) for key, value in pairs]


def of(value, times=1):
    """OrderedDicts around one another, the innermost made of this."""
    for _ in range(times):
        value = Call(ORDERED, (value,))
    return value


@pytest.mark.parametrize(
    "value",
    [dict(AB), AB, (*AB,), of(AB), of((*AB,)), of(dict(AB)), of(AB, 2), of(dict(AB), 8)],
    ids=["dict", "list", "tuple", "ordered list", "ordered tuple", "ordered dict", "of another", "of eight"],
)
def test_entries(value):
    assert named(pairs_of(root(value))) == AB


def test_entries_of_a_copy_come_before_none_is_lost():
    more = Raw(spelled(of(AB, 2)) + spelled("c") + spelled(3) + b"s")
    assert sorted(named(pairs_of(root(more)))) == [*AB, ("c", 3)]


@pytest.mark.parametrize("value", [of(Call(Global("collections", "Counter"), (dict(AB),))), of(AB, 9)], ids=["class", "ninth"])
def test_what_is_not_read_is_named(value):
    node = root(value)
    assert not list(pairs_of(node))
    (rest,) = read_pairs(node)[1]
    assert rest.value[0].target.value[0] == "collections"


@pytest.mark.parametrize(
    "state",
    [dict(AB), of(AB), (*AB,), (None, dict(AB)), (dict(AB[:1]), dict(AB[1:]))],
    ids=["dict", "call", "pairs", "slots", "both"],
)
def test_attributes(state):
    node = root(Raw(spelled(Call(Global("torch.nn", "Module"), ())) + spelled(state) + b"b"))
    assert [(name, value.target.value) for name, value in attributes(node)] == AB


def test_a_key_twice():
    with pytest.raises(DuplicateKey, match="a"):
        once(pairs_of(root(Raw(spelled(of(dict(AB))) + spelled("a") + spelled(3) + b"s"))))
