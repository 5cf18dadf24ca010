"""How much a file may declare before it is refused: checked before anything of that size is allocated."""

from __future__ import annotations

from chkpt_channels.core.records import NamedTuple


class Limits(NamedTuple):
    """Bytes, counts and depths. Real checkpoints stay far below each."""

    pickle_bytes: int = 256 << 20
    pickle_opcodes: int = 4_000_000  # some 150 bytes of memory each
    json_values: int = 4_000_000
    json_depth: int = 500
    header_bytes: int = 100_000_000  # safetensors' own limit on its JSON header
    zip_directory_bytes: int = 128 << 20
    zip_members: int = 500_000
    zip_gap_bytes: int = 1 << 16  # zero padding between members
    inflated_bytes: int = 256 << 20  # of an HDF5 file that is deflated inside a .keras
    msgpack_values: int = 1_000_000
    protobuf_fields: int = 4_000_000
    protobuf_text_bytes: int = 1 << 20
    protobuf_depth: int = 64  # protobuf's own parsers refuse more than 100 levels
    edited_tensor_bytes: int = 1 << 30
    name_depth: int = 500
    name_bytes: int = 32 << 20  # of the names of all tensors, each with its path
    tensors: int = 250_000  # a model of 10^12 parameters has 140,000, in many shards
    narrow_kernels: int = 2_000  # of one model, of at most 32 channels: of 2,000 real ones the most have 255
    likely_kernels: int = 200  # that no layer explains: the most have 45
    first_convs: int = 500  # that one conversion changes
    graph_operations: int = 250  # between an image and a kernel
    graph_steps: int = 300_000  # that all images of a graph take together, each with the operations before it
    function_nodes: int = 50_000  # of a graph's own functions, in all calls
    axes: int = 64  # torch's and numpy's own limit
    hdf5_objects: int = 100_000
    hdf5_chunk_bytes: int = 1 << 30
    sidecar_bytes: int = 8 << 20  # a configuration with 21,000 names of classes, each described, has 3 MB and 90,000 values
    sidecar_values: int = 250_000
    sidecar_depth: int = 64
    index_bytes: int = 64 << 20  # the shards of 10^12 parameters hold 140,000 tensors
    matrix_bytes: int = 4 << 20
    apart_seconds: int = 8  # of processor time for one piece of work in a forked worker: a verdict is due within 10 s


LIMITS = Limits()
