"""What a study says of the cards that shared its search."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from evoengine.archive.documents import Damaged, typed
from evoengine.archive.records import Record
from evoengine.errors import UserError
from evoengine.verdict import Evidence, Measurement


@dataclass(frozen=True, slots=True)
class SharedCard:
    """What a search on several cards recorded of one (`devices.fleet`), at its last start.

    `control_us` is the default config's time on it. `differs` is what was found there and not on the first card.
    """

    control_us: float
    noise: float
    baselines_us: Mapping[str, float]
    differs: Evidence


def shared_cards(name: str, records: Sequence[Record]) -> list[dict[str, Any]]:
    """A row a card, with what it judged (twins were judged by none); none where there was one card.

    Raises:
        UserError: the database holds no such thing.
    """
    known: dict[str, SharedCard] = {}
    try:
        for found in {id(one.environment): one.environment.get("cards", {}) for one in records}.values():
            known |= typed(dict[str, SharedCard], found)
    except Damaged as error:
        raise UserError(f"study {name} is damaged ({error}): start a new search") from error
    own = [one.verdict for one in records if one.verdict is not None and one.twin_of is None]
    judged = Counter(str(verdict.evidence.get("card")) for verdict in own)
    measured = Counter(str(verdict.evidence.get("card")) for verdict in own if isinstance(verdict, Measurement))
    return [
        {"card": uuid, "judged": judged[uuid], "measured": measured[uuid], **asdict(card)}
        for uuid, card in known.items()
    ]
