"""Annotation ids that several objects of a COCO file share."""

from collections import Counter
from collections.abc import Iterator

from nmsfree.data.coco import fields_of
from nmsfree.data.faults import Fault, Kind
from nmsfree.data.rows import SplitRows


def id_faults(rows: SplitRows) -> Iterator[Fault]:
    """Yield a fault for every annotation id that is there more than once.

    Loading numbers objects anew and does not mind; readers that keep objects by their id, as
    pycocotools does, silently keep the last one.
    """
    ids = Counter(str(row.number) for row in rows.objects if "id" in fields_of(row.entry))
    for number, times in ids.items():
        if times > 1:
            detail = f"{times} annotations have the id {number}"
            yield Fault(Kind.ANNOTATION_ID_TWICE, rows.file, detail)
