"""Every way this package refuses, each with the exit code the command line ends in.

A message is one line, `FILE: WHERE: what is wrong, at byte N`; candidates and a hint follow on lines of their own.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import ClassVar

from chkpt_channels.core.records import NamedTuple

LONGEST_NAME = 200
"""Characters of a name from a file: real ones stay below, and hostile ones have megabytes."""
LONGEST_MESSAGE = 4000
MOST_CANDIDATES = 10


def printable(text: str, limit: int = LONGEST_NAME) -> str:
    """`text` from a file, safe for a terminal: control, bidi and other unprintable characters escaped, cut at `limit`."""
    escaped = text[: limit + 1].translate(_ODD)
    if not escaped.isprintable():
        escaped = "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in escaped)
    return escaped if len(escaped) <= limit else escaped[: limit - 1] + "…"


_ODD = str.maketrans({"\n": "\\n", "\r": "\\r", "\t": "\\t"})


class Candidate(NamedTuple):
    """A tensor that could be meant, and why it was not taken. Those that are `needed` see the image together: to take one of
    them alone would be wrong."""

    key: str
    shape: tuple[int, ...]
    why_not: str = ""
    needed: bool = False


class LimitExceeded(NamedTuple):
    """A limit that a file exceeds: it needs `actual`, and `limit` is the most."""

    what: str
    limit: int
    actual: int


class ChkptChannelsError(Exception):
    """The base of every error this package raises on purpose."""

    code: ClassVar[str] = "error"
    exit_code: ClassVar[int] = 70
    remedy: ClassVar[str] = ""
    """The hint of all such errors that have none of their own."""

    def __init__(
        self,
        what: str,
        *,
        file: str = "",
        where: str = "",
        at: int | None = None,
        candidates: Sequence[Candidate] = (),
        hint: str = "",
        excess: LimitExceeded | None = None,
    ) -> None:
        super().__init__(what)
        self.what, self.file, self.where, self.at = what, file, where, at
        self.candidates, self.hint, self.excess = tuple(candidates), hint or ("" if excess else self.remedy), excess

    def __str__(self) -> str:
        limits = ((self.file, 4096), (self.where, LONGEST_NAME), (self.what, LONGEST_MESSAGE))
        parts = [printable(part, limit) for part, limit in limits if part]
        return ": ".join(parts) + (f", at byte {self.at}" if self.at is not None else "")


class UsageError(ChkptChannelsError):
    """The call does not make sense, whatever the file holds."""

    code, exit_code = "usage", 2


def unlisted(flag: str, word: str, known: Sequence[str], otherwise: str = "") -> UsageError:
    """The error for a word that is none of an option's; the hint is the one it is most like, or `otherwise`."""
    close = did_you_mean(word, known)
    what = f"{flag} is one of {', '.join(known)}, not {word[:40]!r}"
    return UsageError(what, hint=f"{flag} {close}" if close else otherwise)


class DamagedError(ChkptChannelsError):
    """The input is damaged or hostile."""

    code, exit_code, remedy = "damaged", 3, "download or copy it again"


class UnknownFormatError(DamagedError):
    """The bytes are no checkpoint of any known format."""

    code = "unknown_format"


class UnsupportedError(ChkptChannelsError):
    """The input is sound, and this package does not convert it."""

    code, exit_code = "unsupported", 4


class AmbiguousError(UnsupportedError):
    """Several tensors, or several readings of one, could be meant."""

    code = "ambiguous"


class FileSystemError(ChkptChannelsError):
    """The operating system refused something, or the input changed while it was read."""

    code, exit_code = "system", 5


class PostPublishError(FileSystemError):
    """A failure after publishing: the output is there, complete and checked, or standard output has a part of it."""


class OutputExistsError(FileSystemError):
    """The output name is taken, or must not be written to."""

    code = "output_exists"


class Location(NamedTuple):
    """A place in a file: the file, and a member, tensor or key in it. Every message begins with one."""

    file: str
    where: str = ""

    def at(self, where: str) -> Location:
        """The same file, at the member or tensor `where`."""
        return Location(self.file, where)

    def damaged(self, what: str, at: int | None = None, hint: str = "") -> DamagedError:
        """The error for content that contradicts its format; `at` is a byte of the file."""
        return DamagedError(what, file=self.file, where=self.where, at=at, hint=hint)

    def check_limit(self, what: str, actual: int, limit: int, at: int | None = None) -> None:
        """Raise DamagedError where a file asks for more than `limit` of something: before anything of that size is made."""
        if actual > limit:
            message, excess = f"has {actual} {what}; {limit} are the most", LimitExceeded(what, limit, actual)
            raise DamagedError(message, file=self.file, where=self.where, at=at, excess=excess)

    def unsupported(self, what: str, hint: str = "") -> UnsupportedError:
        """The error for sound content that is not converted."""
        return UnsupportedError(what, file=self.file, where=self.where, hint=hint)

    def system(self, what: str, hint: str = "") -> FileSystemError:
        """The error for what the operating system refused."""
        return FileSystemError(what, file=self.file, where=self.where, hint=hint)

    @contextmanager
    def wrapping_os_errors(self, what: str) -> Iterator[None]:
        """Raise an OSError of the block as FileSystemError: `what` and the system's reason."""
        try:
            yield
        except OSError as error:
            raise self.system(f"{what}: {reason(error)}") from error


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """The hint that names the known word which is most like this one; "" where none is."""
    import difflib

    by_lower = {name.lower(): name for name in known}
    return next((by_lower[close] for close in difflib.get_close_matches(word.lower()[:40], by_lower, 1, 0.6)), "")


def reason(error: OSError | RuntimeError | ValueError) -> str:
    """The system's own words for an error, as messages write them."""
    return (getattr(error, "strerror", None) or str(error)).lower()
