"""Two processes on gloo against one: the same norms, the same losses, the same AP."""

import os
import shutil
import signal
import socket
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.multiprocessing.spawn import spawn

from nmsfree.datasets.formats.coco import load_coco
from nmsfree.errors import InputError
from nmsfree_training.loop.distributed import World, join_world
from nmsfree_training.model.norms import SyncedBatchNorm2d, sync_batch_norms

from .runs import WEIGHTS, records, run_train, wait_for_step, weights

RELATIVE = 2e-4  # sums of float32 in another order, grown over six steps


def test_one_process_is_alone() -> None:
    world = World()
    value = torch.arange(3.0)
    assert world.main and world.mean(value) is value
    assert world.maximum([3, 1]) == [3, 1]
    assert world.gather("a") == ["a"] and world.broadcast("a") == "a"


@pytest.mark.parametrize(
    ("error", "left"), [(None, True), (InputError("all alike"), True), (ValueError("mine"), False)]
)
def test_a_process_that_fails_alone_does_not_wait_for_the_others(
    error: Exception | None, left: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To leave the group in good order takes all of them, with NCCL."""
    calls: list[str] = []
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(dist, "init_process_group", lambda backend: calls.append(backend))
    monkeypatch.setattr(dist, "get_rank", lambda: 1)
    monkeypatch.setattr(dist, "destroy_process_group", lambda: calls.append("left"))
    with suppress(InputError, ValueError), join_world("cpu") as world:
        assert (world.rank, world.size, world.device.type) == (1, 2, "cpu")
        if error is not None:
            raise error
    assert calls == ["gloo", *(["left"] if left else [])]


def _norm_network() -> nn.Module:
    torch.manual_seed(3)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 1))


def _step(network: nn.Module, images: Tensor) -> Tensor:
    output: Tensor = network(images)
    (output.square().mean() + output.mean()).backward()
    return output.detach()


def _exchange(rank: int, folder: Path) -> None:
    store = dist.FileStore(str(folder / "store"), 2)  # type: ignore[attr-defined]
    dist.init_process_group("gloo", store=store, rank=rank, world_size=2)
    world = World(rank, 2)
    network = _norm_network()
    if rank == 1:  # `share` must overwrite them
        with torch.no_grad():
            [p.add_(1) for p in network.parameters()]
    world.share(network)
    sync_batch_norms(network)
    output = _step(network, torch.load(folder / "images.pt")[rank::2])
    found = {
        "output": output,
        "grads": [world.mean(p.grad) for p in network.parameters() if p.grad is not None],
        "state": network.state_dict(),
        "maximum": world.maximum([rank, 7 - rank]),
        "gathered": world.gather(f"from {rank}"),
        "told": world.broadcast(f"from {rank}"),
    }
    torch.save(found, folder / f"{rank}.pt")
    dist.destroy_process_group()


def _in_two(rank: int, folder: Path, trainings: list[tuple[int, list[str]]]) -> None:
    """All that needs two processes and no launcher: to start them takes the most time."""
    _exchange(rank, folder)
    for port, words in trainings:
        place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "MASTER_PORT": port}
        os.environ |= {"MASTER_ADDR": "127.0.0.1"} | {k: str(v) for k, v in place.items()}
        _train(words)


def _train(words: list[str]) -> None:
    result = run_train(*words)
    assert result.exit_code == 0, (result.output, result.exception)


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
    return port


def _words(out: Path, digits: Path, *options: object) -> list[str]:
    small = ("--batch-size", 4, "--epochs", 2, "--workers", 0, "--threads", 1, "--no-probe")
    small = (*small, "--no-tensorboard")
    return [str(word) for word in ("--data", digits, "--out", out, *small, *options)]


PLAIN = ("--optimizer", "sgd", "--learning-rate", 0.01)
E2E, RT = (WEIGHTS / f"fcos_{kind}_nano.safetensors" for kind in ("e2e", "rt"))
ALIKE = ("--init", E2E, "--ema", 0.5, "--dedup-iou", 0, "--short-sides", "192,224,256", *PLAIN)
LATE = ("--init", E2E, "--val", "", "--o2o-start", 0.5, "--o2o-gradient", 0.2, *PLAIN)
LATE = (*LATE, "--o2o-matching", "hungarian")
RETROFIT = ("--retrofit", RT, "--val", "", "--accumulate", 2, "--save-minutes", 0, *PLAIN[:2])


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.randn(6, 3, 9, 8, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def pair(digits: Path, images: Tensor, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two processes did: an exchange, and three trainings."""
    folder = tmp_path_factory.mktemp("pair")
    torch.save(images, folder / "images.pt")
    options = {"alike": ALIKE, "late": LATE, "retrofit": RETROFIT}
    words = [_words(folder / name, digits, *more) for name, more in options.items()]
    spawn(_in_two, (folder, [(_free_port(), w) for w in words]), nprocs=2)
    return folder


def test_norms_and_exchange_of_two_processes(pair: Path, images: Tensor) -> None:
    network = _norm_network()
    output = _step(network, images)
    for rank in range(2):
        found = torch.load(pair / f"{rank}.pt")
        torch.testing.assert_close(found["output"], output[rank::2], rtol=1e-5, atol=1e-6)
        for ours, want in zip(found["grads"], network.parameters(), strict=True):
            torch.testing.assert_close(ours, want.grad, rtol=1e-4, atol=1e-6)
        for key, value in network.state_dict().items():
            torch.testing.assert_close(found["state"][key], value, rtol=1e-5, atol=1e-6)
        assert found["maximum"] == [1, 7] and found["told"] == "from 0"
        assert found["gathered"] == (["from 0", "from 1"] if rank == 0 else [])


def test_evaluation_uses_the_running_statistics() -> None:
    network = _norm_network().eval()
    want = network(torch.ones(1, 3, 5, 5))
    sync_batch_norms(network)
    assert isinstance(network[1], SyncedBatchNorm2d)  # type: ignore[index]
    assert torch.equal(network.eval()(torch.ones(1, 3, 5, 5)), want)


def _assert_alike(one: Path, two: Path) -> list[dict[str, float]]:
    a, b = records(one), records(two)
    assert b == [pytest.approx(record, rel=RELATIVE) for record in a]
    return b


def test_two_processes_train_as_one(pair: Path, digits: Path, tmp_path: Path) -> None:
    """The same global batch gives the same losses and the same AP.

    Norms with statistics of the batch, images of several sizes, averaged weights; it starts from
    trained weights, so that AP means something, and descends plainly: Adam's first steps follow
    the sign of gradients, which rounding decides where they are nearly zero. So does the duplicate
    filter where two cells are nearly equal: it is in the next test, over fewer steps.
    """
    _train(_words(tmp_path, digits, *ALIKE))
    assert all(record["AP"] > 0.3 for record in _assert_alike(tmp_path, pair / "alike"))
    before = {k: v for k, v in weights(E2E).items() if ".duplicate_filter." not in k}
    a, b = (weights(run / "last.safetensors") for run in (tmp_path, pair / "alike"))
    moved = torch.cat([(a[k] - v).flatten() for k, v in before.items()]).norm()
    apart = torch.cat([(a[k] - b[k]).flatten() for k in before]).norm()
    assert apart < 0.01 * moved


def test_two_processes_wait_for_a_late_o2o_head(pair: Path, digits: Path, tmp_path: Path) -> None:
    """In the first of two epochs the o2o head has no gradient, on either process."""
    _train(_words(tmp_path, digits, *LATE))
    two = _assert_alike(tmp_path, pair / "late")
    assert ["o2o_cls" in record for record in two] == [False, True]


def _launch(words: list[str]) -> "subprocess.Popen[str]":
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone"]
    command = [*launcher, "-m", "nmsfree", "train", *words]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)


def test_a_retrofit_on_two_processes_goes_on_in_the_middle_and_ends(
    pair: Path, digits: Path, tmp_path: Path
) -> None:
    """Frozen parameters, batches in parts, no evaluation; stopped and resumed within the epoch."""
    words = _words(tmp_path, digits, *RETROFIT)
    process = _launch(words)
    wait_for_step(process, tmp_path, 4)
    process.send_signal(signal.SIGINT)  # torchrun passes it on; both save and stop
    process.communicate(timeout=200)
    assert process.returncode != 0
    resumed = _launch([*words, "--resume"])
    _, told = resumed.communicate(timeout=200)
    assert resumed.returncode == 0, told
    assert "Warning" not in told and "Traceback" not in told
    assert records(tmp_path) == records(pair / "retrofit")


def test_one_process_fails_and_all_end_with_one_line(digits: Path, tmp_path: Path) -> None:
    """A validation picture of the second process's share cannot be read."""
    broken = shutil.copytree(digits, tmp_path / "digits")
    second = load_coco(broken, "val").samples[1].path
    second.write_bytes(b"not a picture")
    process = _launch(_words(tmp_path / "run", broken, "--init", E2E, "--epochs", 1))
    _, told = process.communicate(timeout=200)
    assert process.returncode != 0
    lines = [line for line in told.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 and second.name in lines[0], told
    assert "[rank" not in told
