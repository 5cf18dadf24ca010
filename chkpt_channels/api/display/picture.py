"""The picture that `plot` draws: a head that says what was done, a sheet of filters for each kernel, and two charts below.

All is placed in inches from the top left, so that sheets keep their shape and text its size, whatever is drawn.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import ceil
from typing import TYPE_CHECKING, Any

from chkpt_channels.api.display import sheets, words
from chkpt_channels.api.display.filters import Filters
from chkpt_channels.api.display.sheets import Panel
from chkpt_channels.core.errors import printable
from chkpt_channels.core.records import NamedTuple

if TYPE_CHECKING:
    from matplotlib.figure import Figure

INK, SOFT, FAINT, ACCENT = "#1b2330", "#667080", "#d5dae1", "#2f6fdb"
NAMED = {"r": "#d64a4a", "g": "#3c9d62", "b": "#3f6fd1", "gray": "#8a94a2", "nir": "#8d4fb5", "a": "#b4a04c", "red": "#d64a4a"}
NAMED |= {"green": "#3c9d62", "blue": "#3f6fd1", "alpha": "#b4a04c", "depth": "#2f9aa0", "d": "#2f9aa0"}
OTHERS = ("#4f8fba", "#e08e45", "#6aa84f", "#b8577d", "#7a6fc0", "#5aa9a3", "#a5793f", "#c7a93a")
MARGIN, GUTTER, MOST_IN_A_ROW, MOST_SLICES = 0.5, 0.3, 5, 8
CHART, LEGEND, TALLEST = 1.55, 1.95, 2.5
STYLE = {
    "font.family": "DejaVu Sans",
    "font.size": 8,
    "text.color": INK,
    "text.parse_math": False,  # names of tensors are no formulas
    "axes.edgecolor": FAINT,
    "xtick.color": SOFT,
    "ytick.color": SOFT,
    "svg.hashsalt": "chkpt-channels",  # random identifiers would make every SVG different
}


class Block(NamedTuple):
    """A kernel in the picture: its title, what the charts call it, its filters, what its channels are called, what each is made
    of ("" where nothing is said of it), its sheets, and the weight that is white."""

    title: str
    role: str
    filters: Filters
    names: Sequence[str]
    made_of: Sequence[str]
    panels: Sequence[Panel]
    scale: float


class _Spot(NamedTuple):
    left: float
    top: float
    width: float
    height: float


def draw(title: str, subtitle: str, blocks: Sequence[Block], *, related: bool) -> Figure:
    """The figure; `related` kernels have one scale, and their filters one order; a single one needs no head of its own. Raises
    ImportError where matplotlib is missing."""
    from matplotlib.figure import Figure

    side_by_side = all(len(block.panels) == 1 for block in blocks)
    width = 7.2 if side_by_side and len(blocks) == 1 else 10.0
    heads, spots, bottom = _layout(blocks, width, side_by_side=side_by_side)
    figure = Figure(figsize=(width, bottom + 0.5 + CHART + 0.75), facecolor="white")
    room = width - 2 * MARGIN
    _text(figure, MARGIN, 0.42, title, room, size=13, weight="bold")
    _text(figure, MARGIN, 0.72, subtitle, room - (LEGEND if related else 0), size=8.5, color=SOFT)
    if related:
        _legend(figure, width - MARGIN, 0.72, blocks[0].scale)
    for block, (left, top, across, _) in zip(blocks, heads, strict=True) if len(blocks) > 1 else ():
        _text(figure, left, top + 0.14, block.title, across - (0 if related else LEGEND), size=9.5, weight="bold")
        _text(figure, left, top + 0.34, about(block), across, size=8, color=SOFT)
        if not related:
            _legend(figure, left + across, top + 0.14, block.scale)
    for (block, panel), spot in zip(((b, p) for b in blocks for p in b.panels), spots, strict=True):
        _panel(figure, block, panel, spot)
    half = (room - 0.9) / 2
    _energy(_axes(figure, _Spot(MARGIN + 0.35, bottom + 0.5, half, CHART)), blocks, related=related)
    _norms(_axes(figure, _Spot(MARGIN + 0.9 + half, bottom + 0.5, half, CHART)), blocks, related=related)
    return figure


def _layout(blocks: Sequence[Block], width: float, *, side_by_side: bool) -> tuple[list[_Spot], list[_Spot], float]:
    """Where the head of each block stands, each of its sheets, and where all of them end."""
    room = width - 2 * MARGIN
    most = max(len(block.panels) for block in blocks)
    slices = max(block.filters.weights.shape[2] for block in blocks)
    in_a_row = len(blocks) if side_by_side else ceil(most / ceil(most / MOST_IN_A_ROW))
    if most > slices > 1 and slices <= MOST_SLICES:
        in_a_row = slices  # a row is a channel
    each = (room - GUTTER * (in_a_row - 1)) / in_a_row
    heads: list[_Spot] = []
    spots: list[_Spot] = []
    top = bottom = 1.0 if len(blocks) > 1 else 0.45
    for i, block in enumerate(blocks):
        left = MARGIN + i * (each + GUTTER) if side_by_side else MARGIN
        heads.append(_Spot(left, top, each if side_by_side else room, 0.5))
        y = top + 0.5
        for at, panel in enumerate(block.panels):
            sizes = panel.weights.shape[2:]
            down, across = sheets.Grid.of(panel.weights).size(*sizes)
            wide = min(each, TALLEST * each * across / down)
            high = max(wide * down / across, 0.1)
            spots.append(_Spot(left + (at % in_a_row) * (each + GUTTER), y + 0.24, wide, high))
            y += high + 0.34 if at % in_a_row == in_a_row - 1 or at == len(block.panels) - 1 else 0
        bottom = max(bottom, y)
        top = top if side_by_side else bottom + 0.2
    return heads, spots, bottom


def about(block: Block) -> str:
    """The kernel in words, and what of it is left out of the picture."""
    count, channels, depth, height, width = block.filters.weights.shape
    window = f"{depth}×{height}×{width}" if depth > 1 and block.filters.depth == "slice" else f"{height}×{width}"
    drawn = len(block.panels[0].weights)
    of = f"the first {drawn} of {count:,} filters" if drawn < count else words.count(count, "filter")
    needed = (1 if len(block.panels[0].channels) == 3 else channels) * depth
    order = f", {block.filters.depth} by {block.filters.depth}" if depth > 1 else ""
    left_out = f", the first {len(block.panels)} of {needed:,} sheets" if len(block.panels) < needed else ""
    return (
        f"{printable(block.filters.conv.tensor.name)} · {of} of {window} over {words.count(channels, 'channel')}{order}{left_out}"
    )


def _panel(figure: Figure, block: Block, panel: Panel, spot: _Spot) -> None:
    axes = _axes(figure, spot)
    axes.imshow(sheets.sheet(panel.weights, block.scale), interpolation="antialiased", aspect="auto")
    axes.set_axis_off()
    left = spot.left
    for channel in panel.channels:
        figure.add_artist(_dot(figure, left + 0.05, spot.top - 0.105, _color(block, channel)))
        left += 0.13
    made_of = block.made_of[panel.channels[0]] if len(panel.channels) == 1 else ""
    room = spot.left + max(spot.width, 1.0) - left
    text = f"{panel.label} = {made_of}"
    text = text if made_of and len(text) <= _letters(room, 8) else panel.label
    _text(figure, left + 0.02, spot.top - 0.07, text, room, size=8)


def _dot(figure: Figure, left: float, top: float, color: str) -> Any:
    from matplotlib.patches import Ellipse

    width, height = figure.get_size_inches()
    return Ellipse((left / width, 1 - top / height), 0.09 / width, 0.09 / height, color=color, transform=figure.transFigure)


def _legend(figure: Figure, right: float, top: float, scale: float) -> None:
    """Black, gray and white, and the weights that they stand for."""
    import numpy as np

    bar = _axes(figure, _Spot(right - 1.4, top - 0.1, 0.9, 0.09))
    bar.imshow(np.linspace(0, 1, 64)[None], cmap="gray", vmin=0, vmax=1, aspect="auto")
    bar.set_xticks([])
    bar.set_yticks([])
    _text(figure, right - 1.46, top - 0.01, f"−{scale:.3g}", 1, size=7.5, color=SOFT, ha="right")
    _text(figure, right - 0.44, top - 0.01, f"+{scale:.3g}", 1, size=7.5, color=SOFT)


def _energy(axes: Any, blocks: Sequence[Block], *, related: bool) -> None:
    """Σ w² of each input channel, in the colors of the channels; of unrelated kernels the share of each."""
    at, ticks, labels = 0, [], []
    every = ceil(sum(len(block.names) for block in blocks) / 24)
    for block in blocks:
        energy = (block.filters.weights**2).sum(axis=(0, 2, 3, 4))
        energy = energy if related else 100 * energy / (energy.sum() or 1)
        places = list(range(at, at + len(energy)))
        axes.bar(places, energy, 0.74, color=[_color(block, i) for i in range(len(energy))])
        ticks += places[::every]
        labels += [_short(name.removeprefix("channel "), 7) for name in block.names][::every]
        if len(blocks) > 1:
            middle = ((places[0] + places[-1]) / 2, 0)
            role = _short(block.role, 22)
            axes.annotate(role, middle, (0, -24), textcoords="offset points", ha="center", color=SOFT)
        at = places[-1] + 2
    axes.set_xticks(ticks, labels)
    axes.set_xlim(-0.7, max(at - 1.3, 2.7))
    _plain(axes, "Energy of each channel, Σ w²" if related else "Share of each channel in Σ w², %")


def _norms(axes: Any, blocks: Sequence[Block], *, related: bool) -> None:
    """The norm of each filter, largest first; those of a conversion in the order of the filters before, those of unrelated
    kernels as parts of the largest."""
    import numpy as np

    norms = [np.sqrt((block.filters.weights**2).sum(axis=(1, 2, 3, 4))) for block in blocks]
    for i, (block, each) in enumerate(zip(blocks, norms, strict=True)):
        values = each[np.argsort(-norms[0] if related else -each, kind="stable")] / (1 if related else each.max() or 1)
        x, looks = np.arange(len(each)) + 1, {"color": ACCENT if i else SOFT, "label": _short(block.role, 34)}
        if i:
            axes.plot(x, values, linestyle="", marker=".", markersize=3.5 if len(each) < 200 else 2, **looks)
        else:
            axes.fill_between(x, values, color=SOFT, alpha=0.18, linewidth=0)
            axes.plot(x, values, linewidth=1.2, **looks)
    axes.set_ylim(bottom=0)
    axes.set_xlabel("filter, by its norm before" if related and len(blocks) > 1 else "filter, by its norm", color=SOFT)
    if len(blocks) > 1:
        axes.legend(fontsize=7.5, frameon=False, loc="upper right", labelcolor=SOFT)
    _plain(axes, "Norm of each filter, √Σ w²" if related else "Norm of each filter, the largest is 1")


def _plain(axes: Any, title: str) -> None:
    axes.set_title(title, fontsize=9, loc="left", fontweight="bold", pad=8)
    axes.tick_params(labelsize=7.5, length=0)
    axes.locator_params(axis="y", nbins=4)
    axes.grid(axis="y", color=FAINT, linewidth=0.6)
    axes.set_axisbelow(True)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)


def _axes(figure: Figure, spot: _Spot) -> Any:
    width, height = figure.get_size_inches()
    return figure.add_axes((spot.left / width, 1 - (spot.top + spot.height) / height, spot.width / width, spot.height / height))


def _text(
    figure: Figure, left: float, top: float, text: str, room: float, *, size: float, color: str = INK, **looks: Any
) -> None:
    """A line of text that keeps to `room` inches."""
    width, height = figure.get_size_inches()
    most = _letters(room, size * (1.18 if looks.get("weight") else 1))
    figure.text(left / width, 1 - top / height, _short(text, most), fontsize=size, color=color, va="baseline", **looks)


def _letters(room: float, size: float) -> int:
    """How many letters have room: one is about 0.56 of its size wide."""
    return int(room * 72 / (size * 0.56))


def _color(block: Block, channel: int) -> str:
    """By the name of the channel; of one that has only a number, by the one channel that it is made of."""
    name = block.names[channel].lower()
    factor, _, source = block.made_of[channel].lower().rpartition(" ")
    is_named = not name.startswith("channel ") or " " in factor
    return NAMED.get(name) or (None if is_named else NAMED.get(source)) or OTHERS[channel % len(OTHERS)]


def _short(text: str, most: int) -> str:
    """The text, without its middle where it has no room."""
    text, most = printable(text), max(most, 5)
    return text if len(text) <= most else f"{text[: most // 2 - 1]}…{text[len(text) - most // 2 :]}"


def formulas(old: Sequence[str], matrix: Sequence[Sequence[float]]) -> Iterator[str]:
    """What each new channel is made of, by A [I_old, I_new]: "0.5 R", "R + G + B"; "" where that is too long to be said."""
    for column in zip(*matrix, strict=True):
        terms = [(value, name) for value, name in zip(column, old, strict=True) if value]
        parts = [f"{'−' if value < 0 else '+'} {'' if abs(value) == 1 else f'{abs(value):.3g} '}{name}" for value, name in terms]
        yield (" ".join(parts).removeprefix("+ ") or "0") if len(terms) <= 4 else ""
