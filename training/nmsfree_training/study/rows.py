"""The recipes that the study compares. A new question is a new row here; nothing else changes."""

from collections.abc import Sequence
from dataclasses import dataclass

from nmsfree.errors import InputError

REFERENCE = "o2m"  # the detector that needs NMS: what the others are measured against
TWO_HEADED = "fcos_e2e_nano"
DEDUP_IOU = (0.78, 0.76)  # in training, and deployed: those of the presets


@dataclass(frozen=True)
class Row:
    """One recipe.

    Attributes:
        name: part of file names; letters, digits and underscores.
        title: for tables and pictures.
        model: preset of `nmsfree train`.
        options: further words of that command.
        question: what the row is there to answer.
    """

    name: str
    title: str
    model: str
    options: tuple[str, ...]
    question: str


def _two_heads(
    name: str,
    title: str,
    question: str,
    *,
    gradient: float = 0,
    matching: str = "argmin",
    o2o_quality: tuple[float, float] = (0, 0),
    o2m_quality: tuple[float, float] = (0, 0),
    o2m_weight_end: float = 1,
    o2o_start: float = 0,
    max_filter: str = "none",
    dedup_iou: tuple[float, float] | None = None,
) -> Row:
    """A two-headed recipe: the published one, but for what is given.

    All options are spelled out, so that a command stays what it is when a preset changes.

    Args:
        dedup_iou: in training, and deployed; None = no such filter.
    """
    dedup: tuple[str, ...] = ("--dedup-iou", "0")
    if dedup_iou is not None:
        trained, deployed = (f"{iou:g}" for iou in dedup_iou)
        dedup = ("--dedup-iou", trained, "--deployed-dedup-iou", deployed)
    options = (
        *("--o2o-gradient", f"{gradient:g}"),
        *("--o2o-matching", matching),
        *("--o2o-quality", *(f"{power:g}" for power in o2o_quality)),
        *("--o2m-quality", *(f"{power:g}" for power in o2m_quality)),
        *("--o2m-weight-end", f"{o2m_weight_end:g}"),
        *("--o2o-start", f"{o2o_start:g}"),
        *("--max-filter", max_filter),
        *dedup,
    )
    return Row(name, title, TWO_HEADED, options, question)


ROWS: tuple[Row, ...] = (
    Row(
        REFERENCE,
        "one-to-many + NMS",
        "fcos_rt_nano",
        (),
        "What does the same network reach with NMS?",
    ),
    Row(
        "o2o",
        "one-to-one alone",
        "fcos_o2o_nano",
        (
            *("--o2o-matching", "argmin", "--o2o-quality", "0", "0"),
            *("--max-filter", "none", "--dedup-iou", "0"),
        ),
        "What does one-to-one training reach without a second head?",
    ),
    _two_heads("e2e_published", "two heads, published", "Where does the published recipe stand?"),
    _two_heads(
        "gradient_025",
        "gradient 0.25",
        "How much of the one-to-one gradient should train the backbone?",
        gradient=0.25,
    ),
    _two_heads("gradient_05", "gradient 0.5", "The same, half of it.", gradient=0.5),
    _two_heads("gradient_1", "gradient 1", "The same, all of it.", gradient=1),
    _two_heads(
        "poto_05",
        "gradient 1, s^0.5·IoU^0.5",
        "Does POTO's quality match better than the published cost?",
        gradient=1,
        o2o_quality=(0.5, 0.5),
    ),
    _two_heads(
        "poto_08",
        "gradient 1, s^0.2·IoU^0.8",
        "The same with POTO's own balance, s^(1−a)·IoU^a with a = 0.8.",
        gradient=1,
        o2o_quality=(0.2, 0.8),
    ),
    _two_heads(
        "hungarian",
        "gradient 1, Hungarian",
        "Does it help that every object gets a cell of its own?",
        gradient=1,
        matching="hungarian",
    ),
    _two_heads(
        "filter_logits",
        "gradient 1, max filter on logits",
        "Does a 3-D max filter on the class logits remove duplicates?",
        gradient=1,
        max_filter="logits",
    ),
    _two_heads(
        "filter_features",
        "gradient 1, max filter on features",
        "Or one on the features before them?",
        gradient=1,
        max_filter="features",
    ),
    _two_heads(
        "dedup",
        "gradient 1, dedup filter",
        "Or cells that give way only to a neighbour with the same box?",
        gradient=1,
        dedup_iou=DEDUP_IOU,
    ),
    _two_heads(
        "dedup_hungarian",
        "gradient 1, dedup filter, Hungarian",
        "Is a cell of its own for every object worth more then?",
        gradient=1,
        matching="hungarian",
        dedup_iou=DEDUP_IOU,
    ),
    _two_heads(
        "dedup_features",
        "gradient 1, dedup filter, Hungarian, filter on features",
        "Does the max filter on features add to it?",
        gradient=1,
        matching="hungarian",
        max_filter="features",
        dedup_iou=DEDUP_IOU,
    ),
    _two_heads(
        "one_metric",
        "gradient 1, s^0.5·IoU^6 in both heads",
        "Do heads that rank cells alike teach each other more?",
        gradient=1,
        o2o_quality=(0.5, 6),
        o2m_quality=(0.5, 6),
    ),
    _two_heads(
        "late_copy",
        "gradient 1, one-to-one from half time",
        "Is it better to train one-to-many first and copy its head?",
        gradient=1,
        o2o_start=0.5,
    ),
    _two_heads(
        "fade",
        "gradient 1, one-to-many fades out",
        "Does the one-to-many head get in the way at the end?",
        gradient=1,
        o2m_weight_end=0,
    ),
    _two_heads(
        "all",
        "gradient 1, Hungarian, s^0.5·IoU^0.5, filter",
        "Do the ingredients add up?",
        gradient=1,
        matching="hungarian",
        o2o_quality=(0.5, 0.5),
        max_filter="logits",
    ),
)


def choose_rows(names: Sequence[str] = ()) -> tuple[Row, ...]:
    """Return the rows of these names, in the study's order; all if none is named.

    Raises:
        InputError: there is no such row.
    """
    known = [row.name for row in ROWS]
    for name in names:
        if name not in known:
            raise InputError(f"row {name!r} is unknown, expected one of: {', '.join(known)}")
    return tuple(row for row in ROWS if not names or row.name in names)
