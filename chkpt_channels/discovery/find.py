"""The first convs that are to change: those that the search finds, or those that the user names."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

from chkpt_channels.core.dtypes import BY_NAME
from chkpt_channels.core.errors import AmbiguousError, Candidate, Location, UnsupportedError, UsageError
from chkpt_channels.core.limits import LIMITS
from chkpt_channels.core.tensors import MOST_REMEMBERED, Finding, FirstConv, Tensor
from chkpt_channels.discovery import by_user, counts, law, layer_selector, opaque
from chkpt_channels.discovery.like import Comparison
from chkpt_channels.discovery.request import ConfigHints, SearchRequest
from chkpt_channels.formats.base import TensorStore

if TYPE_CHECKING:
    from chkpt_channels.discovery.law.after import Unexplained

_ANY = SearchRequest()


@lru_cache(maxsize=2)
def _find_once(tensors: tuple[Tensor, ...], *, ordered: bool, torch: bool, channels: int | None) -> Finding:
    """The search goes by names and shapes alone, and in a folder of checkpoints these are mostly those of the file before."""
    return law.search.find(tensors, ordered=ordered, torch=torch, channels=channels)


def find_first_convs(checkpoint: TensorStore, request: SearchRequest = _ANY) -> Finding:
    """The first convs by the strongest evidence there is: the graph, a configuration beside the file, a known architecture, names
    and shapes. Of the request it takes the number of channels and the hints; `select_first_convs` takes the rest."""
    hints = request.hints
    by_graph = tuple(checkpoint.graph.first_convs())
    if by_graph or checkpoint.graph.decides:
        return Finding(by_graph)
    if by_view := _by_search_view(checkpoint, request.from_channels):
        return by_view
    from chkpt_channels.discovery.catalogue.known import known_first_convs

    named = _named_by_config(checkpoint, hints)
    known = None if hints.joined else known_first_convs(checkpoint, request.from_channels)
    if known and {conv.tensor.name for conv in named or known.first_convs} == {conv.tensor.name for conv in known.first_convs}:
        return known
    finding = _by_shapes(checkpoint, request.from_channels)
    if named and (hints.joined or not finding.first_convs):
        return finding._replace(first_convs=named, candidates=())
    if not finding.first_convs and request.from_channels is None and hints.channels:
        hinted = _by_shapes(checkpoint, hints.channels)
        why = f"config.json says {hints.channels} channels"
        convs = tuple(conv._replace(found_by="sidecar", why=why) for conv in hinted.first_convs)
        return hinted._replace(first_convs=convs) if convs else finding
    return finding


def _by_shapes(checkpoint: TensorStore, channels: int | None) -> Finding:
    among = opaque.searched(checkpoint)
    find = _find_once if len(among.tensors) <= MOST_REMEMBERED else _find_once.__wrapped__
    finding = find(tuple(among.tensors), ordered=checkpoint.ordered, torch=checkpoint.torch, channels=channels)
    finding = opaque.without_opaque(finding, among)
    return finding._replace(first_convs=tuple(checkpoint.graph.with_groups(conv) for conv in finding.first_convs))


def _by_search_view(checkpoint: TensorStore, channels: int | None) -> Finding | None:
    """What is found in a file whose kernels are not PyTorch's, searched under PyTorch's names and shapes; None where these
    do not tell. A depthwise kernel has one channel there, whatever it takes: an answer that holds one is dropped."""
    view = checkpoint.graph.search_view()
    if not view:
        return None
    finding = law.search.find(view, ordered=checkpoint.ordered, torch=True, channels=channels)
    if not finding.first_convs and not checkpoint.graph.shows_all:
        return None
    stored = _stored(checkpoint)
    names = {tensor.name: stored[name] for tensor, name in view.items()}
    candidates = tuple(c._replace(key=names[c.key].name, shape=names[c.key].shape) for c in finding.candidates)
    found = [names[conv.tensor.name] for conv in finding.first_convs]
    if unread := [w for w in checkpoint.opaque if any(tensor.name == w.name for tensor in found)]:
        return Finding((), (Candidate(unread[0].name, unread[0].shape or (), unread[0].what), *candidates))
    convs = tuple(c._replace(tensor=t, layout=t.layout) for c, t in zip(finding.first_convs, found, strict=True))
    if any(checkpoint.graph.is_depthwise(tensor.name) for tensor in found):
        return None
    vectors = tuple(names[vector.name] for vector in finding.input_vectors)
    return finding._replace(first_convs=convs, candidates=candidates, input_vectors=vectors)


def _stored(checkpoint: TensorStore) -> dict[str, Tensor]:
    """The tensors by name, and what stands for those that cannot be read."""
    return {w.name: Tensor(w.name, BY_NAME["F32"], w.shape or ()) for w in checkpoint.opaque} | checkpoint.tensors


def _named_by_config(checkpoint: TensorStore, hints: ConfigHints) -> tuple[FirstConv, ...]:
    """The convs that the configuration names, where all of them are there and have as many channels as it says."""
    if not hints.first_conv:
        return ()
    layouts = law.search.layouts_of(checkpoint.model_tensors(), torch=checkpoint.torch)
    convs = []
    for module in hints.first_conv:
        tensor = checkpoint.tensors.get(f"{module}.weight")
        layout = law.search.layout_of(tensor, layouts) if tensor else None
        if tensor is None or layout is None or by_user.channels_of(tensor, layout, 0) != hints.channels:
            return ()
        why = "config.json names it"
        convs.append(checkpoint.graph.with_groups(FirstConv(tensor, layout, hints.channels, "sidecar", why)))
    return tuple(convs)


def unexplained(checkpoint: TensorStore, stems: Sequence[FirstConv]) -> tuple[Unexplained, ...]:
    """The kernels that take as many channels as these stems, are none of them, and that no layers explain; none in a file whose
    graph shows which kernels the image reaches."""
    if checkpoint.graph.decides or checkpoint.graph.first_convs():
        return ()
    from chkpt_channels.discovery.catalogue.known import listed_names

    if view := checkpoint.graph.search_view():
        shown, stored = {name: tensor for tensor, name in view.items()}, _stored(checkpoint)
        seen = [conv._replace(tensor=shown[conv.tensor.name]) for conv in stems if conv.tensor.name in shown]
        left = law.after.unexplained(view, seen, ordered=checkpoint.ordered, torch=True)
        kernels = tuple(kernel._replace(tensor=stored[view[kernel.tensor]]) for kernel in left)
        return tuple(kernel for kernel in kernels if not checkpoint.graph.is_depthwise(kernel.tensor.name))
    among = opaque.searched(checkpoint)
    left = law.after.unexplained(among.tensors, stems, ordered=checkpoint.ordered, torch=checkpoint.torch)
    names, listed = {name: weight.name for name, weight in among.opaque.items()}, listed_names(checkpoint) if left else ()
    left = tuple(kernel for kernel in left if kernel.tensor.name not in listed)
    return tuple(k._replace(tensor=k.tensor._replace(name=names.get(k.tensor.name, k.tensor.name))) for k in left)


def select_first_convs(checkpoint: TensorStore, request: SearchRequest) -> Finding:
    """The first convs to change. Raises AmbiguousError with candidates, UnsupportedError where there is none, UsageError for
    layers that do not exist or have other channels than --from says."""
    _select_inputs(checkpoint, request)
    if request.like:
        finding = _by_like(checkpoint, request)
    elif request.layers:
        finding = _with_named(checkpoint, find_first_convs(checkpoint, request), request)
    else:
        finding = _unambiguous(checkpoint, find_first_convs(checkpoint, request), request)
    checkpoint.location.check_limit("first convolutions", len(finding.first_convs), LIMITS.first_convs)
    return finding if request.from_channels is None else counts.of_count(checkpoint.location, finding, request.from_channels)


def compare_with_like(checkpoint: TensorStore, request: SearchRequest) -> Comparison:
    """What LIKE says of the checkpoint; without one, that nothing differs. Raises what `like.compare.compare` raises."""
    _select_inputs(checkpoint, request)
    if request.like is None:
        return Comparison()
    from chkpt_channels.discovery.like.compare import compare

    return compare(checkpoint, request.like, request, lambda: find_first_convs(checkpoint, request).first_convs)


def _by_like(checkpoint: TensorStore, request: SearchRequest) -> Finding:
    """The first convs that LIKE shows. Where nothing differs, those that are found without it, which are right as they are: none
    where they are ambiguous and the user states no target."""
    comparison, target = compare_with_like(checkpoint, request), request.like.target if request.like else None
    if comparison.channels:
        return Finding(comparison.first_convs, input_vectors=comparison.vectors)
    finding, file = find_first_convs(checkpoint, request), checkpoint.location.file
    if grouped := next((conv for conv in finding.first_convs if conv.groups > 1), None):
        what = f"a kernel in {grouped.groups} groups has one shape for several counts: LIKE does not show the channels"
        raise AmbiguousError(what, file=file, where=grouped.tensor.name, hint="--to without --like")
    if target is None:
        return finding
    finding = _unambiguous(checkpoint, finding, request)
    if other := next((conv for conv in finding.first_convs if conv.in_channels != target), None):
        what = f"the target has {target} channels, and LIKE takes {other.in_channels} as this does"
        raise UsageError(what, file=file, where=other.tensor.name)
    return finding


def _select_inputs(checkpoint: TensorStore, request: SearchRequest) -> None:
    if request.inputs and not checkpoint.graph.select_inputs(request.inputs):
        what = f"--input names an input of an ONNX graph, and this is {checkpoint.title}"
        raise UsageError(what, file=checkpoint.location.file)
    if request.from_channels is not None:
        checkpoint.graph.state_channels(request.from_channels)


def _unambiguous(checkpoint: TensorStore, finding: Finding, request: SearchRequest) -> Finding:
    """The finding with the user's layout. Raises as `select_first_convs` does where it has no first conv."""
    location = checkpoint.location
    checkpoint.graph.check_reached()
    if finding.first_convs:
        _check_tied(checkpoint, finding.first_convs)
        convs = tuple(by_user.with_layout(location, conv, request.layout) for conv in finding.first_convs)
        return finding._replace(first_convs=convs)
    weight, _ = opaque.candidates_among(checkpoint, finding)
    if weight:
        raise location.at(weight.name).unsupported(weight.what, hint=weight.hint)
    if finding.why_not:  # one of the kernels alone would give a network that does not load
        what = f"no edit of first convolutions is right: {finding.why_not}"
        raise AmbiguousError(what, file=location.file, candidates=finding.candidates, hint=checkpoint.like_hint)
    if not finding.candidates:
        if not checkpoint.tensors and not checkpoint.opaque:
            raise UnsupportedError("holds no tensors", file=location.file)
        hint = f"name it: --layer KEY --layout LAYOUT   or   {checkpoint.like_hint}"
        raise UnsupportedError("holds no convolution that could see an image", file=location.file, hint=hint)
    many, hint = len(finding.candidates), by_user.hint(checkpoint, finding.candidates)
    if request.from_channels is not None:  # which may be what is wrong
        known = find_first_convs(checkpoint).first_convs
        hint = "   or   ".join([*(f"--from {width}" for width in dict.fromkeys(conv.in_channels for conv in known)), hint])
    what = f"{'one tensor might' if many == 1 else f'{many} tensors could'} be the first convolution"
    raise AmbiguousError(what, file=location.file, candidates=finding.candidates, hint=hint)


def _check_tied(checkpoint: TensorStore, convs: Sequence[FirstConv]) -> None:
    """Raise AmbiguousError with all names where a first conv has a further one that was not found: a module that stands twice in
    its network, or a last layer that has the weights of the first."""
    memory = {checkpoint.memory(conv.tensor.name): conv.tensor.name for conv in convs}
    shapes, found = {conv.tensor.shape for conv in convs}, {conv.tensor.name for conv in convs}
    others = [t for t in checkpoint.model_tensors() if t.shape in shapes and t.name not in found]
    tied = {t.name: first for t in others if (first := memory.get(checkpoint.memory(t.name)))}
    if not tied:
        return
    candidates = [Candidate(conv.tensor.name, conv.tensor.shape, conv.why, needed=True) for conv in convs]
    candidates += [Candidate(t.name, t.shape, f"is {tied[t.name]} too", needed=True) for t in others if t.name in tied]
    name, first = next(iter(tied.items()))
    what, hint = f"shares its memory with {first}, and is not known to see the image", by_user.hint(checkpoint, candidates)
    raise AmbiguousError(what, file=checkpoint.location.file, where=name, candidates=candidates, hint=hint)


def _check_complete(location: Location, finding: Finding, named: Sequence[FirstConv]) -> None:
    """Raise AmbiguousError where --layer names some of the kernels that see one image, and leaves others of their model."""
    names = {conv.tensor.name for conv in named}
    other = law.places.OTHER_SENSES
    stems = [c for c in finding.first_convs if c.inputs or (c.found_by != "graph" and not other.search(c.tensor.key))]
    seen = {image for c in stems if c.tensor.name in names for image in c.images}
    together = {c.tensor.name: c.tensor.shape for c in stems if seen.intersection(c.images)}
    if names & {c.key for c in finding.candidates if c.needed}:
        together |= {c.key: c.shape for c in finding.candidates if c.needed}
    left = [Candidate(name, shape, "--layer leaves it out") for name, shape in together.items() if name not in names]
    if left:
        what = f"sees the image together with {left[0].key}" + (f" and {len(left) - 1} more" if len(left) > 1 else "")
        where = next(name for name in together if name in names)
        hint = " ".join(f"--layer {name}" for name in together)
        raise AmbiguousError(what, file=location.file, where=where, candidates=left, hint=hint)


def _with_named(checkpoint: TensorStore, finding: Finding, request: SearchRequest) -> Finding:
    """The first convs that --layer names, each once."""
    location = checkpoint.location
    own = checkpoint.model_tensors()
    tensors = [t for t in own if len(t.shape) >= 2]
    unread = {weight.name: weight for weight in checkpoint.opaque}
    tensors += [Tensor(weight.name, BY_NAME["F32"], weight.shape or (), weight.group) for weight in checkpoint.opaque]
    matches = [t for layer in request.layers for t in layer_selector.match(location, tensors, layer, checkpoint.like_hint)]
    names = dict.fromkeys((t.name for t in matches), "named by --layer")
    copies = law.copies.Flattened(tensors)
    names |= {copy.name: f"a copy of {t.key}" for t in matches for copy in copies.of(t) if copy.name not in names}
    known, layouts = {conv.tensor.name: conv for conv in finding.first_convs}, law.search.layouts_of(own, torch=checkpoint.torch)
    convs = []
    for name, why in names.items():
        if name in unread:
            raise location.at(name).unsupported(unread[name].what, hint=unread[name].hint)
        _check_read(checkpoint, name, finding)
        conv = known.get(name) or by_user.described(checkpoint.location, checkpoint.tensors[name], request, layouts)
        convs.append(by_user.with_layout(location, conv, request.layout)._replace(found_by="user", why=why))
    _check_complete(location, finding, convs)
    if any(conv.found_by == "graph" for conv in finding.first_convs):  # it knows the preprocessing itself
        return Finding(tuple(convs))
    vectors = dict.fromkeys(law.search.input_vectors(own, convs, torch=checkpoint.torch))
    return Finding(tuple(convs), input_vectors=tuple(vectors))


def named(checkpoint: TensorStore, layer: str, request: SearchRequest) -> FirstConv:
    """The kernel that one --layer names, whether others see the image with it or not: to look at it, not to convert it. Raises
    UsageError, AmbiguousError where it names none, or several of one copy; UnsupportedError where it cannot be read."""
    tensors = [tensor for tensor in checkpoint.model_tensors() if len(tensor.shape) >= 2]
    tensor = layer_selector.match(checkpoint.location, tensors, layer, "a glob")[0]
    known = {conv.tensor.name: conv for conv in find_first_convs(checkpoint, request).first_convs}
    layouts = law.search.layouts_of(tensors, torch=checkpoint.torch)
    conv = known.get(tensor.name) or by_user.described(checkpoint.location, tensor, request, layouts)
    return by_user.with_layout(checkpoint.location, conv, request.layout)


def _check_read(checkpoint: TensorStore, name: str, finding: Finding) -> None:
    """Raise UnsupportedError where the graph shows that no image reaches a kernel that the user names."""
    if checkpoint.graph.readers(name) == frozenset():
        checkpoint.graph.check_reached()
        hint = " ".join(f"--layer {conv.tensor.name}" for conv in finding.first_convs[: by_user.MOST_TOGETHER])
        raise checkpoint.location.at(name).unsupported("no image reaches this kernel in the model's graph", hint=hint)
