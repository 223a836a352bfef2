"""What is written down of a finished run."""

from importlib.metadata import version
from pathlib import Path

import torch

from nmsfree.data.load import load_dataset
from nmsfree.files import write_json
from nmsfree.identity import processor_name, sha256
from nmsfree_training.checkpoint import load_checkpoint
from nmsfree_training.events import is_loss
from nmsfree_training.metrics_file import Record, read_metrics
from nmsfree_training.study.jobs import Job
from nmsfree_training.study.measure import SPLITS, measure
from nmsfree_training.study.results import Result


def write_result(job: Job) -> None:
    """Measure the last weights of a run and write its result; the file appears whole.

    Raises:
        NmsfreeError: the run folder or the dataset cannot be used, see `measure`.
    """
    write_json(job.result_file, make_result(job))


def make_result(job: Job) -> Result:
    """Return all that is known of a finished run, ready for `json.dumps`.

    minutes: of training, without evaluation. images_per_second: of training, in the mean.
    losses: of the last epoch. parameters: of the network with all its heads. data: the folder's
    name, and how many images its splits have. splits: see `measure`.
    """
    weights = job.folder / "last.safetensors"
    records = read_metrics(job.folder / "metrics.jsonl")
    network = load_checkpoint(weights).build()
    return {
        "row": job.row.name,
        "title": job.row.title,
        "model": job.row.model,
        "epochs": job.epochs,
        "seed": job.seed,
        "command": job.command,
        **_pace(records),
        "losses": {name: value for name, value in records[-1].items() if is_loss(name)},
        "parameters": sum(p.numel() for p in network.parameters()),
        "versions": {"nmsfree": version("nmsfree"), "torch": torch.__version__},
        "machine": processor_name(),
        "weights_sha256": sha256(weights),
        "data": {"folder": job.data.resolve().name, "images": _counts(job.data)},
        "splits": measure(weights, job.data),
    }


def _pace(records: list[Record]) -> dict[str, float]:
    seconds = sum(record["seconds"] for record in records)
    images = sum(record["images_per_second"] * record["seconds"] for record in records)
    return {
        "minutes": round(seconds / 60, 2),
        "images_per_second": round(images / max(seconds, 1e-9), 1),
    }


def _counts(data: Path) -> dict[str, int]:
    return {split: len(load_dataset(data, split)) for split in ("train", *SPLITS)}
