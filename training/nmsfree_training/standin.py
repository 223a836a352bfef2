"""Stand-in weights: the published layout without the published files.

Every tensor comes from a frozen random stream that depends on its key, shape and a seed, so two
implementations can be compared number by number. The scores mean nothing.
"""

import zlib

import numpy as np
import torch
from torch import Tensor

from nmsfree_training.detector import Fcos


def standin_tensor(key: str, shape: tuple[int, ...], seed: int) -> Tensor:
    """Return the float32 tensor of one state-dict key of a published checkpoint."""
    stream = np.random.RandomState((zlib.crc32(key.encode()) + seed) % 2**32)
    kind = key.rsplit(".", 1)[-1]
    if kind == "running_var":
        value = stream.uniform(0.5, 1.5, shape)
    elif kind == "running_mean":
        value = 0.1 * stream.standard_normal(shape)
    elif kind == "weight" and len(shape) == 4:
        gain = 0.4 if "_pred" in key else 1.0
        value = gain * stream.standard_normal(shape) * np.sqrt(2.0 / np.prod(shape[1:]))
    elif kind == "weight":
        value = stream.uniform(0.5, 1.0, shape)
    elif key.endswith("cls_pred.bias"):
        value = 0.1 * stream.standard_normal(shape) - 2.0
    elif key.endswith("reg_pred.bias"):
        value = np.array([0.0, 0.0, 1.0, 1.0])
    else:
        value = 0.1 * stream.standard_normal(shape)
    return torch.from_numpy(np.asarray(value, dtype=np.float32))


def standin_state_dict(model: Fcos, seed: int = 0) -> dict[str, Tensor]:
    """Return stand-in weights for every key of `model`, under the published keys."""
    from nmsfree_training.published import to_published_keys

    keys = to_published_keys(model.config.heads, model.state_dict())
    # Counters of batches stay whole numbers, as a checkpoint has them.
    return {key: standin_tensor(key, tuple(t.shape), seed).to(t.dtype) for key, t in keys.items()}
