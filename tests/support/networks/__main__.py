"""`python -m tests.support.networks SEED`: names, shapes and truth of a drawn network, and what the search says.

With --count N only the wrong verdicts of so many seeds, and the tally of each trap; with --trap NAME of networks that reach it.
"""

from __future__ import annotations

import argparse

from tests.support.networks.grammar import build
from tests.support.networks.report import Tally, story
from tests.support.networks.traps import Trap
from tests.support.networks.truth import questions, verdicts


def show(seed: int) -> None:
    """Both networks side by side, and the four verdicts."""
    many, few = questions(seed)[0][1:3]
    old, new = build(seed, many)[0].state_dict(), build(seed, few)[0].state_dict()
    print(f"seed {seed}: {many} channels, and where the shape differs {few}")
    for name, value in old.items():
        shape, other = list(value.shape), list(new[name].shape)
        print(f"  {name} {shape}{'' if shape == other else f' {other}'}")
    for question, truth, verdict in verdicts(seed):
        print(story(question, truth, verdict))


def main() -> None:
    asked = argparse.ArgumentParser(description=__doc__)
    asked.add_argument("seed", type=int)
    asked.add_argument("--count", type=int, help="so many seeds from SEED on, and no shapes")
    asked.add_argument("--refused", action="store_true", help="print the refused ones too")
    asked.add_argument("--trap", choices=[trap.name.lower() for trap in Trap], help="only networks that reach it")
    options = asked.parse_args()
    if options.count is None:
        show(options.seed)
        return
    tally = Tally()
    for seed in range(options.seed, options.seed + options.count):
        for answer in verdicts(seed):
            if options.trap and Trap[options.trap.upper()] not in answer[1].traps:
                continue
            tally.add(*answer)
            if answer[2].word == "wrong" or (options.refused and answer[2].word == "refused"):
                print(story(*answer))
    print(tally)


if __name__ == "__main__":
    main()
