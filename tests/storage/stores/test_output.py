"""The entity tag that an object of parts has; tests/remote/test_writing.py has the rest, against a server."""

from __future__ import annotations

from chkpt_channels.storage.stores.output import tag_of
from chkpt_channels.storage.stores.upload import Sent

ONE, TWO = '"900150983cd24fb0d6963f7d28e17f72"', '"4ed9407630eb1000c0f6b63842defa7d"'
"""The MD5 of abc and of def."""


def test_the_tag_of_parts():
    # printf of both MD5 as bytes, | md5sum
    assert tag_of([Sent(1, 3, ONE), Sent(2, 3, TWO)]) == '"4c8e93283780e078db9e0c6b9b3f8043-2"'


def test_parts_whose_tags_are_no_md5_tell_nothing():
    assert tag_of([Sent(1, 3, ONE), Sent(2, 3, '"encrypted"')]) == ""
