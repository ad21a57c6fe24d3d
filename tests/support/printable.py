"""Reports of failed tests that can be sent and shown whatever a file was called."""

from __future__ import annotations


def escape(text: str) -> str:
    r"""Return *text* with what no encoding can hold (undecodable bytes) as ``\udc80``."""
    return text.encode("utf-8", "backslashreplace").decode()


def escape_all(data: object) -> object:
    """Return *data*, as made of dicts and lists, with every text in it escaped."""
    if isinstance(data, str):
        return escape(data)
    if isinstance(data, dict):
        return {escape_all(key): escape_all(value) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return type(data)(map(escape_all, data))
    return data
