"""What a file says about its network: which kernels see the image, what precedes and follows them, which numbers must change
with them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

from chkpt_channels.core.tensors import Adapter, Declaration, FirstConv, Notice, PreprocessingOp, Quantization, Tensor, TensorEdit


class ModelGraph:
    """By default nothing is known: discovery then goes by names and shapes. A format overrides what its files say."""

    knows_outputs: ClassVar[bool] = False
    """Whether it knows what takes each conv's output: then a conv without a bias target has none."""

    shows_all: ClassVar[bool] = False
    """Whether its `search_view`, where it has one, holds all that names and shapes tell: then only that is searched."""

    folds: ClassVar[bool] = False
    """Whether it can `fold` a convolution."""

    @property
    def decides(self) -> bool:
        """Whether it alone says which kernels see the image: then names and shapes never do."""
        return False

    def check_reached(self, *, each: bool = False) -> None:
        """Raise UnsupportedError, with the reason, where it decides and shows no first conv, or not where an image goes that the
        user named; with `each`, or any other."""

    def first_convs(self) -> Sequence[FirstConv]:
        """The convs that the image reaches in the graph; none where the file has no graph."""
        return ()

    def search_view(self) -> Mapping[Tensor, str]:
        """The model's kernels with PyTorch-style names and axis order, each with its own name; empty where they have these
        already, or where they show nothing. Discovery searches here first."""
        return {}

    def with_groups(self, conv: FirstConv) -> FirstConv:
        """A first conv that names and shapes gave, with the groups that the file states."""
        return conv

    def counts(self, conv: FirstConv) -> frozenset[int]:
        """How many channels the images have that reach a first conv: several where it takes them joined."""
        return frozenset({conv.in_channels})

    def is_depthwise(self, name: str) -> bool:
        """Whether each channel has its own filters in this kernel, as far as the file says."""
        return False

    def readers(self, kernel: str) -> frozenset[tuple[str, int]] | None:
        """The nodes that take the image with this kernel, each with the channels that it takes, 0 where these are not the image's
        own; None where the file does not decide that."""
        return None

    def preprocessing(self, first_convs: Sequence[FirstConv]) -> Sequence[PreprocessingOp]:
        """The per-channel operations between the image and these first convs, from the image on."""
        return ()

    def graph_methods(self, first_convs: Sequence[FirstConv]) -> Sequence[str]:
        """Which of "broadcast" and "stack" the graph allows toward one channel, the better one first: "broadcast" changes no
        tensor and costs nothing, "stack" inserts a layer that repeats the channel."""
        return ()

    def gathers(self, first_convs: Sequence[FirstConv], places: tuple[int, ...]) -> Mapping[str, tuple[int, tuple[int, ...]]]:
        """For each image that these see the axis along which a node in front of it would gather the channels, and these `places`;
        empty where none can be put there."""
        return {}

    def gathered(self, image: str) -> tuple[int, tuple[int, ...]] | None:
        """How the one node that reads an image gathers along an axis of it; None where it does not."""
        return None

    def adapter_obstacle(self, first_convs: Sequence[FirstConv]) -> str:
        """Why no 1×1 convolution can be put in front of what these see, in words that follow the file's name; "" where it can."""
        return "holds no graph that a convolution could be put into"

    def fold(self, adapter: FirstConv) -> Adapter:
        """Take what this convolution of the image gives for the image from now on. Raises UnsupportedError where it cannot be
        taken out of the graph."""
        raise NotImplementedError

    def bias_target(self, conv: FirstConv) -> tuple[str, int] | None:
        """The tensor that can take a constant added to the conv's output, and its sign: the bias (+1) or the running mean of the
        BatchNorm that follows (-1). Raises UnsupportedError where the kernel does not show what the constant becomes."""
        return None

    def declarations(self, first_convs: Sequence[FirstConv]) -> Sequence[Declaration]:
        """The channel counts written in the file that must change with these first convs."""
        return ()

    def contradictions(self, first_convs: Sequence[FirstConv]) -> Sequence[tuple[Declaration, int]]:
        """The channel counts written in the file that its kernels contradict, each with the kernel's count."""
        return ()

    def hyper_parameters(self, channels: int) -> Sequence[Declaration]:
        """The channel counts that training saved beside the model (Lightning's hyper_parameters, an argparse Namespace), as far
        as they equal `channels`: scripts build the model from them."""
        return ()

    def padding(self, conv: FirstConv) -> Sequence[tuple[tuple[int, int], ...]] | None:
        """For each way in which the kernel overlaps zeros around the image, the taps [start, stop) on pixels along D, H and W:
        none where it does not overlap; None where the file does not say how it pads. A shift folded into the kernel is exact only
        where no tap is on a zero."""
        return None

    def quantization(self, conv: FirstConv) -> Quantization | None:
        """The scale and zero point of a quantized kernel; None where they are unknown."""
        return None

    def dense_shape(self, conv: FirstConv, channels: int) -> tuple[int, ...] | None:
        """The shape in which a grouped first conv's kernel serves `channels` channels: for one channel the same bytes; for
        others its dense expansion, None where the format cannot hold that."""
        return conv.tensor.shape if channels == 1 else None

    def is_in_module(self, name: str) -> bool:
        """Whether a tensor belongs to a module that the file keeps as an object, which may state its length a second time."""
        return False

    def is_beside_state_dict(self, name: str) -> bool:
        """Whether a tensor belongs to a module whose state dict leaves it out: an attribute that was never registered, or a
        buffer that is not persistent. The network makes it by itself."""
        return False

    def shape_edits(self, first_convs: Sequence[FirstConv], channels: int) -> dict[str, TensorEdit]:
        """The stored tensors that hold the number of channels that these first convs take, such as a shape that a graph gives the
        image."""
        return {}

    def select_inputs(self, names: Sequence[str]) -> bool:
        """Treat these inputs of the graph as the images. False where the graph's inputs have no names; raises UsageError where
        none has this one."""
        return False

    def state_channels(self, count: int) -> None:
        """Take the number of channels of the image from the user, where the graph leaves open which axis holds them."""

    def notices(self, first_convs: Sequence[FirstConv]) -> Sequence[Notice]:
        """What a user of these first convs should know about the graph."""
        return ()


NO_GRAPH = ModelGraph()
