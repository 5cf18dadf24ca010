"""How many conversions of drawn graphs are right, by direction and by what is in the graph."""

from __future__ import annotations

from collections import Counter

from tests.support.graphs.judge import Question, Verdict, count

WORDS = ("right", "refused", "wrong")


class Tally:
    """Verdicts by direction and by feature."""

    def __init__(self) -> None:
        self.kinds: dict[str, Counter[str]] = {"all": Counter()}
        self.features: dict[str, Counter[str]] = {}
        self.wrong: list[str] = []
        self.refused: list[str] = []

    def add(self, question: Question, verdict: Verdict) -> None:
        way = "toward gray" if question.to == "gray" else "toward 4 and bgr" if question.to in (4, "bgr") else "toward others"
        way += "" if count(question.to) < verdict.old or way != "toward gray" else " (not)"
        for counter in (self.kinds["all"], self.kinds.setdefault(way, Counter())):
            counter[verdict.word] += 1
        for feature in verdict.features:
            self.features.setdefault(feature, Counter())[verdict.word] += 1
        if verdict.word != "right":
            story = f"{verdict.word}: {question}\n  {', '.join(sorted(verdict.features))}\n  {verdict.why}"
            (self.wrong if verdict.word == "wrong" else self.refused).append(story)

    def share(self, way: str) -> float:
        """The part that is right, of a direction."""
        return self.kinds[way]["right"] / self.kinds[way].total()

    def __str__(self) -> str:
        rows = [*sorted(self.kinds.items()), *sorted(self.features.items())]
        return "\n".join(f"{name:34} {' '.join(f'{counter[word]:5} {word}' for word in WORDS)}" for name, counter in rows)
