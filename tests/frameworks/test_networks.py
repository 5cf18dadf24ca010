"""Random networks: the kernels whose shapes change with the image's channels are found, or there is a refusal; never others.

The grammar in tests/support/networks was written from torch.nn and from a table of what goes wrong in public libraries, not from
the rules of the search. A network that fails is shown by `python -m tests.support.networks SEED`; others than these are tried by
`make fuzz FORMAT=networks`.
"""

from __future__ import annotations

import pytest

from tests.support.networks.report import Tally
from tests.support.networks.truth import verdicts

SEEDS = range(400)
LEAST_RIGHT = 0.9
"""The share that is found, or where no shape tells refused with all stems named."""


@pytest.fixture(scope="module")
def judged() -> Tally:
    """Every verdict of the fixed seeds."""
    tally = Tally()
    for seed in SEEDS:
        for answer in verdicts(seed):
            tally.add(*answer)
    return tally


def test_nothing_is_found_wrongly(judged: Tally):
    assert not judged.wrong, "\n".join([*judged.wrong, str(judged)])


def test_most_are_found(judged: Tally):
    assert judged.right >= LEAST_RIGHT, str(judged)


def test_every_trap_is_reached(judged: Tally):
    assert not judged.missed
