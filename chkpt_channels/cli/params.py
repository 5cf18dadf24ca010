"""The parameters that several commands share, one row each, and those that are long."""

# No `from __future__ import annotations`, here and where these are used: the rows would be text.

from typing import Annotated

from chkpt_channels.cli import style
from chkpt_channels.transform.option_spec import Option
from chkpt_channels.transform.option_table import CHANNELS

FORMATS = ("human", "json", "jsonl", "github")
PLACE, REPORT = "Where it goes", "Report"
"""Groups of --help, beside those of the options of a conversion."""

Sources = Annotated[list[str] | None, Option("", metavar="SRC…", help="Checkpoints or model folders; - is stdin.")]
To = Annotated[
    str | None,
    Option(
        "--to",
        metavar="gray|rgb|bgr|rgba|N",
        group=CHANNELS,
        closed=True,
        help="The new input channels.",
        doc="the new input channels. `gray` is also written `grey`, `grayscale`, `L`, `1`; `rgba` is 4; `bgr` swaps the"
        " channels of a color model, and splits a gray one in that order",
    ),
]
Output = Annotated[
    str | None,
    Option(
        "--output",
        short="-o",
        metavar="DST",
        group=PLACE,
        help="The result; - is standard output. [<stem>_<to><ext>]",
        doc="the result; `-` is standard output, and the report then goes to stderr. Without it the result is"
        " `<stem>_<to><ext>` beside the source",
    ),
]
OutputDir = Annotated[
    str | None,
    Option(
        "--output-dir",
        metavar="DIR",
        group=PLACE,
        help="Where the results go, under their usual names.",
        doc="where the results of several sources go, under their usual names",
    ),
]
Jobs = Annotated[
    int,
    Option(
        "--jobs",
        short="-j",
        metavar="N",
        group=PLACE,
        help="How many to convert at once. [1]",
        doc="how many to convert at once, each in a process of its own",
    ),
]
Manifest = Annotated[
    str | None,
    Option(
        "--manifest",
        metavar="FILE",
        group=PLACE,
        hidden=True,
        help="Read the conversions from a TOML manifest.",
        doc="reads the conversions from a TOML manifest: `[[convert]]` tables with `src`, `dst`, `to` and any option by its"
        " long name, paths relative to the file",
    ),
]
Ledger = Annotated[
    str | None,
    Option(
        "--ledger",
        metavar="FILE",
        group=PLACE,
        hidden=True,
        help="Remember each result in FILE.",
        doc="remembers each result in a file of JSON lines, from which `--resume` goes on and which `status` sums up"
        " ([fleets.md](fleets.md))",
    ),
]
Resume = Annotated[
    bool,
    Option(
        "--resume",
        group=PLACE,
        hidden=True,
        help="Go on with the ledger: skip what is done.",
        doc="goes on with the ledger, if it is there: skips rows that are final in it and whose source and output are"
        " unchanged since; with `--force` it tries failures again",
    ),
]
Shard = Annotated[
    str | None,
    Option(
        "--shard",
        metavar="i/n",
        group=PLACE,
        hidden=True,
        help="Convert one of n shares of the sources.",
        doc="converts one of n shares of the sources, i from 1 to n: each source is in one of them, whichever machine asks",
    ),
]
On = Annotated[
    str | None,
    Option(
        "--on",
        metavar="dask://HOST:PORT",
        group=PLACE,
        hidden=True,
        help="Convert on a cluster.",
        doc="converts on the workers of a Dask cluster, whose scheduler has this address ([fleets.md](fleets.md#dask))",
    ),
]
Sidecars = Annotated[
    bool,
    Option(
        "--sidecars",
        group=PLACE,
        hidden=True,
        help="Write the configuration files beside SRC beside DST too.",
        doc="the configuration files beside a single weights file (`config.json`, `preprocessor_config.json`) are written"
        " beside DST too, with the new counts",
    ),
]
HardLink = Annotated[
    bool,
    Option(
        "--hard-link",
        group=PLACE,
        hidden=True,
        help="In a folder, hard-link the files that do not change.",
        doc="in a model folder, files that do not change become hard links to the same files",
    ),
]
Sha256 = Annotated[
    bool,
    Option(
        "--sha256", group=REPORT, hidden=True, help="Report the SHA-256 of the result.", doc="reports the SHA-256 of the result"
    ),
]
HashName = Annotated[
    bool,
    Option(
        "--hash-name",
        group=PLACE,
        hidden=True,
        help="Put the first 8 digits of its SHA-256 into the name, as torch.hub does.",
        doc="puts the first eight digits of its SHA-256 into the name, as torch.hub does: `resnet50_gray-3f9a01bc.pth`, in"
        " the place of an old one",
    ),
]
StateDict = Annotated[
    str | None,
    Option(
        "--state-dict",
        blank=True,  # the root
        metavar="KEY",
        group=PLACE,
        hidden=True,
        help="The state dict to write where DST is another container.",
        doc="the state dict to write where the output is another container (`-o x.safetensors` from `x.ckpt`, or back)",
    ),
]
Force = Annotated[
    bool,
    Option(
        "--force",
        group=PLACE,
        help="Replace an existing output.",
        doc="replaces an existing output file; a folder is never replaced",
    ),
]
CheckOnly = Annotated[
    bool,
    Option(
        "--check",
        group=REPORT,
        help="Check that DST is what converting SRC gives now; write nothing.",
        doc="checks that DST is what converting SRC gives now, and writes nothing: exit 1 where it is not",
    ),
]
DryRun = Annotated[
    bool,
    Option(
        "--dry-run",
        group=REPORT,
        help="Report what would be done; write nothing.",
        doc="reports what would be done and writes nothing",
    ),
]
Explain = Annotated[
    bool,
    Option(
        "--explain",
        group=REPORT,
        hidden=True,
        help="Print the matrix and the formula in use; write nothing.",
        doc="prints the matrix and the formula in use and writes nothing",
    ),
]
ReportTo = Annotated[
    str | None,
    Option(
        "--report",
        metavar="FILE",
        group=REPORT,
        hidden=True,
        help="Write the JSON report to FILE too.",
        doc="writes the JSON report to FILE too, from which `verify --report FILE` reads the options",
    ),
]
Format = Annotated[
    str | None,
    Option(
        "--output-format",
        known=FORMATS,
        group=REPORT,
        hidden=True,
        help="Format of the report; --json is json.",
        doc="text (`human`); one JSON object (`json`); one line of JSON for each source as it is done (`jsonl`); or"
        " annotations that GitHub shows beside the file (`github`)",
    ),
]
Json = Annotated[
    bool,
    Option("--json", group=REPORT, help="Print one JSON object instead of text.", doc="prints one JSON object instead of text"),
]
Quiet = Annotated[
    bool, Option("--quiet", short="-q", group=REPORT, help="Print nothing but errors.", doc="prints nothing but errors")
]
Verbose = Annotated[
    bool,
    Option(
        "--verbose",
        short="-v",
        group=REPORT,
        help="Print the matrix too, and the tensors that were rejected.",
        doc="prints the matrix too, and every tensor that was rejected as a first conv, with the reason",
    ),
]
Color = Annotated[
    str,
    Option(
        "--color",
        known=style.CHOICES,
        group=REPORT,
        hidden=True,
        help="Colour messages. [auto]",
        doc="colours the beginning of messages: on a terminal (`auto`, with NO_COLOR and FORCE_COLOR), `always` or `never`",
    ),
]
Expect = Annotated[
    str | None,
    Option(
        "--expect",
        metavar="gray|rgb|N",
        help="The input channels that each must have.",
        doc="the input channels that each file must have",
    ),
]
