"""What a card of a name or a size really offers to torch: less than is printed on the box.

The figures, with where each comes from, are in `cards.json` beside this file. From what the driver reports as a card's
capacity, what its own context takes is subtracted. What a desktop or other programs take is not known here.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from sicompiler.errors import BadInput

GIB = 2**30
_CARD = re.compile(r"\s*(?P<name>.+?)\s+card\s*", re.IGNORECASE)


@dataclass(frozen=True)
class Card:
    """A card, or all of a size.

    Attributes:
        name: of it.
        capacity_bytes: what the driver reports.
        context_bytes: what its context takes of that.
        source: where the capacity comes from.
        device: the row of `sicompiler.device` for it, where that is not the usual one; empty else.
    """

    name: str
    capacity_bytes: int
    context_bytes: int
    source: str
    device: str = ""

    @property
    def budget_bytes(self) -> int:
        """What is left for torch."""
        return self.capacity_bytes - self.context_bytes

    def __str__(self) -> str:
        return (
            f"{self.name}: {self.capacity_bytes / GIB:.2f} GiB as the driver reports it, less "
            f"{self.context_bytes / GIB:.2f} GiB for the context of CUDA, leaves {self.budget_bytes / GIB:.2f} GiB"
        )


@functools.cache
def cards() -> Mapping[str, Card]:
    """Every card that is known, by name: sizes first."""
    table = json.loads(Path(__file__).with_name("cards.json").read_text(encoding="utf-8"))
    context = int(table["context_bytes"])
    sizes = {row["name"]: row for row in table["sizes"]}
    rows = list(sizes.items())
    rows += [(name, {**sizes[row["size"]], **row}) for row in table["cards"] for name in row["names"]]
    return {
        name: Card(name, int(row["offers_gib"] * GIB), context, row["source"], row.get("device", ""))
        for name, row in rows
    }


def card_named(name: str) -> Card:
    """A card by its name or its size, however it is written: `RTX 4090`, `rtx-4090`, `16GB`.

    Raises:
        BadInput: it is not known; lists those that are.
    """
    known = {_plain(each): card for each, card in cards().items()}
    found = known.get(_plain(name))
    if found is None:
        raise BadInput(
            f"there is no card {name!r} here; known are {', '.join(cards())}. Of another one give what is free on it "
            "as a budget in GiB"
        )
    return found


def card_in(size: float | int | str) -> Card | None:
    """The card that a budget names, as in "16GB card"; None where it is a size.

    Raises:
        BadInput: it names one that is not known.
    """
    match = _CARD.fullmatch(size) if isinstance(size, str) else None
    return None if match is None else card_named(match["name"])


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower().removeprefix("nvidia").removesuffix("gib"))
