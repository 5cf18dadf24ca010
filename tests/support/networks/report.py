"""The words of a verdict, and how many there are of each kind of network."""

from __future__ import annotations

from collections import Counter

from tests.support.networks.traps import Trap
from tests.support.networks.truth import Question, Truth, Verdict


def story(question: Question, truth: Truth, verdict: Verdict) -> str:
    """The question, what was found and what is true, in a few lines."""
    found = [f"{conv.tensor.name} {list(conv.tensor.shape)} {conv.layout or ''}".strip() for conv in verdict.finding.first_convs]
    true = [f"{name} {layout}" for name, layout in truth.stems.items()]
    lines = [f"{verdict.word}: {question}", f"  found {', '.join(found) or 'nothing'}", f"  truth {', '.join(true) or 'refuse'}"]
    lines += [f"  as right {', '.join(sorted(names)) or 'a refusal'}" for names in truth.accepted if true or names]
    lines += [f"  {trap.name}" for trap in sorted(truth.traps)] if verdict.word == "wrong" else []
    return "\n".join(lines)


class Tally:
    """Verdicts by question and by trap."""

    def __init__(self) -> None:
        self.total: Counter[str] = Counter()
        self.traps: dict[Trap, Counter[str]] = {trap: Counter() for trap in Trap}
        self.kinds: dict[str, Counter[str]] = {}
        self.wrong: list[str] = []
        self.failed: Counter[Trap] = Counter()

    def add(self, question: Question, truth: Truth, verdict: Verdict) -> None:
        way = "to fewer" if question.wanted < question.channels else "to more"
        kind = f"{way}, {'in module order' if question.ordered else 'by names'}"
        for counter in (self.total, self.kinds.setdefault(kind, Counter()), *(self.traps[trap] for trap in truth.traps)):
            counter[verdict.word] += 1
        if verdict.word == "wrong":
            self.wrong.append(story(question, truth, verdict))

    @property
    def right(self) -> float:
        """The part of all questions."""
        return self.total["right"] / self.total.total()

    @property
    def missed(self) -> set[Trap]:
        """Traps that no network has reached."""
        return {trap for trap, counter in self.traps.items() if not counter}

    def __str__(self) -> str:
        rows = [("all", self.total), *self.kinds.items(), *((trap.name.lower(), counter) for trap, counter in self.traps.items())]
        return "\n".join(
            f"{name:28} {' '.join(f'{counter[word]:5} {word}' for word in ('right', 'refused', 'wrong'))}"
            for name, counter in rows
        )
