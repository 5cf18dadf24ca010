"""Arrays by name, as JAX's libraries and NumPy keep them: Flax's msgpack files and .npz archives. No graph, no module order.

    .msgpack  maps of text to maps and to arrays: extension 1 (an array) or 3 (a scalar) around [shape, dtype's name, bytes];
              an array beyond 1 GiB is a map {"__msgpack_chunked_array__": true, "shape": {"0": n, …}, "chunks": {"0": array, …}}
    .npz      a zip of .npy files: magic, version, length, a Python dict as text {descr, fortran_order, shape}, elements

Source: flax/serialization.py of flax 0.12; https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html.
"""

from __future__ import annotations

from chkpt_channels.core.records import pattern
from chkpt_channels.formats.base import Format
from chkpt_channels.storage.source import Source

_MAP_OF_TEXT = rb"(?:[\x81-\x8f]|\xde..|\xdf....)(?:[\xa0-\xbf]|\xd9.|\xda..)[^\0-\x1f]"
_FLAX = pattern(rb"(?s)" + _MAP_OF_TEXT + rb"(?:.*?[\x01\x03]\x93[\x90-\x9f]|.{,60}\Z)")
"""A map whose first key is text, and a list of three that begins with a shape: an array's extension, of whatever length. A file
that ends before one has room is cut off."""
_NPZ = pattern(rb"(?s)PK\x03\x04.{22}(..)..")
"""The local header of a zip's first member: group 1 is the length of its name."""


def sniff_flax(source: Source) -> bool:
    """A map of text with an array in it, in the first bytes of the file."""
    return bool(_FLAX.match(source.head))


def sniff_npz(source: Source) -> bool:
    """A zip whose first member is a .npy file by its name."""
    match = _NPZ.match(source.head)
    return match is not None and source.head[match.end() :][: int.from_bytes(match[1], "little")].endswith(b".npy")


FORMATS = (
    Format("flax", "Flax (msgpack)", frozenset({".msgpack"}), sniff_flax, "jax.flax_file:FlaxFile"),
    Format("npz", "NumPy (npz)", frozenset({".npz"}), sniff_npz, "jax.npz_file:NpzArchive"),
)
