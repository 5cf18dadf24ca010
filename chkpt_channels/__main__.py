"""`python -m chkpt_channels` and the entry point of `chkpt-channels`."""

from __future__ import annotations

import os
import signal
import sys
import warnings

from chkpt_channels.core import gc_pause


def main() -> None:
    """Run the command line and exit with its code."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        # before the command listens, and after it has ended, an interrupt must not print Python's traceback
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    gc_pause.stop_collecting()
    # 0.5 ms instead of 5: the copying threads wait for the interpreter while numpy is imported, and get it sooner
    sys.setswitchinterval(5e-4)
    # numpy's OpenBLAS starts threads that spin, and no matrix product is computed here
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    if not sys.warnoptions:  # numpy's, of numbers that overflow: what comes of them is refused in words
        warnings.simplefilter("ignore")
    from chkpt_channels.cli.app import run

    code = run(sys.argv[1:])
    gc_pause.skip_last_collection()
    sys.exit(code)


if __name__ == "__main__":
    main()
