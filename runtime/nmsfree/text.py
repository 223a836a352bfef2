"""Text from outside (names, paths, messages) made fit to show."""

import re
import unicodedata

_HIDDEN = {"Cc", "Cs", "Zl", "Zp"}  # controls, halves of surrogate pairs, line separators
_MARKDOWN = re.compile(r"([\\`*\[\]|<>#])")
_DIRECTION = set("\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\ufeff")


def shown(text: object, limit: int = 300) -> str:
    """Return `str(text)` as one line that any terminal, file, font or library takes.

    What is not printable (escape sequences, line breaks, bytes of a name that is not UTF-8) is
    written as an escape; what is longer than `limit` characters is cut in its middle.
    """
    full = str(text)
    if len(full) <= limit and full.isprintable():
        return full
    if len(full) > limit:
        half = (limit - 3) // 2
        full = f"{full[:half]} … {full[-half:]}"
    return "".join(_escape(character) for character in full)


def in_markdown(text: object, limit: int = 300) -> str:
    """Return `shown(text)` so that Markdown and HTML take it for nothing but text."""
    return _MARKDOWN.sub(r"\\\1", shown(text, limit))


def _escape(character: str) -> str:
    if unicodedata.category(character) not in _HIDDEN and character not in _DIRECTION:
        return character
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:  # a byte that os.fsdecode could not read
        return f"\\x{code - 0xDC00:02x}"
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"
