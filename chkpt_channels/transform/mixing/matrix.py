"""The one formula: old input x_old = A · x_new + t, so W'[p, j, q] = Σ_i W[p, i, q] · A[i, j].

A convolution is linear in its input: W · (A · x + t) = (W · A) · x + W · t. Every conversion is a matrix A [I_old, I_new] and,
where normalizations are folded in, a vector t [I_old]. Source of the luma weights: ITU-R BT.709-6 and BT.601-7.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from math import fsum
from typing import TYPE_CHECKING, Any

from chkpt_channels.core import elements
from chkpt_channels.core.dtypes import DType, rounded
from chkpt_channels.core.elements import SmallTensor, Terms, View
from chkpt_channels.core.records import NamedTuple
from chkpt_channels.core.tensors import PreprocessingOp, Window

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Matrix = tuple[tuple[float, ...], ...]
Affine = tuple[Sequence[float], Sequence[float]]
"""y_i = scale_i · x_i + shift_i: (scale, shift), one number for each channel in both."""

MEAN, ZERO = "mean", "zero"
"""What a band may stand in for beside an old channel."""
LUMA = {"bt709": (0.2126, 0.7152, 0.0722), "bt601": (0.299, 0.587, 0.114)}


class Mixing(NamedTuple):
    """How new input channels make up the old ones, x_old = A · x_new + t, and what follows for a kernel.

    method    the rule that made the matrix, as reports name it
    matrix    A: I_old rows of I_new numbers, float64
    offset    t: I_old numbers, or none for zero
    window    of what mixes several pixels too, its taps (window.py): A is their sum then, what becomes of an even image

    With a kernel viewed as W [pre, I_old, post], the new one is W'[p, j, q] = Σ_i W[p, i, q] · A[i, j], [pre, I_new, post], and
    the bias of output channel o grows by Σ over i and its taps of W · t_i. Source: docs/methods.md.
    """

    method: str
    matrix: Matrix
    offset: tuple[float, ...] = ()
    window: Window | None = None

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
            and self.window is None
            and self.old == self.new
            and all(value == (i == j) for i, row in enumerate(self.matrix) for j, value in enumerate(row))
        )

    @property
    def places(self) -> tuple[int, ...]:
        """For each old channel the new one that it is; empty where one of them is none: x_old = A · x_new only gathers, then."""
        rows = [[(j, value) for j, value in enumerate(row) if value] for row in self.matrix]
        is_gathered = all(len(row) == 1 and row[0][1] == 1 for row in rows) and not (any(self.offset) or self.window)
        return tuple(row[0][0] for row in rows) if is_gathered else ()

    def passes(self, operations: Sequence[PreprocessingOp]) -> bool:
        """Whether it is the same behind these operations as in front of them: there are none, or it only gathers channels, and
        each of these is treated by itself, alike or with constants that go with it."""
        are_apart = len(set(self.places)) == self.old
        apart = [op.uniform or (are_apart and (op.apart or len(op.scale or ()) in (1, self.old))) for op in operations]
        return not operations or (bool(self.places) and all(apart))

    def copied(self, new: int) -> int | None:
        """The old channel whose bits the new channel number `new` copies; None where it is computed."""
        terms = [(i, row[new]) for i, row in enumerate(self.matrix) if row[new] != 0]
        return terms[0][0] if len(terms) == 1 and terms[0][1] == 1 and not self.window else None

    @property
    def sources(self) -> tuple[int | None, ...]:
        """The `source` of each new channel."""
        return tuple(self.source(j) for j in range(self.new))

    @property
    def is_placed(self) -> bool:
        """Whether each new channel replaces one old channel, or none."""
        return all(sum(value != 0 for value in column) <= 1 for column in zip(*self.matrix, strict=True))

    @property
    def keeps_levels(self) -> bool:
        """Whether equal channels stay as bright as they were."""
        return all(abs(sum(row) - 1) < 1e-9 for row in self.matrix)

    def source(self, new: int) -> int | None:
        """The one old channel that the new channel number `new` replaces, at whatever weight; None for none or several."""
        replaced = [i for i, row in enumerate(self.matrix) if row[new] != 0]
        return replaced[0] if len(replaced) == 1 else None

    def beside(self, others: int) -> Mixing:
        """The same mixing where `others` channels, which stay as they are, stand behind the image's."""
        rows = [(*row, *(0.0,) * others) for row in self.matrix]
        rows += [(*(0.0,) * self.new, *(float(i == j) for j in range(others))) for i in range(others)]
        return Mixing(self.method, tuple(rows), (*self.offset, *(0.0,) * others) if self.offset else ())

    @property
    def transposed(self) -> Mixing:
        """What maps an image as this one mixes a kernel: x_old = A · x_new, without t."""
        return Mixing(self.method, tuple(zip(*self.matrix, strict=True)))

    def apply(self, kernel: NDArray[Any], view: View, dtype: DType) -> NDArray[Any]:
        """The new kernel [pre, I_new, post] in the dtype of `kernel`, from the old one viewed as [pre, I_old, post].

        Float64 in a fixed order over i, rounded once to `dtype`; a column that selects one channel copies its bits.
        """
        import numpy as np

        pre, _, post = view
        old = kernel.reshape(view)
        new = np.empty((pre, self.new, post), dtype=old.dtype)
        for j, column in enumerate(zip(*self.matrix, strict=True)):
            if (copied := self.copied(j)) is not None:
                _bits(new)[:, j] = _bits(old)[:, copied]
            else:
                total = linear(column, lambda i: old[:, i].astype(np.float64))
                new[:, j] = 0 if total is None else rounded(total, dtype)
        return new

    def apply_plainly(self, kernel: SmallTensor, view: View) -> SmallTensor:
        """The same without numpy, in the same bits."""
        old = kernel.parts(view)
        plain = cache(lambda i: Terms(old[i].values()))
        new = []
        for j, column in enumerate(zip(*self.matrix, strict=True)):
            if (copied := self.copied(j)) is not None:
                new.append(old[copied])
            else:
                total = linear(column, plain) or Terms([0.0] * (view[0] * view[2]))
                new.append(elements.rounded(total, kernel.dtype, old[0].shape))
        return elements.joined(new, kernel.dtype, (view[0], self.new, view[2]))

    def bias_shift(self, kernel: NDArray[Any], view: View) -> NDArray[np.float64]:
        """Σ_i W[p, i, q] · t_i as [pre, post]: what t adds to the output, still to be summed over the taps in p and q."""
        import numpy as np

        total = np.zeros((view[0], view[2]))
        for i, constant in enumerate(self.offset):
            if constant:
                total += constant * kernel.reshape(view)[:, i].astype(np.float64)
        return total

    def compose(self, old: Affine, new: Affine) -> Mixing:
        """The mixing between y = a · x_old + b and y' = a' · x_new + b', where this one is between x_old and x_new: its matrix is
        diag(a) · A · diag(1/a'), and its offset a · t + b - diag(a) · A · diag(1/a') · b'."""
        (scale, shift), (new_scale, new_shift) = old, new

        def scaled(matrix: Matrix) -> Matrix:
            return tuple(
                tuple(value if a == c else a * value / c for value, c in zip(row, new_scale, strict=True))
                for a, row in zip(scale, matrix, strict=True)
            )

        matrix = scaled(self.matrix)
        window = self.window and self.window._replace(matrices=tuple(map(scaled, self.window.matrices)))
        before = [a * t + b for a, t, b in zip(scale, self.offset or (0.0,) * self.old, shift, strict=True)]
        terms = [[-value * b for value, b in zip(row, new_shift, strict=True)] for row in matrix]
        offset = tuple(_sum([constant, *products]) for constant, products in zip(before, terms, strict=True))
        return self._replace(matrix=matrix, offset=offset if any(offset) else (), window=window)


def linear(coefficients: Sequence[float], part: Callable[[int], Any]) -> Any:
    """Σ_i of coefficient i times part i, in the order of i. Zeros are skipped, as 0 · inf is NaN; None where there are no others.
    Parts are arrays, or whatever else is multiplied by numbers and added."""
    parts = (value * part(i) for i, value in enumerate(coefficients) if value != 0)
    total = next(parts, None)  # not 0 + the first part: 0 + -0 is 0, and -0 is to stay
    for each in parts:
        total = total + each
    return total


def _sum(terms: Sequence[float]) -> float:
    """Their sum, and 0 for terms that cancel but for rounding: luma weights that sum to 1 leave no constant."""
    total = fsum(terms)
    # 1e-14 is some 45 units in the last place: a sum of a few products is not further off
    return 0.0 if abs(total) <= 1e-14 * max(map(abs, terms)) else total


def _bits(array: NDArray[Any]) -> NDArray[Any]:
    """The same memory as unsigned integers: copies of it cannot touch a NaN's payload."""
    return array.view(f"u{array.dtype.itemsize}") if array.dtype.itemsize in (1, 2, 4, 8) else array


def sum_(old: int) -> Mixing:
    """N → 1, A all ones: exact for a gray image that was stacked N times."""
    return weighted((1.0,) * old, "sum")


def mean(old: int, new: int = 1) -> Mixing:
    """Every new channel gets the average kernel. From N to 1 the response becomes 1/N: a segmentation model that answered 0.2485
    to RGB answered 0.0832 (0.2496 with the sum)."""
    return Mixing("mean", tuple((1.0 / old,) * new for _ in range(old)))


def luma(weights: Sequence[float], name: str = "luma") -> Mixing:
    """1 → N: exact for a network trained on g = Σ λ_i x_i."""
    return Mixing(name, (tuple(float(w) for w in weights),))


def weighted(weights: Sequence[float], name: str = "luma") -> Mixing:
    """N → 1: old channel i sees weights[i] times the gray image."""
    return Mixing(name, tuple((float(w),) for w in weights))


def repeat(old: int, new: int) -> Mixing:
    """N → M: channel j is old channel j mod N, scaled by N/M so that the response stays. Source: timm's adapt_input_conv and
    segmentation-models-pytorch's patch_first_conv."""
    scale = old / new
    return Mixing("repeat", tuple(tuple(scale if i == j % old else 0.0 for j in range(new)) for i in range(old)))


def zero(old: int, new: int) -> Mixing:
    """N → M ≥ N: the trained channels are kept, new ones start at zero. Source: fastai and diffusers."""
    return Mixing("zero", tuple(tuple(float(i == j) for j in range(new)) for i in range(old)))


def identity(channels: int) -> Mixing:
    """N → N: nothing changes."""
    return zero(channels, channels)._replace(method="identity")


def select(old: int, chosen: Sequence[int], name: str = "select") -> Mixing:
    """N → len(chosen): new channel j is old channel chosen[j], its bits copied."""
    return Mixing(name, tuple(tuple(float(c == i) for c in chosen) for i in range(old)))


def bands(old: int, stand_ins: Sequence[int | str]) -> Mixing:
    """N → len(stand_ins): new channel j replaces old channel stand_ins[j], their MEAN, or none of them and starts at ZERO. Each
    row of A is divided by its sum, so that an old channel gets a weighted mean of those that replace it, and the response does
    not grow."""
    shares = {MEAN: 1.0 / old, ZERO: 0.0}
    rows = [[shares[of] if isinstance(of, str) else float(of == i) for of in stand_ins] for i in range(old)]
    return Mixing("bands", tuple(tuple(value / (sum(row) or 1.0) for value in row) for row in rows))
