"""How often the first convs are found, and how often a refusal lists the true ones among its candidates.

    python -m tests.support.corpus_report [--write-found] [--list] [CORPUS.json.gz ...]

Without arguments it reports on the sample and on every corpus that the tests use; `--list` names what is not right,
`--write-found` writes what is found rightly to the list that the tests hold the search to. Only names and shapes are read.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from tests.support.architectures import CASES, NAMES, ROWS, SAMPLE, Verdict, judge, judge_row, load, write_found


def report(what: str, verdicts: Mapping[str, Verdict], *, names: bool) -> int:
    """Print a line about these, and with `names` one for each that is not right; returns how many are wrong."""
    words = Counter(verdict.word for verdict in verdicts.values())
    listed = sum(verdict.word == "refused" and verdict.listed for verdict in verdicts.values())
    print(
        f"{what}: right {words['right']}/{len(verdicts)}, wrong {words['wrong']}, "
        f"refused {words['refused']}, of these {listed} with the true ones among the candidates",
        flush=True,
    )
    for name, verdict in verdicts.items():
        if names and verdict.word != "right":
            print(f"  {verdict.word} {name}" + ("" if verdict.listed else ", a true stem is no candidate"))
    return words["wrong"]


def main() -> int:
    parser = argparse.ArgumentParser(description="How often first convs are found in real architectures.")
    parser.add_argument("corpus", nargs="*", type=Path)
    parser.add_argument("--list", action="store_true", help="name what is not right")
    parser.add_argument("--write-found", action="store_true", help="write the list of what is found rightly")
    arguments = parser.parse_args()
    wrong = 0
    for corpus in arguments.corpus or [SAMPLE]:
        models = load(corpus)
        for (gray, ordered), case in zip(CASES, NAMES, strict=True):
            verdicts = {name: judge(model, gray=gray, ordered=ordered) for name, model in models.items()}
            wrong += report(f"{corpus.name}, {case}", verdicts, names=arguments.list)
    found: dict[str, list[str]] = {}
    for row in [] if arguments.corpus else ROWS:
        verdicts = judge_row(row)
        wrong += report(str(row), verdicts, names=arguments.list)
        found[str(row)] = [name for name, verdict in verdicts.items() if verdict.word == "right"]
    if arguments.write_found and found:
        write_found(found)
    return 1 if wrong else 0


if __name__ == "__main__":
    raise SystemExit(main())
