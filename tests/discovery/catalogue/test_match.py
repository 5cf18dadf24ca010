"""Known architectures in any dress."""

from __future__ import annotations

import pickle
from collections import Counter

import pytest

from chkpt_channels.core.dtypes import BY_NAME
from chkpt_channels.core.tensors import Tensor
from chkpt_channels.discovery.catalogue.match import SWITCH, matches, recognized
from tests.support.architectures import corpus, tensors_of
from tests.support.dressed import below, dressed

TIMM = corpus("timm")
RESNET = tensors_of(TIMM["resnet18"], gray=False, ordered=True)


def names_of(found):
    return [conv.tensor.name for match in found for conv in match.stems]


@pytest.mark.parametrize("ordered", [True, False])
def test_a_network_is_known_by_its_names_and_told_by_its_shapes(ordered):
    (match,) = matches(tensors_of(TIMM["resnet18"], gray=False, ordered=ordered))
    assert [(c.tensor.name, c.layout, c.in_channels, c.found_by) for c in match.stems] == [
        ("conv1.weight", "OIHW", 3, "catalogue")
    ]
    known = recognized(match)
    assert (known.group, known.prefix, known.head) == ("", "", "whole")
    told = {(a.library, a.name) for a in known.architectures}
    assert {("timm", "resnet18"), ("torchvision", "resnet18")} <= told
    assert pickle.loads(pickle.dumps(known)) == known


def test_counts_that_versions_do_not_write_are_not_missed():
    (match,) = matches([t for t in RESNET if not t.name.endswith("num_batches_tracked")])
    assert match.head == "whole"


def test_a_head_that_is_cut_or_exchanged_is_said():
    by_dress = {what: matches(tensors) for what, tensors, _ in dressed(RESNET, {"conv1.weight": "OIHW"})}
    heads = {what: [(m.prefix, recognized(m).head, m.other_child) for m in found] for what, found in by_dress.items()}
    assert heads == {
        "head cut": [("", "cut", "")],
        "head exchanged": [("", "exchanged", "my_head")],
        "backbone": [("backbone.", "cut", "")],
        "encoder": [("encoder.", "cut", "")],
        "module": [("module.", "whole", "")],
        "two copies": [("model.", "whole", ""), ("ema_model.", "whole", "")],
        "four-channel branch": [("", "whole", "ms")],
        "three-channel branch": [("", "whole", "aux")],
    }
    assert all(("timm", "resnet18") in {(a.library, a.name) for a in recognized(m).architectures} for m in by_dress["encoder"])


def test_shapes_of_other_widths_tell_no_architecture_and_still_the_stem():
    halved = [t if t.name == "conv1.weight" else t._replace(shape=tuple(max(1, d // 2) for d in t.shape)) for t in RESNET]
    (match,) = matches(halved)
    assert names_of([match]) == ["conv1.weight"]
    assert recognized(match) is None


def test_a_stem_with_another_window_is_not_known():
    """As people do for small images."""
    assert matches([t._replace(shape=(64, 3, 3, 3)) if t.name == "conv1.weight" else t for t in RESNET]) == []


def test_any_number_of_channels_is_known():
    (match,) = matches([t._replace(shape=(64, 13, 7, 7)) if t.name == "conv1.weight" else t for t in RESNET])
    assert match.stems[0].in_channels == 13


def test_one_network_inside_of_another_is_the_other():
    """deit_base_patch16_224 stands whole inside vit_base_r50_s16_224, and its patch embedding takes 1,024 channels there."""
    (match,) = matches(tensors_of(TIMM["vit_base_r50_s16_224"], gray=False, ordered=True))
    assert names_of([match]) == ["patch_embed.backbone.stem.conv.weight"]


def test_groups_of_a_checkpoint_are_networks_of_their_own():
    grouped = [t._replace(name=f"{group}/{t.name}", group=group) for group in ("state_dict", "state_dict_ema") for t in RESNET]
    assert [match.group for match in matches(grouped)] == ["state_dict", "state_dict_ema"]


def test_what_is_deep_is_not_looked_for():
    assert matches(below("a." * 5, RESNET))
    assert matches(below("a." * 20, RESNET)) == []


def test_a_switch_turns_it_off(monkeypatch):
    monkeypatch.setenv(SWITCH, "off")
    assert matches(RESNET) == []


def test_few_tensors_are_no_network():
    assert matches([Tensor(f"{i}.weight", BY_NAME["F32"], (3, 3, 3, 3)) for i in range(5)]) == []


@pytest.mark.parametrize("name", sorted(TIMM)[::9])
def test_every_dress_of_a_known_network_has_its_stems(name):
    """The three-channel branch is for the law to judge, the added one of four channels takes another image."""
    stems = {key: layout for key, _, _, layout in TIMM[name]["stems"]}
    counts = Counter()
    for gray in (False, True):
        for what, tensors, expected in dressed(tensors_of(TIMM[name], gray=gray, ordered=True), stems):
            if what != "three-channel branch":
                found = names_of(matches(tensors))
                counts["known" if found else "unknown"] += 1
                assert set(found) in (set(expected), set())
    assert counts["known"] >= 6
