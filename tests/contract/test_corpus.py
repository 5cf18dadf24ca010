"""Real architectures with what is hard about them: nothing is named wrongly, and what is refused is listed."""

from __future__ import annotations

import pytest

from tests.support.architectures import CASES, NAMES, judge, load

ARCHITECTURES = load()

# the sample is hard on purpose; of one channel and in no order, a stem looks like the depthwise layers behind it
MAY_BE_REFUSED = {(False, True): 0.02, (False, False): 0.06, (True, True): 0.03, (True, False): 0.2}


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize(("gray", "ordered"), CASES, ids=NAMES)
def test_no_kernel_is_named_wrongly(name: str, gray: bool, ordered: bool):
    verdict = judge(ARCHITECTURES[name], gray=gray, ordered=ordered)
    assert verdict.word != "wrong", [conv.tensor.name for conv in verdict.finding.first_convs]
    assert verdict.listed, [candidate.key for candidate in verdict.finding.candidates]
    assert all(candidate.why_not for candidate in verdict.finding.candidates)


@pytest.mark.parametrize(("gray", "ordered"), CASES, ids=NAMES)
def test_few_are_refused(gray: bool, ordered: bool):
    words = [judge(model, gray=gray, ordered=ordered).word for model in ARCHITECTURES.values()]
    assert words.count("refused") <= MAY_BE_REFUSED[gray, ordered] * len(words)
