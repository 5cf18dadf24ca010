"""Standard output as the place of a conversion's result."""

from __future__ import annotations

import sys
from pathlib import Path

from chkpt_channels.core import interrupts
from chkpt_channels.core.errors import Location, PostPublishError, UsageError, reason
from chkpt_channels.storage.source import CHUNK_BYTES


class StandardOutput:
    """What atomic.Output is for a file, for `-o -`: an unnamed temporary file, copied to standard output when it is complete."""

    def __init__(self) -> None:
        self.path, self.location = Path("-"), Location("standard output")
        if sys.stdout is None:
            raise self.location.system("is closed")
        if sys.stdout.isatty():
            raise UsageError("-o - would write binary to the terminal: redirect it, or name a file")
        import tempfile

        with self.location.wrapping_os_errors("cannot be buffered in a temporary file"):
            self._file = tempfile.TemporaryFile()  # noqa: SIM115 # closed by __exit__
        self.fd = self._file.fileno()

    def __enter__(self) -> StandardOutput:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def is_shown(self) -> bool:
        """It has no name."""
        return False

    def publish(self) -> bool:
        """Write the whole file to standard output. Raises PostPublishError where it takes a part only."""
        interrupts.check()
        try:
            self._file.seek(0)
            import shutil

            shutil.copyfileobj(self._file, sys.stdout.buffer, CHUNK_BYTES)
            sys.stdout.buffer.flush()
        except OSError as error:
            raise PostPublishError(f"cannot be written completely: {reason(error)}", file=self.location.file) from error
        return True
