"""Devices on paper: what their makers state, and what that allows. Computed, never measured."""

from dataclasses import dataclass

from nmsfree_benchmarks.roofline.peaks import Peaks

FMA = 2  # a CUDA core does one multiply-add a clock, which is two operations
WHOLE = 1 << 62  # bytes: one bandwidth for copies of any size


@dataclass(frozen=True)
class PaperDevice:
    """Attributes:
    name: as its maker calls it.
    cores, boost_ghz: FP32 units, and the clock they boost to.
    memory_gb_per_s: bandwidth of its memory, 10⁹ bytes.
    source: where the figures are from.
    """

    name: str
    cores: int
    boost_ghz: float
    memory_gb_per_s: float
    source: str

    @property
    def flops(self) -> float:
        """FP32 FLOP/s at the boost clock: cores × 2 × clock."""
        return self.cores * FMA * self.boost_ghz * 1e9

    @property
    def peaks(self) -> Peaks:
        return Peaks({"fp32": self.flops}, ((WHOLE, self.memory_gb_per_s * 1e9),))


@dataclass(frozen=True)
class Published:
    """A speed that others measured, on a device of the table.

    Attributes:
        size: (height, width) of the input in pixels; models: names.
        fps: images in a second; how: in which state.
    """

    device: PaperDevice
    models: tuple[str, ...]
    size: tuple[int, int]
    fps: float
    how: str


RTX_4060 = PaperDevice(
    "GeForce RTX 4060",
    cores=3072,
    boost_ghz=2.46,
    memory_gb_per_s=272,
    source="NVIDIA, specifications of the GeForce RTX 4060 (desktop): 3072 CUDA cores, "
    "boost clock 2.46 GHz, 128 bit GDDR6 at 17 Gbit/s = 272 GB/s",
)
E2E_FCOS = Published(
    RTX_4060,
    ("fcos_rt_r18_3x", "fcos_o2o_r18_3x", "fcos_e2e_r18_3x"),
    (512, 736),
    56,
    "E2E_FCOS: FP32 in eager PyTorch, post-processing included",
)
