"""`python -m tests.support.graphs SEED`: a drawn graph in onnx's own words, and its verdicts.

With --count N only the wrong verdicts of so many seeds, and the tally.
"""

from __future__ import annotations

import argparse

from onnx import printer

from tests.support.graphs.grammar import drawn
from tests.support.graphs.judge import verdicts
from tests.support.graphs.report import Tally


def main() -> None:
    asked = argparse.ArgumentParser(description=__doc__)
    asked.add_argument("seed", type=int)
    asked.add_argument("--count", type=int, help="so many seeds from SEED on")
    asked.add_argument("--refused", action="store_true", help="print the refused ones too")
    options = asked.parse_args()
    tally = Tally()
    if options.count is None:
        print(printer.to_text(drawn(options.seed).model()))
    for seed in range(options.seed, options.seed + (options.count or 1)):
        for answer in verdicts(seed):
            tally.add(*answer)
    print(*(tally.refused if options.refused or options.count is None else ()), *tally.wrong, tally, sep="\n")


if __name__ == "__main__":
    main()
