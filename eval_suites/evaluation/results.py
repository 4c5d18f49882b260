"""The result of evaluating one SAE with one suite and one seed: a typed, versioned JSON file."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, field_validator

from sae_plugins.eval_suites.suite import Value

KEYED_VERSIONS = ("sae-bench", "sae-lens")
"""Other versions than these, and than a suite's own, do not make a result another one."""
NOT_APPLICABLE: Literal["not applicable"] = "not applicable"


class SAEInfo(BaseModel, extra="forbid"):
    """Which SAE it was."""

    name: str
    source: str
    hash: str
    architecture: str
    d_in: int
    d_sae: int
    hook_name: str
    l0: float | None = None
    """As its run measured it, on held-out text."""


class ModelInfo(BaseModel, extra="forbid"):
    """Which language model it was."""

    name: str
    hash: str
    dtype: str
    loaded_as: str | None = None
    """By whose code, in words."""


class Result(BaseModel, extra="forbid"):
    """One suite's verdict about one SAE, with one seed."""

    schema_version: Literal[1] = 1
    suite: str
    status: Literal["ok", "failed", "not applicable"]
    reason: str | None = None
    sae: SAEInfo
    model: ModelInfo | None = None
    datasets: dict[str, str] = {}
    """Fingerprint, or revision on the Hub, by name."""
    seed: int
    preset: str
    settings: dict[str, Any] = {}
    metrics: dict[str, Value] = {}
    details: dict[str, dict[str, float | None]] = {}
    warnings: list[str] = []
    deviations: list[str] = []
    versions: dict[str, str] = {}
    code: dict[str, str | None] = {}
    """Hashes of the files that computed it, by name."""
    raw: str | None = None
    """The file beside this one with SAEBench's own JSON."""
    machine: dict[str, Any] = {}
    """What the last bits of its numbers depend on."""
    seconds: float | None = None
    cpu_seconds: float | None = None
    peak_memory_bytes: int | None = None

    @field_validator("details")
    @classmethod
    def _finite(
        cls, details: dict[str, dict[str, float | None]]
    ) -> dict[str, dict[str, float | None]]:
        return {
            item: {k: v if v is not None and math.isfinite(v) else None for k, v in row.items()}
            for item, row in details.items()
        }


def read_result(file: Path) -> Result | None:
    """The result in a file; None if there is none that can be read."""
    try:
        return Result.model_validate_json(file.read_text("utf-8"))
    except (OSError, ValueError):
        return None
