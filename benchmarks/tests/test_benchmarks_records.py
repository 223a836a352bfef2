"""Result files: the round trip, what is refused and in which words, and the verdict."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from benchmarks_sample import (
    ENVIRONMENT,
    MS,
    record_of,
    results_of,
    subject_of,
    times_of,
)

from nmsfree.errors import InputError
from nmsfree_benchmarks.harness import records as results_file
from nmsfree_benchmarks.harness.records import Ratio, Record, Results

OLD = Path(__file__).parent / "format_1.json"


def content_of(results: Results) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(results.to_text())
    return content


def test_a_file_is_read_as_it_was_written(tmp_path: Path) -> None:
    """Also a record without a model."""
    made = results_of()
    results = replace(made, records=(*made.records, record_of("copy", 1, subject=None)))
    results.write(tmp_path / "a.json")
    again = results_file.read(tmp_path / "a.json")
    assert again.to_json() == results.to_json()
    for one, other in zip(again.records, results.records, strict=True):
        np.testing.assert_array_equal(one.times, other.times)
        assert (one.parts, one.subject) == (other.parts, other.subject)
    assert again.ratios[0].of == "nms"
    again.write(tmp_path / "b.json")
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()


def test_numbers_of_a_list_share_a_line_and_text_that_looks_like_them_is_text() -> None:
    made = results_of(settings={"sizes": [1, 2.5, -3]}, command="x [ 1, 2 ]")
    assert '"sizes": [1, 2.5, -3]' in made.to_text()
    assert content_of(made)["command"] == "x [ 1, 2 ]"


def write(path: Path, content: Any) -> Path:
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def refusal(path: Path) -> str:
    with pytest.raises(InputError) as caught:
        results_file.read(path)
    return str(caught.value).removeprefix(f"{path}: ")


def test_what_is_no_result_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    assert refusal(path) == "no such file"
    odd = (b"{", b'{"seconds": NaN}', b"\xff\xfe", b"[" * 10**5, b"9" * 5000, b"[]", b"3", b"{}")
    for content in odd:
        path.write_bytes(content)
        assert refusal(path).endswith(": measure again with `nmsfree bench`")


def test_another_format_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a.json", content_of(results_of()) | {"format_version": "3.1"})
    for file, version in ((OLD, "1.0"), (path, "3.1")):
        words = f"has format {version}, this version reads 2.x: update nmsfree, or "
        assert refusal(file) == words + results_file.AGAIN
    newer = write(tmp_path / "b.json", content_of(results_of()) | {"format_version": "2.7"})
    assert results_file.read(newer).kind == "nms"


def test_a_missing_key_or_bad_value_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    content = content_of(results_of())
    del content["records"][1]["raw_ns"]
    assert refusal(write(path, content)) == (
        "records/1: 'raw_ns' is a required property, expected a file of `nmsfree bench`"
    )
    content = content_of(results_of())
    content["records"][0]["subject"]["transfers"] = "some"
    assert refusal(write(path, content)).startswith("records/0/subject: ")
    content = content_of(results_of()) | {"seconds": -1}
    assert refusal(write(path, content)) == (
        "seconds: -1 is less than the minimum of 0, expected a file of `nmsfree bench`"
    )
    content = content_of(results_of()) | {"kind": "../other"}
    assert refusal(write(path, content)).startswith("kind: '../other' does not match ")


def test_times_that_do_not_fit_each_other_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    content = content_of(results_of())
    content["records"][1]["raw_ns"]["rest"].pop()
    assert refusal(write(path, content)) == (
        "records/1/raw_ns: [39, 40] times, expected 40 (timed_calls, at least 1) of each part"
    )
    content = content_of(results_of())
    content["records"][0] |= {"raw_ns": {"network": [], "rest": []}, "timed_calls": 0}
    assert refusal(write(path, content)) == (
        "records/0/raw_ns: [0] times, expected 0 (timed_calls, at least 1) of each part"
    )


def test_a_file_that_could_not_be_read_again_is_not_written(tmp_path: Path) -> None:
    from jsonschema import ValidationError

    with pytest.raises(ValidationError):
        results_of(kind="Other").write(tmp_path / "a.json")
    assert not list(tmp_path.iterdir())


def rows(*times: Any) -> tuple[Record, ...]:
    return tuple(record_of(f"row {i}", 1, times=t) for i, t in enumerate(times))


def test_nothing_is_said_against_a_quiet_run() -> None:
    quiet = results_of()
    assert quiet.doubts() == () and quiet.verdict_text() == "idle enough to compare"
    assert content_of(quiet)["verdict"] == {"ranks": True, "reasons": []}
    assert not replace(quiet, other_load=None).doubts()
    assert not results_of(records=(), ratios=()).doubts()


def test_each_doubt_is_said() -> None:
    calm = times_of(10)
    wild = times_of(10, spread=0.5)
    slowing = (np.linspace(1, 1.3, 40) * 10 * MS).astype(np.int64)[:, None]
    few = replace(results_of().records[0], times=np.full((4, 1), 10**6))
    cases = {
        "other work kept 0.9 cores busy (at most 0.3): stop it and measure again": results_of(
            other_load=0.9
        ),
        "2 of 3 rows have an interquartile range above 10% of their median: close other "
        "programs, or measure longer": results_of(records=rows(wild, wild, calm), ratios=()),
        "the GPU throttled itself (power cap): cool it, or lower its power limit": results_of(
            environment=ENVIRONMENT | {"gpu_throttled": ["power cap"]}
        ),
        "1 of 1 rows have under 10 rounds: measure longer": results_of(records=(few,), ratios=()),
    }
    for reason, results in cases.items():
        assert results.doubts() == (reason,)
        assert results.verdict_text() == (
            f"a busy machine, what its intervals do not tell is open: {reason}"
        )
    drift = results_of(records=(record_of("a", 1, times=slowing, parts=("total",)),), ratios=())
    assert drift.doubts()[-1] == (
        "1 of 1 rows became faster or slower by more than 10% during the run: let the machine "
        "reach a steady temperature"
    )
    assert not results_of(records=rows(wild, calm), ratios=()).doubts()  # half may be doubtful


def test_pairs_are_told_apart_one_by_one() -> None:
    """By medians on any machine; else, where it was shared, by fastest calls and processor time."""
    draw = np.random.default_rng(0)
    noise = np.where(
        draw.random((2, 60)) < 0.5, 1 + 0.01 * draw.random((2, 60)), 1 + 3 * draw.random((2, 60))
    )
    quick, slow = (
        record_of(
            name,
            ms,
            times=(ms * MS * noise[i, :, None]).astype(np.int64),
            parts=("total",),
            figures={"processor_ns": (ms * MS * (1 + 0.01 * draw.random(60))).astype(int).tolist()},
        )
        for i, (name, ms) in enumerate((("quick", 10), ("slow", 10.3)))
    )
    ratio = Ratio.between(slow, quick, "slow by quick")
    assert not ratio.interval.decides
    shared = results_of(records=(quick, slow), ratios=(ratio,), other_load=1.0, settings={})
    side, how = shared.told_apart(ratio)
    assert side == 1 and how.startswith(", by its fastest calls (1.03 × (")
    assert replace(shared, other_load=0.0).told_apart(ratio) == (0, ", not told apart")
    (decided,) = results_of().ratios
    assert results_of(other_load=1.0).told_apart(decided) == (1, "")


def test_too_few_calls_leave_their_places_empty() -> None:
    few = [replace(r, times=r.times[:8]) for r in results_of().records]
    results = results_of(records=few, ratios=(Ratio.between(few[0], few[1], "a by b", 2),))
    content = json.loads(replace(results, settings={"burst": 2}).to_text())
    assert {(r["p90_ms"], r["p99_ms"]) for r in content["records"]} == {(None, None)}
    assert (content["ratios"][0]["low"], content["ratios"][0]["decided"]) == (None, False)


def test_a_cuda_graph_that_only_one_of_two_has_is_told() -> None:
    free, nms = subject_of(cuda_graph=True), subject_of("fcos_rt_nano", cuda_graph=False)
    assert free.graph_beside(free) == subject_of().graph_beside(subject_of()) == ""
    said = " (only fcos_e2e_nano replays a CUDA graph)"
    assert free.graph_beside(nms) == nms.graph_beside(free) == said
