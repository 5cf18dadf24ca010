"""What both Keras formats share: names and layouts of datasets, the graph that fits the file, and what is refused."""

from __future__ import annotations

import pytest

from chkpt_channels import DamagedError, UnsupportedError
from chkpt_channels.core.tensors import Edits
from chkpt_channels.formats.keras.graph import KerasGraph
from chkpt_channels.formats.keras.weights_only import WeightsOnlyGraph
from tests.support.files import FIXTURES, opened


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("keras_h5/functional.h5", KerasGraph),
        ("keras_zip/functional.keras", KerasGraph),
        ("keras_h5/plain.weights.h5", WeightsOnlyGraph),
        ("keras_h5/legacy_weights.h5", WeightsOnlyGraph),
    ],
)
def test_the_graph_is_the_configurations_or_that_of_names(name: str, kind: type):
    with opened(FIXTURES / name) as checkpoint:
        assert isinstance(checkpoint.graph, kind)
        assert bool(checkpoint.graph.search_view()) == (kind is WeightsOnlyGraph)


@pytest.mark.parametrize("name", ["keras_h5/functional.h5", "keras_h5/channels_first.h5", "keras_zip/functional.keras"])
def test_kernels_are_hwio_whatever_the_data_format(name: str):
    with opened(FIXTURES / name) as checkpoint:
        (conv, *_) = checkpoint.graph.first_convs()
        assert conv.layout == "HWIO"


def test_theanos_kernels_are_oihw():
    with opened(FIXTURES / "keras_h5" / "theano_weights.h5") as checkpoint:
        assert {str(t.layout) for t in checkpoint.tensors.values() if len(t.shape) == 4} == {"OIHW"}


def test_an_optimizers_slots_belong_to_weights():
    with opened(FIXTURES / "keras_zip" / "functional.keras") as checkpoint:
        owners = {entry.parameter for entry in checkpoint.optimizer_entries if entry.parameter}
        assert owners <= {tensor.name for tensor in checkpoint.model_tensors()}
        assert not any(tensor.group for tensor in checkpoint.model_tensors())


@pytest.mark.parametrize("name", ["keras_h5/functional.h5", "keras_zip/functional.keras"])
def test_a_part_of_an_optimizer_is_not_dropped(name: str):
    with opened(FIXTURES / name) as checkpoint:
        assert checkpoint.splices(Edits()) == []
        with pytest.raises(UnsupportedError, match="optimizer with all of its state or not at all") as refused:
            checkpoint.splices(Edits(dropped=("optimizer/0",)))
        assert refused.value.hint == "--optimizer reset"


def test_what_is_no_configuration_is_damage():
    with opened(FIXTURES / "keras_h5" / "functional.h5") as checkpoint:
        with pytest.raises(DamagedError, match="model_config: is not a Keras model configuration"):
            checkpoint.configure("[]")
        checkpoint.configure('{"class_name": "Sequential", "config": [{"class_name": "Lambda", "config": {"name": "l"}}]}')
        assert [notice.code for notice in checkpoint.warnings] == ["lambda"]
