"""Signs that a bit turns, there and back; which bits there are, `test_rebuild.py` reads from calls."""

from __future__ import annotations

import numpy as np

from chkpt_channels.formats.torch.signs import with_signs


def test_signs_are_turned_there_and_back():
    raw = np.array([1.5, -0.0, np.nan], "<f4").tobytes()
    turned = with_signs(raw, b"\0\0\0\x80")
    assert turned == (-np.frombuffer(raw, "<f4")).tobytes()
    assert with_signs(turned, b"\0\0\0\x80") == raw
    assert with_signs(raw, b"") is raw
