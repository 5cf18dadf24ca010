"""How many conversions of drawn Keras models are right, by direction and by what is in the model."""

from __future__ import annotations

from collections import Counter, defaultdict

from tests.support.keras_models.judge import Answer

WORDS = ("right", "refused", "wrong", "none")


class Tally:
    """Answers by direction and by what was drawn."""

    def __init__(self) -> None:
        self.kinds: defaultdict[str, Counter[str]] = defaultdict(Counter)
        self.drawn: defaultdict[str, Counter[str]] = defaultdict(Counter)
        self.wrong: list[str] = []

    def add(self, answer: Answer) -> None:
        for kind in ("all", answer.question.way.kind):
            self.kinds[kind][answer.word] += 1
        for name in answer.names:
            self.drawn[name][answer.word] += 1
        if answer.word == "wrong":
            self.wrong.append(f"{answer.question}\n  {', '.join(answer.names)}\n  {answer.reason}")

    def share(self, kind: str) -> float:
        """The part of those that were judged that is right, of a direction."""
        return self.kinds[kind]["right"] / (self.kinds[kind].total() - self.kinds[kind]["none"])

    def __str__(self) -> str:
        rows = [*sorted(self.kinds.items()), *sorted(self.drawn.items())]
        return "\n".join(f"{name:34} {' '.join(f'{counter[word]:5} {word}' for word in WORDS)}" for name, counter in rows)
