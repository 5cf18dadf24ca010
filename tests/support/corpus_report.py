"""How often the first convs are found, and how often a refusal lists the true ones among its candidates.

    python -m tests.support.corpus_report [CORPUS.json.gz ...]

Without arguments it reports on the sample that the tests use. Only names and shapes are read, no files are written.
"""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path

from tests.support.architectures import CASES, NAMES, SAMPLE, judge, load  # the path is set above


def main() -> int:
    corpora = [Path(argument) for argument in sys.argv[1:]] or [SAMPLE]
    wrong = 0
    for corpus in corpora:
        models = load(corpus)
        for (gray, ordered), case in zip(CASES, NAMES, strict=True):
            verdicts = [judge(model, gray=gray, ordered=ordered) for model in models.values()]
            words = Counter(verdict.word for verdict in verdicts)
            listed = sum(verdict.word == "refused" and verdict.listed for verdict in verdicts)
            wrong += words["wrong"]
            print(
                f"{corpus.name}, {case}: right {words['right']}/{len(models)}, wrong {words['wrong']}, "
                f"refused {words['refused']}, of these {listed} with the true ones among the candidates"
            )
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
