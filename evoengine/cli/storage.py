"""`--storage`: a file name or an SQLAlchemy URL."""

from __future__ import annotations


def storage_url(text: str) -> str:
    """A plain path is an SQLite file."""
    return text if "://" in text else f"sqlite:///{text}"
