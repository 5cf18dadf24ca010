"""What must hold of any bytes at all: they are refused in words and nothing is left behind, or converted, the rest the same."""

from __future__ import annotations

import re
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory

from chkpt_channels import ChkptChannelsError, convert, inspect, verify
from tests.support.files import snapshot
from tests.support.mutations import Seed, mutated, seeds
from tests.support.sandbox import aside

SECONDS = 10
PEAK = 250 << 20
LONGEST = 5000
REFUSALS = (3, 4)
ELSEWHERE = "no such file or directory$|--to bgr swaps three colors"
"""Other refusals: the name of a data file that is not there is no damage, and neither are four channels."""
TARGETS = ("gray", "gray", "gray", 4, "rgb", "bgr")
ACCEPTED, REFUSED = b"y", b"n"


def fuzzed(form: str, chance: Random) -> bool:
    """Whether a mutated file is accepted; AssertionError where a promise is broken."""
    seed, to = chance.choice(seeds(form)), chance.choice(TARGETS)
    return kept(form, seed, mutated(form, seed.data, chance), to)


def kept(form: str, seed: Seed, data: bytes, to: str | int = "gray") -> bool:
    """Whether a file with this content is accepted; AssertionError where a promise is broken."""
    with TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "out").mkdir()
        path = seed.put(folder, data)
        if not form.startswith("keras") or sys.platform != "linux":
            return held(path, to)
        answer = aside(lambda tell: tell(ACCEPTED if held(path, to) else REFUSED), 2 * SECONDS)
        if answer in (ACCEPTED, REFUSED):
            return answer == ACCEPTED
        for one in (folder / "out").iterdir():
            one.unlink()
        return held(path, to)  # libhdf5 has crashed, or an assertion has failed: once more, as it is done for a user


def held(path: Path, to: str | int) -> bool:
    """Whether the file is accepted, in this process; AssertionError where a promise is broken."""
    before, began, peak = snapshot(path.parent), time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    out = path.parent / "out" / path.name
    accepted = done(lambda: inspect(path), path) and done(lambda: convert(path, out, to), path)
    if accepted:
        verification = verify(path, out, to)
        assert verification.ok, verification.differences
        inspect(out)
    else:
        assert not list(out.parent.iterdir()), "something is left behind"
    assert snapshot(path.parent) == before, "the source was changed"
    assert time.process_time() - began < SECONDS, "it takes too long"
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak < PEAK >> 10, "it takes too much memory"
    return accepted


def done(work: Callable[[], object], path: Path) -> bool:
    """Whether it comes to its end; a refusal must be one in a line, about this file."""
    try:
        work()
    except ChkptChannelsError as error:
        refusal = error
    else:
        return True
    said = str(refusal)
    assert refusal.exit_code in REFUSALS or re.search(ELSEWHERE, said), f"exit {refusal.exit_code}: {said}"
    assert said.isprintable(), "the message is no line"
    assert len(said) < LONGEST, "the message is too long"
    assert str(path.parent) in said, f"the message names no file: {said}"
    return False
