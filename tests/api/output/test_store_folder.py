"""What a folder in a bucket adds up to; tests/remote/test_prefixes.py has the rest, against a server."""

from __future__ import annotations

import pytest

from chkpt_channels.api.output.naming import beside_prefix
from chkpt_channels.api.output.store_folder import _together
from chkpt_channels.core.errors import UsageError
from chkpt_channels.storage.stores.parts import Transfer


def test_transfers_add_up():
    one = Transfer("copied", 1, 2, 3, 4, "store", 5)
    assert _together(one, one) == Transfer("copied", 2, 4, 6, 8, "store", 10)
    assert _together(one, one._replace(how="streamed", overwrite_guard="looked"))[::5] == ("streamed", "looked")


@pytest.mark.parametrize("url", ["s3://zoo/a/resnet/"])
def test_the_usual_name_is_beside_the_source(url: str):
    assert beside_prefix(url, "gray") == "s3://zoo/a/resnet_gray/"


def test_a_whole_bucket_has_no_place_beside_it():
    with pytest.raises(UsageError, match="whole bucket"):
        beside_prefix("s3://zoo/", "gray")
