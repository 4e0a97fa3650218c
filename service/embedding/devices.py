"""Choice of the device and the precision of a model."""

from __future__ import annotations

from service.embedding import openvino_towers
from service.errors import ConfigurationError


def choose_device(device: str, precision: str) -> tuple[str, str, str]:
    """Choose device and precision; return (device, precision, reason for the device).

    The device `auto` means CUDA if there is such a device, else MPS (Apple's Metal), else the CPU. The precision `auto`
    means float16 on CUDA and float32 elsewhere. int8 always runs on OpenVINO.

    Raises:
        ConfigurationError: if this machine does not have the device, if OpenVINO is not installed, or if the device
            does not support the precision.
    """
    import torch

    cuda, mps = torch.cuda.is_available(), torch.backends.mps.is_available()
    if precision == "int8":
        if device not in ("auto", "cpu", "openvino"):
            raise ConfigurationError(
                f"REELSRS_PRECISION: int8 runs only on the CPU, not on {device}; set REELSRS_DEVICE=cpu"
            )
        device, reason = "openvino", "int8 needs OpenVINO"
    else:
        reason = "the setting selects it"
    if device == "auto":
        chosen = "cuda" if cuda else "mps" if mps else "cpu"
        reason = {
            "cuda": "a CUDA device is available",
            "mps": "Apple Metal is available, but no CUDA device",
            "cpu": "neither a CUDA device nor Apple Metal is available",
        }[chosen]
    else:
        chosen = device
        number = int(device.partition(":")[2] or 0)
        if device.startswith("cuda") and (not cuda or number >= torch.cuda.device_count()):
            raise ConfigurationError(f"REELSRS_DEVICE: {device} is not available; torch finds no such CUDA device")
        if device == "mps" and not mps:
            raise ConfigurationError("REELSRS_DEVICE: mps is not available; torch finds no Metal device")
    if precision == "auto":
        precision = "float16" if chosen.startswith("cuda") else "float32"
    if chosen == "openvino":
        openvino_towers.require_without_telemetry()
        if precision not in ("float32", "int8"):
            raise ConfigurationError(f"REELSRS_PRECISION: must be float32 or int8 with OpenVINO, not {precision}")
    return chosen, precision, reason
