"""The records of the catalogue."""

from __future__ import annotations

import pickle

from chkpt_channels.discovery.catalogue.entry import Architecture, KnownNorm, KnownStem, Recognized


def test_records_can_be_compared_and_pickled():
    stem = KnownStem("conv1.weight", "OIHW", "Conv2d", (2, 2), (3, 3), (1, 1))
    norm = KnownNorm("v1", (0.5,), (0.25,))
    known = Recognized("", "", "whole", (Architecture("zoo", "net", (stem,), ("import zoo",), ("fc.weight", 10), (norm,)),))
    assert pickle.loads(pickle.dumps(known)) == known
