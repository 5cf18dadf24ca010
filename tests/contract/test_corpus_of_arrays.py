"""Real networks whose files hold arrays by name, of Flax, Haiku, big_vision, Caffe2, Paddle, …: none is named wrongly."""

from __future__ import annotations

import gzip
import json
from typing import Any

import numpy as np
import pytest

from chkpt_channels.discovery.find import find_first_convs
from chkpt_channels.formats.jax_names import NamedArrays, layout_of
from tests.support.architectures import DATA
from tests.support.memory import Memory

NETWORKS: dict[str, dict[str, Any]] = json.loads(gzip.decompress((DATA / "arrays.json.gz").read_bytes()))


class Network(Memory):
    """A network of PyTorch's layouts, where it is `torch`."""

    torch = False


def store(network: dict[str, Any], *, gray: bool) -> Network:
    """The network as its format shows it: without elements, in no order where a tree is sorted or the dict is Python 2's."""
    changed = {name: one for name, _, one, _ in network["stems"]} if gray else {}
    shapes = {name: tuple(changed.get(name, shape)) for name, shape in network["tensors"]}
    is_tree = network["kind"] in ("jax", "haiku")
    groups: dict[str, dict[str, np.ndarray]] = {}
    for name, shape in shapes.items():
        group, _, key = ("", "", name) if is_tree else name.rpartition("/")
        groups.setdefault(group, {})[key] = np.broadcast_to(np.float32(0), shape)
    memory = Network(groups)
    memory.ordered, memory.torch = network["kind"] == "torch", not is_tree
    memory.graph = NamedArrays(memory)
    if is_tree:
        memory.tensors = {name: t._replace(layout=layout_of(name, shapes)) for name, t in memory.tensors.items()}
    return memory


@pytest.mark.parametrize("gray", [False, True], ids=["to gray", "to rgb"])
@pytest.mark.parametrize("name", NETWORKS)
def test_the_first_convolution_of_a_real_network(name: str, gray: bool):
    network = NETWORKS[name]
    stems = {(key, layout, (one if gray else three)[layout.index("I")]) for key, three, one, layout in network["stems"]}
    convs = {
        (conv.tensor.name, str(conv.layout), conv.in_channels) for conv in find_first_convs(store(network, gray=gray)).first_convs
    }
    assert convs == stems


def test_the_corpus_has_every_family():
    """What it is for: a list that was made anew without a section is no corpus."""
    families = {name.partition("/")[0] for name in NETWORKS}
    assert families == {
        "transformers", "vision_transformer", "big_vision", "bit", "haiku", "caffe2", "detectron", "detectron2", "paddle",
    }  # fmt: skip
    assert sum("FlaxViT" in name or "FlaxResNet" in name or "FlaxCLIP" in name for name in NETWORKS) >= 12
    assert len(NETWORKS) >= 55
    assert all(len(network["stems"]) == 1 for network in NETWORKS.values())
