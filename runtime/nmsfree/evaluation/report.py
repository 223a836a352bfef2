"""What `nmsfree eval` shows: two tables and a few plain sentences, on a terminal or as Markdown."""

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from nmsfree.evaluation.analysis import Analysis, ClassReport
from nmsfree.evaluation.curves import Point
from nmsfree.evaluation.scores import COUNTED
from nmsfree.text import in_markdown, shorten, shown

OVERALL = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100")
WIDE = 105  # columns of a terminal from which on the whole table fits
SHOWN_CLASSES = 20
NOTHING, MUCH = 0.05, 0.5  # AP or F1, × 100, that NMS adds


def print_report(analysis: Analysis, title: str, console: Console, all_classes: bool) -> None:
    """Print the tables and the sentences; of many classes the worst ones only, unless asked."""
    overall = _table(OVERALL)
    overall.add_row(*overall_row(analysis))
    console.print(Text(shown(title), style="bold"), overall)
    classes = worst_first(analysis)
    listed = classes if all_classes else classes[:SHOWN_CLASSES]
    wide = console.width >= WIDE
    width = 24 if wide else 18
    columns = class_columns(analysis, wide)
    per_class = _table(columns, width)
    for report in listed:
        name, *cells = class_row(analysis, report, wide)
        per_class.add_row(Text(shorten(name, width)), *cells)
    console.print(Text(f"By class, worst first; × 100. {explained(columns)}"), per_class)
    if left_out := len(classes) - len(listed):
        console.print(Text(f"{left_out} better classes are not shown: --all-classes lists them\n"))
    words = Table.grid(padding=(0, 2))
    for subject, sentence in sentences(analysis):
        words.add_row(Text(subject, style="bold"), Text(shown(sentence, 2000)))
    console.print(words)


def _table(columns: tuple[str, ...], class_width: int = 0) -> Table:
    padding = (0, 1, 0, 0 if class_width else 1)  # the table of classes has many columns
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=padding)
    for name in columns:
        if name == "class":
            table.add_column(name, max_width=class_width, overflow="ellipsis", no_wrap=True)
        else:
            table.add_column(name, justify="right")
    return table


def markdown(analysis: Analysis, title: str, pictures: list[str]) -> str:
    """Return the same as a Markdown page, all classes, with pictures by their file names."""
    said = [f"- **{about}**: {in_markdown(line, 2000)}" for about, line in sentences(analysis)]
    columns = class_columns(analysis, wide=True)
    rows = [class_row(analysis, report, wide=True) for report in worst_first(analysis)]
    parts = [
        f"# {in_markdown(title)}",
        _markdown_table(OVERALL, [overall_row(analysis)]),
        "\n".join(said),
        "## Per class, worst first",
        explained(columns),
        _markdown_table(columns, rows),
        *(f"![{name}]({name})" for name in pictures),
    ]
    return "\n\n".join(parts) + "\n"


def _markdown_table(columns: tuple[str, ...], rows: list[list[str]]) -> str:
    marks = ["---" if name == "class" else "---:" for name in columns]
    lines = [list(columns), marks, *([in_markdown(cell) for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def overall_row(analysis: Analysis) -> list[str]:
    """Return the cells under `OVERALL`, × 100."""
    values = analysis.metrics.to_json()
    return [_percent(values[name]) for name in OVERALL]


def class_columns(analysis: Analysis, wide: bool) -> tuple[str, ...]:
    """Return the heads of the table of classes; the narrow one fits 80 columns."""
    first = ("class", "objects", "AP", "AP50", "best F1")
    target = f"{100 * analysis.thresholds.target_precision:.3g}"
    if wide:
        return (*first, "precision", "recall", f"precision {target}", "recall there")
    return (*first, "prec.", "recall", f"prec. {target}")


def explained(columns: tuple[str, ...]) -> str:
    """Say which columns are thresholds, and where the others are measured."""
    return f"Thresholds: best F1 (precision, recall there), {columns[7]}"


def class_row(analysis: Analysis, report: ClassReport, wide: bool) -> list[str]:
    """Return the cells under `class_columns`, × 100 except the thresholds."""
    label = analysis.per_class.index(report)
    advice = analysis.thresholds
    cells = [
        *map(_percent, (report.ap, report.ap50)),
        _score(report.threshold),
        *map(_percent, (report.precision, report.recall)),
        _score(advice.at_precision_per_class[label]),
        _percent(advice.recall_at_precision_per_class[label]),
    ]
    return [report.name, str(report.objects), *cells[: None if wide else -1]]


def worst_first(analysis: Analysis) -> list[ClassReport]:
    """Return the classes by AP; those without an object come last."""
    return sorted(analysis.per_class, key=lambda r: (r.ap is None, r.ap or 0, r.category_id))


def sentences(analysis: Analysis) -> list[tuple[str, str]]:
    """Say in plain words what the figures mean: (subject, sentence)."""
    error, hits = analysis.calibration.error, analysis.cap_hits
    calibration = "nothing was detected"
    if error is not None:
        calibration = (
            f"scores are {100 * error:.1f} points away from the precision on average "
            "(expected calibration error)"
        )
    found = [
        ("NMS", about_nms(analysis)),
        (
            "Duplicates",
            f"{analysis.duplicates_per_image:.2f} per image at the threshold (IoU above 0.7), "
            f"{analysis.wrong_duplicates_per_image:.2f} of them wrong (the others are objects that "
            f"overlap); {analysis.duplicates_above_half:.2f} with an IoU above 0.5, "
            f"{analysis.nested_pairs:.2f} pairs of a box in a much larger one; "
            f"{analysis.duplicates_at_floor:.2f} (IoU above 0.7) above the floor of "
            f"{analysis.spec.score_floor:g}",
        ),
        ("Threshold", about_threshold(analysis)),
        ("Calibration", calibration),
    ]
    if hits is not None:
        full = f"images that fill all {analysis.spec.top_k} rows of the output: {hits}"
        hint = f", {analysis.truncated} at the threshold" if hits else ""
        if analysis.most_objects >= analysis.spec.top_k:
            hint += (
                f"; an image holds {analysis.most_objects} objects: "
                f"{'adopt it' if 'adopted' in analysis.spec.provenance else 'export'} with a larger"
                " --top-k"
            )
        elif hits:
            hint += f"; no image holds more than {analysis.most_objects} objects: rows do not lack"
        found.append(("Rows", f"{full} of {analysis.images}{hint}"))
    if analysis.metrics.max_detections > COUNTED[-1]:
        line = (
            f"it takes up to {analysis.metrics.max_detections} detections of a class in an image, "
            f"where COCO's own takes {COUNTED[-1]}, as an image holds more objects of one class or "
            "is cut into tiles; the recalls (AR) are COCO's"
        )
        found.insert(0, ("AP", line))
    return found


def about_nms(analysis: Analysis) -> str:
    """Would NMS on top of the model's output still help?"""
    ap_gain, ap_text = _change(analysis.metrics.ap, analysis.ap_with_nms)
    f1_gain, f1_text = _change(analysis.best.f1, analysis.best_f1_with_nms)
    subject = "a second NMS" if analysis.spec.nms else "NMS"
    if max(abs(ap_gain), abs(f1_gain)) < NOTHING:
        return f"{subject} on top would change neither the AP nor the best F1: it is not needed"
    if max(ap_gain, f1_gain) < NOTHING:
        verdict = "it would not help"
    elif max(ap_gain, f1_gain) < MUCH:
        verdict = "it would hardly help"
    else:
        verdict = "it would help" if ap_gain > -NOTHING else "it would help at a threshold only"
        if "deployed_dedup_iou" in analysis.spec.provenance:
            verdict += "; a lower `nmsfree export --dedup-iou`, chosen on val, may do as much"
    return f"{subject} on top would change the AP by {ap_text}, the best F1 by {f1_text}: {verdict}"


def _change(before: float, after: float) -> tuple[float, str]:
    """Return the difference × 100, and how it reads: "−0.4 (77.1 → 76.7)".

    It is that of the rounded figures, so that what is shown, and said of it, adds up.
    """
    shown_before, shown_after = round(100 * before, 1), round(100 * after, 1)
    gain = round(shown_after - shown_before, 1)
    sign = "−" if gain < 0 else "+"
    return gain, f"{sign}{abs(gain):.1f} ({shown_before:.1f} → {shown_after:.1f})"


def about_threshold(analysis: Analysis) -> str:
    """Which threshold to use."""
    best, advice = analysis.best, analysis.thresholds
    if best.recall == 0:
        return "no object was found at IoU 0.5, so there is nothing to recommend"
    measured = analysis.spec.thresholds
    known = measured is not None and measured.best_f1 == analysis.own.threshold
    where = f" (from {measured.measured_on})" if measured and known else ""
    line = f"{best.threshold:.3f} gives the best F1 of this split, {_f1_text(best)}; the file's "
    line += f"own {analysis.own.threshold:.3f}{where} gives {_f1_text(analysis.own)}; "
    target = f"precision {100 * advice.target_precision:g}"
    if advice.at_precision is None or advice.recall_at_precision is None:
        return line + f"none reaches {target}"
    recall = 100 * advice.recall_at_precision
    return line + f"{advice.at_precision:.3f} reaches {target} with recall {recall:.1f}"


def _f1_text(point: Point) -> str:
    precision, recall = 100 * point.precision, 100 * point.recall
    return f"{100 * point.f1:.1f} (precision {precision:.1f}, recall {recall:.1f})"


def _score(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f}"
