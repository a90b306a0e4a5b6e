"""What a rehash plan depends on."""

from __future__ import annotations

from dataclasses import dataclass

from sicompiler.errors import BadInput


@dataclass(frozen=True)
class Setting:
    """What a plan depends on.

    Attributes:
        structure: of the denoiser's graph.
        scheduler: class and configuration.
        times: of the evaluations.
    """

    structure: str
    scheduler: str
    times: tuple[float, ...]

    def is_like(self, other: Setting) -> bool:
        """Whether lessons of this setting say something of the other one: the same denoiser, times of the same kind.

        Logarithms of noise levels fall; where there are none, shares of the run rise (`rehash.importance`).
        """
        rising = [setting.times[:1] <= setting.times[-1:] for setting in (self, other)]
        return self.structure == other.structure and rising[0] == rising[1]

    def check(self, other: Setting) -> None:
        """Make sure that what was learned in this setting is used in no other.

        Raises:
            BadInput: the other one differs; says in what.
        """
        if self.scheduler != other.scheduler:
            differs = f"with {self.scheduler}, but this is {other.scheduler}"
        elif len(self.times) != len(other.times):
            differs = f"of {len(self.times)} evaluations, but this is one of {len(other.times)}"
        elif self.times != other.times:
            differs = "at other noise levels than these"
        elif self.structure != other.structure:
            differs = "of another model: the graph of its denoiser has other operators"
        else:
            return
        raise BadInput(
            f"the lessons were learned in a loop {differs}; calibrate it on its own, with lessons in another file"
        )
