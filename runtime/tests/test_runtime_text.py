"""Text from outside is shown on one line and cannot steer a terminal."""

import os

import pytest

from nmsfree.text import shown


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("straße 猫 🙂", "straße 猫 🙂"),
        ("a\x1b[31mb\nc", "a\\x1b[31mb\\x0ac"),
        (os.fsdecode(b"caf\xe9"), "caf\\xe9" if os.name != "nt" else os.fsdecode(b"caf\xe9")),
        ("\ud800", "\\ud800"),
        ("\u202egnp.exe", "\\u202egnp.exe"),
        (3, "3"),
    ],
)
def test_what_cannot_be_printed_is_escaped(text: object, expected: str) -> None:
    assert shown(text) == expected


def test_long_text_is_cut_in_its_middle() -> None:
    cut = shown("a" * 5000 + "b", limit=100)
    assert len(cut) <= 100
    assert cut.endswith("b")
