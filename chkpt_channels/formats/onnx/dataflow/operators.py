"""What the operators do to the channels of an image.

Source: onnx/docs/Operators.md.
"""

from __future__ import annotations

from chkpt_channels.formats.onnx.nodes import Node

CONVOLUTIONS = {"Conv": 1, "ConvTranspose": 1, "ConvInteger": 1, "QLinearConv": 3, "FusedConv": 1}
"""Operation → the input that is the kernel; the first one is the image."""
FUSED = ("com.microsoft", "FusedConv")
"""A Conv with its activation, as onnxruntime's optimizer saves it. Source: onnxruntime/docs/ContribOperators.md."""
PRODUCTS = frozenset(("MatMul", "Gemm", "MatMulInteger", "QLinearMatMul"))
LINEAR = frozenset(("Identity", "Cast", "CastLike", "Dropout"))
"""What treats every channel alike, keeps the axes as they are, and is linear."""
NONLINEAR_POOLS = frozenset(("MaxPool", "LpPool", "GlobalMaxPool"))
"""What moves pixels and is not linear."""
ELEMENTWISE = frozenset(
    (
        *("Relu", "LeakyRelu", "ThresholdedRelu", "Sigmoid", "Tanh", "Clip", "Abs", "Neg", "Sqrt", "Reciprocal", "Exp", "Log"),
        *("Floor", "Ceil", "Round", "Erf", "Sign", "HardSwish", "HardSigmoid", "Elu", "Selu", "Celu", "Gelu", "Mish"),
        *("Softplus", "Softsign", "QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear"),
    )
)
"""What treats every number alike, but is not linear: constants before it cannot be moved to a kernel after it."""
ROUNDING = frozenset(("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear"))
"""Of these what is linear but for rounding."""
BINARY = frozenset(("Add", "Sub", "Mul", "Div", "Pow", "Min", "Max", "Mod"))
SHAPES = frozenset(("Shape", "Size"))


def kind(node: Node) -> str:
    """The operation of a node; empty for one that is of another domain and not known."""
    return node.op if not node.domain or (node.domain, node.op) == FUSED else ""


def is_in_blocks(node: Node) -> bool:
    """Whether a convolution is onnxruntime's own: with a kernel in blocks of channels (NCHWc), or with the channels last."""
    return bool(node.domain) and node.op.endswith("Conv") and not kind(node)
