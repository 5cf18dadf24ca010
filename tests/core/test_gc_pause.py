"""A pause of the collector ends as it found it."""

from __future__ import annotations

import gc

import pytest

from chkpt_channels.core.gc_pause import collect_again, gc_paused, skip_last_collection, stop_collecting


@pytest.fixture(params=[True, False], ids=["collecting", "not collecting"])
def before(request: pytest.FixtureRequest) -> object:
    was = gc.isenabled()
    (gc.enable if request.param else gc.disable)()
    yield request.param
    (gc.enable if was else gc.disable)()


def test_inside_nothing_is_collected_and_afterwards_it_is_as_before(before: bool):
    with gc_paused():
        assert not gc.isenabled()
        with gc_paused():
            pass
        assert not gc.isenabled()
    assert gc.isenabled() is before


def test_an_error_ends_the_pause_too(before: bool):
    with pytest.raises(ZeroDivisionError), gc_paused():
        raise ZeroDivisionError
    assert gc.isenabled() is before


def test_a_command_stops_and_a_batch_collects_again():
    try:
        stop_collecting()
        assert not gc.isenabled()
        collect_again()
        assert gc.isenabled()
    finally:
        gc.enable()


def test_what_is_there_at_the_end_is_collected_no_more():
    before = gc.get_freeze_count()
    try:
        skip_last_collection()
        assert gc.get_freeze_count() > before
    finally:
        gc.unfreeze()
