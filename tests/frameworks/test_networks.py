"""Random networks: the kernels whose shapes change with the image's channels are found, or there is a refusal; never others.

The grammar in tests/support/networks was written from torch.nn and from a table of what goes wrong in public libraries, not from
the rules of the search. A network that fails is shown by `python -m tests.support.networks SEED`; others than these are tried by
`make fuzz FORMAT=networks`.
"""

from __future__ import annotations

import time

import pytest

from tests.support.networks.report import Tally
from tests.support.networks.truth import verdicts

SEEDS = range(400)
LEAST_RIGHT = 0.9
MOST_SECONDS = 100


@pytest.fixture(scope="module")
def judged() -> tuple[Tally, float]:
    """Every verdict of the fixed seeds, and the seconds that it took."""
    start, tally = time.process_time(), Tally()
    for seed in SEEDS:
        for answer in verdicts(seed):
            tally.add(*answer)
    return tally, time.process_time() - start


def test_nothing_is_found_wrongly(judged):
    tally, _ = judged
    assert not tally.wrong, "\n".join([*tally.wrong, str(tally)])


def test_most_are_found(judged):
    tally, _ = judged
    assert tally.right >= LEAST_RIGHT, str(tally)


def test_every_trap_is_reached(judged):
    tally, _ = judged
    assert not tally.missed


def test_it_takes_no_longer_than_is_good_for_a_test(judged):
    _, seconds = judged
    assert seconds < MOST_SECONDS
