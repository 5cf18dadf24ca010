"""Imported: what a conversion, its refusal and a check import has been imported."""

import contextlib
import gc
import io
import tempfile

from chkpt_channels.cli import app
from chkpt_channels.formats import known
from tests.support.files import FIXTURES, smallest

nowhere = io.StringIO()
with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
    for form in known():
        source = smallest(form.name)
        app.run(["convert", str(source), "--to", "gray", "-o", f"{folder}/{form.name}{source.suffix}"])
    app.run(["check", str(FIXTURES / "onnx"), str(FIXTURES / "missing.pth")])
gc.collect()
gc.freeze()
