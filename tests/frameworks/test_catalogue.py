"""The facts of the catalogue: of networks that are drawn over all libraries that are installed, what was measured is so."""

import importlib
import random

import pytest

from chkpt_channels.discovery.catalogue.table import catalogue
from fixtures.catalogue.binary import Network, split
from fixtures.catalogue.build import network
from fixtures.catalogue.libraries import MODULES, versions
from fixtures.catalogue.measure import measured, shapes

DRAWN = 20
FIVE = 5
"""A number of channels that the facts were not made of."""


def recipes(library):
    """Its recipes, none where it, or what it imports, is missing."""
    try:
        return list(importlib.import_module(f"fixtures.catalogue.{MODULES[library]}").recipes())
    except ModuleNotFoundError:
        return []


def drawn():
    """As many of each library as of the others; for one that is missing a test that says so."""
    chance, found = random.Random(0), []
    known = {library: recipes(library) for library in MODULES}
    present = [library for library in known if known[library]]
    for i, library in enumerate(present):
        chosen = chance.sample(known[library], min(len(known[library]), len(range(i, DRAWN, len(present)))))
        found += [pytest.param(recipe, id=f"{library}/{recipe.name}") for recipe in chosen]
    missing = [library for library in known if library not in present]
    return found + [pytest.param(library, id=f"{library}/missing") for library in missing]


WHOLE = ("timm", "torchvision", "monai", "vit_pytorch", "dynamic_network_architectures")
"""Libraries of which all is in the catalogue."""


def is_in_the_catalogue(made: Network) -> bool:
    """Whether its names tell its stems there; networks that no conversion of stems alone makes are in none, and of libraries that
    are not whole there some may be in none."""
    known = [catalogue().named(key) for key, _ in made.name_keys()]
    told = [found for found in known if found or made.entry.library in WHOLE]
    return not made.is_plain or all(found and made.shapes in found.variants for found in told)


@pytest.mark.parametrize("recipe", drawn())
def test_stems_are_what_changes(recipe):
    if isinstance(recipe, str):
        pytest.skip(f"{recipe} is not installed")
    try:
        entry = measured(recipe)
    except Exception as reason:
        pytest.skip(f"has no entry: {reason}")
    five = shapes(network(recipe, FIVE, recipe.classes))
    stems = {stem.key: stem for stem in entry.stems}
    for key, three in entry.tensors:
        if key in stems:
            axis = 0 if stems[key].layout.startswith("IO") else 1
            assert five[key] == (*three[:axis], three[axis] // 3 * FIVE, *three[axis + 1 :])
        else:
            assert (five[key] == three) == (key not in entry.others)
    parts = split(entry)
    assert is_in_the_catalogue(Network(parts[0] if parts else entry))


def test_versions_name_their_licenses():
    assert "transformers" in versions()
    assert all(all(row) for row in versions().values())
