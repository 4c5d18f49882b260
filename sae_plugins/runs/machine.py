"""The machine as far as numbers depend on it: on another kind, the last bits are others."""

from __future__ import annotations

import platform
from pathlib import Path
from typing import Any

import torch

from sae_plugins.runs.setup import SAELensSettings


def machine(settings: SAELensSettings, threads: int | None = None) -> dict[str, Any]:
    """What the last bits of a run's products depend on."""
    return machine_with(settings.runner.get("llm_device") or settings.device, threads)


def machine_with(device_name: str, threads: int | None = None) -> dict[str, Any]:
    """What the last bits of a product on a device depend on."""
    device = torch.device(device_name)
    found = {
        "device": device.type,
        "products": torch.get_float32_matmul_precision(),
        "kind": platform.machine(),
    }
    if device.type == "cuda":
        return {**found, "name": torch.cuda.get_device_name(device)}
    if device.type != "cpu":
        return found
    return {
        **found,
        "name": _processor(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "threads": threads or torch.get_num_threads(),
    }


def _processor() -> str:
    """The name of the processor, by which its kernels are chosen."""
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8", "replace").splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if "model name" in line), "")
