"""Which images are meant where several have other numbers of channels: colors and depth, a generator beside a discriminator."""

from __future__ import annotations

from collections.abc import Sequence

from chkpt_channels.core.errors import AmbiguousError, Candidate, Location, UsageError
from chkpt_channels.core.tensors import Finding, FirstConv
from chkpt_channels.formats.base import TensorStore

FOUND_BY_SEARCH = frozenset({"catalogue", "shapes", "names", "graph"})
"""What says of a first conv that neither the user nor a configuration named it."""


def of_count(location: Location, finding: Finding, count: int) -> Finding:
    """The first convs that take as many channels as --from says: all, or those of some images of a graph, of which others have
    other counts. Raises UsageError where none does, or where one sees the same image and does not."""
    convs = tuple(conv for conv in finding.first_convs if conv.in_channels == count)
    seen = {image for conv in convs for image in conv.inputs}
    for conv in finding.first_convs:
        if conv.in_channels != count and (not seen or not conv.inputs or seen.intersection(conv.inputs)):
            what = f"--from says {count} channels, the kernel has {conv.in_channels}"
            raise UsageError(what, file=location.file, where=conv.tensor.name)
    return finding._replace(first_convs=convs)


def check_one_width(store: TensorStore, convs: Sequence[FirstConv], target: int | None) -> None:
    """Raise AmbiguousError where first convs of several widths are found, the target's aside: a generator beside a discriminator,
    which takes two images, or an image and its depth. One conversion of the image cannot be that of both."""
    convs = [conv for conv in convs if conv.found_by in FOUND_BY_SEARCH]
    counts = {conv.tensor.name: store.graph.counts(conv) for conv in convs}
    widths = sorted(frozenset().union(*counts.values()) - {target})
    if len(widths) < 2:
        return
    candidates = [Candidate(c.tensor.name, c.tensor.shape, f"takes {c.in_channels} channels") for c in convs]
    alike = [[f"--layer {c.tensor.name}" for c in convs if c.in_channels == width] for width in widths]
    if any(len(images) > 1 for images in counts.values()):  # a kernel cannot tell them apart
        alike = [[f"--from {width}"] for width in widths]
    what = f"its first convolutions take {' and '.join(map(str, widths))} channels"
    hint = "   or   ".join(" ".join(options) for options in alike)
    raise AmbiguousError(what, file=store.location.file, candidates=candidates, hint=hint)
