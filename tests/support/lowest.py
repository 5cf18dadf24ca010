"""The lowest versions that pyproject.toml allows, as constraints for pip: python -m tests.support.lowest > FILE"""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def requirements() -> list[str]:
    """What a user may install: the dependencies of the package, and of its extras."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return [*project["dependencies"], *(one for extra in project["optional-dependencies"].values() for one in extra)]


def lowest() -> dict[str, str]:
    """By name the floor of each. Raises ValueError where one has none, or a cap."""
    floors = {}
    for line in requirements():
        match = re.fullmatch(r"([\w-]+)>=([\d.]+)", line)
        if not match:
            raise ValueError(f"{line!r} is not of the form name>=version: each has a floor, and none a cap")
        floors[match[1]] = match[2]
    return floors


def python() -> str:
    """The lowest Python, as in 3.11."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return project["requires-python"].removeprefix(">=")


if __name__ == "__main__":
    if ".".join(map(str, sys.version_info[:2])) != python():
        raise SystemExit(f"the lowest versions have wheels for Python {python()}: make test-lowest PYTHON=python{python()}")
    print(*(f"{name}=={version}" for name, version in lowest().items()), sep="\n")
