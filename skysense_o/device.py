"""Which device to run on."""

import torch


def choose_device(wanted: str) -> torch.device:
    """ "auto" is CUDA where there is a GPU, then Apple's MPS, else the CPU.

    Raises:
        ValueError: a device that this machine has not, or a word that names none.
    """
    if wanted == "auto":
        wanted = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(wanted)
    except RuntimeError as error:
        raise ValueError(f"device {wanted!r} is not known: auto, cpu, cuda, cuda:1, ... or mps") from error
    if device.type == "cuda" and (not torch.cuda.is_available() or (device.index or 0) >= torch.cuda.device_count()):
        raise ValueError(f"device {wanted!r} was asked for, but torch sees {torch.cuda.device_count()} GPUs: use cpu")
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise ValueError("device 'mps' was asked for, but torch sees none: use cpu")
    return device


def has_bf16(device: torch.device) -> bool:
    """Whether the device multiplies bfloat16 itself; a CPU that does not takes up to a hundred times as long."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device.type == "cpu" and torch.cpu._is_avx512_bf16_supported()
