"""Choose the device to run on."""

import torch


def choose_device(name: str) -> torch.device:
    """Turn a device's name into a device.

    Args:
        name: cpu, cuda, cuda:1, ... or mps; "auto" is the first of cuda, mps and cpu that this machine has.

    Raises:
        ValueError: the name is unknown, or this machine does not have the device.

    >>> choose_device("cpu")
    device(type='cpu')
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"unknown device {name!r}: choose auto, cpu, cuda, cuda:1, ... or mps") from error
    if device.type == "cuda" and (not torch.cuda.is_available() or (device.index or 0) >= torch.cuda.device_count()):
        raise ValueError(f"device {name!r} is not available, torch sees {torch.cuda.device_count()} GPUs: use cpu")
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise ValueError("device 'mps' is not available: use cpu")
    return device


def has_amx() -> bool:
    """Whether the CPU has AMX, which multiplies tiles of bfloat16."""
    return torch.cpu._is_amx_tile_supported()


def has_bf16(device: torch.device) -> bool:
    """Whether the device multiplies bfloat16 natively; a CPU that emulates it takes up to a hundred times as long."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device.type == "cpu" and torch.cpu._is_avx512_bf16_supported()
