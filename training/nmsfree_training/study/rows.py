"""The recipes that the study compares. A new question is a new row here; nothing else changes."""

from collections.abc import Sequence
from dataclasses import dataclass

from nmsfree.errors import InputError
from nmsfree.text import one_of

REFERENCE = "o2m"  # the detector that needs NMS: what the others are measured against
# The published two-headed recipe, spelled out, so that a command outlives a change of a preset.
PUBLISHED = (
    "--o2o-gradient 0 --o2o-matching argmin --o2o-quality 0 0 --o2m-quality 0 0"
    " --o2m-weight-end 1 --o2o-start 0 --max-filter none --dedup-iou 0"
)
OF_REFERENCE = "WEIGHTS"  # stands for the reference's last weights of the same length and seed
WHOLE = "--o2o-gradient 1"
DEDUP = f"{WHOLE} --dedup-iou 0.78 --deployed-dedup-iou 0.76"  # as in the presets
LATE = (
    f"{DEDUP} --o2o-matching hungarian --dedup-start 5 --dedup-iou 0.6 --deployed-dedup-iou 0.6"
    " --o2o-start 0.5"
)


@dataclass(frozen=True)
class Row:
    """One recipe: the preset `model` of `nmsfree train`, with further words of that command."""

    name: str  # part of file names; letters, digits and underscores
    title: str  # for tables and pictures
    model: str  # "": the weights decide
    options: str
    question: str  # what the row is there to answer


def _two_heads(name: str, title: str, question: str, changes: str = "") -> Row:
    """The published two-headed recipe with some of its options replaced, or more of them."""
    given = f"{PUBLISHED} {changes}".split("--")[1:]
    options = {words.split()[0]: f"--{words.strip()}" for words in given}
    return Row(name, title, "fcos_e2e_nano", " ".join(options.values()), question)


ROWS: tuple[Row, ...] = (
    Row(
        REFERENCE,
        "one-to-many + NMS",
        "fcos_rt_nano",
        "",
        "What does the same network reach with NMS?",
    ),
    Row(
        "o2o",
        "one-to-one alone",
        "fcos_o2o_nano",
        "--o2o-matching argmin --o2o-quality 0 0 --max-filter none --dedup-iou 0",
        "What does one-to-one training reach without a second head?",
    ),
    _two_heads("e2e_published", "two heads, published", "Where does the published recipe stand?"),
    _two_heads(
        "gradient_025",
        "gradient 0.25",
        "How much of the one-to-one gradient should train the backbone?",
        "--o2o-gradient 0.25",
    ),
    _two_heads("gradient_05", "gradient 0.5", "The same, half of it.", "--o2o-gradient 0.5"),
    _two_heads("gradient_1", "gradient 1", "The same, all of it.", WHOLE),
    _two_heads(
        "poto_05",
        "gradient 1, s^0.5·IoU^0.5",
        "Does POTO's quality match better than the published cost?",
        f"{WHOLE} --o2o-quality 0.5 0.5",
    ),
    _two_heads(
        "poto_08",
        "gradient 1, s^0.2·IoU^0.8",
        "The same with POTO's own balance, s^(1−a)·IoU^a with a = 0.8.",
        f"{WHOLE} --o2o-quality 0.2 0.8",
    ),
    _two_heads(
        "hungarian",
        "gradient 1, Hungarian",
        "Does it help that every object gets a cell of its own?",
        f"{WHOLE} --o2o-matching hungarian",
    ),
    _two_heads(
        "filter_logits",
        "gradient 1, max filter on logits",
        "Does a 3-D max filter on the class logits remove duplicates?",
        f"{WHOLE} --max-filter logits",
    ),
    _two_heads(
        "filter_features",
        "gradient 1, max filter on features",
        "Or one on the features before them?",
        f"{WHOLE} --max-filter features",
    ),
    _two_heads(
        "dedup",
        "gradient 1, dedup filter",
        "Or cells that give way only to a neighbour with the same box?",
        DEDUP,
    ),
    _two_heads(
        "dedup_hungarian",
        "gradient 1, dedup filter, Hungarian",
        "Is a cell of its own for every object worth more then?",
        f"{DEDUP} --o2o-matching hungarian",
    ),
    _two_heads(
        "dedup_features",
        "gradient 1, dedup filter, Hungarian, filter on features",
        "Does the max filter on features add to it?",
        f"{DEDUP} --o2o-matching hungarian --max-filter features",
    ),
    _two_heads(
        "one_metric",
        "gradient 1, s^0.5·IoU^6 in both heads",
        "Do heads that rank cells alike teach each other more?",
        f"{WHOLE} --o2o-quality 0.5 6 --o2m-quality 0.5 6",
    ),
    _two_heads(
        "late_copy",
        "gradient 1, one-to-one from half time",
        "Is it better to train one-to-many first and copy its head?",
        f"{WHOLE} --o2o-start 0.5",
    ),
    _two_heads(
        "fade",
        "gradient 1, one-to-many fades out",
        "Does the one-to-many head get in the way at the end?",
        f"{WHOLE} --o2m-weight-end 0",
    ),
    _two_heads(
        "all",
        "gradient 1, Hungarian, s^0.5·IoU^0.5, filter",
        "Do the ingredients add up?",
        f"{WHOLE} --o2o-matching hungarian --o2o-quality 0.5 0.5 --max-filter logits",
    ),
    _two_heads(
        "dedup_start",
        "dedup filter from the start, Hungarian",
        "Does it help short runs that the filter need not be learned?",
        f"{DEDUP} --o2o-matching hungarian --dedup-start 5",
    ),
    _two_heads(
        "dedup_late",
        "the same at IoU 0.6, one-to-one from half time",
        "And if it starts as a copy that is trained, and the filter leaves it less to learn?",
        LATE,
    ),
    Row(
        "retrofit",
        "retrofit of one-to-many",
        "",
        f"--retrofit {OF_REFERENCE}",
        "What does a new head reach on the finished network?",
    ),
    Row(
        "o2m_from_digits",
        "one-to-many + NMS, from digits",
        "fcos_rt_nano",
        "--init weights/fcos_rt_nano.safetensors",
        "What does it give to start from the weights of digits?",
    ),
    _two_heads(
        "from_digits",
        "dedup filter, Hungarian, from digits",
        "The same without NMS.",
        f"{DEDUP} --o2o-matching hungarian --init weights/fcos_e2e_nano.safetensors",
    ),
    _two_heads(
        "late_from_digits",
        "one-to-one from half time, from digits",
        "And late, from the very weights of the one with NMS?",
        f"{LATE} --init weights/fcos_rt_nano.safetensors",
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
            raise InputError(f"row {name!r} is unknown, expected {one_of(known, name)}")
    return tuple(row for row in ROWS if not names or row.name in names)
