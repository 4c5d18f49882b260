"""Steps of a run, which an option gives as such or as a share of the run."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, TypeVar, get_args

from pydantic import BaseModel
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

if TYPE_CHECKING:
    from pydantic.fields import FieldInfo

    from sae_plugins.framework.run import Run

logger = logging.getLogger(__name__)
M = TypeVar("M", bound=BaseModel)


@dataclass(frozen=True)
class InSteps:
    """Says of an option's type that it counts steps: an int is steps, a float below 1 a share.

    Attributes:
        ge: the least number of steps.
        le: the greatest, if there is one.
    """

    ge: int = 0
    le: int | None = None

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> CoreSchema:
        """Validation by `checked` alone."""
        return core_schema.no_info_plain_validator_function(self.checked)

    def checked(self, value: Any) -> int | float:
        """The value, if it is either; texts are neither."""
        if isinstance(value, float) and 0 <= value < 1:
            return value
        most = math.inf if self.le is None else self.le
        if isinstance(value, int) and not isinstance(value, bool) and self.ge <= value <= most:
            return value
        steps = f"at least {self.ge}" if self.le is None else f"from {self.ge} to {self.le}"
        raise PydanticCustomError(
            "steps",
            f"it must be a whole number of steps, {steps}, or a share of the run, below 1",
        )

    def of(self, share: float, total_steps: int) -> int:
        """A share of a run in steps, rounded down, within the bounds; no share is no step."""
        steps = math.floor(share * total_steps + 1e-9)  # 0.29 of 100 is 29
        steps = max(steps, self.ge, 1 if share else 0)
        return steps if self.le is None else min(steps, self.le)


if TYPE_CHECKING:
    StepsOrShare = int  # in a run, where shares have become steps
else:
    StepsOrShare = int | float
Steps = Annotated[StepsOrShare, InSteps()]


def share(of_run: float) -> Any:
    """A share of the run as an option's default, which type checkers take for steps."""
    return of_run


def in_steps(options: M, total_steps: int) -> M:
    """Options with each share of a run of `total_steps` steps in steps."""
    shares = {
        name: (counts, share)
        for name, field in type(options).model_fields.items()
        if (counts := _counts_steps(field)) and isinstance(share := getattr(options, name), float)
    }
    steps = {name: counts.of(share, total_steps) for name, (counts, share) in shares.items()}
    return options.model_copy(update=steps)


def steps_of(options: BaseModel) -> dict[str, int | None]:
    """The options that count steps, by name; None where such an option is left out."""
    fields = type(options).model_fields
    return {name: getattr(options, name) for name in fields if _counts_steps(fields[name])}


def schedule(options: BaseModel, total_steps: int) -> str | None:
    """When a plugin with these options acts in a run, in words; None if no option says so.

    The options are those that count steps and are called `start`, `stop`, `every` or `interval`;
    with one of the last two, a plugin acts at its multiples.
    """
    steps = steps_of(in_steps(options, total_steps))
    if not steps.keys() & {"start", "stop", "every", "interval"}:
        return None
    if steps.get("interval") == 0:
        return "at no step of its own"
    period = steps.get("every") or steps.get("interval") or 1
    stop = steps.get("stop")
    end = total_steps if stop is None else min(stop, total_steps)
    first = -(-max(steps.get("start") or 1, 1) // period) * period
    last = end // period * period
    if first > last:
        return "never"
    if first == last:
        return f"at step {first:,}"
    often = "every step" if period == 1 else f"every {period:,} steps"
    return f"{often}, first at step {first:,}, last at step {last:,}"


def _counts_steps(field: FieldInfo) -> InSteps | None:
    of_union = [m for p in get_args(field.annotation) for m in getattr(p, "__metadata__", ())]
    return next((m for m in (*field.metadata, *of_union) if isinstance(m, InSteps)), None)


def warn_if_never(run: Run, plugin: str, first: int, last: int | None = None) -> None:
    """Warn, when a run begins, that a plugin does nothing in it.

    Args:
        run: the run.
        plugin: its name.
        first: the first step at which it would act.
        last: the last step at which it may, if it stops before the run does.
    """
    if first > min(run.total_steps, run.total_steps if last is None else last):
        logger.warning(
            "%s does nothing in this run, which has %d steps: it would begin at step %d%s. Its "
            "options that count steps (`sae-plugins plugins show %s`) also take shares of the run, "
            "such as 0.1",
            plugin,
            run.total_steps,
            first,
            "" if last is None else f" and stops after step {last}",
            plugin,
        )
