"""Any supported dataset by its folder: what is in it decides how it is read."""

from nmsfree.data.dataset import DetectionDataset, build
from nmsfree.data.faults import refuse
from nmsfree.data.formats import find_layout
from nmsfree.paths import FilePath


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
    return build(find_layout(directory).read(split, refuse))
