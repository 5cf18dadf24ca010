"""What differs between a copy of the model and LIKE: first convs, vectors, heads, or another architecture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pytest

from chkpt_channels import AmbiguousError
from chkpt_channels.core.layout import Layout
from chkpt_channels.core.tensors import FirstConv, Tensor
from chkpt_channels.discovery.like.differences import Differences, changed_shapes, differences, named
from chkpt_channels.discovery.like.names import Copy
from chkpt_channels.discovery.request import LikeTensor
from chkpt_channels.formats.graph import ModelGraph
from tests.support.memory import Memory, kernel

Shapes = Mapping[str, tuple[int, ...]]

NET: Shapes = {
    "norm.running_mean": (3,),
    "a.weight": (8, 3, 3, 3),
    "a.bias": (8,),
    "b.weight": (8, 8, 3, 3),
    "b.bias": (8,),
    "c.weight": (5, 8),
    "c.bias": (5,),
}


class Unordered(Memory):
    """PyTorch's, without the order of the modules."""

    ordered = False
    torch = True


class Naming(ModelGraph):
    """A graph that names one first conv."""

    def __init__(self, tensor: Tensor) -> None:
        self._tensor = tensor

    def first_convs(self) -> Sequence[FirstConv]:
        return [FirstConv(self._tensor, Layout("OIHW"), self._tensor.shape[1], "graph")]


def compared(
    after: Shapes,
    before: Shapes = NET,
    *,
    ordered: bool = True,
    graph: str = "",
    found: Sequence[str] = (),
    found_by: str = "shapes",
    stated: str = "",
) -> Differences:
    """The differences to a LIKE with the shapes of `after` in the place of others; the search finds `found`."""
    store = (Memory if ordered else Unordered)({"": {key: kernel(*shape) for key, shape in before.items()}})
    if graph:
        store.graph = Naming(store.tensors[graph])  # type: ignore[assignment] # another graph than Memory's own
    convs = [FirstConv(store.tensors[name], Layout("OIHW"), 3, found_by) for name in found]
    pairs = tuple((tensor, LikeTensor(key, after.get(key, tensor.shape), key)) for key, tensor in store.tensors.items())
    return differences(store, Copy(pairs, (), ()), "like.pth", Layout(stated) if stated else None, lambda: convs)


def shown(found: Differences) -> tuple[list[str], list[str], list[str]]:
    """The names of stems, vectors and heads."""
    return (
        [stem.change.tensor.name for stem in found.stems],
        [vector.tensor.name for vector in found.vectors],
        [head.tensor.name for head in found.heads],
    )


GRAY = {"a.weight": (8, 1, 3, 3)}


@pytest.mark.parametrize(
    ("after", "expected"),
    [
        ({}, ([], [], [])),
        (GRAY, (["a.weight"], [], [])),
        ({**GRAY, "norm.running_mean": (1,)}, (["a.weight"], ["norm.running_mean"], [])),
        ({**GRAY, "c.weight": (7, 8), "c.bias": (7,)}, (["a.weight"], [], ["c.weight", "c.bias"])),
        ({"c.weight": (7, 8), "c.bias": (7,)}, ([], [], ["c.weight", "c.bias"])),
    ],
)
def test_each_difference_is_what_it_is(after: Shapes, expected: tuple[list[str], list[str], list[str]]):
    found = compared(after)
    assert shown(found) == expected
    assert found.others == ()


@pytest.mark.parametrize(
    ("after", "texts"),
    [
        ({**GRAY, "b.weight": (8, 8, 5, 5)}, ["b.weight is [8, 8, 3, 3] here and [8, 8, 5, 5] there"]),
        ({**GRAY, "b.weight": (8, 8, 5, 3)}, ["b.weight is [8, 8, 3, 3] here and [8, 8, 5, 3] there"]),
        ({"norm.running_mean": (1,)}, ["norm.running_mean is [3] here and [1] there"]),
        ({"a.weight": (8, 3, 9)}, ["a.weight is [8, 3, 3, 3] here and [8, 3, 9] there"]),
        ({"a.weight": (8, 0, 3, 3)}, ["a.weight is [8, 3, 3, 3] here and [8, 0, 3, 3] there"]),
    ],
    ids=["two axes", "a window", "a vector alone", "another rank", "nothing in it"],
)
def test_another_architecture(after: Shapes, texts: list[str]):
    assert list(compared(after).others) == texts


def test_what_only_one_has_is_another_architecture():
    store = Memory({"": {"a.weight": kernel(8, 3, 3, 3)}})
    (tensor,) = store.tensors.values()
    copy = Copy((), (tensor,), (LikeTensor("z.weight", (3,), "z"),))
    found = differences(store, copy, "like.pth", None, list)
    assert found.others == ("a.weight is not there", "z.weight is only there")


class Passing(ModelGraph):
    """A graph of a module whose buffers are not in its state dict."""

    def is_beside_state_dict(self, name: str) -> bool:
        return name.startswith("buffer.")


@pytest.mark.parametrize(
    ("shape", "texts"),
    [((0,), ()), ((1, 8, 8), ()), ((1, 1, 1, 1), ()), ((1, 3, 1, 1), ("buffer.x is not there",))],
    ids=["nothing in it", "a mask", "one mean", "a mean for each channel"],
)
def test_what_is_beside_the_state_dict_is_not_missed(shape: tuple[int, ...], texts: tuple[str, ...]):
    store = Memory({"": {**{key: kernel(*shape) for key, shape in NET.items()}, "buffer.x": kernel(*shape)}})
    store.graph = Passing()
    buffer = store.tensors.pop("buffer.x")
    pairs = tuple((tensor, LikeTensor(key, GRAY.get(key, tensor.shape), key)) for key, tensor in store.tensors.items())
    found = differences(store, Copy(pairs, (buffer,), ()), "like.pth", None, list)
    assert (found.others, [stem.change.tensor.name for stem in found.stems]) == (texts, ["a.weight"])


def test_a_map_of_the_colors_is_a_vector():
    net = {"sub_mean.weight": (3, 3, 1, 1), "sub_mean.bias": (3,), **NET}
    after = {"sub_mean.weight": (1, 1, 1, 1), "sub_mean.bias": (1,), **GRAY}
    assert shown(compared(after, net)) == (["a.weight"], ["sub_mean.weight", "sub_mean.bias"], [])


def test_a_vector_of_any_rank_is_one_but_not_a_kernel_of_one_filter():
    net = {"mean": (1, 3, 1, 1), "k.weight": (1, 3, 1, 1), **NET}
    after = {"mean": (1, 1, 1, 1), "k.weight": (1, 1, 1, 1), **GRAY}
    assert shown(compared(after, net)) == (["k.weight", "a.weight"], ["mean"], [])


def test_a_norm_of_a_head_goes_with_it():
    net = {**NET, "after.running_mean": (5,)}
    after = {**GRAY, "c.weight": (7, 8), "c.bias": (7,), "after.running_mean": (7,)}
    assert shown(compared(after, net))[2] == ["c.weight", "c.bias", "after.running_mean"]


# A network that makes an image, and two layers in a row

AUTO: Shapes = {"a.weight": (8, 3, 3, 3), "a.bias": (8,), "z.weight": (3, 8, 3, 3), "z.bias": (3,)}
AUTO_GRAY: Shapes = {"a.weight": (8, 1, 3, 3), "z.weight": (1, 8, 3, 3), "z.bias": (1,)}


def test_the_last_layer_of_a_network_that_makes_an_image_is_a_head():
    assert shown(compared(AUTO_GRAY, AUTO)) == (["a.weight"], [], ["z.weight", "z.bias"])
    assert shown(compared(AUTO_GRAY, AUTO, ordered=False, found=["a.weight"])) == (["a.weight"], [], ["z.weight", "z.bias"])


@pytest.mark.parametrize(
    ("before", "after", "ordered"),
    [
        (dict(reversed(AUTO.items())), AUTO_GRAY, True),
        (AUTO, AUTO_GRAY, False),
        (
            {"a.weight": (64, 8, 3, 3), "a.bias": (64,), "z.weight": (8, 64, 3, 3), "z.bias": (8,)},
            {"a.weight": (64, 16, 3, 3), "z.weight": (16, 64, 3, 3), "z.bias": (16,)},
            True,
        ),
    ],
    ids=["the maker comes first", "no order, and not found", "widths of no image"],
)
def test_a_layer_that_may_feed_the_other_is_no_head(before: Shapes, after: Shapes, ordered: bool):
    with pytest.raises(AmbiguousError, match=r"z\.weight makes as many channels as a\.weight takes, and both differ") as refused:
        compared(after, before, ordered=ordered)
    assert refused.value.hint == "make LIKE with the old number of outputs"
    assert [candidate.key for candidate in refused.value.candidates] == ["z.weight", "a.weight"]


def test_without_the_order_numbers_tell_what_comes_later():
    """Networks in a row, each of which makes an image."""
    net = {f"body.{i}.{name}": shape for i in (0, 1) for name, shape in AUTO.items()}
    after = {f"body.{i}.{name}": shape for i in (0, 1) for name, shape in AUTO_GRAY.items()}
    stems = ["body.0.a.weight", "body.1.a.weight"]
    for ordered in (True, False):
        with pytest.raises(AmbiguousError, match=r"body\.0\.z\.weight makes as many channels as body\.0\.a\.weight takes"):
            compared(after, net, ordered=ordered, found=stems)


def test_a_kernel_that_may_be_either_is_settled_by_the_search_or_the_user():
    net, after = {"b.weight": (8, 8, 3, 3), "s.weight": (8, 3, 4, 4), "y.weight": (8, 8, 3, 3)}, {"s.weight": (8, 1, 4, 4)}
    with pytest.raises(AmbiguousError, match=r"s\.weight could take the image or, transposed, make it") as refused:
        compared(after, net)
    assert refused.value.hint == "--layout OIHW if it takes the image; if not, make LIKE with the old number of outputs"
    assert shown(compared(after, net, found=["s.weight"], found_by="sidecar"))[0] == ["s.weight"]
    with pytest.raises(AmbiguousError):  # names and shapes see the mirror image too
        compared(after, net, found=["s.weight"], found_by="names")
    assert shown(compared(after, net, stated="OIHW"))[0] == ["s.weight"]


# A graph


def test_where_there_is_a_graph_its_kernels_alone_are_first():
    assert shown(compared(GRAY, graph="a.weight"))[0] == ["a.weight"]
    assert shown(compared({**GRAY, "c.weight": (7, 8), "c.bias": (7,)}, graph="a.weight"))[2] == ["c.weight", "c.bias"]
    assert compared({"a.weight": (4, 3, 3, 3)}, graph="a.weight").others == (
        "a.weight is [8, 3, 3, 3] here and [4, 3, 3, 3] there",
    )
    two = compared({**GRAY, "b.weight": (9, 8, 3, 3), "c.weight": (5, 9)}, graph="a.weight")
    assert (shown(two)[2], [text.partition(" ")[0] for text in two.others]) == ([], ["b.weight", "c.weight"])


def test_the_first_of_many_differences():
    assert named(["a", "b", "c"]) == "a, b, c"
    assert named(["a", "b", "c", "d", "e"]) == "a, b, c and 2 more"


def test_the_shapes_that_differ():
    store = Memory({"": {"a": kernel(3), "b": kernel(4)}})
    pairs = [(tensor, LikeTensor(key, (4,), key)) for key, tensor in store.tensors.items()]
    assert dict(changed_shapes(Copy(tuple(pairs), (), ()))) == {"a": (4,)}
