"""First convs that are found, or named: by the graph, a configuration, names and shapes; and how the rest is refused."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import pytest

from chkpt_channels import AmbiguousError, UnsupportedError, UsageError
from chkpt_channels.core.errors import Candidate
from chkpt_channels.core.layout import Layout
from chkpt_channels.core.tensors import Finding, FirstConv, OpaqueTensor, Tensor
from chkpt_channels.discovery import find
from chkpt_channels.discovery.find import (
    compare_with_like,
    find_first_convs,
    select_first_convs,
    unexplained,
)
from chkpt_channels.discovery.request import ConfigHints, Like, LikeGroup, LikeTensor, SearchRequest
from chkpt_channels.formats.graph import ModelGraph
from tests.support.memory import NET, Memory, kernel

SECOND = kernel(8, 3, 5, 5)


class Naming(ModelGraph):
    """A graph that names its first convs; it remembers which inputs the user named."""

    named: Sequence[str] = ()

    def __init__(self, first_conv: Tensor) -> None:
        self._first_conv = first_conv

    def first_convs(self) -> Sequence[FirstConv]:
        return [FirstConv(self._first_conv, Layout("OIHW"), 8, "graph", "the image reaches it")]

    def select_inputs(self, names: Sequence[str]) -> bool:
        self.named = names
        return True


class Graphed(Memory):
    """A checkpoint with such a graph."""

    def __init__(self, groups: Mapping[str, Mapping[str, np.ndarray]]) -> None:
        super().__init__(groups)
        self.graph = Naming(self.tensors["conv2.weight"])


class Unordered(Memory):
    """A checkpoint that has lost the order of its modules."""

    ordered = False


def asked(layers: Sequence[str] = (), layout: str = "", **words: Any) -> SearchRequest:
    return SearchRequest(tuple(layers), Layout(layout) if layout else None, **words)


def hinted(*first_conv: str, channels: int = 0) -> SearchRequest:
    return SearchRequest(hints=ConfigHints(first_conv, channels))


def shown(finding: Finding) -> list[tuple[str, str | None, int, str]]:
    return [(c.tensor.name, c.layout, c.in_channels, c.found_by) for c in finding.first_convs]


OPEN: Mapping[str, np.ndarray] = {
    "image.a.weight": kernel(8, 3, 3, 3),
    "image.b.weight": kernel(9, 3, 5, 5),
    "image.c.weight": kernel(8, 9, 3, 3),
    "image.d.weight": kernel(7, 8, 3, 3),
}
"""Two kernels that could see the image."""


# What tells


def test_names_and_shapes_tell_where_nothing_else_does():
    assert shown(find_first_convs(Memory({"": NET}))) == [("conv1.weight", "OIHW", 3, "shapes")]


def test_the_graph_tells_before_names_and_shapes():
    assert shown(find_first_convs(Graphed({"": NET}))) == [("conv2.weight", "OIHW", 8, "graph")]


def test_a_configuration_tells_where_names_and_shapes_do_not():
    checkpoint = Memory({"": OPEN})
    assert find_first_convs(checkpoint).first_convs == ()
    found = find_first_convs(checkpoint, hinted("image.b", channels=3))
    assert shown(found) == [("image.b.weight", "OIHW", 3, "sidecar")]
    assert (found.first_convs[0].why, found.candidates) == ("config.json names it", ())


@pytest.mark.parametrize(
    "hints",
    [ConfigHints(("image.b",), 4), ConfigHints(("image.b", "image.x"), 3), ConfigHints(("image.x",), 3), ConfigHints((), 0)],
    ids=["other channels", "one is not there", "not there", "nothing"],
)
def test_a_configuration_that_does_not_fit_tells_nothing(hints: ConfigHints):
    finding = find_first_convs(Memory({"": OPEN}), SearchRequest(hints=hints))
    assert finding.first_convs == ()
    assert {c.key for c in finding.candidates} >= {"image.a.weight", "image.b.weight"}


def test_a_configuration_does_not_overrule_names_and_shapes():
    assert shown(find_first_convs(Memory({"": NET}), hinted("conv2", channels=8))) == [("conv1.weight", "OIHW", 3, "shapes")]


LATENT = {"conv_in.weight": kernel(16, 4, 3, 3), "mid.weight": kernel(16, 16, 3, 3), "conv_out.weight": kernel(4, 16, 3, 3)}


def test_a_number_of_channels_in_a_configuration_settles_a_width():
    both = {"a.conv_in.weight": kernel(16, 4, 3, 3), "b.stem.weight": kernel(16, 6, 3, 3), "c.weight": kernel(32, 16, 3, 3)}
    checkpoint = Unordered({"": both})
    assert find_first_convs(checkpoint).first_convs == ()
    found = find_first_convs(checkpoint, hinted(channels=6))
    assert shown(found) == [("b.stem.weight", "OIHW", 6, "sidecar")]
    assert found.first_convs[0].why == "config.json says 6 channels"
    assert shown(find_first_convs(checkpoint, asked(from_channels=6))) == [("b.stem.weight", "OIHW", 6, "names")]
    assert find_first_convs(checkpoint, hinted(channels=7)).first_convs == ()


# What is selected


def test_what_is_found_is_selected():
    assert shown(select_first_convs(Memory({"": NET}), asked())) == [("conv1.weight", "OIHW", 3, "shapes")]


class Tied(Memory):
    """A checkpoint in which the last layer has the memory of the first."""

    def memory(self, name: str) -> Hashable:
        return name.replace("leave", "enter")


def test_a_first_conv_under_a_name_that_is_not_found_is_refused_with_all_names():
    """The search cannot know what the second layer does with the weights of the first."""
    sizes = {"enter": (16, 4, 3, 3), "a": (16, 16, 3, 3), "b": (32, 16, 3, 3), "c": (16, 32, 3, 3), "d": (4, 16, 1, 1)}
    net = {f"{name}.weight": kernel(*shape) for name, shape in (sizes | {"leave": (16, 4, 3, 3)}).items()}
    select = partial(select_first_convs, Tied({"": net}))
    assert shown(select_first_convs(Memory({"": net}), asked())) == [("enter.weight", "OIHW", 4, "shapes")]
    with pytest.raises(AmbiguousError, match=r"leave\.weight: shares its memory with enter\.weight, and is not") as refused:
        select(asked())
    assert [(c.key, c.needed) for c in refused.value.candidates] == [("enter.weight", True), ("leave.weight", True)]
    assert refused.value.hint == f"--layer enter.weight --layer leave.weight   or   {Memory.like_hint}"
    named = select(asked(layers=("enter.weight", "leave.weight")))
    assert [name for name, *_ in shown(named)] == ["enter.weight", "leave.weight"]


def test_a_layout_that_the_user_names_is_taken():
    net = {"conv1.weight": kernel(8, 3, 3, 3), "conv2.weight": kernel(8, 8, 3, 3)}
    assert shown(select_first_convs(Memory({"": net}), asked(layout="OIHW"))) == [("conv1.weight", "OIHW", 3, "shapes")]
    with pytest.raises(UsageError, match=r"^a\.pth: conv1\.weight: --layout OIW has 3 axes, the shape \[8, 3, 3, 3\] has 4$"):
        select_first_convs(Memory({"": net}), asked(layout="OIW"))


def test_a_layout_makes_the_channels_what_it_says():
    net = {"patch_embed.proj.weight": kernel(64, 768), "fc.weight": kernel(5, 64)}
    (found,) = select_first_convs(Memory({"": net}), asked(layout="O(HWI)")).first_convs
    assert (found.layout, found.in_channels) == ("O(HWI)", 3)
    net = {"stem.weight": kernel(56, 12, 3, 3), "layer.weight": kernel(64, 56, 3, 3)}
    assert select_first_convs(Memory({"": net}), asked(layout="OIHW")).first_convs[0].in_channels == 12
    assert select_first_convs(Memory({"": net}), asked(layout="O(GI)HW")).first_convs[0].in_channels == 3


@pytest.mark.parametrize(
    ("arrays", "error", "message", "hint"),
    [
        (
            {"fc.weight": kernel(5, 8)},
            UnsupportedError,
            "a.pth: holds no convolution that could see an image",
            "name it: --layer KEY --layout LAYOUT",
        ),
        (
            OPEN,
            AmbiguousError,
            "a.pth: 4 tensors could be the first convolution",
            "--layer image.a.weight --layer image.b.weight   or   --layer image.a.weight   or   --layer image.b.weight",
        ),
        (
            LATENT,
            AmbiguousError,
            "a.pth: 3 tensors could be the first convolution",
            "--layer conv_in.weight   or   --layer mid.weight",
        ),
    ],
    ids=["none", "two", "a latent"],
)
def test_what_is_not_found_is_refused(arrays: Mapping[str, np.ndarray], error: type[Exception], message: str, hint: str):
    with pytest.raises(error) as refused:
        select_first_convs(Memory({"": arrays}), asked())
    assert str(refused.value).startswith(message)
    assert refused.value.hint == hint or refused.value.hint.startswith(f"{hint}   or   ")


@pytest.mark.parametrize("words", [{}, {"layout": "OIHW"}], ids=["nothing", "the layout alone"])
def test_what_is_offered_settles_the_layer_and_its_layout(words: dict[str, str]):
    file = Unordered({"": {"stem.weight": kernel(8, 3, 3, 3), "fc.weight": kernel(4, 8)}})
    with pytest.raises(AmbiguousError) as refused:
        select_first_convs(file, asked(**words))
    assert [(c.key, c.why_not) for c in refused.value.candidates] == [("stem.weight", "its axis order is ambiguous")]
    offered = "--layer stem.weight --layout OIHW, HWIO or OHWI"
    assert refused.value.hint == f"{offered}   or   {Memory.like_hint}"
    for layout in ("OIHW", "HWIO", "OHWI"):
        (conv,) = select_first_convs(file, asked(layers=["stem.weight"], layout=layout)).first_convs
        assert (conv.layout, conv.in_channels) == (layout, 3)


def test_a_number_that_no_kernel_takes_is_offered_again():
    with pytest.raises(AmbiguousError) as refused:
        select_first_convs(Memory({"": NET}), asked(from_channels=7))
    assert refused.value.hint.startswith("--from 3   or   --layer ")


def test_a_file_without_tensors_has_nothing_to_name():
    with pytest.raises(UnsupportedError, match=r"^a\.pth: holds no tensors$") as refused:
        select_first_convs(Memory({"": {}}), asked())
    assert refused.value.hint == ""


def test_every_refusal_for_ambiguity_names_like():
    for net in (OPEN, LATENT, {"fc.weight": kernel(5, 8)}):
        with pytest.raises(UnsupportedError) as refused:
            select_first_convs(Memory({"": net}), asked())
        assert refused.value.hint.endswith(f"   or   {Memory.like_hint}")


PAST = {
    "layers.0.conv.weight": kernel(12, 3, 3, 3),
    "layers.0.bn.weight": kernel(15),
    "layers.1.conv.weight": kernel(45, 15, 3, 3),
    "fc.weight": kernel(9, 45),
}
"""EDANet joins the image to what its first convolution makes."""


def test_where_the_image_goes_past_the_stem_no_layer_is_offered():
    with pytest.raises(AmbiguousError) as refused:
        select_first_convs(Memory({"": PAST}), asked())
    why = "no edit of first convolutions is right: layers.0.bn takes 15 channels, the 12 of layers.0.conv and 3 of the image"
    assert str(refused.value).startswith(f"a.pth: {why}")
    assert refused.value.candidates[0].key == "layers.0.conv.weight"
    assert refused.value.hint == Memory.like_hint


def like(net: Mapping[str, np.ndarray], **words: Any) -> SearchRequest:
    """LIKE with these shapes."""
    tensors = tuple(LikeTensor(name, array.shape, name) for name, array in net.items())
    return SearchRequest(like=Like("like.pth", (LikeGroup("", "", tensors),), **words))


def test_like_shows_what_names_and_shapes_do_not():
    both = {**OPEN, "image.a.weight": kernel(8, 1, 3, 3), "image.b.weight": kernel(9, 1, 5, 5)}
    found = select_first_convs(Memory({"": OPEN}), like(both))
    assert shown(found) == [("image.a.weight", "OIHW", 3, "like"), ("image.b.weight", "OIHW", 3, "like")]
    assert compare_with_like(Memory({"": OPEN}), asked()).channels is None
    with pytest.raises(UsageError, match=r"--from says 4 channels, the kernel has 3"):
        select_first_convs(Memory({"": OPEN}), like(both)._replace(from_channels=4))


def test_where_nothing_differs_the_file_is_searched_as_ever():
    assert shown(select_first_convs(Memory({"": NET}), like(NET))) == [("conv1.weight", "OIHW", 3, "shapes")]
    assert shown(select_first_convs(Memory({"": NET}), like(NET, target=3))) == [("conv1.weight", "OIHW", 3, "shapes")]
    assert select_first_convs(Memory({"": OPEN}), like(OPEN)).first_convs == ()
    with pytest.raises(UsageError, match=r"^a\.pth: conv1\.weight: the target has 1 channels, and LIKE takes 3 as this does$"):
        select_first_convs(Memory({"": NET}), like(NET, target=1))
    with pytest.raises(AmbiguousError, match="could be the first convolution"):
        select_first_convs(Memory({"": OPEN}), like(OPEN, target=1))


def test_a_kernel_in_groups_does_not_show_that_nothing_differs():
    checkpoint = Graphed({"": NET})
    convs = [conv._replace(groups=8) for conv in checkpoint.graph.first_convs()]
    checkpoint.graph.first_convs = lambda: convs  # type: ignore[method-assign] # the same graph, in groups
    with pytest.raises(AmbiguousError, match="a kernel in 8 groups has one shape for several counts"):
        select_first_convs(checkpoint, like(NET))


def test_candidates_say_what_speaks_against_each():
    with pytest.raises(AmbiguousError) as refused:
        select_first_convs(Memory({"": OPEN}), asked())
    reasons = {c.key: c.why_not for c in refused.value.candidates}
    why = "image.b.weight takes as many channels as an image has, and does not stand where first convs do"
    assert reasons["image.a.weight"] == reasons["image.b.weight"] == why
    assert reasons["image.c.weight"] == "an earlier layer makes 9 channels"
    assert "image.b.weight" in refused.value.hint


LORA = {
    "patches.projection.base_layer.weight": kernel(32, 3, 8, 8),
    "patches.projection.lora_A.default.weight": kernel(4, 3, 8, 8),
    "patches.projection.lora_B.default.weight": kernel(32, 4, 1, 1),
    "layers.0.q.weight": kernel(32, 32),
}


def test_an_adapter_sees_the_image_beside_the_layer_that_it_adapts():
    checkpoint, (base, adapter, *_) = Memory({"": LORA}), LORA
    assert [conv.tensor.name for conv in select_first_convs(checkpoint, asked()).first_convs] == [base, adapter]
    with pytest.raises(AmbiguousError, match="sees the image together with") as refused:
        select_first_convs(checkpoint, asked(layers=[base]))
    assert refused.value.hint == f"--layer {base} --layer {adapter}"


@pytest.mark.parametrize("layers", [[], ["conv1"]])
def test_candidates_that_are_needed_together_are_named_together(monkeypatch: pytest.MonkeyPatch, layers: list[str]):
    needed = [Candidate(name, NET[name].shape, needed=True) for name in ("conv1.weight", "conv2.weight")]
    finding = Finding((), (Candidate("fc.weight", (5, 8)), *needed))
    monkeypatch.setattr("chkpt_channels.discovery.find._find_once", lambda *_, **__: finding)
    with pytest.raises(AmbiguousError) as refused:
        select_first_convs(Memory({"": NET}), asked(layers=layers))
    together = "--layer conv1.weight --layer conv2.weight"
    assert refused.value.hint == (together if layers else f"{together}   or   {Memory.like_hint}")
    assert len(select_first_convs(Memory({"": NET}), asked(layers=["conv1", "conv2"])).first_convs) == 2


# What the user names


BRANCHES = {
    "stem.a.weight": kernel(8, 3, 3, 3),
    "stem.b.weight": kernel(8, 3, 3, 3),
    "body.weight": kernel(16, 16, 3, 3),
    "head.weight": kernel(5, 16),
}
"""Two stems, whose outputs are concatenated."""


@pytest.mark.parametrize("layer", ["stem.a", "stem.b.weight"])
def test_a_stem_that_is_left_out_is_named(layer: str):
    with pytest.raises(AmbiguousError, match="sees the image together with") as refused:
        select_first_convs(Memory({"": BRANCHES}), asked(layers=[layer]))
    assert refused.value.hint == "--layer stem.a.weight --layer stem.b.weight"
    assert [c.key for c in refused.value.candidates] == [n for n in BRANCHES if n.startswith("stem") and layer not in n]
    assert len(select_first_convs(Memory({"": BRANCHES}), asked(layers=["stem.*"])).first_convs) == 2


def test_the_average_of_a_model_is_left_out_by_no_one():
    groups = {"": {**NET, **{f"ema.{name}": array for name, array in NET.items()}}}
    with pytest.raises(AmbiguousError, match=r"conv1\.weight: sees the image together with ema\.conv1\.weight"):
        select_first_convs(Memory(groups), asked(layers=["conv1.weight"]))


def test_networks_of_other_channels_and_other_state_dicts_may_be_left_out():
    networks = {"netG": NET, "netD": {**NET, "conv1.weight": kernel(8, 6, 7, 7)}, "other": NET}
    found = select_first_convs(Memory(networks), asked(layers=["netG/conv1.weight"])).first_convs
    assert [conv.tensor.name for conv in found] == ["netG/conv1.weight"]


def test_what_is_no_stem_itself_leaves_none_out():
    """A latent beside an image: the search finds the image's."""
    assert len(select_first_convs(Memory({"": BRANCHES}), asked(layers=["body"])).first_convs) == 1


def test_a_copy_without_dots_in_its_name_follows():
    net = {"model.unet.in.0.weight": kernel(32, 4, 3, 3), "model_ema.unetin0weight": kernel(32, 4, 3, 3)}
    net |= {"model.unet.out.weight": kernel(4, 32, 3, 3)}
    found = select_first_convs(Memory({"": net}), asked(layers=["model.unet.in.0"])).first_convs
    assert [(c.tensor.name, c.why) for c in found] == [
        ("model.unet.in.0.weight", "named by --layer"),
        ("model_ema.unetin0weight", "a copy of model.unet.in.0.weight"),
    ]


@pytest.mark.parametrize(
    ("layers", "expected"),
    [
        (["conv2.weight"], ["conv2.weight"]),
        (["conv2"], ["conv2.weight"]),
        (["conv*"], ["conv1.weight", "conv2.weight"]),
        (["conv2", "conv1", "conv2.weight"], ["conv2.weight", "conv1.weight"]),
    ],
    ids=["key", "module", "glob", "several, one twice"],
)
def test_layers_are_named_by_key_and_glob(layers: list[str], expected: list[str]):
    found = select_first_convs(Memory({"": NET}), asked(layers=layers)).first_convs
    assert [conv.tensor.name for conv in found] == expected
    assert {(conv.found_by, conv.why) for conv in found} == {("user", "named by --layer")}
    assert {conv.tensor.name: conv.in_channels for conv in found}.items() <= {"conv1.weight": 3, "conv2.weight": 8}.items()


def test_layers_are_named_in_every_copy():
    found = select_first_convs(Memory({"model": NET, "ema": NET}), asked(layers=["conv1"])).first_convs
    assert [conv.tensor.name for conv in found] == ["model/conv1.weight", "ema/conv1.weight"]


@pytest.mark.parametrize(
    ("shape", "words", "message", "hint"),
    [
        (
            (5, 12),
            {},
            r"its axis order is ambiguous: shape \[5, 12\] does not show the input channels",
            "--layout OI, O(HWI) or O(IHW)",
        ),
        (
            (3, 3, 3, 3),
            {"layout": "OIW"},
            r"its axis order is ambiguous: shape \[3, 3, 3, 3\] does not show",
            "--layout OIHW, HWIO or OHWI",
        ),
        (
            (3, 3, 3, 3, 3),
            {"layout": "OIHW"},
            r"its axis order is ambiguous: shape \[3, 3, 3, 3, 3\] does not show",
            "--layout OIDHW, DHWIO or ODHWI",
        ),
        ((3, 1, 1, 3, 3, 3), {}, r"its axis order is ambiguous: shape \[3, 1, 1, 3, 3, 3\] does not show", ""),
    ],
    ids=["a product", "another rank", "a volume", "no kernel"],
)
def test_a_layer_whose_channels_are_open_needs_a_layout(shape: tuple[int, ...], words: dict[str, str], message: str, hint: str):
    with pytest.raises(UnsupportedError, match=rf"^a\.pth: x\.weight: {message}") as refused:
        select_first_convs(Memory({"": {**NET, "x.weight": kernel(*shape)}}), asked(layers=["x"], **words))
    assert refused.value.hint == hint


@pytest.mark.parametrize(
    ("layout", "known", "expected"),
    [
        ("OI", None, 12),
        ("O(HWI)", None, 3),
        ("O(IHW)", 4, 4),
        ("O(IHW)", 12, 3),
        ("(HWI)O", None, 1),
    ],
    ids=["plain", "three if it fits", "as many as are known", "not all", "one where three do not fit"],
)
def test_a_folded_axis_holds_three_colors_if_nothing_else_is_known(layout: str, known: int | None, expected: int):
    net = {**NET, "x.weight": kernel(8, 12) if layout != "(HWI)O" else kernel(64, 5)}
    words = {"layers": ["x"], "layout": layout}
    if known == expected or known is None:
        (found,) = select_first_convs(
            Memory({"": net}), asked(**words, **({"from_channels": known} if known else {}))
        ).first_convs
        assert (found.layout, found.in_channels) == (layout, expected)
    else:
        with pytest.raises(UsageError, match=f"--from says {known} channels, the kernel has {expected}"):
            select_first_convs(Memory({"": net}), asked(**words, from_channels=known))


def test_the_channels_that_the_user_knows_must_be_there():
    with pytest.raises(UsageError, match=r"^a\.pth: conv2\.weight: --from says 3 channels, the kernel has 8$"):
        select_first_convs(Memory({"": NET}), asked(layers=["conv2"], from_channels=3))


def test_vectors_in_front_of_a_named_layer_are_found():
    net = {"mean": kernel(3), **NET}
    assert [t.name for t in select_first_convs(Memory({"": net}), asked(layers=["conv1"])).input_vectors] == ["mean"]
    assert [t.name for t in select_first_convs(Memory({"": net}), asked(layers=["conv2"])).input_vectors] == ["bn1.weight"]


def test_the_graph_says_itself_what_stands_in_front():
    found = select_first_convs(Graphed({"": {"mean": kernel(3), **NET}}), asked(layers=["conv2"]))
    assert (shown(found), found.input_vectors) == ([("conv2.weight", "OIHW", 8, "user")], ())


def test_inputs_that_are_named_are_handed_to_the_graph():
    checkpoint = Graphed({"": NET})
    select_first_convs(checkpoint, asked(inputs=("pixels",)))
    assert checkpoint.graph.named == ("pixels",)
    with pytest.raises(UsageError, match=r"^a\.pth: --input names an input of an ONNX graph, and this is memory$"):
        select_first_convs(Memory({"": NET}), asked(inputs=("pixels",)))


def test_hints_of_a_configuration_are_those_of_the_request():
    assert shown(select_first_convs(Memory({"": OPEN}), hinted("image.b", channels=3))) == [
        ("image.b.weight", "OIHW", 3, "sidecar")
    ]


def left(checkpoint: Memory, *names: str) -> list[str]:
    """The names of what is unexplained where these are the first convs."""
    stems = [FirstConv(checkpoint.tensors[n], Layout("OIHW"), checkpoint.tensors[n].shape[1], "user") for n in names]
    return [kernel.tensor.name for kernel in unexplained(checkpoint, stems)]


def test_what_is_left_beside_first_convs():
    both = {**NET, "side.a.weight": SECOND, "side.b.weight": kernel(8, 8, 3, 3)}
    assert left(Memory({"": both}), "conv1.weight") == ["side.a.weight"]
    assert left(Memory({"": both}), "conv1.weight", "side.a.weight") == []
    assert left(Graphed({"": both}), "conv1.weight") == []  # the graph knows what the image reaches
    assert left(Memory({"": NET}).optimizer("optimizer", {"0": {"exp_avg.weight": SECOND}}), "conv1.weight") == []


def test_what_is_left_may_be_no_dense_tensor():
    checkpoint = Memory({"": {**NET, "side.b.weight": kernel(8, 8, 3, 3)}})
    checkpoint.opaque = (OpaqueTensor("side.a.weight", (8, 3, 5, 5), "is a sparse tensor", follows=4),)
    assert left(checkpoint, "conv1.weight") == ["side.a.weight"]


class Viewed(ModelGraph):
    """The graph of a checkpoint whose names and axis orders are not PyTorch's, with a view that has these."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self._tensors = tensors

    def search_view(self) -> Mapping[Tensor, str]:
        shown = {"conv1/kernel": ("conv1.weight", (8, 3, 7, 7)), "conv2/kernel": ("conv2.weight", (8, 8, 3, 3))}
        shown |= {"side/kernel": ("side.weight", (4, 3, 5, 5)), "mix/kernel": ("mix.weight", (5, 12, 1, 1))}
        return {Tensor(key, self._tensors[name].dtype, shape): name for name, (key, shape) in shown.items()}


class Depthwise(Viewed):
    """One that says of one kernel that it is depthwise."""

    def is_depthwise(self, name: str) -> bool:
        return name == "side/kernel"


def test_what_is_left_in_a_view_has_its_own_name():
    checkpoint = Memory({"": {n: kernel(*s) for n, s in HWIO_SHAPES.items()}})
    checkpoint.ordered, checkpoint.graph = False, Viewed(checkpoint.tensors)  # type: ignore[assignment] # another graph
    stems = [FirstConv(checkpoint.tensors["conv1/kernel"], Layout("HWIO"), 3, "user")]
    assert [k.tensor for k in unexplained(checkpoint, stems)] == [checkpoint.tensors["side/kernel"]]
    checkpoint.graph = Depthwise(checkpoint.tensors)
    assert unexplained(checkpoint, stems) == ()


HWIO_SHAPES = {
    "conv1/kernel": (7, 7, 3, 8),
    "conv2/kernel": (3, 3, 8, 8),
    "side/kernel": (5, 5, 3, 4),
    "mix/kernel": (1, 1, 12, 5),
}


def test_the_same_names_and_shapes_are_searched_once():
    first = Memory({"": {"conv1.weight": kernel(8, 3, 3, 3), "conv2.weight": kernel(8, 8, 3, 3)}})
    again = Memory({"": {"conv1.weight": 2 * kernel(8, 3, 3, 3), "conv2.weight": kernel(8, 8, 3, 3)}})
    other = Memory({"": {"conv1.weight": kernel(8, 4, 3, 3), "conv2.weight": kernel(8, 8, 3, 3)}})
    assert [conv.in_channels for conv in find_first_convs(first).first_convs] == [3]
    hits = find._find_once.cache_info().hits
    assert find_first_convs(again) == find_first_convs(first)
    assert find._find_once.cache_info().hits == hits + 2
    assert [conv.in_channels for conv in find_first_convs(other).first_convs] == [4]
    assert not find_first_convs(first, SearchRequest(from_channels=4)).first_convs
