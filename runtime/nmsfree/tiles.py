"""Large pictures in tiles: where the tiles lie, and one answer from what each of them shows.

Neighbouring tiles share a strip. A centre in it belongs to the tile whose core it lies in; cores
meet in the middle of the strip. Two tiles place a centre slightly differently, so the boxes of both
are matched before that: in the order of their agreement, and at most one of every tile for an
object, so that close objects stay apart. What is cut by the inner border of a tile is compared
with the part of the other box that this tile can show. Last comes the whole picture, reduced to
the model's input: for objects that no tile shows whole.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise, product
from typing import Annotated, NamedTuple

import numpy as np
from numpy.typing import NDArray

from nmsfree.detections import Detections
from nmsfree.errors import InputError
from nmsfree.options import Option, check_bounds

SHARED = 7 / 16  # of a tile's width, with its neighbour: parts of an object look like others
EDGE = 1 / 64  # of a tile's width: a box that ends so near to the border may go on beyond it
OFF = 0.1  # of its side, by which an end of a box may be off
SAME = 0.3  # IoU from which two boxes of a class show one object
SAME_OBJECT = 0.5  # the same whatever the class, where one is cut and may be taken for another
INSIDE = 0.8  # share of a cut box within another of its class

Boxes = NDArray[np.float64]  # [..., 4], xyxy in pixels of the picture


@dataclass(frozen=True)
class Tiling:
    """How large pictures are cut.

    Raises:
        InputError: out of bounds; the overlap exceeds half of a tile, or stands alone.
    """

    tile: Annotated[
        int | None,
        Option(
            "Look at large pictures in tiles of this width in pixels; their height follows from "
            "the model's input.",
            panel="Large pictures",
            min=32,
            max=1 << 20,
        ),
    ] = None
    overlap: Annotated[
        int | None,
        Option(
            "Pixels that neighbouring tiles share, 7/16 of their width if not given: what is "
            "smaller is whole in one of them.",
            panel="Large pictures",
            min=8,
        ),
    ] = None

    def __post_init__(self) -> None:
        check_bounds(self)
        if not all(isinstance(n, int | None) for n in (self.tile, self.overlap)):
            raise InputError(
                f"tile is {self.tile!r}, overlap {self.overlap!r}, expected whole pixels"
            )
        if self.overlap is not None and (self.tile is None or 2 * self.overlap > self.tile):
            most = "a tile with it" if self.tile is None else f"at most half a tile, {self.tile}"
            raise InputError(f"overlap is {self.overlap} pixels, expected {most}")

    def lay(self, height: int, width: int, aspect: float) -> "Tiles":
        """Lay tiles over a picture; `aspect` is their height / width."""
        assert self.tile is not None
        overlap = round(SHARED * self.tile) if self.overlap is None else self.overlap
        rows, row_cores = _along(height, round(self.tile * aspect), overlap)
        columns, column_cores = _along(width, self.tile, overlap)
        views = [[x1, y1, x2, y2] for (y1, y2), (x1, x2) in product(rows, columns)]
        cores = [[x1, y1, x2, y2] for (y1, y2), (x1, x2) in product(row_cores, column_cores)]
        views.append([0, 0, width, height])
        cores.append([math.inf] * 2 + [-math.inf] * 2)
        return Tiles(np.array(views), np.array(cores), self.tile * EDGE)


WHOLE = Tiling()  # nothing is cut


def _along(
    length: int, tile: int, overlap: int
) -> tuple[list[tuple[int, int]], list[tuple[float, float]]]:
    """Tiles along one side of a picture: the spans they show, and those of centres they own."""
    overlap = min(overlap, tile // 2)
    count = max(1, math.ceil((length - overlap) / (tile - overlap)))
    starts = [round(i * (length - tile) / max(count - 1, 1)) for i in range(count)]
    spans = [(max(start, 0), min(start + tile, length)) for start in starts]
    seams = [(end + start) / 2 for (_, end), (start, _) in pairwise(spans)]
    return spans, [*pairwise([-math.inf, *seams, math.inf])]


@dataclass(frozen=True, eq=False)
class Tiles:
    """Where tiles lie, in pixels of the picture; the last one is the whole picture."""

    views: NDArray[np.int64]  # [n, 4], xyxy
    cores: Boxes  # [n, 4], whose centres a tile owns; the last one's is empty
    edge: float  # pixels from an inner border within which a box may be cut

    def inner(self) -> Boxes:
        """What a box lies in if a tile shows it whole, [n, 4]; endless at the picture's sides."""
        views = self.views.astype(np.float64)
        whole = views[-1]
        low = np.where(views[:, :2] > whole[:2], views[:, :2] + self.edge, -math.inf)
        high = np.where(views[:, 2:] < whole[2:], views[:, 2:] - self.edge, math.inf)
        return np.hstack([low, high])

    def join(self, found: Sequence[Detections]) -> Detections:
        """Make one answer of those of all tiles, whose boxes are in pixels of the tile.

        An object is told by the tile that owns it among those that show it whole, else by the
        whole picture, else its parts are put together, with the score of the best. Of the last two
        is left out what a tile shows whole, which does not see it.
        """
        rows = _Rows.of(found, self)
        told = [rows.tell(group) for group in _groups(rows)]
        boxes = np.array([each.box for each in told], np.float64).reshape(-1, 4)
        scores = np.array([each.score for each in told], np.float32)
        labels = np.array([each.label for each in told], np.int32)
        from_tile = np.array([each.from_tile for each in told], np.bool_)
        kept = np.array([each.owned for each in told], np.bool_)
        inner = self.inner()[:-1]
        slack = OFF * (boxes[:, 2:] - boxes[:, :2])
        grown = np.hstack([boxes[:, :2] - slack, boxes[:, 2:] + slack])
        for i in np.flatnonzero(kept & ~from_tile).tolist():
            kept[i] = not _inside(grown[i], inner).any()
        order = np.flatnonzero(kept)
        order = order[np.argsort(-scores[order], kind="stable")]
        corners = boxes[order].astype(np.float32)
        return Detections(corners, scores[order], labels[order], found[0].names)


@dataclass(frozen=True, eq=False)
class _Rows:
    """The rows of all tiles, tile by tile."""

    boxes: Boxes
    scores: NDArray[np.float32]
    labels: NDArray[np.int32]
    tile: NDArray[np.int64]  # which one saw it
    cut: NDArray[np.bool_]  # ends at an inner border of its tile
    owned: NDArray[np.bool_]  # its centre lies in the tile's core
    coarse: NDArray[np.bool_]  # seen in the whole picture
    views: NDArray[np.int64]

    @classmethod
    def of(cls, found: Sequence[Detections], tiles: Tiles) -> "_Rows":
        places = [
            each.xyxy + view[[0, 1, 0, 1]] for each, view in zip(found, tiles.views, strict=True)
        ]
        boxes = np.concatenate(places, dtype=np.float64)
        tile = np.repeat(np.arange(len(found)), [len(each) for each in found])
        centres = np.tile((boxes[:, :2] + boxes[:, 2:]) / 2, 2)
        return cls(
            boxes,
            np.concatenate([each.confidence for each in found]),
            np.concatenate([each.class_id for each in found]),
            tile,
            ~_inside(boxes, tiles.inner()[tile]),
            _inside(centres, tiles.cores[tile]),
            tile == len(found) - 1,
            tiles.views,
        )

    def tell(self, group: list[int]) -> "_Told":
        """What the rows that show one object say together, the best row first."""
        whole = [i for i in group if not self.cut[i] and not self.coarse[i]]
        coarse = [i for i in group if self.coarse[i]]
        if whole or coarse:
            i = max(whole or coarse, key=lambda row: (self.owned[row], self.scores[row]))
            box = self.boxes[i]
        else:
            i = group[0]
            box = np.hstack([self.boxes[group, :2].min(axis=0), self.boxes[group, 2:].max(axis=0)])
        owned = len(group) > 1 or bool(self.owned[i] or self.coarse[i])
        return _Told(box, float(self.scores[i]), int(self.labels[i]), bool(whole), owned)


class _Told(NamedTuple):
    """One object of the picture."""

    box: Boxes  # [4]
    score: float
    label: int
    from_tile: bool  # that shows it whole
    owned: bool  # two say it, or the tile to which its centre belongs, or the whole picture


def _groups(rows: _Rows) -> list[list[int]]:
    """Rows that show one object, at most one of every tile; the best row of each comes first."""
    group_of = [[i] for i in range(len(rows.boxes))]
    for i, j in _pairs(rows):
        a, b = group_of[i], group_of[j]
        tiles = {int(rows.tile[row]) for row in a}
        if not tiles.isdisjoint(int(rows.tile[row]) for row in b):
            continue
        # Seen small, a clump may look like one object: it stands for one that a tile shows whole.
        if rows.coarse[j] and len(b) > 1 and not rows.cut[i]:
            continue
        a += b
        for row in b:
            group_of[row] = a
    distinct = {id(group): group for group in group_of}.values()
    return [sorted(group, key=lambda row: -rows.scores[row]) for group in distinct]


def _pairs(rows: _Rows) -> list[tuple[int, int]]:
    """Rows of two tiles that may show one object, those that agree most first."""
    views, count = rows.views, len(rows.views)
    starts = np.searchsorted(rows.tile, np.arange(count + 1))
    of_tile = [np.arange(start, end) for start, end in pairwise(starts.tolist())]
    found: list[tuple[float, int, int]] = []
    for tile in range(count - 1):
        low = np.maximum(views[tile, :2], views[:, :2])
        high = np.minimum(views[tile, 2:], views[:, 2:])
        near = np.flatnonzero((high > low).all(axis=1))  # tiles that share pixels
        own = of_tile[tile]
        others = np.concatenate([of_tile[other] for other in near.tolist() if other > tile])
        a, b = rows.boxes[own, None], rows.boxes[others]
        meet = (np.maximum(a, b)[..., :2] < np.minimum(a, b)[..., 2:]).all(axis=2)
        i, j = own[np.nonzero(meet)[0]], others[np.nonzero(meet)[1]]
        agreement = _agreement(rows, i, j)
        some = np.flatnonzero(agreement)
        found += zip((-agreement[some]).tolist(), i[some].tolist(), j[some].tolist(), strict=True)
    return [(i, j) for _, i, j in sorted(found)]


def _agreement(rows: _Rows, i: NDArray[np.int64], j: NDArray[np.int64]) -> NDArray[np.float64]:
    """How well rows i of one tile and j of another agree: float64 [n], 0 for not at all.

    By IoU; less if a cut box only lies in the other, or classes differ. Weighed by the scores, as a
    tile also answers with doubtful copies of what it is sure of.
    """
    a = np.where(rows.cut[j, None], _clip(rows.boxes[i], rows.views[rows.tile[j]]), rows.boxes[i])
    b = np.where(rows.cut[i, None], _clip(rows.boxes[j], rows.views[rows.tile[i]]), rows.boxes[j])
    shared = _area(np.hstack([np.maximum(a[:, :2], b[:, :2]), np.minimum(a[:, 2:], b[:, 2:])]))
    iou = shared / np.maximum(_area(a) + _area(b) - shared, 1e-9)
    share = np.maximum(
        np.where(rows.cut[i], shared / np.maximum(_area(rows.boxes[i]), 1e-9), 0),
        np.where(rows.cut[j], shared / np.maximum(_area(rows.boxes[j]), 1e-9), 0),
    )
    same = rows.labels[i] == rows.labels[j]
    cut = rows.cut[i] | rows.cut[j]
    agreement = np.select(
        [same & (iou >= SAME), same & (share >= INSIDE), cut & (iou >= SAME_OBJECT)],
        [iou, SAME * share, SAME * iou],
        0.0,
    )
    return np.asarray(agreement * np.sqrt(rows.scores[i] * rows.scores[j]))


def _inside(boxes: Boxes, around: Boxes) -> NDArray[np.bool_]:
    """Whether boxes [..., 4] lie in others [..., 4]; the upper sides of those do not belong."""
    within = np.concatenate(
        [boxes[..., :2] >= around[..., :2], boxes[..., 2:] < around[..., 2:]], -1
    )
    return np.asarray(within.all(axis=-1))


def _clip(boxes: Boxes, views: NDArray[np.int64]) -> Boxes:
    """The part of boxes [n, 4] within views [n, 4]; without area where there is none."""
    low = np.clip(boxes[:, :2], views[:, :2], views[:, 2:])
    return np.hstack([low, np.clip(boxes[:, 2:], views[:, :2], views[:, 2:])])


def _area(boxes: Boxes) -> NDArray[np.float64]:
    area: NDArray[np.float64] = np.maximum(boxes[:, 2:] - boxes[:, :2], 0).prod(axis=1)
    return area
