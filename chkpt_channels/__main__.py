"""`python -m chkpt_channels` and the entry point of `chkpt-channels`."""

from __future__ import annotations

import gc
import os
import signal
import sys


def main() -> None:
    """Run the command line and exit with its code."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        # before the command listens, and when it has ended, an interrupt ends the process without a traceback of Python's
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    gc.disable()  # a short process that makes no cycles worth collecting: a tenth of its time
    sys.setswitchinterval(5e-4)  # the copying threads wait for the interpreter while numpy is imported: hand it over sooner
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # numpy would start threads that spin, for work that is not done here
    from chkpt_channels.cli.app import run

    code = run(sys.argv[1:])
    gc.freeze()  # nor is anything worth collecting at the end, when the interpreter would look at every object again
    sys.exit(code)


if __name__ == "__main__":
    main()
