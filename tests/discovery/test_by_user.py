from __future__ import annotations

import pytest

from chkpt_channels.core.dtypes import BY_NAME
from chkpt_channels.core.errors import Location, UnsupportedError, UsageError
from chkpt_channels.core.layout import Layout
from chkpt_channels.core.tensors import Tensor
from chkpt_channels.discovery.by_user import described, with_layout
from chkpt_channels.discovery.law import search
from chkpt_channels.discovery.request import SearchRequest

HERE = Location("a.pth")


def tensor(*shape: int) -> Tensor:
    return Tensor("stem.weight", BY_NAME["F32"], shape)


def test_a_kernel_that_only_the_user_names():
    kernel = tensor(8, 3, 5, 5)
    conv = described(HERE, kernel, SearchRequest(), search.layouts_of([kernel], torch=True))
    assert (conv.layout, conv.in_channels, conv.found_by) == ("OIHW", 3, "user")


CASES = [((8, 12), "O(HWI)", None, 3), ((8, 16), "O(HWI)", None, 1), ((8, 16), "O(HWI)", 4, 4), ((5, 5, 3, 8), "HWIO", None, 3)]


@pytest.mark.parametrize(("shape", "layout", "said", "channels"), CASES)
def test_the_layout_and_the_number_that_the_user_says(shape: tuple[int, ...], layout: str, said: int | None, channels: int):
    request = SearchRequest(layout=Layout(layout), from_channels=said)
    assert described(HERE, tensor(*shape), request, search.layouts_of([tensor(*shape)], torch=False)).in_channels == channels


def test_what_a_shape_does_not_show_and_what_does_not_fit_it():
    flat = tensor(8, 12)
    with pytest.raises(UnsupportedError, match="its axis order is ambiguous") as refused:
        described(HERE, flat, SearchRequest(), search.layouts_of([flat], torch=False))
    assert "--layout" in refused.value.hint
    kernel = tensor(8, 3, 5, 5)
    conv = described(HERE, kernel, SearchRequest(), search.layouts_of([kernel], torch=True))
    with pytest.raises(UsageError, match="has 2 axes, the shape"):
        with_layout(HERE, conv, Layout("OI"))
