"""The machine below the opcodes: its reads stay within the bytes at hand, its stack above the last mark."""

from __future__ import annotations

import pytest

from chkpt_channels import DamagedError, UnsupportedError
from chkpt_channels.containers.pickle.machine import LONGEST_DECIMAL_DIGITS, Machine, OutOfData
from chkpt_channels.containers.pickle.nodes import Kind, PickleNode
from chkpt_channels.core.errors import Location


def machine(data: bytes = b"") -> Machine:
    return Machine(data, Location("a.pth"), 0)


def test_reads_go_on_where_the_last_one_ended():
    m = machine(b"\x01\x02\x03line\nrest")
    assert (m.byte(), m.number(2, 0), m.line(0), m.take(4, 0)) == (1, 0x0302, b"line", b"rest")
    for read in (m.byte, lambda: m.number(1, 0), lambda: m.line(0), lambda: m.take(1, 0)):
        with pytest.raises(OutOfData):
            read()
    assert m.at == 12


def test_errors_count_from_the_files_first_byte():
    with pytest.raises(DamagedError, match="length is negative") as caught:
        machine(b"abc").take(-1, 2)
    assert caught.value.at == 2


def test_nothing_is_popped_below_a_mark():
    m = machine()
    m.push(Kind.INT, 0, 1)
    m.marks.append((1, 5))
    for read in (m.pop, m.top):
        with pytest.raises(IndexError):
            read()
    m.push(Kind.INT, 0, 2)
    assert [node.value for node in m.popped_to_mark()[1]] == [2]
    assert m.pop().value == 1


def test_a_node_keeps_its_first_index_and_knows_its_repetitions():
    m = machine()
    m.push(Kind.TEXT, 3, "a")
    node = m.stack[0]
    for index in (4, 4, 7):
        m.put(index, 9)
    m.get(7, 11)
    assert node.put == (4, 9, 0)
    assert m.memoized == [node]
    assert node.gets == [m.stack[1]]
    m.put(8, 12)  # what is memoized is the node, not its repetition
    assert m.memo[8] is node


@pytest.mark.parametrize(("raw", "value"), [(b"12", 12), (b"-3L", -3), (b"007", 7)])
def test_decimals(raw: bytes, value: int):
    assert machine().decimal(raw, 0) == value


def test_the_longest_decimal_is_read():
    assert machine().decimal(b"9" * LONGEST_DECIMAL_DIGITS, 0) == 10**LONGEST_DECIMAL_DIGITS - 1


@pytest.mark.parametrize("raw", [b"", b"-", b"--1", b"1_0", b" 1", b"9" * (LONGEST_DECIMAL_DIGITS + 1)])
def test_what_is_no_decimal(raw: bytes):
    with pytest.raises(DamagedError, match="a number is not written in decimal digits"):
        machine().decimal(raw, 0)


def test_what_grows_after_a_call_has_read_it_is_seen():
    m = machine()
    m.push(Kind.LIST, 0, [])
    m.put(0, 0)
    m.read_by_call(PickleNode(Kind.TUPLE, 0, 0, [m.stack[-1]]))
    m.check_read()
    m.push(Kind.INT, 0, 1)
    m.extend(m.memo[0], [(m.pop(),)])
    with pytest.raises(UnsupportedError, match="gets more after a call has read it"):
        m.check_read()


def test_torchs_names_are_divided_at_their_last_dot():
    m = machine()
    for module, name in (("torch", "_utils._rebuild_tensor_v2"), ("torch._utils", "_rebuild_tensor_v2"), ("a", "B.C")):
        m.name(module, name, 0)
    assert [*m.globals] == [("torch._utils", "_rebuild_tensor_v2"), ("a", "B.C")]
