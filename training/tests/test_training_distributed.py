"""Two processes on gloo against one: the same norms, the same losses, the same AP."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.multiprocessing.spawn import spawn

from nmsfree.datasets.formats.coco import load_coco
from nmsfree.errors import CheckpointError, InputError
from nmsfree_training.loop.distributed import World, join_world
from nmsfree_training.loop.state import load_state
from nmsfree_training.model.norms import SyncedBatchNorm2d, sync_batch_norms
from nmsfree_training.weights.checkpoint import load_checkpoint

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


def _in_two(rank: int, folder: Path) -> None:
    store = dist.FileStore(str(folder / "store"), 2)  # type: ignore[attr-defined]
    dist.init_process_group("gloo", store=store, rank=rank, world_size=2)
    world = World(rank, 2)
    network = _norm_network()
    if rank == 1:  # `share` must overwrite them
        with torch.no_grad():
            [p.add_(1) for p in network.parameters()]
    world.share(network)
    sync_batch_norms(network)
    images = torch.load(folder / "images.pt")[rank::2]
    output = _step(network, images)
    grads = [world.mean(p.grad) for p in network.parameters() if p.grad is not None]
    found = {
        "output": output,
        "grads": grads,
        "state": network.state_dict(),
        "maximum": world.maximum([rank, 7 - rank]),
        "gathered": world.gather(f"from {rank}"),
        "told": world.broadcast(f"from {rank}"),
    }
    torch.save(found, folder / f"{rank}.pt")
    dist.destroy_process_group()


def test_norms_and_exchange_of_two_processes(tmp_path: Path) -> None:
    images = torch.randn(6, 3, 9, 8)
    torch.save(images, tmp_path / "images.pt")
    spawn(_in_two, (tmp_path,), nprocs=2)
    network = _norm_network()
    output = _step(network, images)
    for rank in range(2):
        found = torch.load(tmp_path / f"{rank}.pt")
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


def _start(
    out: Path, digits: Path, processes: int, *options: str
) -> "subprocess.CompletedProcess[str]":
    command = [*_command(out, digits, processes), *options]
    return subprocess.run(command, capture_output=True, text=True, env=_environment(), timeout=240)


def _command(out: Path, digits: Path, processes: int) -> list[str]:
    launcher = [sys.executable, "-m"]
    if processes > 1:
        launcher += ["torch.distributed.run", f"--nproc-per-node={processes}", "--standalone"]
        launcher += ["-m"]
    command = [*launcher, "nmsfree", "train", "--data", str(digits), "--out", str(out)]
    return [*command, "--batch-size", "4", "--epochs", "2", "--workers", "0"]


def _environment() -> dict[str, str]:
    return os.environ | {"OMP_NUM_THREADS": "1"}


def _wait_for_iteration(process: "subprocess.Popen[bytes]", out: Path, done: int) -> None:
    """Until this many optimizer steps are in the state file."""
    deadline = time.monotonic() + 200
    while time.monotonic() < deadline and process.poll() is None:
        with suppress(CheckpointError):  # being replaced at this very moment
            if load_state(out)[0].position["iteration"] >= done:
                return
        time.sleep(0.005)
    raise AssertionError(f"step {done} was not reached")


def _train(out: Path, digits: Path, processes: int, *options: str) -> list[dict[str, float]]:
    done = _start(out, digits, processes, *options)
    assert done.returncode == 0, done.stderr
    assert "Warning" not in done.stderr and "Traceback" not in done.stderr
    lines = (out / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def test_two_processes_train_as_one(digits: Path, tmp_path: Path) -> None:
    """The same global batch gives the same losses and the same AP.

    Norms with statistics of the batch, images of several sizes, averaged weights; it starts from
    trained weights, so that AP means something, and descends plainly: Adam's first steps follow
    the sign of gradients, which rounding decides where they are nearly zero. So does the duplicate
    filter where two cells are nearly equal: it is in the next test, over fewer steps.
    """
    weights = Path(__file__).parents[2] / "weights" / "fcos_e2e_nano.safetensors"
    options = ["--model", "fcos_e2e_nano", "--init", str(weights), "--ema", "0.5"]
    options += ["--dedup-iou", "0"]
    options += ["--optimizer", "sgd", "--learning-rate", "0.01", "--short-sides", "192,224,256"]
    one = _train(tmp_path / "one", digits, 1, *options)
    two = _train(tmp_path / "two", digits, 2, *options)
    timing = {"seconds", "images_per_second", "wait_share"}
    for a, b in zip(one, two, strict=True):
        assert a.keys() == b.keys() and a["AP"] > 0.3
        for name in a.keys() - timing:
            assert b[name] == pytest.approx(a[name], rel=RELATIVE), name
    before = {
        k: v for k, v in load_checkpoint(weights).state.items() if ".duplicate_filter." not in k
    }
    a, b = (load_checkpoint(tmp_path / run / "last.safetensors").state for run in ("one", "two"))
    moved = torch.cat([(a[k] - v).flatten() for k, v in before.items()]).norm()
    apart = torch.cat([(a[k] - b[k]).flatten() for k in before]).norm()
    assert apart < 0.01 * moved


WEIGHTS = Path(__file__).parents[2] / "weights"


def test_two_processes_wait_for_a_late_o2o_head(digits: Path, tmp_path: Path) -> None:
    """In the first of two epochs the o2o head has no gradient, on either process."""
    options = ["--init", str(WEIGHTS / "fcos_e2e_nano.safetensors"), "--val", ""]
    options += ["--o2o-start", "0.5", "--o2o-gradient", "0.2", "--o2o-matching", "hungarian"]
    options += ["--optimizer", "sgd", "--learning-rate", "0.01"]
    one = _train(tmp_path / "one", digits, 1, *options)
    two = _train(tmp_path / "two", digits, 2, *options)
    assert ["o2o_cls" in record for record in two] == [False, True]
    for a, b in zip(one, two, strict=True):
        assert a.keys() == b.keys()
        for name in a.keys() - {"seconds", "images_per_second", "wait_share"}:
            assert b[name] == pytest.approx(a[name], rel=RELATIVE), name


def test_a_retrofit_on_two_processes_goes_on_in_the_middle_and_ends(
    digits: Path, tmp_path: Path
) -> None:
    """Frozen parameters, batches in parts, no evaluation; killed and resumed within the epoch."""
    options = ["--retrofit", str(WEIGHTS / "fcos_rt_nano.safetensors"), "--val", ""]
    options += ["--accumulate", "2", "--save-minutes", "0", "--optimizer", "sgd"]
    whole = _train(tmp_path / "whole", digits, 2, *options)
    one = tmp_path / "one"
    launch = [*_command(one, digits, 2), *options]
    process = subprocess.Popen(launch, stderr=subprocess.DEVNULL, env=_environment())
    _wait_for_iteration(process, one, 4)
    process.send_signal(signal.SIGINT)  # torchrun passes it on; both save and stop
    process.wait(timeout=200)
    assert process.returncode != 0
    resumed = _train(one, digits, 2, *options, "--resume")
    for a, b in zip(whole, resumed, strict=True):
        timing = {"seconds", "images_per_second", "wait_share"}
        assert {k: v for k, v in a.items() if k not in timing} == {
            k: v for k, v in b.items() if k not in timing
        }


def test_one_process_fails_and_all_end_with_one_line(digits: Path, tmp_path: Path) -> None:
    """A validation picture of the second process's share cannot be read."""
    broken = tmp_path / "digits"
    shutil.copytree(digits, broken)
    second = load_coco(broken, "val").samples[1].path
    second.write_bytes(b"not a picture")
    options = ["--init", str(WEIGHTS / "fcos_e2e_nano.safetensors")]
    done = _start(tmp_path / "run", broken, 2, *options)
    assert done.returncode != 0
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 and second.name in lines[0], done.stderr
    assert "[rank" not in done.stderr
