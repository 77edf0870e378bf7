"""Tables that grow or become one, and the rows that move with them."""

from tunesmith.conditioning.merge import grown, joined
from tunesmith.conditioning.tables import Table


def table(**ids: int) -> Table:
    return Table("artist", "v3", ids)


def test_the_first_table_keeps_its_ids_and_others_bring_their_rows() -> None:
    both, plans = joined([table(unknown=0, abba=1, queen=2), table(unknown=0, queen=1, salt=3)], [4, 5])
    assert both.ids == {"unknown": 0, "abba": 1, "queen": 2, "salt": 4}
    assert plans == [[0, 1, 2, 3, 0], [0, 0, 1, 0, 3]]


def test_new_names_begin_as_known_ones() -> None:
    more, rows = grown(table(unknown=0, queen=1), 3, {"mine": "queen", "queen": None, "other": None})
    assert more.ids == {"unknown": 0, "queen": 1, "mine": 3, "other": 4}
    assert rows == [0, 1, 2, 1, 0]
