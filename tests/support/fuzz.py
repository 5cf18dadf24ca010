"""Fuzz for as long as asked: `python -m tests.support.fuzz --seconds 3600 --format onnx`; findings are kept with their story.

Where atheris is installed it steers hypothesis's choices by the code that they reach; elsewhere chance alone does.
`--format networks` draws networks instead of files, asks which kernels see the image, and needs torch; `--format graphs` draws
ONNX graphs, converts them, and needs onnxruntime; `--format models` draws Keras models, and needs Keras.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
import tempfile
import time
import traceback
from pathlib import Path
from random import Random

from tests.support.mutations import MUTATE, mutated, seeds
from tests.support.promises import TARGETS, kept

FOLDER = Path("fuzz-findings")


def tried(form: str, chance: Random, name: str, folder: Path = FOLDER) -> bool | None:
    """Whether a mutated file is accepted; None where a promise is broken, and then it is kept as `name`."""
    seed, to = chance.choice(seeds(form)), chance.choice(TARGETS)
    data = mutated(form, seed.data, chance)
    try:
        return kept(form, seed, data, to)
    except Exception:  # whatever it is, it is what is looked for
        folder.mkdir(exist_ok=True)
        (folder / f"{name}{Path(seed.file).suffix}").write_bytes(data)
        (folder / f"{name}.txt").write_text(f"{form}, from {seed}, to {to}\n\n{traceback.format_exc()}", encoding="utf-8")
        return None


def by_chance(forms: list[str], seconds: float, first: int, folder: Path = FOLDER) -> dict[str, int]:
    """One seed after another, formats in turn, until the time is over: how many were tried, accepted, and findings."""
    counts, end, number = {"tried": 0, "accepted": 0, "findings": 0}, time.monotonic() + seconds, first
    while time.monotonic() < end:
        form = forms[number % len(forms)]
        answer = tried(form, Random(number), f"{form}-{number}", folder)
        counts["tried"] += 1
        counts["accepted"] += answer is True
        counts["findings"] += answer is None
        number += 1
    return counts


def by_coverage(form: str, seconds: float) -> None:
    """Under atheris, which ends the process itself; the seeds of the corpus are byte strings that chance makes."""
    import atheris
    from hypothesis import HealthCheck, given, settings
    from hypothesis import strategies as st

    atheris.instrument_all()

    @settings(database=None, deadline=None, suppress_health_check=list(HealthCheck))
    @given(st.randoms(use_true_random=False))
    def one(chance: Random) -> None:
        tried(form, chance, f"{form}-{time.time_ns()}")

    corpus = FOLDER / f"corpus-{form}"
    corpus.mkdir(parents=True, exist_ok=True)
    for number in range(64):
        (corpus / f"seed-{number}").write_bytes(Random(number).randbytes(1024))
    atheris.Setup([sys.argv[0], str(corpus), f"-max_total_time={int(seconds)}", "-max_len=8192"], one.hypothesis.fuzz_one_input)
    atheris.Fuzz()


def by_networks(seconds: float, first: int) -> int:
    """Seeds of networks until the time is over: those that are judged wrongly are printed, and counted."""
    from tests.support.networks.report import Tally, story
    from tests.support.networks.truth import verdicts

    tally, end, seed = Tally(), time.monotonic() + seconds, first
    while time.monotonic() < end:
        for answer in verdicts(seed):
            tally.add(*answer)
            if answer[2].word == "wrong":
                print(story(*answer), flush=True)
        seed += 1
    print(f"seeds {first} to {seed - 1}", tally, sep="\n")
    return tally.total["wrong"]


def by_graphs(seconds: float, first: int) -> int:
    """Seeds of ONNX graphs until the time is over: conversions that are wrong are printed, and counted."""
    from tests.support.graphs.judge import verdicts
    from tests.support.graphs.report import Tally

    tally, end, seed = Tally(), time.monotonic() + seconds, first
    while time.monotonic() < end:
        known = len(tally.wrong)
        for answer in verdicts(seed):
            tally.add(*answer)
        print(*tally.wrong[known:], sep="\n", end="\n" if tally.wrong[known:] else "", flush=True)
        seed += 1
    print(f"seeds {first} to {seed - 1}", tally, sep="\n")
    return len(tally.wrong)


def by_models(seconds: float, first: int) -> int:
    """Seeds of Keras models until the time is over: conversions that are wrong are printed, and counted."""
    from tests.support.keras_models.judge import verdicts
    from tests.support.keras_models.report import Tally

    tally, end, seed = Tally(), time.monotonic() + seconds, first
    with tempfile.TemporaryDirectory() as folder:
        while time.monotonic() < end:
            known = len(tally.wrong)
            for answer in verdicts(seed, Path(folder)):
                tally.add(answer)
            print(*tally.wrong[known:], sep="\n", end="\n" if tally.wrong[known:] else "", flush=True)
            seed += 1
    print(f"seeds {first} to {seed - 1}", tally, sep="\n")
    return len(tally.wrong)


DRAWN = {"networks": by_networks, "graphs": by_graphs, "models": by_models}


def main() -> None:
    asked = argparse.ArgumentParser(description=__doc__)
    asked.add_argument("--seconds", type=float, default=3600)
    asked.add_argument("--format", choices=[*MUTATE, *DRAWN])
    asked.add_argument("--first", type=int, default=time.time_ns() >> 20, help="the first seed")
    options = asked.parse_args()
    if options.format in DRAWN:
        sys.exit(DRAWN[options.format](options.seconds, options.first) > 0)
    if options.format and importlib.util.find_spec("atheris"):
        by_coverage(options.format, options.seconds)
        return
    counts = by_chance([options.format] if options.format else list(MUTATE), options.seconds, options.first)
    print(", ".join(f"{number} {what}" for what, number in counts.items()))
    sys.exit(counts["findings"] > 0)


if __name__ == "__main__":
    main()
