"""The first convs that LIKE shows, their channels and layouts; what is refused, and what is said of the rest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest

from chkpt_channels import UnsupportedError, UsageError
from chkpt_channels.core.layout import Layout
from chkpt_channels.core.tensors import Edits, FirstConv, Tensor, TensorEdit
from chkpt_channels.discovery.like.compare import Comparison, check_edits, compare, notices
from chkpt_channels.discovery.request import Like, LikeGroup, LikeTensor, SearchRequest
from chkpt_channels.formats.graph import ModelGraph
from tests.support.memory import Memory, kernel

Shapes = Mapping[str, tuple[int, ...]]

NET: Shapes = {"a.weight": (8, 3, 3, 3), "a.bias": (8,), "b.weight": (8, 8, 3, 3), "b.bias": (8,), "c.weight": (5, 8)}
GRAY: Shapes = {"a.weight": (8, 1, 3, 3)}


class Naming(ModelGraph):
    """A graph that names first convs: (name, channels, groups)."""

    def __init__(self, store: Memory, named: Sequence[tuple[str, int, int]]) -> None:
        self._convs = [FirstConv(store.tensors[n], Layout("OIHW"), c, "graph", "the image reaches it", g) for n, c, g in named]

    def first_convs(self) -> Sequence[FirstConv]:
        return self._convs


def memory(shapes: Shapes) -> Memory:
    return Memory({"": {key: kernel(*shape) for key, shape in shapes.items()}})


def like(shapes: Shapes, **words: Any) -> Like:
    return Like("like.pth", (LikeGroup("", "", tuple(LikeTensor(key, shape, key) for key, shape in shapes.items())),), **words)


def compared(
    after: Shapes,
    before: Shapes = NET,
    *,
    graph: Sequence[tuple[str, int, int]] = (),
    found: Sequence[tuple[str, str, int]] = (),
    layout: str = "",
    from_channels: int | None = None,
    **words: Any,
) -> Comparison:
    """What a LIKE with the shapes of `after` in the place of others says; the search finds (name, layout, channels)."""
    store = memory(before)
    if graph:
        store.graph = Naming(store, graph)  # type: ignore[assignment] # another graph than Memory's own
    convs = [FirstConv(store.tensors[name], Layout(order), channels, "catalogue") for name, order, channels in found]
    request = SearchRequest(layout=Layout(layout) if layout else None, from_channels=from_channels)
    return compare(store, like({**before, **after}, **words), request, lambda: convs)


def shown(found: Comparison) -> list[tuple[str, str | None, int]]:
    assert {conv.found_by for conv in found.first_convs} <= {"like"}
    return [(conv.tensor.name, conv.layout, conv.in_channels) for conv in found.first_convs]


def test_what_differs_is_the_first_conv():
    found = compared(GRAY)
    assert shown(found) == [("a.weight", "OIHW", 3)]
    assert (found.channels, found.shapes, found.vectors, found.heads) == ((3, 1), GRAY, (), ())
    assert found.first_convs[0].why == "3 wide here, 1 there"


def test_nothing_differs():
    assert compared({}) == Comparison()
    assert compared({"c.weight": (7, 8)}).channels is None
    assert [head.tensor.name for head in compared({"c.weight": (7, 8)}).heads] == ["c.weight"]


def test_vectors_that_change_along_are_given():
    net = {"norm.running_mean": (3,), "norm.running_var": (3,), **NET}
    found = compared({**GRAY, "norm.running_mean": (1,), "norm.running_var": (1,)}, net)
    assert [vector.name for vector in found.vectors] == ["norm.running_mean", "norm.running_var"]
    assert found.shapes.keys() == {"a.weight", "norm.running_mean", "norm.running_var"}


def test_every_kernel_changes_by_one_ratio():
    net = {"s.weight": (8, 5, 3, 3), **NET}
    with pytest.raises(UnsupportedError, match=r"different ratios: s\.weight from 5 to 2, a\.weight from 3 to 1$"):
        compared({**GRAY, "s.weight": (8, 2, 3, 3)}, net)


def test_another_architecture_is_refused_by_its_first_three_differences():
    net = {**NET, "d.weight": (3, 3), "e.weight": (3, 3)}
    after = {"b.weight": (9, 9, 3, 3), "b.bias": (9,), "c.weight": (6, 9), "d.weight": (4, 4), "e.weight": (4, 4)}
    with pytest.raises(UnsupportedError) as refused:
        compared(after, net)
    message = str(refused.value)
    assert message.startswith(
        "a.pth: is not of the architecture of like.pth: b.weight is [8, 8, 3, 3] here and [9, 9, 3, 3] there"
    )
    assert message.endswith(" and 2 more")


# How many channels, and where they are in a wide axis

WIDE: Shapes = {"w.weight": (8, 12, 3, 3), "w.bias": (8,), **NET}
PATCHES: Shapes = {"w.weight": (64, 768), "w.bias": (64,), **NET}


@pytest.mark.parametrize(
    ("before", "after", "words", "expected"),
    [
        (WIDE, {"w.weight": (8, 4, 3, 3)}, {}, ("w.weight", None, 3)),
        (WIDE, {"w.weight": (8, 4, 3, 3)}, {"target": 1}, ("w.weight", None, 3)),
        (WIDE, {"w.weight": (8, 4, 3, 3)}, {"target": 4}, ("w.weight", "OIHW", 12)),
        (WIDE, {"w.weight": (8, 4, 3, 3)}, {"from_channels": 12}, ("w.weight", "OIHW", 12)),
        (WIDE, {"w.weight": (8, 4, 3, 3)}, {"layout": "OIHW"}, ("w.weight", "OIHW", 12)),
        (WIDE, {"w.weight": (8, 4, 3, 3)}, {"layout": "O(GI)HW"}, ("w.weight", "O(GI)HW", 3)),
        (WIDE, {"w.weight": (8, 4, 3, 3)}, {"channels": (3, 1)}, ("w.weight", None, 3)),
        (WIDE, {"w.weight": (8, 4, 3, 3)}, {"found": [("w.weight", "O(IG)HW", 3)]}, ("w.weight", "O(IG)HW", 3)),
        (WIDE, {"w.weight": (8, 4, 3, 3)}, {"found": [("w.weight", "OIHW", 12)]}, ("w.weight", None, 3)),
        (WIDE, {"w.weight": (8, 13, 3, 3)}, {}, ("w.weight", "OIHW", 12)),
        (PATCHES, {"w.weight": (64, 256)}, {}, ("w.weight", None, 3)),
        (PATCHES, {"w.weight": (64, 256)}, {"layout": "O(HWI)"}, ("w.weight", "O(HWI)", 3)),
        (PATCHES, {"w.weight": (64, 256)}, {"layout": "OI"}, ("w.weight", "OI", 768)),
        (PATCHES, {"w.weight": (64, 1024)}, {"layout": "O(IHW)"}, ("w.weight", "O(IHW)", 3)),
    ],
)
def test_an_axis_that_may_hold_more_than_channels(
    before: Shapes, after: Shapes, words: dict[str, Any], expected: tuple[str, str | None, int]
):
    assert shown(compared(after, before, **words)) == [expected]


def test_a_plain_stem_tells_the_channels_of_a_wide_one():
    found = compared({**GRAY, "w.weight": (8, 4, 3, 3)}, WIDE)
    assert shown(found) == [("w.weight", None, 3), ("a.weight", "OIHW", 3)]
    assert found.channels == (3, 1)


def test_a_vector_tells_the_channels_of_a_wide_axis():
    net = {"mean": (6,), **WIDE}
    assert compared({"mean": (2,), "w.weight": (8, 4, 3, 3)}, net).channels == (6, 2)
    net = {"norm.weight": (768,), **PATCHES}
    found = compared({"norm.weight": (256,), "w.weight": (64, 256)}, net, layout="O(HWI)")
    assert (found.channels, found.vectors, found.shapes["norm.weight"]) == ((3, 1), (), (256,))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"target": 3}, r"^a\.pth: the target has 3 channels, and like\.pth takes 1$"),
        ({"target": 2}, r"^a\.pth: the target has 2 channels, and like\.pth takes 1$"),
        (
            {"layout": "IOHW"},
            r"^a\.pth: a\.weight: --layout IOHW is not that of \[8, 3, 3, 3\], of which LIKE makes \[8, 1, 3, 3\]$",
        ),
    ],
)
def test_what_the_user_says_must_agree(words: dict[str, Any], message: str):
    with pytest.raises(UsageError, match=message):
        compared(GRAY, **words)


# A graph


def test_a_graph_that_agrees():
    found = compared(GRAY, graph=[("a.weight", 3, 1)])
    assert shown(found) == [("a.weight", "OIHW", 3)]
    assert found.first_convs[0].why == "3 channels here, 1 there; the image reaches it"
    assert (found.channels, found.vectors) == ((3, 1), ())
    assert compared({}, graph=[("a.weight", 3, 1)], graph_channels=3).channels is None


def test_a_grouped_kernel_keeps_its_shape_and_the_graph_of_like_tells():
    net = {**NET, "g.weight": (6, 1, 3, 3)}
    assert shown(compared({}, net, graph=[("g.weight", 3, 3)], graph_channels=1)) == [("g.weight", "OIHW", 3)]


@pytest.mark.parametrize(
    ("graph", "graph_channels"),
    [
        ([("a.weight", 3, 1), ("b.weight", 8, 1)], 0),
        ([("a.weight", 3, 1), ("b.weight", 3, 1)], 0),
        ([("a.weight", 3, 1)], 3),
    ],
    ids=["other counts", "one is left", "the graph of LIKE"],
)
def test_a_graph_that_does_not_agree(graph: Sequence[tuple[str, int, int]], graph_channels: int):
    with pytest.raises(UnsupportedError, match=r"like\.pth and the graph disagree: LIKE changes a\.weight 3 to 1, and the image"):
        compared(GRAY, graph=graph, graph_channels=graph_channels)


# What is beside the model


def test_a_copy_whose_name_lost_its_dots_is_refused():
    """As averaged weights in latent diffusion's checkpoints have it."""
    net = {f"model.net.{key}": shape for key, shape in NET.items()}
    store = memory({**net, "model_ema.netaweight": (8, 3, 3, 3), "model_ema.decay": (1,)})
    with pytest.raises(UnsupportedError, match=r"^a\.pth: model_ema\.netaweight: looks like a copy of model\.net\.a\.weight"):
        compare(store, like({**NET, **GRAY}), SearchRequest(), list)
    other = memory({**net, "loss.vgg.weight": (8, 3, 3, 3)})
    found = compare(other, like({**NET, **GRAY}), SearchRequest(), list)
    assert [tensor.name for tensor in found.outside] == ["loss.vgg.weight"]
    assert [(notice.code, notice.message) for notice in notices(found)] == [
        ("not_in_like", "loss.vgg.weight stays: LIKE has no tensor of that name")
    ]


def test_a_head_is_reported():
    (notice,) = notices(compared({**GRAY, "c.weight": (7, 8)}))
    assert notice == ("head_left", "c.weight stays [5, 8], and is [7, 8] in LIKE")


# What the plan makes of it


def edited(**shapes: tuple[int, ...]) -> Edits:
    parts = {"state": "optimizer state"}
    return Edits(
        {n.replace("_", "."): TensorEdit(s, lambda: np.zeros(1), parts.get(n.split("_")[0], "kernel")) for n, s in shapes.items()}
    )


def test_the_edits_must_make_likes_shapes():
    store, comparison = memory({**NET, "state.a": (8, 3, 3, 3)}), compared(GRAY)
    check_edits(store, comparison, edited(a_weight=(8, 1, 3, 3), a_bias=(8,), state_a=(8, 1, 3, 3)))
    for edits in (edited(), edited(a_weight=(8, 2, 3, 3)), edited(a_weight=(1, 8, 3, 3))):
        with pytest.raises(UnsupportedError, match=r"^a\.pth: a\.weight: is \[8, 3, 3, 3\] here and \[8, 1, 3, 3\] in LIKE"):
            check_edits(store, comparison, edits)
    with pytest.raises(
        UnsupportedError, match=r"c\.weight: is \[5, 8\] here and \[5, 8\] in LIKE, and the conversion makes it \[5\]"
    ):
        check_edits(store, comparison, edited(a_weight=(8, 1, 3, 3), c_weight=(5,)))


def test_results_can_be_pickled():
    import pickle

    found = compared(GRAY)
    assert pickle.loads(pickle.dumps(found)) == found
    assert isinstance(found.first_convs[0].tensor, Tensor)
