"""Optimal one-to-one matching of objects and cells, on the host."""

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from torch import Tensor

FORBIDDEN = 1e12  # of a cell that is not among an object's cheapest, and the highest price


def match(cells: Tensor, prices: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Give every object one cell of its own at the least sum of prices.

    Among the G cheapest cells of each of G objects there is always an optimal matching: an object
    with a dearer cell could move to one of its G cheapest that none of the others holds.

    Where there are more objects than cells, every cell is used and the objects left over, those
    that make the sum least, get none.

    The prices are copied to the host: on a GPU the step waits for them once.

    Args:
        cells: int64 [N, G, k], each object's k ≥ min(G, count) cheapest cells.
        prices: float [N, G, k], their costs; infinite for an object that is not to be matched.
        count: number of all cells.

    Returns:
        int64 [N, count], the object of each cell, and bool [N, count], whether it has one.
    """
    owner = np.zeros((len(cells), count), np.int64)
    owned = np.zeros((len(cells), count), bool)
    pairs = zip(cells.numpy(force=True), prices.numpy(force=True), strict=True)
    for image, (own_cells, own_prices) in enumerate(pairs):
        objects, chosen = _match_image(own_cells, own_prices)
        owner[image, chosen] = objects
        owned[image, chosen] = True
    device = cells.device
    return torch.from_numpy(owner).to(device), torch.from_numpy(owned).to(device)


def _match_image(
    cells: NDArray[np.int64], prices: NDArray[np.float32]
) -> tuple[NDArray[np.intp], NDArray[np.int64]]:
    objects = np.flatnonzero(np.isfinite(prices[:, 0]))
    if not len(objects):
        return objects, np.zeros(0, np.int64)
    candidates, column = np.unique(cells[objects], return_inverse=True)
    cost = np.full((len(objects), len(candidates)), FORBIDDEN)
    column = column.reshape(len(objects), -1)
    # A far cell's price may be infinite, that of a diverged network's cell not a number.
    known = np.nan_to_num(prices[objects].astype(np.float64), nan=FORBIDDEN).clip(max=FORBIDDEN)
    np.put_along_axis(cost, column, known, axis=1)
    rows, columns = linear_sum_assignment(cost)
    return objects[rows], candidates[columns]
