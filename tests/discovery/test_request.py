"""What the search is asked: nothing is presumed by default."""

from __future__ import annotations

from chkpt_channels.discovery.request import ConfigHints, SearchRequest


def test_an_empty_request_presumes_nothing():
    request = SearchRequest()
    assert (request.layers, request.layout, request.from_channels, request.inputs) == ((), None, None, ())
    assert request.hints == ConfigHints() == ((), 0)
