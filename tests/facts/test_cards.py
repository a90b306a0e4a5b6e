"""What cards really offer, by name and by size, and how it is written."""

from __future__ import annotations

import pytest

from sicompiler.cards import card_in, card_named, cards
from sicompiler.errors import BadInput
from sicompiler.units import GIB, parse_bytes

pytestmark = pytest.mark.pure


@pytest.mark.parametrize("text", ["16GB card", "16 gb card", " 16 GB  Card "])
def test_a_budget_may_be_a_card_by_its_size(text: str) -> None:
    assert parse_bytes(text) == int(15.56 * GIB) - GIB // 2 < parse_bytes(16)


@pytest.mark.parametrize("text", ["rtx-4090", "RTX 4090", "NVIDIA RTX 4090", "rtx4090"])
def test_a_card_has_one_name_however_it_is_written(text: str) -> None:
    card = card_named(text)
    assert (card.name, card.capacity_bytes) == ("rtx-4090", int(23.5 * GIB))
    assert str(card) == (
        "rtx-4090: 23.50 GiB as the driver reports it, less 0.50 GiB for the context of CUDA, leaves 23.00 GiB"
    )


def test_every_card_offers_less_than_its_name_says_and_names_its_source() -> None:
    for name, card in cards().items():
        assert card.source
        assert card == card_named(name)
        assert 0 < card.budget_bytes < card.capacity_bytes
        if name.endswith(" GB"):
            assert card.capacity_bytes < float(name.removesuffix(" GB")) * GIB


def test_sizes_are_no_cards() -> None:
    assert card_in("16GB") is None
    assert card_in(11) is None


def test_an_unknown_card_lists_those_that_are_known() -> None:
    with pytest.raises(BadInput, match=r"no card 'rtx-9999' here; known are 11 GB, 16 GB, .* rtx-4090"):
        parse_bytes("rtx-9999 card")
