"""All rows of a study, ours and Optuna's, so that it is copied, renamed or deleted in one transaction.

Optuna copies a study trial by trial, cannot rename one, and deletes in a transaction of its own: killed in the middle,
that would leave half a study. So this module alone writes to Optuna's tables itself, through Optuna's own table
definitions. Both sets of tables are trees of foreign keys below one row, and are treated alike.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import Column, ColumnElement, Connection, Table, delete, exc, insert, select

from evoengine.archive import tables
from evoengine.archive.documents import Damaged
from evoengine.archive.ledger import OPTUNA, OPTUNA_CANNOT_READ, TRIALS
from evoengine.errors import UserError

Row = dict[str, Any]
Rows = dict[Table, list[Row]]
Keys = dict[Table, dict[Any, int]]
"""By table, the new key of every row by its old one."""

STUDIES = OPTUNA["studies"]


def read_rows(connection: Connection, root: Table, root_id: int) -> Rows:
    """Every row below one row of `root`, and that row, each table in the order of its keys.

    Raises:
        Damaged: one holds what neither evoengine nor Optuna writes.
    """
    owners = _owners(root)
    try:
        return {
            table: [
                dict(row)
                for row in connection.execute(
                    select(table).where(_below(owners, table, root_id)).order_by(*table.primary_key)
                ).mappings()
            ]
            for table in owners
        }
    except OPTUNA_CANNOT_READ as error:
        raise Damaged(f"a row cannot be read: {type(error).__name__} {error}") from error


def insert_rows(connection: Connection, root: Table, rows: Mapping[Table, list[Row]], keys: Keys) -> None:
    """Insert rows as new ones. Keys are given anew, and entered in `keys`, through which all references go.

    Raises:
        UserError: a row refers to one that is not among them, or holds what this database cannot.
    """
    try:
        for table in _owners(root):
            _insert(connection, table, rows.get(table, ()), keys)
    except (KeyError, exc.DataError, exc.ProgrammingError) as error:
        reason = error.orig if isinstance(error, exc.DBAPIError) else f"row {error} is missing"
        raise UserError(
            f"the database that the study is from is damaged ({reason}): go back to a copy of it"
        ) from error


def delete_rows(connection: Connection, root: Table, root_id: int) -> None:
    """Delete a row of `root` and every row below it."""
    owners = _owners(root)
    for table in reversed(owners):
        connection.execute(delete(table).where(_below(owners, table, root_id)))


def _insert(connection: Connection, table: Table, rows: Sequence[Row], keys: Keys) -> None:
    own = table.autoincrement_column
    parents = {column.name: key.column.table for column in table.columns for key in column.foreign_keys}
    if table is tables.candidate:
        parents["trial_id"] = TRIALS  # not a foreign key: the two sets of tables do not know each other
    new = [
        {
            name: keys[parents[name]][value] if name in parents and value is not None else value
            for name, value in row.items()
            if own is None or name != own.name
        }
        for row in rows
    ]
    if own is None or not any(
        key.column is own for other in table.metadata.sorted_tables for key in other.foreign_keys
    ):
        if new:
            connection.execute(insert(table), new)
        return
    known = keys.setdefault(table, {})
    for row, values in zip(rows, new, strict=True):
        key = connection.execute(insert(table).values(values)).inserted_primary_key
        assert key is not None, "an insert of one row has a key"
        known[row[own.name]] = int(key[0])


def _owners(root: Table) -> dict[Table, Column[Any] | None]:
    """`root` and every table whose rows hang on it, parents first, with the column that says on which row of which."""
    owners: dict[Table, Column[Any] | None] = {root: None}
    for table in root.metadata.sorted_tables:
        for column in table.columns:
            if table not in owners and any(key.column.table in owners for key in column.foreign_keys):
                owners[table] = column
    return owners


def _below(owners: Mapping[Table, Column[Any] | None], table: Table, root_id: int) -> ColumnElement[bool]:
    owner = owners[table]
    if owner is None:
        [key] = table.primary_key
        return key == root_id
    [reference] = owner.foreign_keys
    parent = reference.column
    if owners[parent.table] is None:
        return owner == root_id
    return owner.in_(select(parent).where(_below(owners, parent.table, root_id)))
