"""Shard a training over its processes (FSDP2): parameters, gradients and optimiser state.

A layer's parameters are gathered before it is computed, and freed afterwards (Zhao et al. 2023, PyTorch FSDP). We use
torch's own `fully_shard`, because on a CPU Accelerate's FSDP silently becomes DDP.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from detectron2.utils import comm
from torch import Tensor, distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from skysense_o.modeling.weight_cache import WeightCache


def check_sharding(processes: int, precision: str) -> None:
    """Check that a training can be sharded.

    Raises:
        ValueError: there is only one process, or the precision needs a gradient scaler.
    """
    if processes == 1:
        raise ValueError("SOLVER.SHARD True needs 2 processes or more, not 1: give --num-gpus N, or set it to False")
    if precision == "fp16":
        raise ValueError("SOLVER.PRECISION 'fp16' does not work with SOLVER.SHARD True: choose no, bf16 or auto")


def shard(model: nn.Module, device: torch.device) -> None:
    """Shard a model in place; all processes get the weights of process 0.

    Each layer of a trained image tower is gathered when it is computed. All other parameters are gathered once per
    step, because processes call their modules a different number of times (a text tower encodes only new words), and
    gathering needs all processes. Scalars, which FSDP2 cannot shard, stay whole; their gradients are averaged.

    Args:
        model: has a `tower`.
        device: its device.
    """
    for parameter in model.parameters():  # FSDP2 refuses channels-last
        parameter.data = parameter.data.contiguous()
    for tensor in (*model.parameters(), *model.buffers()):
        distributed.broadcast(tensor.detach(), 0)
    scalars = {parameter for parameter in model.parameters() if parameter.dim() == 0}
    options = {"mesh": init_device_mesh(device.type, (comm.get_world_size(),)), "ignored_params": scalars}
    for module in (module for layer in model.tower.layers()[1:] for module in layer):
        if any(parameter.requires_grad for parameter in module.parameters()):
            fully_shard(module, **options)
    fully_shard(model, **options)
    for scalar in scalars:
        if scalar.requires_grad:
            scalar.register_post_accumulate_grad_hook(_average)


def _average(scalar: Tensor) -> None:
    distributed.all_reduce(scalar.grad)
    scalar.grad /= comm.get_world_size()


def clip_gradients(parameters: Iterable[nn.Parameter], most: float) -> Tensor:
    """Scale gradients so that their norm is at most `most` -> their norm before.

    Like torch.nn.utils.clip_grad_norm_, which however refuses a mixture of sharded and whole gradients.
    """
    trained = [parameter for parameter in parameters if parameter.grad is not None]
    sharded = [parameter for parameter in trained if isinstance(parameter, DTensor)]
    whole = [parameter for parameter in trained if not isinstance(parameter, DTensor)]
    norms = [get_total_norm([parameter.grad for parameter in group]) for group in (sharded, whole) if group]
    norms = [norm.full_tensor() if isinstance(norm, DTensor) else norm for norm in norms]
    norm = torch.linalg.vector_norm(torch.stack(norms)) if len(norms) > 1 else norms[0]
    for group in (sharded, whole):
        clip_grads_with_norm_(group, most, norm)
    return norm


@contextmanager
def whole_weights(model: nn.Module) -> Iterator[None]:
    """Context in which every process has all weights of a sharded model, and may call the model any number of times.

    For evaluation, in which processes may have different numbers of images. A model that is not sharded is unchanged.
    """
    parts = [module for module in model.modules() if isinstance(module, FSDPModule)]
    for part in parts:
        part.set_reshard_after_forward(False, recurse=False)
        part.unshard()
    # Caches cannot notice gathered weights, which have the same address and version, so they are cleared.
    for module in model.modules() if parts else ():
        for value in vars(module).values():
            if isinstance(value, WeightCache):
                value.clear()
    try:
        yield
    finally:
        for part in parts:
            part.reshard()
            part.set_reshard_after_forward(part is not model, recurse=False)


def whole_state(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Gather a state dict in the main process, on the CPU. The other processes must call this too; they get {}."""
    found = {}
    for name, tensor in state.items():
        whole = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
        if comm.is_main_process():
            found[name] = whole.detach().cpu()
    return found
