"""Random ONNX graphs: each conversion computes what it should, by onnxruntime, or there is a refusal; never anything else.

The grammar in tests/support/graphs was written from what people put in front of and around first convolutions, not from the rules
of the walk. A graph that fails is shown by `python -m tests.support.graphs SEED`; others than these are tried by
`make fuzz FORMAT=graphs`.
"""

from __future__ import annotations

import pytest

from tests.support.graphs.judge import verdicts
from tests.support.graphs.report import Tally

SEEDS = range(300)
LEAST_RIGHT = {"toward gray": 0.8, "toward 4 and bgr": 0.6}


@pytest.fixture(scope="module")
def judged() -> Tally:
    """Every verdict of the fixed seeds."""
    tally = Tally()
    for seed in SEEDS:
        for answer in verdicts(seed):
            tally.add(*answer)
    print(tally)
    return tally


def test_no_graph_computes_anything_else(judged: Tally):
    assert not judged.wrong, "\n".join([*judged.wrong, str(judged)])


@pytest.mark.parametrize("way", LEAST_RIGHT)
def test_most_are_converted(judged: Tally, way: str):
    assert judged.share(way) >= LEAST_RIGHT[way], str(judged)


def test_every_part_of_the_grammar_is_drawn(judged: Tally):
    assert len(judged.features) > 50
