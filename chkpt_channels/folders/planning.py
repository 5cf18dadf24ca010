"""The plan of a model: a plan for each of its parts, and the edits of its configurations that follow from them."""

from __future__ import annotations

import shlex
from collections.abc import Collection, Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from chkpt_channels.containers.json.editor import Path as Keys
from chkpt_channels.core.errors import AmbiguousError, Location, UnsupportedError
from chkpt_channels.core.gc_pause import gc_paused
from chkpt_channels.core.records import NamedTuple
from chkpt_channels.core.tensors import Notice
from chkpt_channels.discovery import bias_target
from chkpt_channels.discovery.like import OtherNetworkError
from chkpt_channels.folders import config_edits, config_normalization
from chkpt_channels.folders.channel_counts import image_counts, reconstructs, search_hints, unknown_counts
from chkpt_channels.folders.config_files import ConfigFile, as_list, root
from chkpt_channels.folders.describing import leaving_out, or_leave_out
from chkpt_channels.folders.library_tables import COUNTS, PIPELINE
from chkpt_channels.folders.model import Model, Part
from chkpt_channels.folders.shards import Shards
from chkpt_channels.formats.base import Checkpoint, TensorStore
from chkpt_channels.transform.mixing.normalization import Normalization, NormalizationSpec
from chkpt_channels.transform.options import Options
from chkpt_channels.transform.plan import Plan, build_plan


class PlannedPart(NamedTuple):
    """A part and its plan."""

    part: Part
    plan: Plan


class PlannedModel(NamedTuple):
    """The parts with their plans, and by name the configurations with their edits; `channels` are the input channels before and
    after."""

    parts: tuple[PlannedPart, ...]
    documents: dict[str, tuple[ConfigFile, dict[Keys, Any]]]
    channels: tuple[int, int]
    notices: tuple[Notice, ...]

    @property
    def first(self) -> Plan:
        """The plan of the first part: its method, reason and normalization are reported for all."""
        return self.parts[0].plan

    @property
    def changed(self) -> bool:
        """Whether anything does."""
        return any(plan.edits for _, plan in self.parts) or bool(self.documents)

    def edited_files(self) -> Iterator[tuple[str, tuple[Checkpoint, Plan]]]:
        """Each file of weights that changes, with its checkpoint and its share of the plan."""
        for part, plan in self.parts:
            if not isinstance(part.store, Shards):
                if plan.edits:
                    yield part.files[0], (part.store, plan)
                continue
            for name, (shard, edits) in zip(part.files, part.store.split_edits(plan.edits), strict=True):
                if edits:
                    kernels = tuple(kernel for kernel in plan.kernels if kernel.conv.tensor.name in shard.tensors)
                    yield name, (shard, plan._replace(edits=edits, kernels=kernels))

    def edited_documents(self) -> dict[str, bytes]:
        """Each configuration that changes, as it will be."""
        return {name: config.document.edited(changes) for name, (config, changes) in self.documents.items()}


@gc_paused()
def plan_model(model: Model, options: Options) -> PlannedModel:
    """The plan. Raises what `build_plan` raises; UnsupportedError where the parts have different input channels."""
    model.check_rest()
    parts, without_network = _plan_parts(model, options)
    old, new = _channels(model, parts, options)
    documents: dict[str, tuple[ConfigFile, dict[Keys, Any]]] = {}
    notices: list[Notice] = []
    for config in model.configs:
        if changes := edited_config(config, parts, options):
            documents[config.name] = config, changes
        notices += [*_normalization_notices(config, changes, parts[0], options), *_count_notices(config, changes, old, new)]
    for config in model.other_documents if old != new else ():
        notices += _unknown_counts(config, old, (), ())
    for part, plan in parts:
        if isinstance(part.store, Shards) and (changes := part.store.index_edits(plan.edits)):
            documents[part.name] = part.store.index, changes
    if without_network:
        reason = "LIKE shows no other input channels" if options.search.like else "no convolution that could see an image"
        notices.append(Notice("copied", f"{', '.join(without_network)}: {reason}, copied"))
        notices += _stale_state_notices(model, without_network, parts)
    edited = [part for part, plan in parts if plan.edits]
    notices += _reconstruction_notices([config for part in edited for config in model.described(part).configs], old, new)
    all_notices = [notice for _, plan in parts for notice in plan.notices] + notices
    return PlannedModel(tuple(parts), documents, (old, new), tuple(dict.fromkeys(all_notices)))


def _plan_parts(model: Model, options: Options) -> tuple[list[PlannedPart], list[str]]:
    """The parts that hold a network, planned, and the names of those that hold none."""
    parts: list[PlannedPart] = []
    without_network: list[str] = []
    for part in model.parts:
        try:
            with or_leave_out(part.name) if len(model.parts) > 1 else nullcontext():
                search = options.search._replace(hints=search_hints(model.described(part).configs))
                parts.append(PlannedPart(part, build_plan(part.store, options._replace(search=search))))
        except AmbiguousError:  # a part that may have a first conv is not copied
            raise
        except OtherNetworkError:  # LIKE holds another part of the folder
            if not model.is_folder:
                raise
            without_network.append(part.name)
        except UnsupportedError as error:
            if not model.is_folder or error.candidates or not is_no_network(part.store):
                raise
            without_network.append(part.name)
    if options.search.like and any(plan.edits for _, plan in parts):  # the others need not have as many channels
        without_network += [part.name for part, plan in parts if not plan.edits]
        parts = [planned for planned in parts if planned.plan.edits]
    if not parts:
        raise model.location.unsupported("none of its weights holds a convolution that could see an image")
    return parts, without_network


def is_no_network(store: TensorStore) -> bool:
    """Whether a file holds no kernel at all but in optimizer state: optimizer.pt, scheduler.pt, training_args.bin, the states of
    random number generators."""
    shapes = [*(tensor.shape for tensor in store.model_tensors()), *(weight.shape for weight in store.opaque)]
    return not any(shape is None or len(shape) > 2 for shape in shapes)


def _stale_state_notices(model: Model, copied: Sequence[str], parts: Sequence[PlannedPart]) -> Iterator[Notice]:
    """The warnings about optimizer state apart from its model: which is the kernel's is not known, and all stays as it is."""
    shapes = {part.store.tensors[name].shape: name for part, plan in parts for name in plan.edits.tensors}
    for part in (part for part in model.parts if part.name in copied):
        kept = (tensor.shape for entry in part.store.optimizer_entries for tensor in entry.tensors.values())
        if name := next((shapes[shape] for shape in kept if shape in shapes), None):
            message = f"{part.name}: holds optimizer state of the shape that {name} had: train on with a new optimizer"
            yield Notice("stale_optimizer", message)


def _channels(model: Model, parts: Sequence[PlannedPart], options: Options) -> tuple[int, int]:
    """The input channels before and after. Raises UnsupportedError where the parts disagree, and for a pipeline of diffusers with
    several networks: each takes its own, and that a latent has as many as the image says nothing."""
    olds = {plan.channels[0] for _, plan in parts}
    components = {str(Path(part.name).parent): plan.channels[0] for part, plan in parts}
    home = model.home or Path()
    with Location(str(home)).wrapping_os_errors("cannot be read"):
        is_pipeline = model.is_folder and len(components) > 1 and (home / PIPELINE).is_file()
    if len(olds) == 1 and not is_pipeline:
        return parts[0].plan.channels
    if is_pipeline:
        asked = "--fold-adapter" if options.plain["fold_adapter"] else f"--to {options.rule.order or options.to}"
        hints = [f"chkpt-channels convert {shlex.quote(model.named(name))} {asked}" for name in components]
        what = "is a pipeline, and each of its components takes its own"
    else:
        components = {part.name: plan.channels[0] for part, plan in parts}
        hints = [" ".join(leaving_out(name) for name, count in components.items() if count != old) for old in sorted(olds)]
        what = "its weights disagree"
    listed = ", ".join(f"{name} takes {count}" for name, count in components.items())
    raise model.location.unsupported(f"{what}: {listed} channels", hint="   or   ".join(hints))


def edited_config(config: ConfigFile, parts: Sequence[PlannedPart], options: Options) -> dict[Keys, Any]:
    """The edits of a configuration beside converted weights."""
    plan = parts[0].plan
    convs = {kernel.conv.tensor.key.removesuffix(".weight") for part in parts for kernel in part.plan.kernels}
    pipeline = plan.pipeline or _averaged_normalization(config, plan, options)
    return config_edits.edits(config, *plan.channels, pipeline, convs)


def _averaged_normalization(config: ConfigFile, plan: Plan, options: Options) -> Normalization | None:
    """The normalization of a configuration, averaged to the new number of channels; None where it does not fit the old one."""
    rule = options.rule.mixing(plan.channels[0])
    pair = next(config_normalization.normalizations(config, strict=False), None)
    if pair is None or len(pair[0]) not in (1, rule.old) or rule.is_identity:
        return None
    return NormalizationSpec(mean=pair[0], std=pair[1]).new(rule, options.rule.orders)


def _normalization_notices(
    config: ConfigFile, changes: dict[Keys, Any], planned: PlannedPart, options: Options
) -> Iterator[Notice]:
    """The warnings that mean and std were averaged and the kernel does not compensate, or have another number of channels."""
    store, plan = planned.part.store, planned.plan
    for path, _ in config_normalization.normalization_keys(config.document):
        numbers = as_list(config.document.at(path).plain)
        if path in changes and len(set(numbers)) > 1 and not options.norm:
            what = "its mean and std" if path[-1] == "offset" else f"{path[-1]} and its std"
            message = f"{config.name}: {what} become their means, and the kernel does not follow"
            if all(store.adds_tensors or bias_target.find(store, kernel.conv) for kernel in plan.kernels):
                message += ": --norm auto folds the difference into the weights"
            yield Notice("pipeline_averaged", message)
        elif path not in changes and len(numbers) not in (1, plan.channels[1]):
            message = f"{config.name}: {path[-1]} has {len(numbers)} numbers, not {plan.channels[0]}: it stays as it is"
            yield Notice("pipeline_kept", message)


def _count_notices(config: ConfigFile, changes: dict[Keys, Any], old: int, new: int) -> Iterator[Notice]:
    """The warnings about numbers of channels that stay: other ones, and those whose names no library is known to use."""
    if old == new:
        return
    for where, count in image_counts(config.document):
        if count not in (old, new):
            message = f"{config.name}: {where} says {count}, and the weights take {old}: it stays as it is"
            yield Notice("count_kept", message)
    yield from _unknown_counts(config, old, changes.keys(), COUNTS)


def _unknown_counts(config: ConfigFile, old: int, known: Collection[Keys], names: Collection[str]) -> Iterator[Notice]:
    for where in unknown_counts(config.document, old, known, names):
        message = f"{config.name}: {where} says {old}, as the weights did, and whether it is the image's is not known: it stays"
        yield Notice("count_unknown", message)


def _reconstruction_notices(configs: Sequence[ConfigFile], old: int, new: int) -> Iterator[Notice]:
    """The warnings of an edited network that its output is still that of the old input."""
    for stated in (root(config.document) for config in configs):
        if not reconstructs(stated):
            continue
        message = "this network reconstructs the image, and "
        if old == new:
            message += "its output stays as it was"
        elif "_class_name" in stated:
            message += f"its output keeps {old} channels"
        else:
            message += "num_channels sets both the encoder input and the decoder output: the decoder no longer fits"
        yield Notice("reconstructs", message)
