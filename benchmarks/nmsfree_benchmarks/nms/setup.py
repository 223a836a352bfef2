"""`nmsfree bench nms`: scenes, files and everything that takes turns."""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from nmsfree.datasets.digits.scenes import make_scene
from nmsfree_benchmarks.common import inputs
from nmsfree_benchmarks.common.on_device import CPU
from nmsfree_benchmarks.common.run_options import Progress
from nmsfree_benchmarks.crowd.models import (
    LOWEST_FLOOR,
    Job,
    batch_on,
    export_all,
    open_all,
    with_floor,
)
from nmsfree_benchmarks.crowd.scenes import make_crowd
from nmsfree_benchmarks.crowd.timed import Timed
from nmsfree_benchmarks.machine.measure import Image, Stopwatch
from nmsfree_benchmarks.nms.alone import HeadParts, find_candidates, timed_nms
from nmsfree_benchmarks.nms.calls import Contest
from nmsfree_benchmarks.nms.graphs import open_session, without_nms
from nmsfree_benchmarks.nms.implementations import Setting
from nmsfree_benchmarks.nms.options import Options
from nmsfree_export.export import ExportOptions

LARGE = "fcos_rt_r18_3x"


def make_scenes(options: Options, progress: Progress) -> dict[int | None, list[Image]]:
    """Draw the scenes with each number of objects."""
    chosen = options.chosen
    scenes: dict[int | None, list[Image]] = {}
    total = len(chosen.objects) * chosen.scenes
    for objects in chosen.objects:
        scenes[objects] = []
        for index in range(chosen.scenes):
            scenes[objects].append(make_crowd(objects, index, options.tiles).image)
            progress("scenes", sum(map(len, scenes.values())), total)
    return scenes


def open_contest(
    files: Sequence[Path], jobs: Sequence[Job], options: Options, watch: Stopwatch, stack: ExitStack
) -> Contest:
    """Open the o2m file at each floor, and the NMS-free ones if there are any.

    Args:
        files: with NMS, NMS-free, NMS-free without its filter; the last ones may be missing.
    """
    floors = options.chosen.floors
    wanted = [*(with_floor(files[0], floor) for floor in floors), *files[1:]]
    opened = open_all(wanted, jobs[0].training, options, watch, stack)
    nms_free, unfiltered = [*opened[len(floors) :], None, None][:2]
    in_parts = options.device == CPU
    return Contest(opened[: len(floors)], nms_free, unfiltered, watch, options.threads, in_parts)


def make_alone(
    contest: Contest,
    scenes: Mapping[int | None, Sequence[Image]],
    names: Sequence[str],
    options: Options,
) -> list[Timed]:
    """Make every implementation at every point, and the NMS-free head beside them."""
    assert contest.nms_free is not None
    spec, count = contest.with_nms[0].detector.spec, options.chosen.scenes
    cut = open_session(without_nms(contest.with_nms[0].file), options.threads)
    head = HeadParts(contest.nms_free.file, options.threads)
    found = {objects: find_candidates(cut, own) for objects, own in scenes.items()}
    maps = {objects: head.maps(own) for objects, own in scenes.items()}
    made: dict[str, Timed] = {}
    for point in options.chosen.points:
        own = found[point.objects]
        setting = Setting(spec, own.scores.shape[1], point.floor, point.iou, options.threads)
        several = timed_nms(point, names, own, setting, count)
        several.append(head.timed(point, maps[point.objects], count, contest.nms_free.floor))
        made |= {timed.name: timed for timed in several}
    return list(made.values())


def make_large(
    options: Options, watch: Stopwatch, stack: ExitStack, progress: Progress
) -> list[Timed]:
    """Make the published architecture at its size, with stand-in weights where there are none."""
    from nmsfree_benchmarks.common.sources import published_sources

    sources = published_sources(
        options.weights, options.work, lambda done, total: progress("weights", done, total)
    )
    source = next(source for source in sources if source.name == LARGE)
    export = ExportOptions(batch=batch_on(options.device), score_floor=LOWEST_FLOOR)
    job = Job(source.name, source.file, export, source.training)
    files = export_all([job], options.work, lambda what, d, t: progress(f"{what} large", d, t))
    contest = replace(open_contest(files, [job], options, watch, stack), measured="large")
    digits = [make_scene("val", index).image for index in range(32)]
    return contest.timed({None: inputs.full_hd(digits, options.chosen.scenes)})
