"""The lines that are printed for known networks load what was converted, strictly; the network then answers as the original."""

from __future__ import annotations

import importlib.util

import pytest

from tests.frameworks.known_networks import DRAWN, tried


@pytest.mark.parametrize("known", DRAWN, ids=str)
@pytest.mark.parametrize(("ending", "to"), [(".pth", "gray"), (".safetensors", "4")])
def test_the_printed_lines_load_a_network_that_answers_as_the_original(known, ending, to, tmp_path):
    if importlib.util.find_spec(known.library) is None:
        pytest.skip(f"{known.library} is not installed")
    assert not tried(known, ending, to, tmp_path)
