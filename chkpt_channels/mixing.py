"""The one formula: old input x_old = A · x_new + t, so W'[p, j, q] = Σ_i W[p, i, q] · A[i, j].

Every conversion is a constructor of the matrix A: [I_old, I_new]. Source of the weights: ITU-R BT.709-6 and BT.601-7.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import isclose
from typing import TYPE_CHECKING, Any, NamedTuple

from .dtypes import DType, rounded

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

LUMA = {"bt709": (0.2126, 0.7152, 0.0722), "bt601": (0.299, 0.587, 0.114)}


class Mixing(NamedTuple):
    """`matrix` is A, a tuple of I_old rows of I_new numbers; `offset` is t, empty for zero; `method` names the rule."""

    method: str
    matrix: tuple[tuple[float, ...], ...]
    offset: tuple[float, ...] = ()

    @property
    def old(self) -> int:
        """I_old."""
        return len(self.matrix)

    @property
    def new(self) -> int:
        """I_new."""
        return len(self.matrix[0])

    @property
    def is_identity(self) -> bool:
        """Whether nothing changes: A is the identity and t is zero."""
        return (
            not any(self.offset)
            and self.old == self.new
            and all(value == (i == j) for i, row in enumerate(self.matrix) for j, value in enumerate(row))
        )

    def apply(self, kernel: NDArray[Any], view: tuple[int, int, int], dtype: DType) -> NDArray[Any]:
        """The new kernel as [pre, I_new, post] in the stored dtype, from the old one seen as [pre, I_old, post].

        Float64 in a fixed order over i, zero coefficients skipped (0 · inf would make NaN out of a swap), rounded once;
        a column that selects one channel copies its bits.
        """
        import numpy as np

        pre, _, post = view
        old = kernel.reshape(view)
        new = np.empty((pre, self.new, post), dtype=old.dtype)
        for j in range(self.new):
            terms = [(i, row[j]) for i, row in enumerate(self.matrix) if row[j] != 0]
            if len(terms) == 1 and terms[0][1] == 1:
                _bits(new)[:, j] = _bits(old)[:, terms[0][0]]
                continue
            parts = (weight * old[:, i].astype(np.float64) for i, weight in terms)
            total = next(parts, np.zeros((pre, post)))  # not 0 + the first part, which would make 0 of -0
            for part in parts:
                total += part
            new[:, j] = rounded(total, dtype)
        return new

    def bias_shift(self, kernel: NDArray[Any], view: tuple[int, int, int]) -> NDArray[np.float64]:
        """Σ_i W[p, i, q] · t_i as [pre, post]: what t adds to the output, still to be summed over the taps in p and q."""
        import numpy as np

        total = np.zeros((view[0], view[2]))
        for i, constant in enumerate(self.offset):
            if constant:
                total += constant * kernel.reshape(view)[:, i].astype(np.float64)
        return total

    def between_affine(self, scale: Sequence[float], shift: Sequence[float], chosen: Sequence[int]) -> Mixing:
        """This mixing of images, seen behind y_i = scale_i · x_i + shift_i, where new channel j gets the constants of old
        channel chosen[j]: A = diag(a) · M · diag(1/a'), t = b - A · b'."""
        matrix = tuple(
            tuple(value if a == scale[c] else a * value / scale[c] for value, c in zip(row, chosen, strict=True))
            for a, row in zip(scale, self.matrix, strict=True)
        )
        totals = [sum(value * shift[c] for value, c in zip(row, chosen, strict=True)) for row in matrix]
        # weights that sum to 1 but for rounding leave no constant behind
        offset = tuple(0.0 if isclose(b, total, rel_tol=1e-14) else b - total for b, total in zip(shift, totals, strict=True))
        return Mixing(self.method, matrix, offset if any(offset) else ())


def _bits(array: NDArray[Any]) -> NDArray[Any]:
    """The same memory as unsigned integers: copies of it cannot touch a NaN's payload."""
    return array.view(f"u{array.dtype.itemsize}") if array.dtype.itemsize in (1, 2, 4, 8) else array


def sum_(old: int) -> Mixing:
    """N → 1: exact for one image stacked N times."""
    return Mixing("sum", tuple((1.0,) for _ in range(old)))


def mean(old: int) -> Mixing:
    """N → 1: the average. The response shrinks N times; kept to recognise it."""
    return Mixing("mean", tuple((1.0 / old,) for _ in range(old)))


def luma(weights: Sequence[float], name: str = "luma") -> Mixing:
    """1 → N: exact for a network trained on g = Σ λ_i x_i."""
    return Mixing(name, (tuple(float(w) for w in weights),))


def repeat(old: int, new: int) -> Mixing:
    """N → M: channel j takes old channel j mod N, scaled by N/M so that the response stays (timm's and smp's rule)."""
    scale = old / new
    return Mixing("repeat", tuple(tuple(scale if i == j % old else 0.0 for j in range(new)) for i in range(old)))


def identity(channels: int) -> Mixing:
    """N → N: nothing changes."""
    return Mixing("identity", tuple(tuple(float(i == j) for j in range(channels)) for i in range(channels)))


def select(old: int, chosen: Sequence[int]) -> Mixing:
    """N → len(chosen): new channel j is old channel chosen[j], its bits copied."""
    return Mixing("select", tuple(tuple(float(c == i) for c in chosen) for i in range(old)))


def between(old: int, new: int, weights: Sequence[float] = LUMA["bt709"]) -> Mixing:
    """The default rule: the identity at the same count, sum to one channel, luma from one to three, repeat otherwise."""
    if old == new:
        return identity(old)
    if new == 1:
        return sum_(old)
    if old == 1 and new == len(weights):
        return luma(weights)
    return repeat(old, new)


def known_rules(old: int, new: int) -> list[Mixing]:
    """Every rule that public converters use from `old` to `new` channels: what `verify` names a kernel by."""
    rules = [between(old, new)]
    if new == 1:
        rules += [mean(old), *(Mixing(f"luma ({name})", tuple((w,) for w in ws)) for name, ws in LUMA.items() if old == 3)]
        rules += [Mixing(f"channel {i} alone", select(old, [i]).matrix) for i in range(old)]
    if old == 1:
        rules += [luma(ws, f"luma ({name})") for name, ws in LUMA.items() if new == 3]
        rules += [Mixing("repeat, scaled", repeat(1, new).matrix), Mixing("repeat, not scaled", ((1.0,) * new,))]
    if old == new == 3:
        rules.append(Mixing("bgr", select(3, [2, 1, 0]).matrix))
    if new > old:
        rules.append(Mixing("zero", tuple(tuple(float(i == j) for j in range(new)) for i in range(old))))
        rules.append(Mixing("repeat, not scaled", select(old, [j % old for j in range(new)]).matrix))
    return rules
