"""Pickles of numpy arrays: what detectron2, Detectron and Paddle (.pdparams, .pdopt) write, and pickle.dump of a dict of arrays.

An array is a call, one of

    numpy.core.multiarray._reconstruct(ndarray, (0,), b"b"), BUILD (1, shape, dtype, is_fortran, elements)    protocols 2 to 4
    numpy.core.numeric._frombuffer(elements, dtype, shape, "C" or "F")                                        protocol 5

in numpy 2 of numpy._core. Elements are a byte string, without a checksum: BINBYTES and its kin, BYTEARRAY8 where the array is
writable (5), `_codecs.encode(text, "latin1")` (2 of Python 3: a byte from 128 on takes two), BINSTRING (Python 2). A dtype is
numpy.dtype("f4", False, True), BUILD (3, byte order, None, None, None, …), and of bfloat16 numpy.dtype(ml_dtypes.bfloat16, …).
An array of JAX is jax._src.array._reconstruct_array(_reconstruct, (ndarray, …), (1, shape, …), {…}), with the same parts.
No name is resolved; elements are skipped until they are asked for.
Source: numpy/_core/src/multiarray/methods.c (array_reduce, array_reduce_ex_picklebuffer) and descriptor.c of numpy 2.4,
paddle/framework/io.py of Paddle 3.3, detectron2/checkpoint/detection_checkpoint.py.
"""

from __future__ import annotations

from chkpt_channels.core.records import pattern
from chkpt_channels.formats.base import Format
from chkpt_channels.storage.source import Source

_DICT_OR_LIST = pattern(
    rb"(?s)\x80[\x02-\x05](\x95.{8})?([}\]]|ccollections\nOrderedDict\n|\x8c\x0bcollections\x94\x8c\x0bOrderedDict)"
)
"""What the pickle of a state dict begins with."""
_ARRAY = pattern(rb"numpy\.(_?core\.)(multiarray|numeric)")
"""The modules of both functions, in the order in which every pickle names them: before the first array's elements."""


def sniff(source: Source) -> bool:
    """A dict or list of protocol 2 to 5 that makes arrays, as far as its beginning shows."""
    return _DICT_OR_LIST.match(source.head) is not None and _ARRAY.search(source.head) is not None


FORMATS = (
    Format(
        "numpy_pickle",
        "NumPy (pickle)",
        frozenset({".pdparams"}),
        sniff,
        "numpy_pickle.checkpoint:NumpyPickle",
        flat=True,
    ),
)
