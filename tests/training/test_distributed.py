"""Several processes learn what one learns: DDP and FSDP2, two gloo processes against none.

The processes are started once; each case leaves what it computed in a file.
"""

import multiprocessing
import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from mae.data.loading.batch import Batch
from mae.errors import CheckpointError
from mae.model.decoder import Decoder
from mae.model.methods import build_model
from mae.params import Params
from mae.pixels import PixelStatistics
from mae.training.devices import Place, joined
from mae.training.distributed import (
    clip,
    collect,
    collected,
    distribute,
    full_state,
    gradients_stay_local,
    learner,
    load_full_state,
    parameter_groups,
    total_norm,
    whole_tensors,
)
from mae.training.pretraining import PretrainTask
from mae.training.task import Task
from tests.ports import free_port
from tests.small_project import small_params

ALONE = Place(torch.device("cpu"))
BATCH, STEPS, HALF = 8, 4, 2
CLIP = 0.5
CASES = [(sharding, accumulate) for sharding in ("ddp", "fsdp") for accumulate in (1, 2)]


def params() -> Params:
    return small_params(Path("unused"), depth=2, positions="learned")


def make_task() -> PretrainTask:
    """A masked autoencoder with two blocks on each side; its last encoder norm does not learn."""
    model = params().model
    model = model.model_copy(
        update={"decoder": model.decoder.model_copy(update={"depth": 2, "positions": "shared"})}
    )
    autoencoder = build_model(model, channels=1, classes=0, seed=0)
    autoencoder.encoder.norm.requires_grad_(False)
    return PretrainTask(autoencoder, PixelStatistics((0.5,), (0.25,)), 0, STEPS)


def make_batch(step: int, place: Place, part: int = 0, parts: int = 1) -> Batch:
    """This process's part of the step's images; micro-batches are cut from the part."""
    generator = torch.Generator().manual_seed(step)
    images = torch.randint(0, 256, (BATCH, 1, 16, 24), generator=generator, dtype=torch.uint8)
    count = BATCH // place.world_size // parts
    first = place.rank * BATCH // place.world_size + part * count
    rows = slice(first, first + count)
    return Batch(images[rows], torch.arange(BATCH)[rows] + step * BATCH, torch.full((count,), -1))


class Learning:
    """A task with what the loop makes for it; `step` is a step of the loop."""

    def __init__(self, place: Place, accumulate: int = 1, clip_at: float = CLIP) -> None:
        self.task = make_task().train()
        self.place, self.accumulate, self.clip_at = place, accumulate, clip_at
        self.model = distribute(self.task, place, static=accumulate == 1)
        groups = parameter_groups(self.model, self.task, weight_decay=0.05)
        # The gradient of a key's bias is zero but for rounding: a small epsilon would turn that
        # noise into steps of full length, of another sign in each way of summing.
        self.optimizer = torch.optim.AdamW(groups, eps=1e-4, fused=True)
        self.norms: list[Tensor] = []

    def step(self, step: int) -> None:
        for part in range(self.accumulate):
            with gradients_stay_local(self.model, part + 1 < self.accumulate):
                batch = make_batch(step, self.place, part, self.accumulate)
                loss, _ = self.model(batch, 0)
                (loss / self.accumulate).backward()
        parameters = list(learner(self.model).parameters())
        self.norms.append(total_norm(parameters))
        clip(parameters, self.norms[-1], self.clip_at)
        for group in self.optimizer.param_groups:
            group["lr"] = 1e-3 * group["lr_scale"]
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def steps(self, first: int, last: int) -> "Learning":
        for step in range(first, last):
            self.step(step)
        return self

    def state(self) -> dict[str, Tensor]:
        """Weights and moments as one dict of copies."""
        weights, moments = full_state(learner(self.model), self.optimizer)
        both = {f"w.{n}": t for n, t in weights.items()} | {f"m.{n}": t for n, t in moments.items()}
        return {name: tensor.detach().clone().contiguous() for name, tensor in both.items()}

    def load(self, state: dict[str, Tensor]) -> "Learning":
        parts = [
            {n[2:]: t for n, t in state.items() if n.startswith(kind)} for kind in ("w.", "m.")
        ]
        load_full_state(learner(self.model), self.optimizer, *parts, "the checkpoint")
        return self


# --- what the two processes do -------------------------------------------------------------------


def _case(place: Place, accumulate: int, folder: Path) -> dict[str, Any]:
    whole = Learning(place, accumulate).steps(0, HALF)
    at_half = whole.state()
    whole.steps(HALF, STEPS)
    # From the state of this kind, and from one that a single process wrote.
    again = Learning(place, accumulate).load(at_half)
    round_trip = again.state()
    again.steps(HALF, STEPS)
    foreign = Learning(place, accumulate).load(load_file(folder / "alone.safetensors"))
    foreign.steps(HALF, STEPS)
    end = whole.state()
    with collected(whole.model, whole.task) as plain:
        seen = {name: tensor.clone() for name, tensor in plain.state_dict().items()}
        observed = float(plain(make_batch(9, ALONE), 0)[0])
    collect(whole.model, whole.task)
    return {
        "half": at_half,
        "round trip": round_trip,
        "end": end,
        "again": again.state(),
        "foreign": foreign.state(),
        "seen": seen,
        "task": {name: tensor.clone() for name, tensor in whole.task.state_dict().items()},
        "observed": observed,
        "norms": torch.stack(whole.norms),
        "frozen": whole.task.autoencoder.encoder.norm.weight.requires_grad,
    }


def _held(place: Place) -> dict[str, int]:
    """How many numbers of the weights this process keeps, of how many, and in which modules."""
    sharded = learner(Learning(place).model)
    local = [getattr(p, "to_local", lambda p=p: p)() for p in sharded.parameters()]
    return {
        "kept": sum(tensor.numel() for tensor in local),
        "all": sum(p.numel() for p in sharded.parameters()),
        "apart": sum(type(module).__name__ == "FSDPBlock" for module in sharded.modules()),
    }


def _skipped(place: Place) -> bool:
    """Whether a fused step that was told of a bad gradient leaves everything as it was."""
    learning = Learning(place).steps(0, 1)
    before = learning.state()
    learning.optimizer.found_inf = torch.ones(())  # type: ignore[attr-defined]
    learning.steps(1, 2)
    after = learning.state()
    return all(torch.equal(before[name], after[name]) for name in before)


def _work(rank: int, port: int, folder: str) -> None:
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    torch.set_num_threads(1)
    results: dict[Any, Any] = {}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for sharding in ("ddp", "fsdp"):
            with joined("cpu", sharding) as place:
                for accumulate in (1, 2):
                    results[sharding, accumulate] = _case(place, accumulate, Path(folder))
                if sharding == "fsdp":
                    results["held"] = _held(place)
                results[sharding, "skipped"] = _skipped(place)
    results["warnings"] = [str(w.message) for w in caught if w.category is FutureWarning]
    torch.save(results, Path(folder) / f"{rank}.pt")


@pytest.fixture(scope="module")
def alone() -> dict[str, Any]:
    learning = Learning(ALONE).steps(0, HALF)
    half = learning.state()
    return {
        "half": half,
        "end": learning.steps(HALF, STEPS).state(),
        "norms": torch.stack(learning.norms),
    }


@pytest.fixture(scope="module")
def processes(
    tmp_path_factory: pytest.TempPathFactory, alone: dict[str, Any]
) -> Iterator[list[dict[Any, Any]]]:
    folder = tmp_path_factory.mktemp("processes")
    save_file(alone["half"], folder / "alone.safetensors")
    context = multiprocessing.get_context("spawn")
    port = free_port()
    started = [context.Process(target=_work, args=(r, port, str(folder))) for r in range(2)]
    for process in started:
        process.start()
    for process in started:
        process.join(300)
    assert [process.exitcode for process in started] == [0, 0]
    yield [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


def assert_same(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    assert [name for name in one if not torch.equal(one[name], other[name])] == []


def assert_close(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    for name in one:
        torch.testing.assert_close(one[name], other[name], rtol=1e-4, atol=2e-6, msg=name)


# --- learning ------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES, ids=str)
def test_two_processes_learn_what_one_learns(
    processes: list[dict[Any, Any]], alone: dict[str, Any], case: tuple[str, int]
) -> None:
    for result in processes:
        torch.testing.assert_close(result[case]["norms"], alone["norms"], rtol=1e-5, atol=0)
        assert_close(result[case]["end"], alone["end"])
    assert_same(processes[0][case]["end"], processes[1][case]["end"])
    moved = [n for n in alone["end"] if not torch.equal(alone["end"][n], alone["half"][n])]
    assert len(moved) > 30  # the comparison is of something that learned
    assert (alone["norms"] > CLIP).any()  # and that was clipped


def test_ddp_and_fsdp_agree(processes: list[dict[Any, Any]]) -> None:
    for accumulate in (1, 2):
        results = [processes[0][sharding, accumulate]["end"] for sharding in ("ddp", "fsdp")]
        assert_close(*results)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_state_comes_back_to_the_bit(
    processes: list[dict[Any, Any]], case: tuple[str, int]
) -> None:
    for result in processes:
        assert_same(result[case]["round trip"], result[case]["half"])
        assert_same(result[case]["again"], result[case]["end"])


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_run_moves_between_one_process_and_two(
    processes: list[dict[Any, Any]], alone: dict[str, Any], case: tuple[str, int]
) -> None:
    half = processes[0][case]["half"]
    assert half.keys() == alone["half"].keys()
    back = Learning(ALONE).load(half)
    assert_same(back.state(), half)
    assert_close(back.steps(HALF, STEPS).state(), alone["end"])
    assert_close(processes[0][case]["foreign"], alone["end"])


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_task_gets_what_was_learned(
    processes: list[dict[Any, Any]], case: tuple[str, int]
) -> None:
    result = processes[0][case]
    learned = {n.removeprefix("w."): t for n, t in result["end"].items() if n.startswith("w.")}
    assert_same(result["seen"], learned)
    assert_same(result["task"], learned)
    task = make_task()
    task.load_state_dict(learned)
    with torch.no_grad():
        assert float(task(make_batch(9, ALONE), 0)[0]) == pytest.approx(result["observed"])
    assert result["frozen"] is False


def test_shards_are_kept_apart(processes: list[dict[Any, Any]]) -> None:
    first, second = (result["held"] for result in processes)
    assert first["kept"] + second["kept"] == first["all"]
    assert 0.4 < first["kept"] / first["all"] < 0.6
    assert first["apart"] == 2 + 1  # the encoder's blocks, and the decoder's but for its last


def test_a_bad_step_changes_nothing_in_any_process(processes: list[dict[Any, Any]]) -> None:
    for result in processes:
        assert result["ddp", "skipped"] and result["fsdp", "skipped"]


def test_ddp_warns_of_nothing_that_is_to_go(processes: list[dict[Any, Any]]) -> None:
    assert processes[0]["warnings"] == processes[1]["warnings"] == []


# --- one process ---------------------------------------------------------------------------------


def test_one_process_has_nothing_around_the_task() -> None:
    task = make_task()
    model = distribute(task, ALONE, static=True)
    assert model is task and learner(model) is task
    assert parameter_groups(model, task, 0.05) == task.parameter_groups(0.05)
    assert whole_tensors({"x": task.state_dict()["autoencoder.encoder.cls_token"]})
    with collected(model, task) as plain:
        assert plain is task


def test_the_norm_is_that_of_all_gradients_together() -> None:
    learning = Learning(ALONE, clip_at=1e9).steps(0, 1)
    learning.model(make_batch(1, ALONE), 0)[0].backward()
    gradients = [p.grad for p in learning.task.parameters() if p.grad is not None]
    expected = torch.cat([g.flatten() for g in gradients]).double().norm()
    norm = total_norm(learning.task.parameters())
    assert float(norm) == pytest.approx(float(expected), rel=1e-5)
    clip(learning.task.parameters(), norm, float(expected) / 4)
    assert float(total_norm(learning.task.parameters())) == pytest.approx(
        float(expected) / 4, rel=1e-4
    )
    bad = next(learning.task.parameters())
    assert bad.grad is not None
    bad.grad[0] = float("nan")
    assert total_norm(learning.task.parameters()).isnan()


def test_state_of_another_model_is_refused() -> None:
    state = Learning(ALONE).steps(0, 1).state()
    name = "w.autoencoder.encoder.norm.weight"
    with pytest.raises(
        CheckpointError, match=r"the checkpoint does not fit.*encoder\.norm\.weight"
    ):
        Learning(ALONE).load({**state, name: torch.ones(3)})
    del state[name]
    with pytest.raises(CheckpointError, match="missing"):
        Learning(ALONE).load(state)


def test_every_last_block_of_a_decoder_stays_with_the_whole() -> None:
    from mae.training.distributed import _blocks_called_whole

    task: Task = make_task()
    called = list(_blocks_called_whole(task))
    decoders = [module for module in task.modules() if isinstance(module, Decoder)]
    assert len(decoders) == 1 and decoders[0].blocks[-1] not in called
    assert len(called) == 3 and isinstance(called[0], nn.Module)
    assert not isinstance(distribute(task, ALONE, static=True), DistributedDataParallel)
