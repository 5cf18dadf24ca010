"""A converted network on an image equals the original on the image that the mixing makes of it, or the conversion is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from chkpt_channels import ChkptChannelsError, convert, verify
from tests.realworld.networks import NETWORKS, difference
from tests.realworld.photographs import images

LUMA = [[0.2126, 0.7152, 0.0722]]
TARGETS = {"gray": 1, "rgb": 3, "4": 4, "bgr": 3}


def mixing(old: int, to: str) -> np.ndarray:
    """A of x_old = A · x_new, [old, new], by the formulas of docs/methods.md."""
    new = TARGETS[to]
    if to == "bgr":
        return np.array(LUMA)[:, ::-1] if old == 1 else np.eye(3)[::-1]
    if old == new:
        return np.eye(old)
    if new == 1:
        return np.ones((old, 1))
    if (old, new) == (1, 3):
        return np.array(LUMA)
    return np.array([[old / new * (i == j % old) for j in range(new)] for i in range(old)])


@pytest.mark.parametrize("to", TARGETS)
@pytest.mark.parametrize("name", NETWORKS)
def test_it_does_the_same_or_is_refused(name: str, to: str, tmp_path: Path, record_property: Any):
    network = NETWORKS[name]
    source, target = network.file, TARGETS[to] if to == "4" else to
    out = tmp_path / f"new{''.join(source.suffixes[-2:])}"
    refusal = None
    try:
        convert(source, out, target)
    except ChkptChannelsError as error:
        refusal = error
    if refusal:
        record_property("realworld", f"{name:20} {to:5} refused: {refusal.where}: {refusal.what}")
        assert refusal.exit_code in (2, 4)
        assert not out.exists()
        assert to in network.refused
        return
    assert verify(source, out, target).ok
    new = images(TARGETS[to], network.size, network.levels)
    old = (new @ mixing(network.channels, to).T).astype(np.float32)
    found = difference(network.opened(out, TARGETS[to])(new), network.opened(source, network.channels)(old))
    word = "right" if found <= network.tolerance else "WRONG"
    record_property("realworld", f"{name:20} {to:5} {word}: {found:.1e}")
    assert found <= network.tolerance
