"""Errors: one line that names file, place and byte, safe for a terminal; and the exit code that each ends in."""

from __future__ import annotations

import pickle

import pytest

from chkpt_channels import (
    AmbiguousError,
    Candidate,
    ChkptChannelsError,
    DamagedError,
    FileSystemError,
    OutputExistsError,
    PostPublishError,
    UnknownFormatError,
    UnsupportedError,
    UsageError,
)
from chkpt_channels.core.errors import Location, printable
from chkpt_channels.discovery.like.names import OtherNetworkError

CLASSES = [
    (UsageError, 2, "usage"),
    (DamagedError, 3, "damaged"),
    (UnknownFormatError, 3, "unknown_format"),
    (UnsupportedError, 4, "unsupported"),
    (OtherNetworkError, 4, "unsupported"),
    (AmbiguousError, 4, "ambiguous"),
    (FileSystemError, 5, "system"),
    (PostPublishError, 5, "system"),
    (OutputExistsError, 5, "output_exists"),
]


def test_what_is_damaged_has_a_remedy_but_not_what_exceeds_a_limit():
    here = Location("a.pth")
    assert here.damaged("is cut off").hint == "download or copy it again"
    assert here.damaged("is text", hint="gunzip").hint == "gunzip"
    assert pickle.loads(pickle.dumps(here.damaged("is cut off"))).hint == "download or copy it again"
    with pytest.raises(DamagedError) as caught:
        here.check_limit("members", 2, 1)
    assert (caught.value.hint, here.unsupported("is sound").hint) == ("", "")


@pytest.mark.parametrize(("kind", "exit_code", "code"), CLASSES)
def test_exit_codes(kind: type[ChkptChannelsError], exit_code: int, code: str):
    assert issubclass(kind, ChkptChannelsError)
    assert (kind.exit_code, kind.code) == (exit_code, code)


def test_every_class_has_its_row():
    def below(kind: type) -> set[type]:
        return {kind}.union(*map(below, kind.__subclasses__()))

    assert below(ChkptChannelsError) - {ChkptChannelsError} == {kind for kind, _, _ in CLASSES}


def test_a_message_names_file_place_and_byte():
    place = Location("a.pth").at("data/0")
    assert str(place.damaged("is short", at=7)) == "a.pth: data/0: is short, at byte 7"
    assert str(place.unsupported("is odd")) == "a.pth: data/0: is odd"
    assert str(Location("a.pth").system("is gone")) == "a.pth: is gone"


def test_what_a_file_says_cannot_speak_to_the_terminal():
    """Not every reason can know which of its words come from the file."""
    assert str(Location("a.pth").damaged("is a \x1b[31m\u202e\n")) == r"a.pth: is a \x1b[31m\u202e\n"
    assert len(str(Location("a.pth").damaged("x" * 10**6))) < 5000


def test_the_hint_and_the_candidates_stand_apart():
    error = AmbiguousError("many", file="a", candidates=[Candidate("k", (1, 2), "why")], hint="--layer k")
    assert (str(error), error.hint, error.candidates) == ("a: many", "--layer k", (Candidate("k", (1, 2), "why"),))


def test_errors_survive_pickling():
    error = AmbiguousError("many", file="a", where="b", at=3, candidates=[Candidate("k", (1, 2), "why")], hint="try")
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is AmbiguousError
    assert vars(again) == vars(error)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("conv1.weight", "conv1.weight"),
        ("Größe 重み", "Größe 重み"),
        ("a\nb\rc\td", r"a\nb\rc\td"),
        ("\x1b[31mred\x07", r"\x1b[31mred\x07"),
        ("nul\0", r"nul\x00"),
        ("\u202eevil\u2066", r"\u202eevil\u2066"),
        ("lone \udc80", r"lone \udc80"),
        ("a" * 200, "a" * 200),
        ("a" * 10**6, "a" * 199 + "…"),
    ],
    ids=["plain", "letters", "lines", "escapes", "nul", "bidi", "surrogate", "just short enough", "long"],
)
def test_names_from_files_are_harmless(text: str, shown: str):
    assert printable(text) == shown
    assert str(Location("a.pth").at(text).damaged("x")) == f"a.pth: {shown}: x"


def test_a_limit_says_what_was_asked_for():
    """In words, and in numbers that survive pickling."""
    place = Location("a.pth", "conv")
    place.check_limit("axes", 64, 64)
    with pytest.raises(DamagedError, match=r"a\.pth: conv: has 65 axes; 64 are the most, at byte 7") as caught:
        place.check_limit("axes", 65, 64, at=7)
    assert caught.value.excess == ("axes", 64, 65)
    assert pickle.loads(pickle.dumps(caught.value)).excess == caught.value.excess
