"""Inspection of a model: format, first convs with layout and evidence, tensors."""

from __future__ import annotations

from chkpt_channels.api.report import Inspection
from chkpt_channels.api.report_builder import file_info
from chkpt_channels.core.errors import Candidate
from chkpt_channels.core.gc_pause import gc_paused
from chkpt_channels.core.tensors import Declaration, FirstConv, Notice, OptimizerEntry, Tensor
from chkpt_channels.discovery.find import find_first_convs
from chkpt_channels.discovery.request import SearchRequest
from chkpt_channels.folders.channel_counts import declarations as config_declarations
from chkpt_channels.folders.channel_counts import search_hints
from chkpt_channels.folders.model_folder import open_model
from chkpt_channels.storage.source import Readable
from chkpt_channels.transform import notices


@gc_paused()
def inspect(path: Readable) -> Inspection:
    """The content of a file, a model folder or an object that is read by position: format, first convs with layout and evidence,
    tensors. Ambiguity is no error: `first_convs` is empty then. `candidates` are the tensors that were rejected as first convs.
    Raises DamagedError, UnsupportedError for foreign formats, FileSystemError."""
    with open_model(path) as model:
        convs: list[FirstConv] = []
        candidates: list[Candidate] = []
        declarations: list[Declaration] = []
        tensors: list[Tensor] = []
        entries: list[OptimizerEntry] = []
        warnings: list[Notice] = []
        for part in model.parts:
            store, prefix = part.store, model.prefix(part)
            finding = find_first_convs(store, SearchRequest(hints=search_hints(model.described(part).configs)))
            convs += [c._replace(tensor=c.tensor._replace(name=prefix + c.tensor.name)) for c in finding.first_convs]
            candidates += [c._replace(key=prefix + c.key) for c in finding.candidates]
            declarations += [d._replace(where=prefix + d.where) for d in store.graph.declarations(finding.first_convs)]
            tensors += [tensor._replace(name=prefix + tensor.name) for tensor in store.tensors.values()]
            entries += [entry._replace(where=prefix + entry.where) for entry in store.optimizer_entries]
            warnings += notices.of_file(store, finding.first_convs)
        for config in model.configs:
            declarations += [d._replace(where=f"{config.name}: {d.where}") for d in config_declarations(config)]
        return Inspection(
            input=file_info(model),
            first_convs=tuple(convs),
            candidates=tuple(candidates),
            declarations=tuple(declarations),
            tensors=tuple(tensors),
            optimizer=tuple(entries),
            warnings=tuple(dict.fromkeys(warnings)),
        )
