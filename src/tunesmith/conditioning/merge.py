"""One table of names for priors that were trained with different ones.

An embedding has a row an id.  Where tables are joined or grow, ids change, and rows move with them: a plan of rows says
for each new id which old row it begins as.
"""

from collections.abc import Mapping, Sequence

from tunesmith.conditioning.tables import UNKNOWN, Table


def joined(tables: Sequence[Table], sizes: Sequence[int]) -> tuple[Table, list[list[int]]]:
    """One table for all, and the rows of each one's embedding in it.

    sizes: rows that each embedding has.  The first table keeps its ids; names that only others know come behind them.
    A name that an embedding doesn't know begins as its row of the unknown.
    """
    first, ids, size = tables[0], dict(tables[0].ids), sizes[0]
    for table in tables[1:]:
        for name in table.ids:
            if name not in ids:
                ids[name], size = size, size + 1
    table = Table(first.kind, first.rules, ids)
    plans = [_rows(own, table, size) for own in tables[1:]]
    return table, [[*range(sizes[0]), *[UNKNOWN] * (size - sizes[0])], *plans]


def grown(table: Table, size: int, like: Mapping[str, str | None]) -> tuple[Table, list[int]]:
    """A table with more names, and the rows of its embedding, which had `size`.

    like: new name -> the known name whose row it begins as; None: the unknown one's.
    """
    fresh = [name for name in like if name not in table.ids]
    ids = table.ids | {name: size + i for i, name in enumerate(fresh)}
    begins = [UNKNOWN if (old := like[name]) is None else table.ids[old] for name in fresh]
    return Table(table.kind, table.rules, ids), [*range(size), *begins]


def _rows(own: Table, table: Table, size: int) -> list[int]:
    rows = [UNKNOWN] * size
    for name, number in table.ids.items():
        if name in own.ids:
            rows[number] = own.ids[name]
    return rows
