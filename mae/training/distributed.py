"""One model that learns in several processes: copies of it (DDP), or shards of it (FSDP2).

What is saved is always whole, with the keys of a single process, so that a run goes on in any
number of processes, sharded or not.
"""

import copy
import inspect
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any, TypeGuard, cast

import torch
from timm.models.vision_transformer import Block
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from mae.model.artifact import put_weights
from mae.model.decoder import Decoder
from mae.training.checkpoints import load_optimizer_tensors, optimizer_tensors
from mae.training.devices import Place
from mae.training.task import Task

if TYPE_CHECKING:
    from torch.distributed.fsdp import FSDPModule
    from torch.distributed.tensor import DTensor


def distribute(task: Task, place: Place, *, static: bool) -> nn.Module:
    """Return what is called in place of the task: itself, DDP around it, or a sharded copy.

    The copy shares no tensor with the task, which waits on the CPU until `collect`. Make the
    optimiser afterwards, with `parameter_groups`. static: every backward runs the same operations,
    through what is returned, and exchanges gradients. Not so with micro-batches, nor where the
    task itself is tried first: DDP would silently exchange nothing any more (pytorch#187732).
    """
    if place.world_size == 1:
        return task
    if place.sharding == "fsdp":
        return _sharded_copy(task, place)
    return DistributedDataParallel(
        task,
        device_ids=[place.device.index] if place.device.type == "cuda" else None,
        gradient_as_bucket_view=True,
        static_graph=static,
        **_KEEP_BUFFERS,
    )


# Buffers are constants or statistics of this process's part; later torch renames the switch.
_LATER = "forward_sync_buffers" in inspect.signature(DistributedDataParallel).parameters
_KEEP_BUFFERS: dict[str, Any] = {"forward_sync_buffers" if _LATER else "broadcast_buffers": False}


def _sharded_copy(task: Task, place: Place) -> nn.Module:
    """Return a copy whose blocks are gathered one after the other, and the rest with the whole.

    It is made on the CPU, so that no device ever holds all of the weights twice.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(place.device.type, (place.world_size,))
    sharded = copy.deepcopy(task.to("cpu"))
    for block in _blocks_called_whole(sharded):
        fully_shard(block, mesh=mesh)
    fully_shard(sharded, mesh=mesh)
    return sharded


def _blocks_called_whole(module: nn.Module) -> Iterator[nn.Module]:
    """Yield the transformer blocks, but for a decoder's last.

    It is run piece by piece, for the hidden tokens alone, and FSDP gathers a module only when
    that module itself is called.
    """
    apart = {id(part.blocks[-1]) for part in module.modules() if isinstance(part, Decoder)}
    for part in module.modules():
        if isinstance(part, Block) and id(part) not in apart:
            yield part


def learner(model: nn.Module) -> Task:
    """Return the module whose parameters learn: the task, or its sharded copy."""
    inner = model.module if isinstance(model, DistributedDataParallel) else model
    return cast(Task, inner)


def parameter_groups(model: nn.Module, task: Task, weight_decay: float) -> list[dict[str, Any]]:
    """Return the task's optimiser groups, with the parameters that learn in their places.

    Groups go by the shapes of whole parameters, which a shard does not have.
    """
    names = {id(parameter): name for name, parameter in task.named_parameters()}
    learning = dict(learner(model).named_parameters())
    return [
        group | {"params": [learning[names[id(parameter)]] for parameter in group["params"]]}
        for group in task.parameter_groups(weight_decay)
    ]


@contextmanager
def gradients_stay_local(model: nn.Module, more_to_come: bool) -> Iterator[None]:
    """Within, for forward and backward: gradients are exchanged only if no more are to come."""
    if isinstance(model, DistributedDataParallel):
        with model.no_sync() if more_to_come else nullcontext():
            yield
        return
    if hasattr(model, "set_requires_gradient_sync"):
        cast("FSDPModule", model).set_requires_gradient_sync(not more_to_come)
    yield


def total_norm(parameters: Iterable[Tensor]) -> Tensor:
    """Return the L2 norm of all gradients together, a float32 scalar, the same in every process.

    Collective for shards. Nothing waits for the device.
    """
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    norm = torch.nn.utils.get_total_norm(gradients)
    return norm.full_tensor() if _is_shard(norm) else norm


@torch.no_grad()
def clip(parameters: Iterable[Tensor], norm: Tensor, at_most: float) -> None:
    """Scale the gradients, whose total norm is `norm`, down to `at_most`."""
    torch.nn.utils.clip_grads_with_norm_(parameters, at_most, norm)


# --- state: whole on the disk, in shards here ---------------------------------------------------


def full_state(
    learner: nn.Module, optimizer: torch.optim.Optimizer
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return weights and optimiser's tensors, named as in a single process. Collective.

    Those of shards are new tensors on the CPU; others are the live ones.
    """
    weights, moments = learner.state_dict(), optimizer_tensors(optimizer)
    return whole_tensors(weights), whole_tensors(moments)


def load_full_state(
    learner: nn.Module,
    optimizer: torch.optim.Optimizer,
    weights: Mapping[str, Tensor],
    moments: Mapping[str, Tensor],
    where: str,
) -> None:
    """Put whole tensors back, from `full_state`. Raises CheckpointError when they do not fit."""
    expected = learner.state_dict()
    put_weights(learner, {n: divided_like(expected.get(n), w) for n, w in weights.items()}, where)
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    divided = {}
    for key, value in moments.items():
        index = int(key.split(".", 1)[0])
        owner = parameters[index] if index < len(parameters) else None
        # What has no extent, as the count of steps, belongs to no shard.
        divided[key] = divided_like(owner, value) if value.ndim else value
    load_optimizer_tensors(optimizer, divided, where)


def whole_tensors(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the same tensors, gathered on the CPU where they are shards. Collective."""
    return {
        name: tensor.full_tensor().cpu() if _is_shard(tensor) else tensor
        for name, tensor in tensors.items()
    }


def divided_like(pattern: Tensor | None, whole: Tensor) -> Tensor:
    """Return this process's shard of `whole` where `pattern` is a shard, else `whole` itself."""
    if pattern is None or not _is_shard(pattern):
        return whole
    from torch.distributed.tensor import distribute_tensor

    # Every process holds the whole: nothing needs to be sent.
    mesh, placements = pattern.device_mesh, pattern.placements
    return distribute_tensor(whole, mesh, placements, src_data_rank=None)


def _is_shard(tensor: Tensor) -> TypeGuard["DTensor"]:
    # A plain isinstance would load DTensor's package where nothing is sharded.
    return hasattr(tensor, "full_tensor")


def collect(model: nn.Module, task: Task) -> None:
    """Give the task what was learned, on the device it is learned on. Collective."""
    copied = learner(model)
    if copied is task:
        return
    put_weights(task, whole_tensors(copied.state_dict()), "the sharded copy")
    task.to(next(copied.parameters()).device)


@contextmanager
def collected(model: nn.Module, task: Task) -> Iterator[Task]:
    """Within, the task has what has been learned so far: to be looked at. Collective."""
    collect(model, task)
    try:
        yield task
    finally:
        if learner(model) is not task:
            task.to("cpu")
