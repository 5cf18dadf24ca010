"""The rows of the parameters that are of the command line alone, and the tables of those that go together."""

# No `from __future__ import annotations`, here and where these are used: the rows would be text.

from functools import partial
from typing import Annotated, TypedDict

from chkpt_channels.cli import style
from chkpt_channels.transform.option_spec import Option
from chkpt_channels.transform.option_table import CHANNELS

FORMATS = ("human", "json", "jsonl", "github")
PLACE, REPORT = "Where it goes", "Report"
"""Groups of --help, beside those of the options of a conversion."""

_rare = partial(Option, group=PLACE, hidden=True)
"""The row of an option that few need, of where it goes if not of another group: only --help-all shows it."""

SOURCES = Option("", metavar="SRC…", help="Checkpoints or model folders; - is stdin.")
TO = Option(
    "--to",
    metavar="gray|rgb|bgr|rgba|N",
    group=CHANNELS,
    closed=True,
    help="The new input channels.",
    doc="the new input channels. `gray` is also written `grey`, `grayscale`, `L`, `1`; `rgba` is 4; `bgr` swaps the"
    " channels of a color model, and splits a gray one in that order",
)
OUTPUT = Option(
    "--output",
    short="-o",
    metavar="DST",
    group=PLACE,
    help="The result; - is standard output. [<stem>_<to><ext>]",
    doc="the result; `-` is standard output, and the report then goes to stderr. Without it the result is"
    " `<stem>_<to><ext>` beside the source",
)
OUTPUT_DIR = Option(
    "--output-dir",
    metavar="DIR",
    group=PLACE,
    help="Where the results go, under their usual names.",
    doc="where the results of several sources go, under their usual names",
)
JOBS = Option(
    "--jobs",
    short="-j",
    metavar="N",
    group=PLACE,
    help="How many to convert at once. [1]",
    doc="how many to convert at once, each in a process of its own",
)
MANIFEST = _rare(
    "--manifest",
    metavar="FILE",
    help="Read the conversions from a TOML manifest.",
    doc="reads the conversions from a TOML manifest: `[[convert]]` tables with `src`, `dst`, `to` and any option by its"
    " long name, paths relative to the file",
)
LEDGER = _rare(
    "--ledger",
    metavar="FILE",
    help="Remember each result in FILE.",
    doc="remembers each result in a file of JSON lines, from which `--resume` goes on and which `status` sums up"
    " ([fleets.md](fleets.md))",
)
RESUME = _rare(
    "--resume",
    help="Go on with the ledger: skip what is done.",
    doc="goes on with the ledger, if it is there: skips rows that are final in it and whose source and output are"
    " unchanged since; with `--force` it tries failures again",
)
SHARD = _rare(
    "--shard",
    metavar="i/n",
    help="Convert one of n shares of the sources.",
    doc="converts one of n shares of the sources, i from 1 to n: each source is in one of them, whichever machine asks",
)
ON = _rare(
    "--on",
    metavar="dask://HOST:PORT",
    help="Convert on a cluster.",
    doc="converts on the workers of a Dask cluster, whose scheduler has this address ([fleets.md](fleets.md#dask))",
)
SIDECARS = _rare(
    "--sidecars",
    help="Write the configuration files beside SRC beside DST too.",
    doc="the configuration files beside a single weights file (`config.json`, `preprocessor_config.json`) are written"
    " beside DST too, with the new counts",
)
HARD_LINK = _rare(
    "--hard-link",
    help="In a folder, hard-link the files that do not change.",
    doc="in a model folder, files that do not change become hard links to the same files",
)
SHA256 = _rare("--sha256", group=REPORT, help="Report the SHA-256 of the result.", doc="reports the SHA-256 of the result")
HASH_NAME = _rare(
    "--hash-name",
    help="Put the first 8 digits of its SHA-256 into the name, as torch.hub does.",
    doc="puts the first eight digits of its SHA-256 into the name, as torch.hub does: `resnet50_gray-3f9a01bc.pth`, in"
    " the place of an old one",
)
STATE_DICT = _rare(
    "--state-dict",
    blank=True,  # the root
    metavar="KEY",
    help="The state dict to write where DST is another container.",
    doc="the state dict to write where the output is another container (`-o x.safetensors` from `x.ckpt`, or back)",
)
FORCE = Option(
    "--force",
    group=PLACE,
    help="Replace an existing output.",
    doc="replaces an existing output file; a folder is never replaced",
)
CHECK_ONLY = Option(
    "--check",
    group=REPORT,
    help="Check that DST is what converting SRC gives now; write nothing.",
    doc="checks that DST is what converting SRC gives now, and writes nothing: exit 1 where it is not",
)
DRY_RUN = Option(
    "--dry-run",
    group=REPORT,
    help="Report what would be done; write nothing.",
    doc="reports what would be done and writes nothing",
)
EXPLAIN = _rare(
    "--explain",
    group=REPORT,
    help="Print the matrix and the formula in use; write nothing.",
    doc="prints the matrix and the formula in use and writes nothing",
)
REPORT_TO = _rare(
    "--report",
    metavar="FILE",
    group=REPORT,
    help="Write the JSON report to FILE too.",
    doc="writes the JSON report to FILE too, from which `verify --report FILE` reads the options",
)
FORMAT = _rare(
    "--output-format",
    known=FORMATS,
    group=REPORT,
    help="Format of the report; --json is json.",
    doc="text (`human`); one JSON object (`json`); one line of JSON for each source as it is done (`jsonl`); or"
    " annotations that GitHub shows beside the file (`github`)",
)
JSON = Option("--json", group=REPORT, help="Print one JSON object instead of text.", doc="prints one JSON object instead of text")
QUIET = Option("--quiet", short="-q", group=REPORT, help="Print nothing but errors.", doc="prints nothing but errors")
VERBOSE = Option(
    "--verbose",
    short="-v",
    group=REPORT,
    help="Print the matrix too, and the tensors that were rejected.",
    doc="prints the matrix too, and every tensor that was rejected as a first conv, with the reason",
)
COLOR = _rare(
    "--color",
    known=style.CHOICES,
    default=style.CHOICES[0],
    group=REPORT,
    help="Colour messages. [auto]",
    doc="colours the beginning of messages: on a terminal (`auto`, with NO_COLOR and FORCE_COLOR), `always` or `never`",
)
EXPECT = Option(
    "--expect",
    metavar="gray|rgb|N",
    help="The input channels that each must have.",
    doc="the input channels that each file must have",
)
EVERYTHING = Option("--all", help="List every tensor.", doc="lists every tensor")
REJECTED = Option(
    "--verbose",
    short="-v",
    help="List the tensors that were rejected as first convs, and why.",
    doc="lists the tensors that were rejected as first convs, with the reasons",
)
TARGET = Option(
    "--to",
    metavar="gray|rgb|bgr|rgba|N",
    help="The target; without it the count is read off CONVERTED.",
    doc="the target of the conversion; without it the number of channels is read off CONVERTED",
)
REPORT_FROM = Option(
    "--report",
    metavar="FILE",
    help="Read the options from the report of the conversion (convert --report).",
    doc="reads the options from what `convert --report FILE` wrote; those that are given here take precedence",
)
LFS_POINTERS = Option(
    "--lfs-pointers",
    known=("skip", "error"),
    help="Skip or refuse Git-LFS pointers. [skip]",
    doc="Git-LFS pointers are skipped, with a line that says so (`skip`), or are damaged input, exit 3 (`error`)",
)
PICTURE = Option(
    "--output",
    short="-o",
    metavar="FILE",
    help="The picture: .png, .svg or .pdf. [kernels.png]",
    doc="the picture, by its suffix a PNG, SVG or PDF; `kernels.png` without it",
)
BANDS = Option(
    "--bands",
    metavar="B,G,R,NIR",
    help="What the channels are called; the --bands of convert will do.",
    doc="what the channels are called, in order; what `convert --bands` was given will do (`B,G,R,NIR=R`)",
)
LAYERS = Option(
    "--layer",
    metavar="KEY",
    help="Draw this kernel; a second --layer names that of B.",
    doc="draws this kernel, in the place of the first of those that see the image; a second `--layer` names that of B",
)
LAYOUT = Option(
    "--layout",
    metavar="OIHW|HWIO|…",
    help="Axis order of the kernel, where its shape does not show it.",
    doc="the axis order of the kernel, where its shape does not show it",
)
FROM = Option(
    "--from",
    metavar="N",
    help="The input channels of A, where its shapes do not show them.",
    doc="the input channels of A, where its shapes do not show them, or where it takes several images",
)


class Remembering(TypedDict, total=False):
    """What is remembered of many conversions: keywords of `fleet.run`."""

    ledger: Annotated[str | None, LEDGER]
    resume: Annotated[bool, RESUME]
    shard: Annotated[str | None, SHARD]


class Writing(TypedDict, total=False):
    """How outputs are written: keywords of the library's `convert` that are no options of a conversion."""

    with_sidecars: Annotated[bool, SIDECARS]
    hard_link: Annotated[bool, HARD_LINK]
    sha256: Annotated[bool, SHA256]
    hash_name: Annotated[bool, HASH_NAME]
    state_dict: Annotated[str | None, STATE_DICT]
    force: Annotated[bool, FORCE]


class Reporting(TypedDict, total=False):
    """What is printed, and how: keywords of `session`."""

    output_format: Annotated[str | None, FORMAT]
    as_json: Annotated[bool, JSON]
    quiet: Annotated[bool, QUIET]
