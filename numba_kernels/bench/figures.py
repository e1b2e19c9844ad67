"""What a benchmark finds: rows of figures, and their table."""

from dataclasses import asdict, dataclass, field

from numba_kernels.bench.ceilings import Ceilings
from numba_kernels.bench.timing import Timing


@dataclass(frozen=True, slots=True)
class Figure:
    """One operation on one shape."""

    operation: str  # decode, prefill, rms_norm, ...
    model: str
    case: str
    num_bytes: int  # the fewest that must be moved
    num_flops: int
    ceiling: float  # bytes per second that num_bytes could be moved at
    error: float  # relative, against a result of higher precision
    is_right: bool
    ours: Timing | None  # None: not timed, for it was wrong
    rivals: dict[str, Timing | str] = field(default_factory=dict)  # or why one did not run

    @property
    def share_of_ceiling(self) -> float | None:
        """Of the bandwidth measured in the same run."""
        return None if self.ours is None else self.num_bytes / self.ours.median_s / self.ceiling

    @property
    def flops_per_s(self) -> float | None:
        return None if self.ours is None else self.num_flops / self.ours.median_s

    def speedup(self, rival: str) -> float | None:
        """The rival's time over ours; None if either has none."""
        theirs = self.rivals.get(rival)
        return theirs.median_s / self.ours.median_s if self.ours and isinstance(theirs, Timing) else None

    def as_dict(self) -> dict[str, object]:
        """Plain data, for JSON."""
        derived = {"share_of_ceiling": self.share_of_ceiling, "flops_per_s": self.flops_per_s}
        return asdict(self) | derived | {"speedups": {name: self.speedup(name) for name in self.rivals}}


@dataclass(slots=True)
class Findings:
    """A whole run's."""

    ceilings: Ceilings
    figures: list[Figure] = field(default_factory=list)
    not_run: list[str] = field(default_factory=list)  # cases that the time did not suffice for

    @property
    def all_right(self) -> bool:
        """Whether every result was correct."""
        return all(figure.is_right for figure in self.figures)

    def as_dict(self) -> dict[str, object]:
        """Plain data, for JSON."""
        figures = [figure.as_dict() for figure in self.figures]
        return {"ceilings": asdict(self.ceilings), "figures": figures, "not_run": self.not_run}


def line(figure: Figure) -> str:
    """One row of the table: time, share of the ceiling, rate, then how many times as long each rival takes."""
    name = f"{figure.model:13} {figure.operation:17} {figure.case:24}"
    if figure.ours is None or figure.share_of_ceiling is None:
        return f"{name} WRONG: relative error {figure.error:.2e}"
    right = f"err {figure.error:.0e}" if figure.is_right else f"WRONG {figure.error:.0e}"
    rates = f"{figure.ours.median_s * 1e6:10.1f} us {figure.share_of_ceiling:6.1%} of ceiling"
    if figure.num_flops:
        rates += f" {figure.num_flops / figure.ours.median_s / 1e12:6.1f} TFLOP/s"
    others = []
    for rival, theirs in figure.rivals.items():
        ratio = figure.speedup(rival)
        if ratio is not None:
            others.append(f"{rival} x{ratio:.2f}")
        elif isinstance(theirs, str) and not theirs.startswith("ModuleNotFoundError"):
            others.append(f"{rival}: {theirs[:60]}")
    return f"{name} {rates} {right}  {'; '.join(others)}"
