"""The options of a conversion, one row each: what the library, the command line, manifests, reports and docs/options.md know.

A row is a key of `ConvertOptions`: its type is what type checkers see and what documents are checked against, its `Option` is
what people read, with the flag where that is not the key with dashes. To add a switch is to add its row here and to use it, as
`options.plain["its_name"]`; an option that has to be parsed is parsed in options.py.
"""

# No `from __future__ import annotations`: the rows would be text, to be evaluated whenever the command starts.

import os
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, TypedDict

from chkpt_channels.transform.option_spec import Option, options_of

CHANNELS, NORMALIZATION, KERNELS, PASSENGERS = "The new channels", "Normalization", "Which kernel", "What goes with it"
"""The groups of --help."""
OPTIMIZER = ("reset", "drop")


class ConvertOptions(TypedDict, total=False):
    """The options of a conversion, as they are given; each may be left out. docs/options.md says what they mean."""

    method: Annotated[
        str,
        Option(
            group=CHANNELS,
            closed=True,
            metavar="RULE",
            default="auto",
            help="How new channels are made: auto, sum, mean, luma, repeat, zero, …",
            doc="how the new channels are made; `auto` is exact where anything is, and the report names its choice. `broadcast`"
            " and `stack` leave the kernels alone and let the file's own graph make the old channels of one new channel;"
            " `adapter` puts a 1×1 convolution in front that makes them of any new ones, and goes with every other rule"
            " ([methods.md](methods.md))",
        ),
    ]
    fold_adapter: Annotated[
        bool,
        Option(
            group=KERNELS,
            hidden=True,
            help="Fold a convolution in front of the stem into it.",
            doc="folds a trained 1×1 convolution without activation, which takes the image and precedes the network, into the"
            " kernels behind it, and takes it out. In ONNX it may be a larger one, in Keras the file is a whole model in `.h5`;"
            " `--layer` names it where several could be meant. In a state dict it names both, adapter and stem. There is no"
            " `--to`: the image stays as it is ([methods.md](methods.md#folding-an-adapter))",
        ),
    ]
    luma: Annotated[
        str | Sequence[float] | None,
        Option(
            group=CHANNELS,
            closed=True,
            hidden=True,
            metavar="bt709|bt601|a,b,c",
            help="Weights between gray and colors. [bt709]",
            doc="the weights of the method `luma`; BT.709 without it",
        ),
    ]
    select: Annotated[
        str | Sequence[str | int] | None,
        Option(
            group=CHANNELS,
            metavar="0,2|R,B",
            help="Build the new input from these old channels.",
            doc="builds the new input from these old channels, by number or name, their bits copied",
        ),
    ]
    bands: Annotated[
        str | Sequence[str] | None,
        Option(
            group=CHANNELS,
            metavar="B,G,R,NIR=R",
            help="New channels, each with the old one it replaces.",
            doc="the new channels by name: each replaces the old channel of its name, another one (`NIR=R`), the mean of all"
            " (`D=mean`), or none of them and starts at zero (`D=zero`, also `D=none`; `D=0` is old channel 0)",
        ),
    ]
    bands_from: Annotated[
        str | Sequence[str] | None,
        Option(
            group=CHANNELS,
            hidden=True,
            metavar="B,G,R,NIR,…",
            help="What the old channels are called, for --bands and --select.",
            doc="names the old channels in their order, for `--bands` and `--select`: `--bands-from B,G,R,NIR,SWIR1,SWIR2 --bands"
            " R,G,B`. It also says how many there are, as `--from` does",
        ),
    ]
    matrix: Annotated[
        str | os.PathLike[str] | Sequence[Sequence[float]] | None,
        Option(
            group=CHANNELS,
            metavar="FILE",
            hidden=True,
            help="The mixing matrix [old, new] itself: .npy, .csv or .json.",
            doc="the mixing matrix A itself, [old channels, new channels], as .npy, .csv or .json; in Python also its rows",
        ),
    ]
    channel_order: Annotated[
        str | None,
        Option(
            group=CHANNELS,
            closed=True,
            hidden=True,
            metavar="rgb|bgr",
            help="Channel order of the side in color. [rgb]",
            doc="the channel order of the side that is in color: `bgr` for models trained in Caffe's or OpenCV's order (Keras'"
            " ResNet and VGG weights); `rgb` without it, `bgr` with `--norm caffe`",
        ),
    ]
    norm: Annotated[
        str | None,
        Option(
            group=NORMALIZATION,
            closed=True,
            metavar="NAME",
            help="Fold the training-time mean and std in: imagenet, half, clip, caffe, auto.",
            doc="folds the normalization that the network was trained with into the weights, by name: `imagenet` (also `torch`),"
            " `half` (also `tf`, `openai-siglip`), `clip`, `caffe` (BGR in 0..255 less 103.939, 116.779, 123.68) or `none`"
            " ([normalization.md](normalization.md)). `auto` reads it from the `preprocessor_config.json` or timm's `config.json`"
            " beside the file, or takes the one that all pretrained weights of this architecture have",
        ),
    ]
    mean: Annotated[
        str | Sequence[float] | None,
        Option(
            group=NORMALIZATION,
            metavar="a,b,c",
            hidden=True,
            help="The training-time mean, of red, green, blue, for 0..1.",
            doc="instead of `--norm`, the training-time mean of each old channel, for images in 0..1; one number holds for all."
            " Three are those of red, green and blue, whatever `--channel-order` says",
        ),
    ]
    std: Annotated[
        str | Sequence[float] | None,
        Option(
            group=NORMALIZATION,
            metavar="a,b,c",
            hidden=True,
            help="Goes with --mean; one without the other is std 1 or mean 0.",
            doc="goes with `--mean`, in the same order: the standard deviation of each old channel. Without it 1, and 0 for the"
            " mean without `--mean`",
        ),
    ]
    new_mean: Annotated[
        str | Sequence[float] | None,
        Option(
            group=NORMALIZATION,
            metavar="m",
            hidden=True,
            help="The mean that the new input will be normalized with.",
            doc="the mean that the new input will be normalized with, for images in 0..1, in the order of the new channels;"
            " without it that of the old means (0 with `--input-range` or `caffe`), which the report prints",
        ),
    ]
    new_std: Annotated[
        str | Sequence[float] | None,
        Option(
            group=NORMALIZATION,
            metavar="s",
            hidden=True,
            help="Goes with --new-mean.",
            doc="goes with `--new-mean`: the standard deviation of the new input; without it the mean of the old ones (1 with"
            " `--input-range` or `caffe`)",
        ),
    ]
    input_range: Annotated[
        float | None,
        Option(
            group=NORMALIZATION,
            hidden=True,
            metavar="255",
            help="Maximum pixel value of the new input: 1, 255, …",
            doc="the maximum pixel value of the new input: 255 where bytes are fed as they are; without it 1, or 255 with"
            " `caffe`",
        ),
    ]
    layers: Annotated[
        Sequence[str],
        Option(
            "--layer",
            group=KERNELS,
            metavar="KEY",
            help="A first conv: key, suffix or glob; repeatable.",
            doc="names a first conv instead of looking for it; repeatable. Tried in this order: the full key, the key without"
            " container and `module.`/`_orig_mod.`, a dotted suffix that is unique in each copy of the model, a glob. `.weight`"
            " may be left out",
        ),
    ]
    like: Annotated[
        str | os.PathLike[str] | Mapping[str, Any] | None,
        Option(
            group=KERNELS,
            metavar="FILE",
            help="A checkpoint of the same network with the wanted channels.",
            doc="a checkpoint of the same architecture with the wanted channels and any weights, of which names and shapes are"
            ' read: `torch.save(Net(in_channels=1).state_dict(), "like.pth")`. Its kernels of other input channels are the first'
            " convs, and `--to` may be left out. In Python also a state dict",
        ),
    ]
    layout: Annotated[
        str | None,
        Option(
            group=KERNELS,
            closed=True,
            hidden=True,
            metavar="L",
            help="Axis order of the kernel: OIHW, HWIO, O(HWI), …",
            doc="the axis order of the kernel where the file does not say it: `OIHW`, `HWIO`, `OHWI`, `IOHW`, `O(HWI)`, `O(IHW)`,"
            " `O(GI)HW`, `O(IG)HW`, …",
        ),
    ]
    from_channels: Annotated[
        int | None,
        Option(
            "--from",
            group=KERNELS,
            metavar="N",
            help="Number of input channels now, where the file is ambiguous.",
            doc="the number of input channels now, where the file is ambiguous (12 bands, or blocks of 2 × 2 colors?)",
        ),
    ]
    inputs: Annotated[
        Sequence[str],
        Option(
            "--input",
            group=KERNELS,
            metavar="NAME",
            hidden=True,
            help="A graph input that is an image; repeatable.",
            doc="names an input of the graph that is an image, where it does not look like one or another one does too;"
            " repeatable. ONNX only",
        ),
    ]
    optimizer: Annotated[
        str,
        Option(
            group=PASSENGERS,
            closed=True,
            metavar="reset|drop",
            hidden=True,
            default="reset",
            help="Reset or drop the optimizer state of the kernels. [reset]",
            doc="state that an optimizer keeps for the kernel becomes zeros of the new shape, its `step` included (`reset`), or"
            " its entry is left out (`drop`); either way training resumes as if the kernel were new",
        ),
    ]
    strict: Annotated[
        bool,
        Option(
            group=PASSENGERS,
            hidden=True,
            help="Refuse pickles that torch's weights-only loading would refuse.",
            doc="refuses pickles that name anything `torch.load(weights_only=True)` does not resolve, instead of warning",
        ),
    ]
    set_hparams: Annotated[
        bool,
        Option(
            group=PASSENGERS,
            hidden=True,
            help="Set the channels in a training script's hyperparameters too.",
            doc="sets the number of channels in a training script's hyperparameters too (Lightning's `hyper_parameters`, an"
            " argparse Namespace), which is otherwise reported",
        ),
    ]
    allow_nonfinite: Annotated[
        bool,
        Option(
            group=PASSENGERS,
            hidden=True,
            help="Pass NaN and infinity through where channels are copied.",
            doc="passes NaN and infinity through, bit by bit, where channels are copied; elsewhere they are refused all the same",
        ),
    ]
    bfloat16: Annotated[
        bool,
        Option(
            hidden=True,
            help="Kernels of two bytes without a type (V2, in .npz) are bfloat16.",
            doc="says that kernels whose elements have two bytes and no type (`V2`, as numpy saves JAX's bfloat16 in `.npz`) are"
            " bfloat16; they are refused otherwise",
        ),
    ]
    leave_out: Annotated[
        Sequence[str],
        Option(
            group=PASSENGERS,
            metavar="NAME",
            hidden=True,
            help="A file of a model folder that does not go with it; repeatable.",
            doc="names a file of a model folder, a folder in it, or the index of shards, that is not written to the new folder:"
            " weights of a format that is not converted, or stale ones; repeatable",
        ),
    ]
    follow_links: Annotated[
        bool,
        Option(
            group=PASSENGERS,
            hidden=True,
            help="Read files through links that leave the model's folder.",
            doc="reads files of a model (ONNX data files, files in a model folder) through links that leave its folder, which are"
            " refused otherwise; links inside a download cache are followed anyway",
        ),
    ]


OPTIONS = options_of(ConvertOptions)


def words(name: str) -> tuple[str, ...]:
    """The words that a row with a closed list takes, all or among others. Imports what knows them: not for --help."""
    from chkpt_channels.core.layout import KNOWN
    from chkpt_channels.transform.mixing.matrix import LUMA
    from chkpt_channels.transform.mixing.normalization import AUTO, NORMS
    from chkpt_channels.transform.mixing.rules import METHODS, ORDERS, TARGETS

    lists = {"method": METHODS, "luma": LUMA, "channel_order": ORDERS, "norm": (*NORMS, AUTO), "layout": KNOWN}
    return tuple((lists | {"optimizer": OPTIMIZER, "to": TARGETS})[name])
