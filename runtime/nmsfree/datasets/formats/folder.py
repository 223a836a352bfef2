"""Which format a dataset's folder has, and its splits in the common form."""

import logging
from dataclasses import dataclass
from pathlib import Path

from nmsfree.datasets.dataset import DetectionDataset, build
from nmsfree.datasets.faults import Report, refuse
from nmsfree.datasets.formats.coco import ROBOFLOW, coco_splits, read_coco
from nmsfree.datasets.formats.voc import read_voc, voc_splits
from nmsfree.datasets.formats.yolo import find_configs, read_config, read_yolo
from nmsfree.datasets.rows import Format, SplitRows
from nmsfree.errors import DataError
from nmsfree.text import FilePath, as_path, shown

logger = logging.getLogger(__name__)

YAML_SUFFIXES = (".yaml", ".yml")
LOOKED_FOR = (
    "COCO (annotations/instances_SPLIT.json or SPLIT/_annotations.coco.json), YOLO (data.yaml "
    "with names and train) or Pascal VOC (Annotations/ and ImageSets/Main/SPLIT.txt)"
)


@dataclass(frozen=True)
class Layout:
    """A dataset on disk whose format is known."""

    format: Format
    root: Path
    config: Path | None = None  # the data.yaml of YOLO, None for the others

    def splits(self) -> list[str]:
        """The names of all splits: those that train first, then those that validate.

        DataError if there is none, or the data.yaml cannot be used.
        """
        if self.config is not None:
            found = [*read_config(self.config).splits]
        else:
            found = coco_splits(self.root) if self.format == "COCO" else voc_splits(self.root)
        if not found:
            raise DataError(
                f"{self.root} has no split: write ImageSets/Main/train.txt, one image name a line"
            )
        return sorted(found, key=lambda s: (not s.startswith("train"), not s.startswith("val"), s))

    def files(self) -> list[Path]:
        """Return the files that define the splits."""
        if self.config is not None:
            return [self.config]
        coco = ("annotations/instances_*.json", f"*/{ROBOFLOW}")
        places = coco if self.format == "COCO" else ("ImageSets/Main/*.txt",)
        return sorted(file for place in places for file in self.root.glob(place))

    def read(self, split: str, report: Report) -> SplitRows:
        """Read one split; faults are reported.

        DataError if it cannot be read, or its name is a path: what is written is named after it.
        """
        if split != Path(split).name:
            raise DataError(f"the name of split {shown(split)!r} is a path: give it a plain name")
        if self.config is not None:
            return read_yolo(self.config, split, report)
        if self.format == "COCO":
            return read_coco(self.root, split, report)
        return read_voc(self.root, split, report)


def find_layout(path: FilePath) -> Layout:
    """Find out the format of a dataset by its folder, or the data.yaml of a YOLO dataset.

    DataError if no format fits, or more than one; InputError if it is no path.
    """
    path = as_path(path, "the dataset", "a folder or a data.yaml")
    if path.suffix.lower() in YAML_SUFFIXES and path.is_file():
        return Layout("YOLO", path.parent, path)
    if not path.is_dir():
        raise DataError(f"{path} is not a folder: give the folder of a dataset, {LOOKED_FOR}")
    layouts = _layouts(path)
    if not layouts:
        below = [child.name for child in sorted(path.iterdir()) if child.is_dir()]
        inner = [name for name in below if _layouts(path / name)]
        hint = f"; did you mean {path / inner[0]}?" if inner else ""
        raise DataError(f"{path} holds no dataset: looked for {LOOKED_FOR}{hint}")
    if len(layouts) > 1:
        found = ", ".join(f"{o.format} ({_evidence(o)})" for o in layouts)
        raise DataError(
            f"{path} fits more than one format: {found}; give the .yaml file itself to read it as "
            "YOLO, or rename what is not meant"
        )
    return layouts[0]


def _layouts(path: Path) -> list[Layout]:
    """Return every reading that the files of a folder allow."""
    layouts = [Layout("YOLO", path, config) for config in find_configs(path)]
    if coco_splits(path):
        layouts.insert(0, Layout("COCO", path))
    elif (path / "Annotations").is_dir() and (
        (path / "ImageSets" / "Main").is_dir() or (path / "JPEGImages").is_dir()
    ):
        layouts.append(Layout("VOC", path))
    return layouts


def _evidence(layout: Layout) -> str:
    annotations = layout.root / "annotations"
    coco = "annotations/" if annotations.is_dir() else ROBOFLOW
    return (
        layout.config.name if layout.config else {"COCO": coco}.get(layout.format, "Annotations/")
    )


def load_dataset(directory: FilePath, split: str) -> DetectionDataset:
    """Read one split of a dataset; pictures are not opened beyond their headers.

    Args:
        directory: folder of a COCO, YOLO or Pascal VOC dataset, or the data.yaml of a YOLO one.
        split: name of the split; for YOLO a key of the data.yaml.

    Raises:
        DataError: a folder or file is missing, malformed, or of no known format.
        InputError: `directory` is no path.
        MissingExtraError: PyYAML is not installed and the dataset is YOLO.
    """
    layout = find_layout(directory)
    there = coco_splits(layout.root) if split == "crowd" else ()
    if "overlap" in there and "crowd" not in there:
        logger.warning("the split crowd of the digits is now overlap")
        split = "overlap"
    return build(layout.read(split, refuse))
