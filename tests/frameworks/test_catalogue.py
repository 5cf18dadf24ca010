"""The facts of the catalogue: what its recipes build here is what was measured where it was made, for networks drawn over all
libraries that are installed."""

import random

import pytest

from fixtures.catalogue.build import network
from fixtures.catalogue.collect import recipes
from fixtures.catalogue.libraries import MODULES, versions
from fixtures.catalogue.measure import measured, shapes

DRAWN = 20


def drawn():
    """As many of each library as of the others."""
    chance, found = random.Random(0), []
    libraries = sorted(versions())
    for i, library in enumerate(libraries):
        rows = list(recipes([library]))
        found += chance.sample(rows, min(len(rows), len(range(i, DRAWN, len(libraries)))))
    return found


@pytest.mark.parametrize("recipe", drawn(), ids=lambda recipe: f"{recipe.library}/{recipe.name}")
def test_stems_are_what_changes(recipe):
    """With a number of channels that the facts were not made of: five."""
    entry = measured(recipe)
    five = shapes(network(recipe, 5, recipe.classes))
    for key, three in entry.tensors:
        if key in {stem.key for stem in entry.stems}:
            axis = 0 if next(s.layout for s in entry.stems if s.key == key).startswith("IO") else 1
            assert five[key] == (*three[:axis], three[axis] // 3 * 5, *three[axis + 1 :])
        else:
            assert (five[key] == three) == (key not in entry.others)


@pytest.mark.parametrize("library", [library for library in MODULES if library not in versions()])
def test_library(library):
    pytest.skip(f"{library} is not installed")
