"""A picture of first convs, before and after: every filter as a tile, the norm of each, the energy of each channel."""

from __future__ import annotations

import io
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from chkpt_channels.api.display import picture, sheets, words
from chkpt_channels.api.display.filters import Filters, conversion_between, load_filters
from chkpt_channels.api.output.naming import Path_
from chkpt_channels.api.output.publish import write_bytes
from chkpt_channels.core.errors import UnsupportedError, UsageError
from chkpt_channels.storage.atomic import Output
from chkpt_channels.transform.options import build_options

if TYPE_CHECKING:
    from chkpt_channels.transform.mixing.matrix import Mixing

_NO_DATE = {".png": {"Software": None}, ".svg": {"Date": None}, ".pdf": {"CreationDate": None}}


def plot(
    before: Path_,
    after: Path_ | None = None,
    output: Path_ = "kernels.png",
    *,
    force: bool = False,
    bands: str | Sequence[str] | None = None,
    layers: str | Sequence[str] = (),
    layout: str | None = None,
    from_channels: int | None = None,
) -> Path:
    """Draw the first conv of one file, or of two: a conversion, which the title describes, or two models. Returns the picture's
    path; it shows the old file or the whole new one.

    bands          what the channels are called: "B,G,R,NIR", or what `--bands` was given ("B,G,R,NIR=R")
    layers         the kernel that is drawn, as in `convert`; a second one names that of `after`
    layout, from_channels  its axis order, and its input channels, where the first file does not show them

    Raises UsageError for other names than .png, .svg and .pdf and for bands that no kernel has, OutputExistsError where the
    output is there and `force` is not given, UnsupportedError where matplotlib is missing, and what opening a file raises.
    """
    path = Path(output)
    if path.suffix.lower() not in _NO_DATE:
        raise UsageError(f"a picture's suffix must be one of {', '.join(sorted(_NO_DATE))}", file=str(path))
    try:
        import matplotlib.style as _  # noqa: F401 # before anything is read
    except ImportError:
        raise UnsupportedError("drawing needs matplotlib", hint="pip install matplotlib") from None
    with Output(path, None, force=force) as out:
        kernels = _kernels(before, after, [layers] if isinstance(layers, str) else layers, layout, from_channels)
        content = _drawn(kernels, _named_bands(bands, kernels), path.suffix.lower())
        write_bytes(out.fd, content, out.location)
        out.publish()
    return path


def _kernels(
    before: Path_, after: Path_ | None, layers: Sequence[str], layout: str | None, from_channels: int | None
) -> list[Filters]:
    if len(layers) > 2:
        raise UsageError(f"--layer names a kernel of each file, and {len(layers)} are given")
    search = build_options(None, layout=layout, from_channels=from_channels).search
    first = load_filters(before, search, layers[0] if layers else None)
    if after is None:
        return [first]
    # the counts of the first file are not those of the second
    search = search._replace(from_channels=None)
    return [first, load_filters(after, search, layers[-1] if layers else None, first.conv.tensor.name)]


def _named_bands(bands: str | Sequence[str] | None, kernels: Sequence[Filters]) -> list[str]:
    """The names of the bands. Raises UsageError where no kernel has so many channels."""
    listed = bands.split(",") if isinstance(bands, str) else bands or ()
    names = [band.partition("=")[0].strip() for band in listed]
    counts = [kernel.channels for kernel in kernels]
    if names and len(names) not in counts:
        have = " and ".join(words.count(count, "channel") for count in counts)
        raise UsageError(f"--bands names {len(names)}, and the {'kernels have' if len(counts) > 1 else 'kernel has'} {have}")
    return names


def _drawn(kernels: Sequence[Filters], bands: Sequence[str], suffix: str) -> bytes:
    """The picture as a file."""
    import matplotlib.style

    mixing = conversion_between(*kernels) if len(kernels) == 2 else None
    related = len(kernels) == 1 or mixing is not None
    blocks = _blocks(kernels, bands, mixing)
    file = io.BytesIO()
    with matplotlib.style.context(["default", picture.STYLE]), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a name in letters that the font does not have
        figure = picture.draw(*_titles(blocks, mixing), blocks, related=related)
        figure.savefig(file, format=suffix[1:], dpi=170, metadata=_NO_DATE[suffix])
    return file.getvalue()


def _blocks(kernels: Sequence[Filters], bands: Sequence[str], mixing: Mixing | None) -> list[picture.Block]:
    paths = [Path(kernel.file) for kernel in kernels]
    alike = len(paths) > 1 and len({path.name for path in paths}) == 1
    titles = [str(Path(*path.parts[-2:])) if alike else path.name for path in paths]
    names = [sheets.channel_names(kernel, bands) for kernel in kernels]
    apart = any(kernel.apart for kernel in kernels)
    return [
        picture.Block(
            titles[i],
            ("after" if i else "before") if mixing else titles[i],
            kernel,
            names[i],
            list(picture.formulas(names[0], mixing.matrix)) if i and mixing else [""] * kernel.channels,
            sheets.panels(kernel, names[i], apart=apart),
            sheets.scale_of(kernels if mixing else [kernel]),
        )
        for i, kernel in enumerate(kernels)
    ]


def _titles(blocks: Sequence[picture.Block], mixing: Mixing | None) -> tuple[str, str]:
    """What was done, and to what."""
    convs = [block.filters.conv for block in blocks]
    if len(blocks) == 1:
        return blocks[0].title, picture.about(blocks[0])
    if mixing is None:
        return "Two kernels, each on its own scale", "neither is a mixture of the other's channels"
    shapes = dict.fromkeys(f"{words.shape(conv.tensor.shape)} {words.dtype(conv.tensor)}" for conv in convs)
    method = mixing.method.partition(" (")[0]  # of "luma (bt601)" the matrix has the rest
    done = words.change(method, mixing.matrix).removesuffix(", bit by bit")  # that is for verify to say
    if mixing.is_identity and (blocks[0].filters.weights != blocks[-1].filters.weights).any():
        done = "unchanged, up to rounding"
    return f"{convs[-1].tensor.name}: {done}", " → ".join(shapes)
