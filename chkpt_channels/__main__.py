"""`python -m chkpt_channels` and the entry point of `chkpt-channels`."""

from __future__ import annotations

import gc
import sys


def main() -> None:
    """Run the command line and exit with its code."""
    gc.disable()  # a short process that makes no cycles worth collecting: a tenth of its time
    sys.setswitchinterval(5e-4)  # the copying threads wait for the interpreter while numpy is imported: hand it over sooner
    from .cli import run

    sys.exit(run(sys.argv[1:]))


if __name__ == "__main__":
    main()
