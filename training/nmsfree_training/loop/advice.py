"""What the figures of a finished run say about the next one: few sentences, each from a number."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from nmsfree.datasets.formats.coco import DetectionDataset
from nmsfree.errors import DataError, InputError
from nmsfree.evaluation.analysis import Analysis
from nmsfree.files import write_json
from nmsfree.text import shown
from nmsfree_training.config import MIN_STEPS
from nmsfree_training.loop.checkpoints import METRICS
from nmsfree_training.loop.start import Objects
from nmsfree_training.loop.trainer import Trainer
from nmsfree_training.loop.validate import measure_best
from nmsfree_training.monitor.curves import read_metrics

SAMPLE = 200  # training images on which AP is measured, at most
GAP = 0.15  # AP on training pictures above that on val: they are known by heart
# APs of the last tenth of a run may rise by this much; a schedule that fits has flattened.
RISING, TENTH = 0.01, 0.9
TINY_SHARE = 0.1  # of the objects that are not trained on


@dataclass(frozen=True)
class Outcome:
    """A finished run; AP is 0–1."""

    steps: int  # optimizer steps done
    per_epoch: int  # steps of a whole epoch; --minutes may cut epochs short
    ap: float  # of the best weights on val
    train_ap: float | None  # of the same on a sample of the training pictures; None = not measured
    history: tuple[tuple[int, float], ...]  # (epoch, AP on val)
    objects: Objects
    silent: tuple[str, ...]  # classes with objects in val of which nothing is found
    from_scratch: bool  # no weights to start from

    def advice(self) -> Iterator[str]:
        """What to do next time, the most promising first."""
        few = self.steps < MIN_STEPS
        if few:
            yield (
                f"only {self.steps} steps: networks need {MIN_STEPS:,} or more; give --epochs "
                f"{-(-MIN_STEPS // self.per_epoch)}, more --minutes, or neither"
            )
        if self.objects.sizes.tiny > TINY_SHARE * self.objects.count:
            yield f"{self.objects.sizes}: {self.objects.advice() or 'cut the pictures into tiles'}"
        if self.train_ap is not None and self.train_ap > self.ap + GAP:
            start = ", or weights to start from (--init, --imagenet)" if self.from_scratch else ""
            yield (
                "it knows its training pictures by heart: more pictures help most, then "
                f"augmentation (--flip 0.5 --scale 0.5 1.5 --mosaic 0.5){start}"
            )
        elif not few and self._rises():
            yield f"AP was still rising: give --epochs {-(-2 * self.steps // self.per_epoch)}"
        if self.silent:
            names = ", ".join(self.silent[:5]) + (", …" if len(self.silent) > 5 else "")
            yield f"nothing is found of {shown(names)}: more pictures of them, or longer training"

    def _rises(self) -> bool:
        before = [ap for epoch, ap in self.history if epoch <= TENTH * self.history[-1][0]]
        return bool(before) and self.history[-1][1] - before[-1] > RISING


def train_sample(dataset: DetectionDataset, most: int) -> DetectionDataset:
    """Some training images, evenly spread; those that are missing are left out."""
    there = [sample for sample in dataset.samples if sample.path.is_file()]
    step = max(1, -(-len(there) // min(SAMPLE, max(1, most))))
    return replace(dataset, name=f"{dataset.name} (a sample)", samples=tuple(there[::step]))


def conclude(trainer: Trainer, analysis: Analysis | None) -> list[str]:
    """AP on training pictures beside that on val, and what follows; rank 0 gets the lines."""
    assert trainer.validator is not None
    sample = train_sample(trainer.train_set, len(trainer.validator.dataset))
    try:
        train_ap = measure_best(trainer.validator, sample, trainer.run.out)
    except (DataError, InputError):  # a picture: they are named when training leaves them out
        train_ap = None
    if analysis is None:
        return []
    outcome = Outcome(
        steps=trainer.position.iteration,
        per_epoch=trainer.per_epoch,
        ap=analysis.metrics.ap,
        train_ap=train_ap,
        history=tuple(
            (int(record["epoch"]), record["AP"])
            for record in read_metrics(trainer.run.out / METRICS)
            if "AP" in record
        ),
        objects=trainer.objects,
        silent=tuple(c.name for c in analysis.per_class if c.objects and c.precision is None),
        from_scratch="origin" not in trainer.run.provenance,
    )
    advice = list(outcome.advice())
    figures = {"AP": outcome.ap, "AP_train": train_ap, "steps": outcome.steps, "advice": advice}
    write_json(trainer.run.out / "summary.json", figures)
    lines = [f"advice: {line}" for line in advice]
    if train_ap is not None:
        said = f"AP {train_ap * 100:.1f} on {len(sample)} of {len(trainer.train_set)} training "
        said += f"images, {outcome.ap * 100:.1f} on {trainer.validator.dataset.name}"
        lines.insert(0, said)
    return lines
