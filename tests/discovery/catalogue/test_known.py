"""The first convs of known architectures, beside tensors that none knows."""

from __future__ import annotations

import pytest

from chkpt_channels.core.dtypes import BY_NAME
from chkpt_channels.core.errors import AmbiguousError
from chkpt_channels.core.tensors import OpaqueTensor, Tensor
from chkpt_channels.discovery.catalogue.known import known_first_convs, listed_names, recognize
from chkpt_channels.discovery.catalogue.match import SWITCH
from chkpt_channels.discovery.find import find_first_convs, select_first_convs, unexplained
from chkpt_channels.discovery.request import ConfigHints, SearchRequest
from tests.support.architectures import corpus, tensors_of
from tests.support.dressed import COLORS, below, dressed
from tests.support.memory import Memory

TIMM = corpus("timm")
RESNET = tensors_of(TIMM["resnet18"], gray=False, ordered=True)
GRAY = tensors_of(TIMM["resnet18"], gray=True, ordered=True)


class Listed(Memory):
    """A checkpoint of which names and shapes are known alone."""

    def __init__(self, tensors, *, torch=True):
        super().__init__({})
        self.tensors = {tensor.name: tensor for tensor in tensors}
        self.ordered = torch


def named(finding):
    return {conv.tensor.name: conv.found_by for conv in finding.first_convs} if finding else None


def test_a_known_network_is_found_by_the_catalogue_and_the_evidence_names_it():
    (conv,) = find_first_convs(Listed(RESNET)).first_convs
    assert conv.found_by == "catalogue"
    assert "timm's resnet18" in conv.why


def test_without_the_catalogue_the_law_decides(monkeypatch):
    monkeypatch.setenv(SWITCH, "off")
    assert named(find_first_convs(Listed(RESNET))) == {"conv1.weight": "shapes"}


def test_a_branch_that_takes_colors_is_for_the_law():
    """It does not know either which of the two is the image's: that is refused, with both."""
    store = Listed(RESNET + COLORS)
    assert known_first_convs(store) is None
    with pytest.raises(AmbiguousError) as caught:
        select_first_convs(store, SearchRequest())
    assert {"conv1.weight", "aux.conv1.weight"} <= {candidate.key for candidate in caught.value.candidates}


def test_a_branch_that_takes_one_channel_is_for_the_law_too():
    depth = [t._replace(shape=(32, 1, 3, 3)) if t.name == "aux.conv1.weight" else t for t in COLORS]
    assert known_first_convs(Listed(RESNET + depth)) is None


def test_kernels_of_a_decoder_are_explained():
    ((_, tensors, _),) = [d for d in dressed(RESNET, {"conv1.weight": "OIHW"}) if d[0] == "encoder"]
    assert named(known_first_convs(Listed(tensors))) == {"encoder.conv1.weight": "catalogue"}


def test_a_stem_under_another_name_is_for_the_law():
    """vit_pytorch's MAE holds its encoder's patch embedding once more, as patch_to_emb: a Linear layer is no narrow kernel."""
    stem = next(t for t in RESNET if t.name == "conv1.weight")
    store = Listed([*below("encoder.", RESNET), stem._replace(name="patch_to_emb.1.weight")])
    assert known_first_convs(store) is None


def test_copies_of_other_counts_are_for_the_law():
    assert known_first_convs(Listed(below("rgb.", RESNET) + below("depth.", GRAY))) is None


def test_the_count_that_the_user_states_is_asked_for():
    assert named(known_first_convs(Listed(GRAY), 1)) == {"conv1.weight": "catalogue"}
    assert known_first_convs(Listed(GRAY), 3) is None


def test_a_configuration_that_names_another_conv_is_not_overruled():
    hints = ConfigHints(first_conv=("conv1",), channels=3)
    assert named(find_first_convs(Listed(RESNET), SearchRequest(hints=hints))) == {"conv1.weight": "catalogue"}
    other = Listed([*RESNET, *COLORS])
    found = find_first_convs(other, SearchRequest(hints=ConfigHints(first_conv=("aux.conv1",), channels=3)))
    assert "catalogue" not in named(found).values()


def test_kernels_of_another_framework_under_the_same_names_are_for_the_law():
    """MLX keeps PyTorch's names, and turns its kernels to OHWI."""
    turned = [t._replace(shape=(t.shape[0], *t.shape[2:], t.shape[1])) if len(t.shape) == 4 else t for t in RESNET]
    assert known_first_convs(Listed(turned, torch=False)) is None
    assert known_first_convs(Listed(RESNET, torch=False))
    threes = [t._replace(shape=(64, 3, 3, 3)) if t.name == "conv1.weight" else t for t in turned]
    assert known_first_convs(Listed(threes, torch=False)) is None


def test_weights_that_cannot_be_read_are_for_the_law():
    store = Listed(RESNET)
    store.opaque = (OpaqueTensor("extra.weight", (64, 3, 3, 3), "is sparse"),)
    assert known_first_convs(store) is None


def test_what_is_listed_is_explained():
    """Kernels that the law cannot explain, in a network that is known."""
    for name in ("vit_base_r50_s16_224", "resnet18"):
        store = Listed(tensors_of(TIMM[name], gray=False, ordered=True))
        assert listed_names(store) >= {t.name for t in store.tensors.values() if len(t.shape) == 4}
        assert unexplained(store, find_first_convs(store).first_convs) == ()
    stranger = Tensor("aux.conv1.weight", BY_NAME["F32"], (32, 3, 3, 3))
    store = Listed([*RESNET, stranger])
    left = unexplained(store, find_first_convs(Listed(RESNET)).first_convs)
    assert [kernel.tensor.name for kernel in left] == ["aux.conv1.weight"]


def test_recognized_are_the_architectures_of_the_first_known_network():
    known = recognize(Listed(below("module.", RESNET)))
    assert known.prefix == "module."
    assert "resnet18" in {a.name for a in known.architectures}
    assert recognize(Listed(COLORS)) is None


@pytest.mark.parametrize("name", sorted(TIMM)[4::16])
def test_no_dress_of_a_known_network_is_answered_wrongly(name):
    """Right, or left to the law."""
    stems = {key: layout for key, _, _, layout in TIMM[name]["stems"]}
    for gray in (False, True):
        for what, tensors, expected in dressed(tensors_of(TIMM[name], gray=gray, ordered=True), stems):
            found = named(known_first_convs(Listed(tensors)))
            assert found is None or found.keys() == expected.keys(), what


@pytest.mark.parametrize(("name", "least"), [("timm", 0.98), ("transformers", 0.98), ("others", 0.65)])
@pytest.mark.parametrize("gray", [False, True], ids=["rgb", "gray"])
def test_what_is_known_of_a_corpus_is_right(name, least, gray):
    """The corpora hold networks that no library of the catalogue builds, or builds in this way: these are for the law."""
    known = asked = 0
    for model in corpus(name).values():
        if ("rgb" if gray else "gray") not in model.get("directions", ("gray", "rgb")) or model.get("refuse"):
            continue
        asked += 1
        found = known_first_convs(Listed(tensors_of(model, gray=gray, ordered=True)))
        if found:
            known += 1
            layouts = {key: layout for key, _, _, layout in model["stems"]}
            assert named(found).keys() == layouts.keys()
            assert all(str(c.layout) == layouts[c.tensor.name] for c in found.first_convs if c.layout and layouts[c.tensor.name])
    assert known / asked >= least
