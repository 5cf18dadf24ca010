"""Random Keras models: each conversion computes what it should, by Keras, or there is a refusal; never anything else.

The grammar in tests/support/keras_models was written from Keras' layers, not from the rules of the walk. Others than these are
tried by `make fuzz FORMAT=models`.
"""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("keras", reason="Keras is not in this environment")

from tests.support.keras_models.judge import verdicts
from tests.support.keras_models.report import Tally

SEEDS = range(40)
LEAST_RIGHT = {"toward gray": 0.55, "toward more": 0.4}


@pytest.fixture(scope="module")
def judged(tmp_path_factory: pytest.TempPathFactory) -> Tally:
    """Every answer of the fixed seeds, two each."""
    tally = Tally()
    folder: Path = tmp_path_factory.mktemp("models")
    for seed in SEEDS:
        for answer in verdicts(seed, folder):
            tally.add(answer)
    print(tally)
    return tally


def test_no_model_computes_anything_else(judged: Tally):
    assert not judged.wrong, "\n".join([*judged.wrong, str(judged)])


@pytest.mark.parametrize("kind", LEAST_RIGHT)
def test_many_are_converted(judged: Tally, kind: str):
    assert judged.share(kind) >= LEAST_RIGHT[kind], str(judged)


def test_most_models_can_be_built_and_saved(judged: Tally):
    assert judged.kinds["all"]["none"] <= 4
    assert len(judged.drawn) > 40
