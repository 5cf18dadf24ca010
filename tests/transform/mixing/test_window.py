"""Composed windows: a kernel that grew gives what the two convolutions gave one after the other."""

from __future__ import annotations

import numpy as np
import pytest

from chkpt_channels.core.layout import Layout
from chkpt_channels.core.tensors import Window
from chkpt_channels.transform.mixing.matrix import Mixing
from chkpt_channels.transform.mixing.window import composed, grown, largest, parts

LINES = [(3, 1, 1, 3), (2, 1, 2, 3), (3, 2, 1, 2), (1, 1, 3, 2), (4, 3, 2, 1)]
"""(taps of the adapter, how far apart they and those of the kernel are, taps of the kernel)"""


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(len(shape)).standard_normal(shape)


def mixing(kernel: np.ndarray, near: int, far: int, taps: int) -> Mixing:
    """One along a line, of a kernel [I_old, I_new, taps]."""
    matrices = tuple(tuple(map(tuple, kernel[:, :, a].tolist())) for a in range(kernel.shape[2]))
    size = near * (kernel.shape[2] - 1) + far * (taps - 1) + 1
    window = Window((kernel.shape[2],), (near,), (far,), {"kernel_shape": (size,)}, 1, ((2, -1),), (), matrices)
    return Mixing("fold-adapter", tuple(map(tuple, kernel.sum(axis=2).tolist())), (), window)


def convolved(image: np.ndarray, kernel: np.ndarray, dilation: int) -> np.ndarray:
    """[I, n] and [O, I, taps]."""
    reach = dilation * (kernel.shape[2] - 1)
    return sum(kernel[:, :, b] @ image[:, b * dilation : image.shape[1] - reach + b * dilation] for b in range(kernel.shape[2]))


@pytest.mark.parametrize(("first", "near", "far", "taps"), LINES)
def test_they_give_the_same(first: int, near: int, far: int, taps: int):
    adapter, kernel, image = noise(3, 4, first), noise(5, 3, taps), noise(4, 30)
    rule = mixing(adapter, near, far, taps)
    new = composed(rule, Layout("OIW"), kernel)
    assert new.shape == grown(rule, Layout("OIW"), (5, 4, taps)) == (5, 4, near * (first - 1) + far * (taps - 1) + 1)
    wanted = convolved(convolved(image, adapter, near), kernel, far)
    assert np.allclose(convolved(image, new, 1), wanted, atol=1e-12)
    turned = composed(rule, Layout("WIO"), np.ascontiguousarray(kernel.transpose(2, 1, 0)))
    assert np.array_equal(turned.transpose(2, 1, 0), new)


@pytest.mark.parametrize(("first", "near", "far", "taps"), LINES)
def test_no_image_makes_more_of_a_filter(first: int, near: int, far: int, taps: int):
    kernel = noise(5, 3, taps)
    rule = mixing(noise(3, 4, first), near, far, taps)
    new = composed(rule, Layout("OIW"), kernel)
    assert np.array_equal(list(largest(rule, Layout("OIW"), kernel, [()])), [np.abs(new).sum(axis=(1, 2))])


def test_at_a_border_only_taps_on_pixels_count():
    """A SAME adapter of 3 taps before a kernel of 3 with 1 pad: the row before the image sees its first pixel by its last tap."""
    adapter, kernel = noise(3, 4, 3), noise(5, 3, 3)
    rule = mixing(adapter, 1, 1, 3)
    before, behind = (np.abs(kernel[:, :, b] @ adapter[:, :, a]).sum(axis=1) for b, a in ((0, 2), (2, 0)))
    found = largest(rule, Layout("OIW"), kernel, [[(1, 3)], [(0, 2)], [(0, 3)]])
    assert np.allclose(list(found), [before, behind, np.zeros(5)])


def test_without_a_window_nothing_grows():
    plain = Mixing("sum", ((1.0,), (1.0,)))
    assert grown(plain, Layout("OIHW"), (8, 1, 3, 3)) == (8, 1, 3, 3)
    assert list(parts(plain, Layout("OIHW"), (8, 2, 3, 3))) == [(plain, ...)]


def test_an_average_is_no_identity():
    """Its taps add up to one."""
    rule = mixing(np.full((1, 1, 2), 0.5), 1, 1, 3)
    assert rule.matrix == ((1.0,),)
    assert not rule.is_identity
    assert rule.copied(0) is None
    assert not rule.places
