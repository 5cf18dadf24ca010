"""What the search is asked: nothing is presumed by default."""

from __future__ import annotations

from chkpt_channels.discovery.request import ConfigHints, Like, SearchRequest


def test_an_empty_request_presumes_nothing():
    request = SearchRequest()
    assert (request.layers, request.layout, request.from_channels, request.inputs) == ((), None, None, ())
    assert request.hints == ConfigHints() == ((), 0, ())
    assert request.like is None


def test_like_is_read_before_it_is_compared():
    like = Like("like.pth", ())
    assert (like.graph_channels, like.target, like.channels) == (0, None, None)
