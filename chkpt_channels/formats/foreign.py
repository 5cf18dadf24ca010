"""Sound files of formats that are not converted: what each is, what tells it, and what to do instead.

One table. What a file is its first bytes say, where its format has any that tell; a name alone decides where nothing in the file
can, and the message says so. Magic numbers and layouts are from the writers' own sources, named at each row that is no text.
"""

from __future__ import annotations

import os
import re
import shlex
import zlib

from chkpt_channels.core.errors import UnsupportedError
from chkpt_channels.core.records import NamedTuple
from chkpt_channels.storage.source import Source

TF_INDEX_END = bytes.fromhex("57fb808b247547db")
"""The last bytes of a LevelDB table. Source: tensorflow/core/lib/io/format.h, kTableMagicNumber."""
_V = rb"[\x80-\xff]*[\0-\x7f]"
"""A protobuf varint."""
_INFLATED_BYTES = 1024

_SAVED_MODEL = "python -m tf2onnx.convert --saved-model DIR --output net.onnx, and convert net.onnx"
_FROZEN = "python -m tf2onnx.convert --graphdef FILE --inputs IMAGE:0 --outputs OUTPUT:0 --output net.onnx, and convert net.onnx"
_TFLITE = "python -m tf2onnx.convert --tflite FILE --output net.onnx, and convert net.onnx"
_TFJS = "tensorflowjs_converter --input_format=tfjs_layers_model --output_format=keras FILE net.h5, and convert net.h5"
_ORT = "convert the ONNX model that it was made from, and python -m onnxruntime.tools.convert_onnx_models_to_ort net.onnx"
_NEMO = "tar -xf FILE --wildcards '*model_weights.ckpt', and convert model_weights.ckpt"
_TF_VARIABLES = (
    'python -c "import sys, tensorflow as tf, safetensors.numpy as s; r = tf.train.load_checkpoint(sys.argv[1]); s.save_file('
    '{k: r.get_tensor(k) for k, t in r.get_variable_to_dtype_map().items() if t != tf.string}, sys.argv[2])" STEM net.safetensors'
)
_DCP = "python -m torch.distributed.checkpoint.format_utils dcp_to_torch DIR net.pth, and convert net.pth"
_ORBAX = (
    "python -c \"import os, sys, flax.serialization as s, orbax.checkpoint as o; open(sys.argv[2], 'wb').write("
    's.msgpack_serialize(o.StandardCheckpointer().restore(os.path.abspath(sys.argv[1]))))" DIR net.msgpack'
)
_JOBLIB = "python -c \"import sys, joblib, pickle; pickle.dump(joblib.load(sys.argv[1]), open(sys.argv[2], 'wb'))\" FILE net.pkl"
_MXNET = (
    'python -c "import sys, mxnet as mx, safetensors.numpy as s; s.save_file('
    '{k: v.asnumpy() for k, v in mx.nd.load(sys.argv[1]).items()}, sys.argv[2])" FILE net.safetensors'
)
_FROM = "convert the weights or the ONNX model that it was made from, and"
_CORE_ML = f"{_FROM} coremltools.convert it anew, with color_layout=coremltools.colorlayout.GRAYSCALE for gray images"
_OPENVINO, _NCNN, _TENSORRT = (f"{_FROM} {tool}" for tool in ("ovc net.onnx", "pnnx net.onnx", "trtexec --onnx=net.onnx"))
_PADDLE = "convert the .pdparams that it was exported from, and paddle.jit.save it anew"
_PORT = "load it with a port of its network to PyTorch, and torch.save(model.state_dict(), 'net.pth')"


class _Foreign(NamedTuple):
    """One row: words that follow the file's name; what to do, where FILE, DIR and STEM are it, its folder, and it without its
    ending; the patterns of its first bytes and of the end of its path, which both must match. `beside` is the ending of the file
    that must stand beside it; `weights` says whether it holds any, or goes with those beside it."""

    what: str
    hint: str
    content: bytes = b""
    name: str = ""
    beside: str = ""
    weights: bool = True


_ROWS = (
    # saved_model.proto: version 1, a MetaGraphDef, whose MetaInfoDef begins with its operations, tags or version
    _Foreign("is a TensorFlow SavedModel", _SAVED_MODEL, rb"\x08\x01\x12" + _V + rb"\n" + _V + rb'[\x12\x1a"*2]'),
    _Foreign("is named like a part of a TensorFlow SavedModel", _SAVED_MODEL, name=r"(^|/)fingerprint\.pb"),
    # graph.proto: nodes, each with its name and its operation
    _Foreign("is a frozen TensorFlow graph", _FROZEN, rb"\n" + _V + rb"\n.[ -~]+\x12.[A-Z_]\w+[\x1a\"*2\n]"),
    _Foreign("is named like a data file of a TensorFlow checkpoint", _TF_VARIABLES, name=r"\.data-\d{5}-of-\d{5}"),
    _Foreign("is a TFLite model", _TFLITE, rb".{4}TFL3"),
    _Foreign(
        "is a TensorFlow.js model", _TFJS, rb'\s*\{\s*"(format|\w+edBy|modelTopology|weightsM\w+)".*"(modelTopology|weightsM)'
    ),
    _Foreign("is named like weights of a TensorFlow.js model", "name its model.json", name=r"shard-?\d+of\d+(\.bin)?"),
    # a manifest and a node of its tree; source: tensorstore/kvstore/ocdbt/format
    _Foreign("is a part of an Orbax checkpoint, a store of compressed chunks", _ORBAX, rb"\x0c\xdb[: ]"),
    _Foreign("is the index of an Orbax checkpoint", _ORBAX, rb'\s*\{"(tree_metadata"|item_handlers": .*orbax)'),
    _Foreign("is the index of a distributed checkpoint", _DCP, rb"\x80.*torch\.distributed\.checkpoint\.metadata"),
    _Foreign("is a shard of a distributed checkpoint", _DCP, rb"PK\x03\x04.*/data\.pkl", r"\.distcp"),
    # Model.proto of coremltools: a version, a description, whose first input has a name; MILBlob's StorageFormat.hpp
    _Foreign("is a Core ML model", _CORE_ML, rb"\x08[\x01-\x20]\x12" + _V + rb"\n" + _V + rb"\n"),
    _Foreign("is the list of a Core ML package", _CORE_ML, rb'\{.*"com\.apple\.CoreML/model\.mlmodel"'),
    _Foreign("holds the weights of a Core ML package", _CORE_ML, rb"[\x01-\xff]\0{3}\x02\0{59}\xef\xbe\xad\xde"),
    _Foreign("is an OpenVINO model", _OPENVINO, rb"\s*(<\?xml[^>]*>\s*)?<net .*<layers>"),
    _Foreign("is named like the weights of the OpenVINO model beside it", _OPENVINO, name=r"\.bin", beside=".xml"),
    # the identifiers of their flatbuffers: program.fbs of ExecuTorch, ort.fbs of onnxruntime
    _Foreign("is an ExecuTorch program", "convert the weights before torch.export, and export it anew", rb".{4}ET\d\d"),
    _Foreign("is a model in onnxruntime's own format", _ORT, rb".{4}ORTM"),
    _Foreign("is a GGUF file", "convert the safetensors that it was made from", rb"GGUF"),
    _Foreign("is a TensorRT engine, compiled for one shape", _TENSORRT, rb"[fp]trt"),
    _Foreign("is named like a TensorRT engine", _TENSORRT, name=r"\.(engine|trt|plan)"),
    # 7767517 as text or as a number: net.cpp of ncnn
    _Foreign("is an ncnn network", _NCNN, rb"7767517\r?\n|\xdd\x85\x76\0", weights=False),
    _Foreign("is named like the weights of the ncnn network beside it", _NCNN, name=r"\.bin", beside=".param"),
    # major, minor and revision: load_weights_upto of Darknet's parser.c
    _Foreign("holds weights of Darknet", _PORT, rb"\0{4}[\0-\3]\0{3}[\0-\x09]\0{3}", r"\.weights"),
    _Foreign("is a Darknet network", _PORT, rb"(\s*#[^\n]*\n)*\s*\[net(work)?\]", weights=False),
    # caffe.proto: a name, then layers (field 100, or 2 of older files)
    _Foreign("holds weights of Caffe", _PORT, rb"\n.[ -~]+(\xa2\x06|\x12)" + _V, r"\.caffemodel"),
    _Foreign("is a Caffe network", _PORT, rb".*(layers?|input_shape) *\{", r"\.prototxt", weights=False),
    # kMXAPINDArrayListMagic of ndarray.cc
    _Foreign("holds weights of MXNet", _MXNET, rb"\x12\x01\0{14}"),
    # LoDTensor: two versions, no levels, then its description
    _Foreign("holds weights of Paddle's inference", _PADDLE, rb"\0{16}[\x02-\xff]\0{3}\x08.\x10", r"\.pdiparams"),
    _Foreign("is a program of Paddle's inference", _PADDLE, rb'\{"base_code":\{"magic":"pir"', weights=False),
    _Foreign("is a NeMo archive", _NEMO, rb".{257}ustar.*(?<=[\0/])model_(weights|config)\."),
    _Foreign("is a pickle of joblib's", _JOBLIB, rb"\x80[\x02-\x05].*joblib\.numpy_pickle", weights=False),
    _Foreign("is a numpy array in the shape of a kernel", "", rb"\x93NUMPY.{,6}\{'descr': '.?f\d'.{,80}\((\d+, ){3,4}\d+\)"),
    *(
        _Foreign(f"is named like {kind}", "convert the checkpoint that it was made from", name=rf"\.{ending}")
        for kind, ending in (
            ("weights of tch, in Rust", "ot"), ("an MNN model", "mnn"), ("an RKNN model", "rknn"), ("a Core ML model", "mlmodel"),
            ("weights of Paddle's inference", "pdiparams"), ("weights of Caffe", "caffemodel"), ("weights of MXNet", "params"),
            ("weights of Darknet", "weights"), ("a TensorFlow graph", "pb"),
        )
    ),
)  # fmt: skip


def foreign(source: Source, *, named: bool = False) -> tuple[UnsupportedError, bool] | None:
    """The error for a file that no format claims, by its first or last bytes, or, `named`, by its name alone, and whether it
    holds weights; None for anything else."""
    head = source.head
    inflated_head = inflated(head)
    for row in _ROWS:
        if bool(row.content) is named or (row.name and not re.search(rf"{row.name}\Z", source.name, re.IGNORECASE)):
            continue
        contents = (head, inflated_head) if row.hint is _JOBLIB else (head,)
        if any(re.match(row.content, content, re.DOTALL) for content in contents) and _stands_beside(source.name, row.beside):
            return _error(source, row.what, row.hint), row.weights
    if not named and source.tail.endswith(TF_INDEX_END):
        return _error(source, "is the index of a TensorFlow checkpoint", _TF_VARIABLES), True
    return None


def inflated(head: bytes) -> bytes:
    """What a gzip or zlib file begins with; nothing where it is none."""
    try:
        return zlib.decompressobj(wbits=47).decompress(head, _INFLATED_BYTES)
    except zlib.error:
        return b""


def _stands_beside(path: str, ending: str) -> bool:
    return not ending or os.path.isfile(os.path.splitext(path)[0] + ending)


def _error(source: Source, what: str, hint: str) -> UnsupportedError:
    stem = re.sub(r"\.(index|data-\d+-of-\d+)\Z", "", source.name)
    places = {"FILE": source.name, "DIR": os.path.dirname(source.name) or ".", "STEM": stem}
    hint = re.sub(r"\b(FILE|DIR|STEM)\b", lambda match: shlex.quote(places[match[0]]), hint)
    return source.location.unsupported(what, hint)
