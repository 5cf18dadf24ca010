"""Named tuples as typing makes them, and patterns that are compiled when they are first used."""

from __future__ import annotations

import copy
import pickle
import re
import typing

import pytest

from chkpt_channels.core.records import NamedTuple, pattern


class Size(NamedTuple):
    """A size."""

    width: int
    height: int = 1
    names: tuple[str, ...] = ()

    @property
    def area(self) -> int:
        """Of the whole."""
        return self.width * self.height

    @classmethod
    def square(cls, side: int) -> Size:
        """As wide as high."""
        return cls(side, side)

    def scaled(self, by: int) -> Size:
        """Of both."""
        return self._replace(width=by * self.width, height=by * self.height)


class Typed(typing.NamedTuple):
    """A size."""

    width: int
    height: int = 1
    names: tuple[str, ...] = ()


class Named(Size):
    """With a method more."""

    __slots__ = ()

    def __str__(self) -> str:
        return f"{self.width}x{self.height}"


class TestNamedTuple:
    def test_it_is_what_typing_makes(self):
        for name in ("_fields", "_field_defaults", "__doc__", "__module__", "__match_args__"):
            assert getattr(Size, name) == getattr(Typed, name)
        assert (Size.__bases__, Size.__qualname__, type(Size)) == ((tuple,), "Size", type)
        assert repr(Size(2)) == "Size(width=2, height=1, names=())"
        assert Size(2, names=("a",)) == Typed(2, names=("a",)) == (2, 1, ("a",))
        assert not hasattr(Size(1), "__dict__")

    def test_it_has_its_methods(self):
        assert Size.square(3).scaled(2).area == 36
        assert Size(1)._asdict() == {"width": 1, "height": 1, "names": ()}
        assert str(Named(2, 3)) == "2x3"
        assert isinstance(Named.square(2), Named)

    def test_it_is_immutable(self):
        with pytest.raises(AttributeError):
            Size(1).width = 2  # type: ignore[misc]
        with pytest.raises(AttributeError):
            Size(1).other = 2  # type: ignore[attr-defined]

    @pytest.mark.parametrize("words", [(), (1, 2, (), 4)])
    def test_wrong_arguments_are_refused(self, words: tuple[typing.Any, ...]):
        with pytest.raises(TypeError):
            Size(*words)

    def test_it_crosses_processes(self):
        assert pickle.loads(pickle.dumps(Size(2))) == copy.deepcopy(Size(2)) == Size(2)
        assert type(pickle.loads(pickle.dumps(Size(2)))) is Size


class TestPattern:
    def test_it_is_compiled_when_it_is_used(self, monkeypatch: pytest.MonkeyPatch):
        compiled = []
        compile = re.compile
        monkeypatch.setattr(re, "compile", lambda source, flags: compiled.append(source) or compile(source, flags))
        word = pattern(r"(\w+)@(\w+)", re.ASCII)
        assert compiled == []
        assert word.fullmatch("ab@cd").groups() == ("ab", "cd")
        assert word.sub("x", "a@b c") == "x c"
        assert word.match("é@a") is None
        assert compiled == [r"(\w+)@(\w+)"]

    @pytest.mark.parametrize("name", ["match", "fullmatch", "search", "finditer", "findall", "split"])
    def test_every_way(self, name: str):
        mine, its = getattr(pattern(rb"a+"), name)(b"aa b aaa"), getattr(re.compile(rb"a+"), name)(b"aa b aaa")
        if name == "finditer":
            mine, its = [m.span() for m in mine], [m.span() for m in its]
        assert getattr(mine, "span", lambda: mine)() == getattr(its, "span", lambda: its)()

    def test_what_a_pattern_else_has(self):
        assert pattern("(?P<a>b)").groupindex == {"a": 1}
        assert pattern("x").pattern == "x"
        with pytest.raises(AttributeError):
            pattern("x").nothing()  # type: ignore[attr-defined]

    def test_a_wrong_pattern_is_an_error_at_its_use(self):
        with pytest.raises(re.error):
            pattern("(").match("")
