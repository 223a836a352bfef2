"""GPU names and the compute capability ("SM") that an engine is built for.

An SM is a whole number here: 89 stands for compute capability 8.9, 120 for 12.0.
"""

import re
from collections.abc import Iterable, Sequence

from nmsfree.errors import InputError

DEFAULT_SM = 89  # GeForce RTX 4060

# By generation; names as `normalise` leaves them. Laptop GPUs go by the name of the desktop one.
_GPUS_BY_SM = {
    70: "v100 titanv",
    72: "jetsonxaviernx jetsonagxxavier",
    75: "rtx2060 rtx2060super rtx2070 rtx2070super rtx2080 rtx2080super rtx2080ti titanrtx "
    "gtx1630 gtx1650 gtx1650super gtx1650ti gtx1660 gtx1660super gtx1660ti t4 "
    "quadrortx3000 quadrortx4000 quadrortx5000 quadrortx6000 quadrortx8000",
    80: "a30 a100 a800",
    86: "rtx2050 rtx3050 rtx3050ti rtx3060 rtx3060ti rtx3070 rtx3070ti rtx3080 rtx3080ti rtx3090 "
    "rtx3090ti a2 a10 a10g a16 a40 rtxa1000 rtxa2000 rtxa3000 rtxa4000 rtxa4500 rtxa5000 rtxa5500 "
    "rtxa6000",
    87: "jetsonorin jetsonorinnano jetsonorinnx jetsonagxorin",
    89: "rtx4050 rtx4060 rtx4060ti rtx4070 rtx4070super rtx4070ti rtx4070tisuper rtx4080 "
    "rtx4080super rtx4090 rtx4090d l2 l4 l20 l40 l40s rtx2000ada rtx3000ada rtx4000ada "
    "rtx4500ada rtx5000ada rtx5880ada rtx6000ada",
    90: "h20 h100 h200 h800 gh200",
    100: "b100 b200 gb200",
    103: "b300 gb300",
    110: "jetsonthor jetsonagxthor",
    120: "rtx5050 rtx5060 rtx5060ti rtx5070 rtx5070ti rtx5080 rtx5090 rtx5090d "
    "rtxpro2000blackwell rtxpro4000blackwell rtxpro4500blackwell rtxpro5000blackwell "
    "rtxpro6000blackwell",
    121: "gb10 dgxspark",
}
SM_OF_GPU = {name: sm for sm, names in _GPUS_BY_SM.items() for name in names.split()}

# What full product names say beside the chip: makers, editions, memory, form factors.
_NOISE = re.compile(
    r"nvidia|geforce|tesla|laptop|mobile|with max-?q design|max-?q|generation|gpu|\bpcie\b|"
    r"workstation edition|server edition|\b\d+ ?gb\b|\bhbm\d\w*|\bsxm\d|\bnvl\b"
)


def normalise(name: str) -> str:
    """ "NVIDIA GeForce RTX 4060 Laptop GPU" → "rtx4060"."""
    return re.sub(r"[^a-z0-9]", "", _NOISE.sub("", name.lower()))


def sm_of(name: str) -> int:
    """Return the SM of a GPU, desktop or laptop, by its product name."""
    sm = SM_OF_GPU.get(normalise(name))
    if sm is None:
        raise InputError(
            f"GPU is {name!r}, which is not known here: give its compute capability, for example "
            f"--sm 89 for {sm_text(89)}, or a name such as rtx3060, rtx4060, rtx5090"
        )
    return sm


def resolve_targets(
    gpus: Iterable[str], sms: Iterable[int], buildable: Sequence[int]
) -> tuple[int, ...]:
    """Return the SMs to build for, ascending and each once; 89 when nothing was asked for.

    InputError: the name of a GPU is not known, or the builder lacks a capability.
    """
    asked = {sm_of(gpu): f"{gpu} (SM {sm_text(sm_of(gpu))})" for gpu in gpus}
    asked |= {sm: f"SM {sm_text(sm)}" for sm in sms if sm not in asked}
    for sm, shown in asked.items():
        if sm not in buildable:
            able = ", ".join(sm_text(known) for known in buildable)
            raise InputError(
                f"target is {shown}, the builder can do SM {able}: choose one of these, or run "
                "the ONNX file itself with --device cuda"
            )
    return tuple(sorted(asked)) or (DEFAULT_SM,)


def sm_text(sm: int) -> str:
    """89 → "8.9"; 120 → "12.0"."""
    return f"{sm // 10}.{sm % 10}"


def sms_text(sms: Sequence[int]) -> str:
    """(86, 89, 120) → "SM 8.6, 8.9 and 12.0"."""
    *first, last = [sm_text(sm) for sm in sms]
    return "SM " + " and ".join([", ".join(first), last] if first else [last])
