"""Secrets that are known are not shown."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterable
from typing import Final

SHOWN: Final = "***"


class Redactor:
    """Takes known secrets out of text."""

    def __init__(self, secrets: Iterable[str]) -> None:
        """Take the secrets; of one with several lines, each line is one.

        A secret is also known as Python, JSON and a shell would quote it, because that is how
        commands show what they were given.
        """
        known: set[str] = set()
        for secret in secrets:
            for line in (secret, *secret.splitlines()):
                known |= {line, shlex.quote(line), repr(line)[1:-1], json.dumps(line)[1:-1]}
        # The longest first: a secret may begin with another one.
        words = sorted((word for word in known if word.strip()), key=len, reverse=True)
        self._pattern = re.compile("|".join(map(re.escape, words))) if words else None

    def text(self, text: str) -> str:
        """Return *text* with every secret in it replaced by three stars."""
        return self._pattern.sub(SHOWN, text) if self._pattern else text
