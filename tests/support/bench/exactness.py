"""How exact a gray network is, as a table: run with `make bench-exactness`.

The reference is the RGB network on the gray image stacked three times, each channel normalized by its own mean and std. Errors
are shares of the largest value: of the stem's output inside, at the border that zero padding reaches, and of the logits.
"""

import tempfile
from pathlib import Path

import torch

from tests.frameworks.exactness import MEAN, NETWORKS, STD, Built, Errors, answers, converted, expected_of, fed, images, trained

FOLDED = {
    "--norm imagenet": {"norm": "imagenet"},
    "--norm imagenet --input-range 255": {"norm": "imagenet", "input_range": 255},
    "--norm imagenet --input-range 255 --new-mean 0.449": {"norm": "imagenet", "input_range": 255, "new_mean": "0.449"},
}


def rows(built: Built, folder: Path, dtype: torch.dtype) -> dict[str, Errors]:
    model, raw = trained(built), images(2)
    expected = expected_of(built, model, raw, dtype)
    plain, _ = converted(built, model, folder, dtype)
    averaged = (raw - MEAN.mean()) / STD.mean()
    cases = {"plain sum, raw image": (plain, raw), "plain sum, one averaged mean and std": (plain, averaged)}
    for name, words in FOLDED.items():
        new, report = converted(built, model, folder, dtype, **words)
        cases[name] = (new, fed(raw, report))
    return {name: Errors.of(answers(net, built, x.to(dtype)), expected, built.halo) for name, (net, x) in cases.items()}


def main() -> None:
    print(f"{'network':10}  {'dtype':8}  {'conversion, and what feeds it':52}  {'interior':>8}  {'border':>8}  {'logits':>8}")
    for name, built in NETWORKS.items():
        for dtype in (torch.float64, torch.float32):
            with tempfile.TemporaryDirectory() as folder:
                for case, errors in rows(built, Path(folder), dtype).items():
                    border = f"{errors.border:8.1e}" if built.halo else "    none"
                    kind = str(dtype).removeprefix("torch.")
                    print(f"{name:10}  {kind:8}  {case:52}  {errors.interior:8.1e}  {border}  {errors.logits:8.1e}")


if __name__ == "__main__":
    main()
