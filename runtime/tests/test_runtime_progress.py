"""The progress bar of every command."""

import pytest

from nmsfree.cli.progress import progress_bar


def test_nothing_is_drawn_when_there_is_nothing_to_count(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(ValueError, match="wrong option"), progress_bar():
        raise ValueError("wrong option")
    assert capsys.readouterr() == ("", "")


def test_what_is_counted_is_shown_on_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    with progress_bar() as bar:
        bar.update(bar.add_task("images", total=20), completed=20)
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "images" in shown.err and "20/20" in shown.err
