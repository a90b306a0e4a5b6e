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
        times: of the evaluations that run: a loop that starts late has fewer.
        guidance: settings of it that the pipeline shows, as one line.
        size: of the first input of the denoiser, without its batch.
    """

    structure: str
    scheduler: str
    times: tuple[float, ...]
    guidance: str = ""
    size: tuple[int, ...] = ()

    def is_like(self, other: Setting) -> bool:
        """Whether lessons of this setting say something of the other one: the same denoiser, times of the same kind.

        Logarithms of noise levels fall; where there are none, shares of the run rise (`rehash.importance`).
        """
        rising = [setting.times[:1] <= setting.times[-1:] for setting in (self, other)]
        return self.structure == other.structure and rising[0] == rising[1]

    def difference(self, other: Setting) -> str:
        """In what the other one differs, to be read behind "a loop"; empty where both are the same."""
        if self.scheduler != other.scheduler:
            return f"with {self.scheduler}, but this is {other.scheduler}"
        if len(self.times) != len(other.times):
            return f"of {len(self.times)} evaluations, but this is one of {len(other.times)}"
        if self.times != other.times:
            return "at other noise levels than these"
        if self.structure != other.structure:
            return "of another model: the graph of its denoiser has other operators"
        if self.guidance != other.guidance:
            return f"with {self.guidance or 'no guidance'}, but this is {other.guidance or 'without guidance'}"
        if self.size != other.size:
            return f"of another size or dtype: inputs of {_told(self.size)}, but these are of {_told(other.size)}"
        return ""

    def check(self, other: Setting) -> None:
        """Make sure that what was learned in this setting is used in no other.

        Raises:
            BadInput: the other one differs; says in what.
        """
        if differs := self.difference(other):
            raise BadInput(
                f"the lessons were learned in a loop {differs}; calibrate it on its own, with lessons in another file"
            )


def _told(size: tuple[int, ...]) -> str:
    return "x".join(map(str, size))
