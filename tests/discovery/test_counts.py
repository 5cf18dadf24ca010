"""Several numbers of channels in one file: which images --from means, and what has no conversion in common."""

from __future__ import annotations

import pytest

from chkpt_channels import AmbiguousError, UsageError
from chkpt_channels.core.dtypes import BY_NAME
from chkpt_channels.core.errors import Location
from chkpt_channels.core.layout import Layout
from chkpt_channels.core.tensors import Finding, FirstConv, Tensor
from chkpt_channels.discovery.counts import check_one_width, of_count
from chkpt_channels.discovery.find import find_first_convs
from chkpt_channels.formats.graph import ModelGraph
from tests.support.memory import Memory, kernel


def test_two_widths_have_no_conversion_in_common():
    end = {"end.weight": kernel(5, 16)}
    generator, discriminator = ({f"{name}.weight": kernel(16, n, 3, 3), **end} for name, n in (("g", 3), ("d", 6)))
    store = Memory({"netG": generator, "netD": discriminator})
    convs = find_first_convs(store).first_convs
    assert [conv.in_channels for conv in convs] == [3, 6]
    with pytest.raises(AmbiguousError, match=r"^a\.pth: its first convolutions take 3 and 6 channels$") as refused:
        check_one_width(store, convs, 1)
    assert refused.value.hint == "--layer netG/g.weight   or   --layer netD/d.weight"
    assert [c.why_not for c in refused.value.candidates] == ["takes 3 channels", "takes 6 channels"]
    check_one_width(store, convs, 6)
    check_one_width(store, convs[:1], 1)
    check_one_width(store, [conv._replace(found_by="user") for conv in convs], 1)


class Joined(ModelGraph):
    """One whose kernels take images of three channels and of one together."""

    def counts(self, conv: FirstConv) -> frozenset[int]:
        return frozenset({1, 3})


def test_images_that_one_kernel_takes_together():
    store = Memory({"": {"conv1.weight": kernel(8, 4, 3, 3)}})
    store.graph = Joined()  # type: ignore[assignment] # another graph
    conv = FirstConv(store.tensors["conv1.weight"], None, 3, "graph")
    with pytest.raises(AmbiguousError, match="its first convolutions take 1 and 3 channels") as refused:
        check_one_width(store, [conv], 5)
    assert refused.value.hint == "--from 1   or   --from 3"
    check_one_width(store, [conv], 1)


def seen(name: str, channels: int, *inputs: str) -> FirstConv:
    return FirstConv(Tensor(name, BY_NAME["F32"], (8, channels, 3, 3)), Layout("OIHW"), channels, "graph", inputs=inputs)


def test_of_several_images_those_with_the_count_are_meant():
    colors, depth, mask = seen("a", 3, "image"), seen("b", 1, "depth"), seen("c", 1, "mask", "image")
    place = Location("a.onnx")
    assert of_count(place, Finding((colors, depth)), 3).first_convs == (colors,)
    assert of_count(place, Finding((colors, depth)), 1).first_convs == (depth,)
    for convs, count in [((colors, depth), 9), ((colors, mask), 3), ((seen("a", 3), seen("b", 1)), 3)]:
        with pytest.raises(UsageError, match=f"--from says {count} channels, the kernel has"):
            of_count(place, Finding(convs), count)
