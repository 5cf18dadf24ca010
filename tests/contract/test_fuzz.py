"""Files of every format with a few lies in them, structural ones most of the time: a fixed number of them.

hypothesis chooses the same ones again, as long as the same modules are loaded: it draws on the constants that it finds in them.

`make fuzz` tries others, for as long as it is given.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chkpt_channels.formats import known
from tests.support import fuzz
from tests.support.mutations import MUTATE, seeds
from tests.support.promises import fuzzed, kept

EXAMPLES = 200


def keeping(form: str, count: int = EXAMPLES) -> tuple[Callable[[], None], list[bool]]:
    """The property of one format, and which of the files it has tried were accepted."""
    accepted: list[bool] = []

    @settings(max_examples=count)
    @given(st.randoms(use_true_random=False))
    def keeps(chance: Random) -> None:
        accepted.append(fuzzed(form, chance))

    return keeps, accepted


def test_every_format_is_fuzzed():
    assert {kind.name for kind in known()} == MUTATE.keys()


@pytest.mark.parametrize("form", MUTATE)
def test_any_file_is_refused_in_words_or_converted(form: str):
    keeps, accepted = keeping(form)
    keeps()
    assert len(accepted) // 20 < sum(accepted) < len(accepted), "else the mutations are no good"


@pytest.mark.parametrize("form", MUTATE)
def test_the_seeds_are_sound(form: str):
    sound = [str(seed) for seed in seeds(form) if kept(form, seed, seed.data, 4)]
    assert len(sound) > len(seeds(form)) // 2


def test_the_driver_tries_and_keeps_what_it_finds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    counts = fuzz.by_chance(["safetensors", "onnx"], 2, 0, tmp_path / "found")
    assert counts["tried"] > counts["accepted"] > 0
    assert not counts["findings"]
    monkeypatch.setattr(fuzz, "kept", lambda *_: 1 // 0)
    assert fuzz.tried("onnx", Random(0), "onnx-0", tmp_path / "found") is None
    assert "ZeroDivisionError" in (tmp_path / "found" / "onnx-0.txt").read_text()
    assert (tmp_path / "found" / "onnx-0.onnx").stat().st_size
