"""What a file says of the network it holds: which kernels see the image, what stands around them, which numbers must follow."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from chkpt_channels.core.tensors import (
    Declaration,
    FirstConv,
    Notice,
    PreprocessingOp,
    Quantization,
    TensorEdit,
)


class ModelGraph:
    """By default nothing is known: discovery then goes by names and shapes. A format overrides what its files say."""

    knows_outputs: ClassVar[bool] = False
    """Whether it knows what takes each conv's output: where it names no bias target then, there is none."""

    def first_convs(self) -> Sequence[FirstConv]:
        """The first convs that the graph names; none where there is none."""
        return ()

    def with_groups(self, conv: FirstConv) -> FirstConv:
        """A first conv that was found by names and shapes, with what the file says about its groups."""
        return conv

    def is_depthwise(self, name: str) -> bool:
        """Whether every channel has filters of its own in this kernel, as far as the file says."""
        return False

    def preprocessing(self, first_convs: Sequence[FirstConv]) -> Sequence[PreprocessingOp]:
        """The per-channel operations between the image and these first convs, from the image on."""
        return ()

    def graph_methods(self, first_convs: Sequence[FirstConv]) -> Sequence[str]:
        """Which of "broadcast" and "stack" the graph allows toward one channel, the better one first."""
        return ()

    def bias_target(self, conv: FirstConv) -> tuple[str, int] | None:
        """The tensor that can take a constant added to the conv's output, and its sign: the bias (+1) or the running mean of the
        BatchNorm that follows (-1)."""
        return None

    def declarations(self, first_convs: Sequence[FirstConv]) -> Sequence[Declaration]:
        """The channel counts written in the file that must follow these first convs."""
        return ()

    def contradictions(self, first_convs: Sequence[FirstConv]) -> Sequence[tuple[Declaration, int]]:
        """The channel counts written in the file that its kernels are not, and what these are."""
        return ()

    def hyper_parameters(self, channels: int) -> Sequence[Declaration]:
        """The channel counts that training left beside the model, for scripts that build it anew, as far as they are
        `channels`."""
        return ()

    def padding(self, conv: FirstConv) -> Sequence[tuple[tuple[int, int], ...]] | None:
        """For each way in which the kernel overlaps zeros around the image, the taps [start, stop) inside along D, H and W: none
        where it does not; None where the file does not say how it pads."""
        return None

    def quantization(self, conv: FirstConv) -> Quantization | None:
        """What the numbers of a quantized kernel mean; None where that is not known."""
        return None

    def dense_shape(self, conv: FirstConv, channels: int) -> tuple[int, ...] | None:
        """The shape in which a grouped first conv's kernel serves `channels` channels: for one channel the same bytes; for
        others its dense expansion, None where the format cannot hold that."""
        return conv.tensor.shape if channels == 1 else None

    def shape_edits(self, channels: int) -> dict[str, TensorEdit]:
        """The stored tensors that hold the number of input channels, such as the shape that a graph gives the image."""
        return {}

    def select_inputs(self, names: Sequence[str]) -> bool:
        """Take these inputs of the graph for the images. False where the graph's inputs have no names; raises UsageError where
        none has this one."""
        return False

    def notices(self, first_convs: Sequence[FirstConv]) -> Sequence[Notice]:
        """What a user of these first convs should know of the graph."""
        return ()


NO_GRAPH = ModelGraph()
