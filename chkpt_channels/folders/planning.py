"""The plan of a model: a plan for each of its parts, and the edits of its configurations that follow from them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from chkpt_channels.containers.json.editor import Path as Keys
from chkpt_channels.core.errors import AmbiguousError, UnsupportedError
from chkpt_channels.core.tensors import Notice
from chkpt_channels.discovery import bias_target
from chkpt_channels.discovery.like.names import OtherNetworkError
from chkpt_channels.folders import config_files
from chkpt_channels.folders.config_files import ConfigFile
from chkpt_channels.folders.model import Model, Part
from chkpt_channels.folders.model_folder import reconstructs
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


def plan_model(model: Model, options: Options) -> PlannedModel:
    """The plan. Raises what `build_plan` raises; UnsupportedError where the parts have different input channels."""
    parts, without_network = _plan_parts(model, options)
    old, new = _channels(model, parts)
    documents: dict[str, tuple[ConfigFile, dict[Keys, Any]]] = {}
    notices: list[Notice] = []
    for config in model.configs:
        if changes := config_edits(config, parts[0].plan, options):
            documents[config.name] = config, changes
        notices += [*_normalization_notices(config, changes, parts[0], options), *_count_notices(config, old, new)]
    for part, plan in parts:
        if isinstance(part.store, Shards) and (changes := part.store.index_edits(plan.edits)):
            documents[part.name] = part.store.index, changes
    if without_network:
        reason = "LIKE shows no other input channels" if options.search.like else "no convolution that could see an image"
        notices.append(Notice("copied", f"{', '.join(without_network)}: {reason}, copied"))
    notices += _reconstruction_notices(model.configs, old, new)
    all_notices = [notice for _, plan in parts for notice in plan.notices] + notices
    return PlannedModel(tuple(parts), documents, (old, new), tuple(dict.fromkeys(all_notices)))


def _plan_parts(model: Model, options: Options) -> tuple[list[PlannedPart], list[str]]:
    """The parts that hold a network, planned, and the names of those that hold none."""
    parts: list[PlannedPart] = []
    without_network: list[str] = []
    for part in model.parts:
        try:
            parts.append(PlannedPart(part, build_plan(part.store, options)))
        except AmbiguousError:  # a part that may have a first conv is not copied
            raise
        except OtherNetworkError:  # LIKE holds another part of the folder
            if not model.is_folder or part.store.optimizer_entries:
                raise
            without_network.append(part.name)
        except UnsupportedError as error:
            if not model.is_folder:
                raise
            if part.store.optimizer_entries:  # optimizer.pt of transformers' Trainer
                what = "holds optimizer state without its model, so that it cannot follow the kernel"
                hint = f"move {part.name} out of the folder, and train on with a new optimizer"
                raise part.store.location.unsupported(what, hint=hint) from error
            if error.candidates or not _is_no_network(part.store):
                raise
            without_network.append(part.name)
    if options.search.like and any(plan.edits for _, plan in parts):  # the others need not have as many channels
        without_network += [part.name for part, plan in parts if not plan.edits]
        parts = [planned for planned in parts if planned.plan.edits]
    if not parts:
        raise model.location.unsupported("none of its weights holds a convolution that could see an image")
    return parts, without_network


def _is_no_network(store: TensorStore) -> bool:
    """Whether a file holds no kernel at all, as training_args.bin and the states of random number generators."""
    shapes = [*(tensor.shape for tensor in store.tensors.values()), *(weight.shape for weight in store.opaque)]
    return not any(shape is None or len(shape) > 2 for shape in shapes)


def _channels(model: Model, parts: Sequence[PlannedPart]) -> tuple[int, int]:
    """The input channels before and after. Raises UnsupportedError where the parts disagree."""
    olds = {plan.channels[0] for _, plan in parts}
    if len(olds) > 1:
        message = ", ".join(f"{part.name} takes {plan.channels[0]}" for part, plan in parts)
        raise model.location.unsupported(
            f"its weights disagree: {message} channels", hint="move the stale ones out of the folder"
        )
    return parts[0].plan.channels


def config_edits(config: ConfigFile, plan: Plan, options: Options) -> dict[Keys, Any]:
    """The edits of a configuration beside converted weights."""
    return config_files.edits(config, *plan.channels, plan.pipeline or _averaged_normalization(config, plan, options))


def _averaged_normalization(config: ConfigFile, plan: Plan, options: Options) -> Normalization | None:
    """The normalization of a configuration, averaged to the new number of channels; None where it does not fit the old one."""
    rule = options.rule.mixing(plan.channels[0])
    pair = next(config_files.normalizations(config, strict=False), None)
    if pair is None or len(pair[0]) not in (1, rule.old) or rule.is_identity:
        return None
    return NormalizationSpec(mean=pair[0], std=pair[1]).new(rule, options.rule.orders)


def _normalization_notices(
    config: ConfigFile, changes: dict[Keys, Any], planned: PlannedPart, options: Options
) -> Iterator[Notice]:
    """The warnings that mean and std were averaged and the kernel does not compensate, or have another number of channels."""
    store, plan = planned.part.store, planned.plan
    for path, _ in config_files.normalization_keys(config.document):
        numbers = _as_list(config.document.at(path).plain)
        if path in changes and len(set(numbers)) > 1 and not options.norm:
            message = f"{config.name}: {path[-1]} and its std become their means, and the kernel does not follow"
            if all(store.adds_tensors or bias_target.find(store, kernel.conv) for kernel in plan.kernels):
                message += ": --norm auto folds the difference into the weights"
            yield Notice("pipeline_averaged", message)
        elif path not in changes and len(numbers) not in (1, plan.channels[1]):
            message = f"{config.name}: {path[-1]} has {len(numbers)} numbers, not {plan.channels[0]}: it stays as it is"
            yield Notice("pipeline_kept", message)


def _count_notices(config: ConfigFile, old: int, new: int) -> Iterator[Notice]:
    for where, count in config_files.image_counts(config.document):
        if old != new and count not in (old, new):
            message = f"{config.name}: {where} says {count}, and the weights take {old}: it stays as it is"
            yield Notice("count_kept", message)


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _reconstruction_notices(configs: Sequence[ConfigFile], old: int, new: int) -> Iterator[Notice]:
    if old != new and any(reconstructs(config.document.root.plain) for config in configs):
        message = "this network reconstructs the image, and num_channels sets both the encoder input and the decoder output"
        yield Notice("reconstructs", f"{message}: the decoder no longer fits")
