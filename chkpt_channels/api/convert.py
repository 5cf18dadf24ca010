"""The one flow: open, plan, write, check, publish. A single file is a model of one part and no configuration."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Unpack

from chkpt_channels.api.output.check import check_stems, parity
from chkpt_channels.api.output.naming import Path_, Progress, beside_prefix
from chkpt_channels.api.output.publish import FileTarget
from chkpt_channels.api.output.target import Settings, Target, Written, to_store
from chkpt_channels.api.report import Parity, Report
from chkpt_channels.api.report_builder import conversion_report, preview_report, with_load_lines
from chkpt_channels.core.errors import UsageError
from chkpt_channels.folders.like_file import with_like
from chkpt_channels.folders.model import Model, ModelFile
from chkpt_channels.folders.model_folder import ModelFolder, open_model
from chkpt_channels.folders.planning import PlannedModel, plan_model
from chkpt_channels.storage.source import STDIO
from chkpt_channels.transform.mixing.rules import TARGETS
from chkpt_channels.transform.option_table import ConvertOptions
from chkpt_channels.transform.options import Options, options_toward


def convert(
    src: Path_,
    dst: Path_ | None = None,
    to: str | int | None = None,
    *,
    force: bool = False,
    dry_run: bool = False,
    hard_link: bool = False,
    with_sidecars: bool = False,
    sha256: bool = False,
    hash_name: bool = False,
    state_dict: str | None = None,
    progress: Progress | None = None,
    **options: Unpack[ConvertOptions],
) -> Report:
    """Write `src` with its first convs changed to `to` input channels ("gray", "rgb", "bgr", "rgba" or a number) to `dst`.

    Without `dst` the output is `<stem>_<to><ext>` beside the source; "-" is standard input or output. Without `to` it is gray,
    or has the channels of `select`, `bands`, `matrix` or `like`. `options` are those of `ConvertOptions`. `src` may be a model
    folder, which becomes a new one; `hard_link` links its files that do not change. `with_sidecars` writes the configurations
    beside a file beside `dst` too. `sha256` reports the hash of the output, `hash_name` puts its beginning into the name as
    torch.hub does. `progress(more, total)` is called with bytes.

    A conversion that is the identity copies the file, and the report's status is "unchanged"; it is "current", and nothing is
    written, where `dst` already is what the conversion gives. Raises a ChkptChannelsError, and then nothing was written, except
    after PostPublishError.
    """
    began = time.perf_counter()
    settings = Settings(force, dry_run, hard_link, with_sidecars, sha256, hash_name, state_dict).validated(src, dst)
    if to is None and isinstance(dst, str) and dst.lower() in TARGETS:
        raise UsageError(f"the second argument is the output, and {dst!r} is a target", hint=f"convert(path, to={dst!r})")
    parsed = options_toward(to, options)
    with open_model(src, parsed, with_sidecars=with_sidecars) as model:
        report = _converted(model, dst, parsed, settings, progress)
    return report._replace(seconds=time.perf_counter() - began)


def _converted(model: Model, dst: Path_ | None, given: Options, settings: Settings, progress: Progress | None) -> Report:
    """The report of an open model's conversion."""
    is_dry = settings.dry_run
    if not is_dry:
        _begin_copy(model, dst)
    options = with_like(model, model.resolved(given))
    with _target(model, dst, options, settings, progress) as target:
        planned = plan_model(model, options)
        target.prepare(planned)
        if not is_dry:
            target.fill(planned)
            check_stems(planned)
        report = conversion_report(model, planned, options, _measure_parity(planned, complete=is_dry))
        report = report._replace(beside=target.beside)
        # publishing is the last step: a failure after it would be reported as if there were no output
        report = preview_report(report, target.path) if is_dry else _published_report(report, target.publish(planned))
        return with_load_lines(report, model, target.loading)


def _begin_copy(model: Model, dst: Path_ | None) -> None:
    """Have a large file copied while it is read, where its edits will leave the rest in its place."""
    if isinstance(model, ModelFile) and not to_store(model.source.name, dst) and model.format.in_place:
        from chkpt_channels.storage import copy_ahead

        if dst is None or os.fspath(dst) != STDIO:
            model.source.ahead = copy_ahead.begin(model.source, Path(dst).parent if dst else model.source.folder)


def _target(model: Model, dst: Path_ | None, options: Options, settings: Settings, progress: Progress | None) -> Target:
    if isinstance(model, ModelFolder) and to_store(model.named(), dst):
        from chkpt_channels.api.output.store_folder import StoreFolderTarget

        url = os.fspath(dst) if dst is not None else beside_prefix(model.named(), options.word)
        return StoreFolderTarget(model, url, progress)
    if isinstance(model, ModelFolder):
        from chkpt_channels.api.output.folder import FolderTarget

        return FolderTarget(model, dst, options, settings, progress)
    if isinstance(model, ModelFile):
        if to_store(model.source.name, dst):
            from chkpt_channels.api.output.store import StoreTarget

            return StoreTarget(model, dst, options, settings, progress)
        return FileTarget(model, dst, options, settings, progress)
    raise TypeError(f"{type(model).__name__} is not a model that can be written")


def _published_report(report: Report, written: Written) -> Report:
    return report._replace(
        status=written.status,
        target=written.output.path,
        output=written.output,
        warnings=report.warnings + written.notices,
        transfer=written.transfer,
    )


def _measure_parity(planned: PlannedModel, *, complete: bool) -> Parity | None:
    """The largest difference of any part. With `complete` every edit is computed, so that a dry run refuses what a conversion
    would."""
    for plan in (plan for _, plan in planned.parts if complete):
        for edit in plan.edits.tensors.values():
            edit.computed()
    measured = [parity(part.store, plan) for part, plan in planned.parts]
    return max(filter(None, measured), default=None)
