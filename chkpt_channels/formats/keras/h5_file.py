"""Keras models and weights in HDF5: .h5 of Keras 1 to 3, .weights.h5.

    attributes model_config, training_config, keras_version, backend   the whole model; without model_config weights only
    /model_weights/<layer>/…, /optimizer_weights/…                     whole models
    /<layer>/…, attribute layer_names                                  weights only
    /layers/<class>[_n]/vars/<i>, /optimizer/vars/<i>                  weights only, Keras 3

Read and edited by HDF5's own library over an overlay, so that the output is the input with a few spans changed; the rest is
identical bytes. Attributes over 64 KB are split over name0, name1, …; Keras 2 names datasets kernel:0, Keras 3 kernel. Source:
keras/src/legacy/saving/legacy_h5_format.py and keras/src/saving/saving_lib.py of Keras 3.15.
"""

from __future__ import annotations

from chkpt_channels.containers.hdf5 import editor
from chkpt_channels.containers.hdf5.reader import Hdf5
from chkpt_channels.core.errors import UnsupportedError
from chkpt_channels.formats.base import Format
from chkpt_channels.formats.keras.checkpoint import KerasCheckpoint
from chkpt_channels.formats.keras.weights import WANTED, Legacy, Numbered, is_stored, split_names
from chkpt_channels.storage.source import Source
from chkpt_channels.storage.splice import Splice

_FOREIGN = (
    ("_NCProperties", "a netCDF file"),
    ("PYTABLES_FORMAT_VERSION", "a PyTables or pandas file"),
    ("encoding-type", "an AnnData file"),
    ("MATLAB_class", "a MATLAB file"),
)
"""Attributes by which other HDF5 files are recognized."""


class KerasH5(KerasCheckpoint):
    """One HDF5 file that Keras wrote."""

    document = "model_config"
    endings: tuple[str, ...] = (".h5", ".hdf5")

    def __init__(self, source: Source, form: Format) -> None:
        super().__init__(source, form)
        self.file = Hdf5(source, source.location, wanted=WANTED)
        self._root = self.file.texts[""]
        self._pieces = split_names(self._root, self.document)
        if self._pieces and "model_weights" in self.file.groups:
            self._open_model()
        elif "layer_names" in self._root or "layer_names0" in self._root:
            self.index(Legacy(self.file))
        elif any(is_stored(path) for path in self.file.datasets):
            weights = Numbered(self.file)
            self.ordered, self.endings = weights.is_ordered, (".weights.h5",)
            self.index(weights)
        else:
            raise self._foreign_error()

    def _open_model(self) -> None:
        """A whole model. Only Keras 1 stored Theano's kernels as OIHW: Keras 2 wrote HWIO for every backend."""
        self.configure("".join(str(self._root[name]) for name in self._pieces))
        attributes = self._root | self.file.texts["model_weights"]
        self.is_theano = attributes.get("backend") == "theano" and str(attributes.get("keras_version", "1")).startswith("1")
        if "training_config" in self.file.attributes:
            # trap: Keras 3 does not find the losses and metrics of a compiled .h5 by their short names, converted or not
            self.load_arguments = ", compile=False"
        self.index(Legacy(self.file, "model_weights"))

    def composed(self, datasets: editor.Datasets, text: str | None, lists: editor.Texts) -> list[Splice]:
        texts = {("", name): piece for name, piece in zip(self._pieces, self._cut(text), strict=True)} if text is not None else {}
        return editor.splices(self.file, datasets, {**texts, **lists})

    def _cut(self, text: str) -> list[str]:
        """The text in as many pieces as there are attributes, all but the last as long as before."""
        pieces, rest = [], text
        for name in self._pieces[:-1]:
            length = len(self._root[name])
            pieces.append(rest[:length])
            rest = rest[length:]
        return [*pieces, rest]

    def _foreign_error(self) -> UnsupportedError:
        """The error for HDF5 files of another kind."""
        name = next((name for attribute, name in _FOREIGN if attribute in self.file.attributes), "")
        if not name and self.source.read(0, min(6, self.source.size)) == b"MATLAB":
            name = "a MATLAB file"
        return self.source.location.unsupported(f"is {name or 'an HDF5 file'}, not one that Keras wrote")
