"""What others wrote becomes a typed record, or one sentence that names the field."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import msgspec
import pytest

from nmsfree.errors import DataError, InputError
from nmsfree.parsing import (
    Positive,
    Share,
    decode_json,
    decode_toml,
    decode_yaml,
    read_bytes,
    whole_number,
)


@dataclass(frozen=True)
class Image:
    id: int
    width: Positive = 1
    name: str = ""


@dataclass(frozen=True)
class Content:
    images: tuple[Image, ...]
    share: Share = 0.5


def _line(found: pytest.ExceptionInfo[DataError]) -> str:
    text = str(found.value)
    assert "\n" not in text
    assert len(text) < 1000
    return text


def test_json_becomes_a_record_and_unknown_fields_are_ignored() -> None:
    data = b'\xef\xbb\xbf{"images": [{"id": 3, "new": {}}], "share": 1}'
    assert decode_json(data, Content, "a.json", DataError) == Content((Image(3),), 1.0)


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (
            b'{"images": [{"id": 1}, {"id": "2"}]}',
            r"a\.json: images\[1\]\.id: expected int, got str",
        ),
        (b'{"images": [{"id": 3.7}]}', r"images\[0\]\.id: expected int, got float"),
        (b'{"images": [{}]}', r"images\[0\]: lacks the field id"),
        (b'{"images": [{"id": 1, "width": 0}]}', r"images\[0\]\.width: expected int >= 1"),
        (b'{"images": [], "share": 1e400}', "share: Number out of range"),
        (b'{"images": [], "share": NaN}', "not readable JSON"),
        (b'{"images": [{"id": %d}]}' % 2**70, "integer beyond 64 bits"),
        (b'{"images": [{"id": %s}]}' % (b"9" * 5000), "Integer value out of range"),
        (b"[1]", r"a\.json: expected object, got array"),
        (b'{"new": ' * 100_000, "nested too deeply"),
        (b'{"images": [{"id": 1, "name": "\xff"}]}', "not readable JSON"),
        (b'{"images": [{"id": 1, "name": "\\ud800"}]}', "not readable JSON"),
        (b"", "not readable JSON"),
        ("\ud800", "not readable JSON"),
        ('{"images": []}'.encode("utf-16"), "not readable JSON"),
    ],
)
def test_malformed_json_is_a_sentence_with_the_field(data: bytes | str, expected: str) -> None:
    with pytest.raises(DataError, match=expected) as found:
        decode_json(data, Content, "a.json", DataError)
    _line(found)


def test_an_integer_beyond_64_bits_is_refused_where_any_value_may_stand() -> None:
    with pytest.raises(DataError, match="64 bits"):
        decode_json(b'{"a": [{"b": -9223372036854775809}]}', dict, "a.json", DataError)
    edge = {"a": 2**63 - 1, "b": -(2**63), "c": "9" * 40}
    assert decode_json(msgspec.json.encode(edge), dict, "a.json", DataError) == edge


def test_advice_ends_the_message_and_the_place_is_made_fit_to_show() -> None:
    with pytest.raises(DataError, match=r"^a\\x0ab: .*: export it again$"):
        decode_json(b"", Content, "a\nb", DataError, "export it again")
    with pytest.raises(DataError) as found:
        decode_json(b'{"%s": "x"}' % (b"k" * 100_000), dict[str, int], "a" * 5000, DataError)
    _line(found)


def test_yaml_values_are_text_as_written_and_numbers_where_a_field_is_one() -> None:
    data = b"\xef\xbb\xbfnames: {0: no, 1: 010}\nnc: '2'\n"

    @dataclass(frozen=True)
    class Config:
        names: dict[int, str]
        nc: int

    assert decode_yaml(data, Config, "data.yaml", DataError) == Config({0: "no", 1: "010"}, 2)
    shared = b"train: &t [a, b]\nval: *t\n"
    same = {"train": ["a", "b"], "val": ["a", "b"]}
    assert decode_yaml(shared, dict[str, list[str]], "data.yaml", DataError) == same


def _laughs(levels: int) -> bytes:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    for n in range(1, levels):
        lines.append(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]")
    return "\n".join(lines).encode()


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (_laughs(9), "aliases"),
        (b"a: &a [*a]", "recursive"),
        (b"a: [" * 50_000, "nested too deeply"),
        (b"a: b: c", "not readable YAML"),
        (b"a: \xff", "not readable YAML"),
        (b'a: "\\UFFFFFFFF"', "not readable YAML"),
        (b"%YAML " + b"9" * 5000 + b".1\n---\na: b", "not readable YAML"),
        (b"? [a]\n: b", "not readable YAML"),
        (b"a: " + b"b" * 600_000, "has 0.6 MB, expected at most 0.5"),
        (b"", "expected object, got null"),
        (b"a: " + b"9" * 5000, "a.*: expected int, got str|out of range"),
    ],
)
def test_malformed_yaml_is_a_sentence(data: bytes, expected: str) -> None:
    type_ = dict[str, int] if data.startswith(b"a: 9") else dict[str, Any]
    with pytest.raises(DataError, match=expected) as found:
        decode_yaml(data, type_, "data.yaml", DataError)
    _line(found)


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"a = nan", "finite"),
        (b"a = [{b = -inf}]", "finite"),
        (b"a = 99999999999999999999", "64 bits"),
        (b"a = " + b"9" * 5000, "not readable TOML"),
        (b"a = " + b"[" * 50_000, "nested too deeply"),
        (b"a = '\xff'", "not readable TOML"),
        (b"a", "not readable TOML"),
        (b"n = 'x'", "n: expected int, got str"),
    ],
)
def test_malformed_toml_is_a_sentence(data: bytes, expected: str) -> None:
    @dataclass(frozen=True)
    class Table:
        a: Any = None
        n: Annotated[int, msgspec.Meta(ge=0)] = 0

    with pytest.raises(DataError, match=expected) as found:
        decode_toml(data, Table, "weights.toml", DataError)
    _line(found)


def test_toml_becomes_a_record() -> None:
    assert decode_toml(b"[[images]]\nid = 7", Content, "a.toml", DataError).images == (Image(7),)


def test_whole_numbers_are_those_of_ascii() -> None:
    assert (whole_number("0"), whole_number("007"), whole_number("9" * 9)) == (0, 7, 999_999_999)
    for text in ("", "-1", "+1", "1_0", " 1", "²", "٣", "0x1", "1.0", "9" * 5000):
        assert whole_number(text) is None


def test_only_regular_files_of_bounded_size_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "a"
    file.write_bytes(b"12345")
    (tmp_path / "link").symlink_to(file)
    assert read_bytes(tmp_path / "link", limit=5) == b"12345"
    for name, expected in (
        ("none", "no such file"),
        ("", "is a folder"),
        ("a/b", "Not a directory"),
        ("a\0b", "cannot be read"),
        ("a" * 5000, "cannot be read"),
    ):
        with pytest.raises(DataError, match=expected) as found:
            read_bytes(tmp_path / name, error=DataError)
        _line(found)
    with pytest.raises(InputError, match="expected at most"):
        read_bytes(file, limit=4)
    monkeypatch.setenv("NMSFREE_MAX_FILE_MB", "1")
    assert read_bytes(file, limit=4) == b"12345"
    monkeypatch.setenv("NMSFREE_MAX_FILE_MB", "2.5")
    with pytest.raises(InputError, match=r"is '2\.5', expected a whole number"):
        read_bytes(file)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="named pipes are a thing of Unix")
def test_a_pipe_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InputError, match="pipe or device"):
        read_bytes(tmp_path / "pipe")
