"""What others say, made fit to be shown and kept: without secrets, and in characters that exist."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterable
from typing import Final

SHOWN: Final = "***"
_SURE_CHARACTERS: Final = 8
"""A secret as long as FreeIPA wants a password to be is no part of a word by chance."""
# Behind a letter or digit only where that is an option's (-pSECRET), or the end of an escape: of
# \nSECRET, \012SECRET, \x0aSECRET, \u000aSECRET, %0ASECRET, or of a colour.
_BEGIN: Final = (
    r"(?:(?<![^\W_])|(?<=[-\\][A-Za-z])|(?<=\\[0-7]{3})|(?<=[%x][0-9A-Fa-f]{2})"
    r"|(?<=\\u[0-9A-Fa-f]{4})|(?<=[\[;]m)|(?<=[\[;][0-9]m)|(?<=[\[;][0-9]{2}m))"
)
_END: Final = r"(?![^\W_])"


class Redactor:
    """Takes known secrets out of text."""

    def __init__(self, secrets: Iterable[str]) -> None:
        """Take the secrets; of one with several lines, each line is one.

        A secret is also known as Python, JSON and a shell would quote it, because that is how
        commands show what they were given. A short one is taken out where it is a word of its own:
        stars within a word that everybody can complete would tell it.
        """
        known: set[str] = set()
        for secret in secrets:
            for line in (secret, *secret.splitlines()):
                known |= {line, shlex.quote(line), repr(line)[1:-1], json.dumps(line)[1:-1]}
        # The longest first: a secret may begin with another one.
        words = sorted((word for word in known if word.strip()), key=len, reverse=True)
        self._pattern = re.compile("|".join(map(_pattern, words))) if words else None

    def text(self, text: str) -> str:
        """Return *text* with every secret in it replaced by three stars, and encodable."""
        return encodable(self._pattern.sub(SHOWN, text) if self._pattern else text)


def _pattern(secret: str) -> str:
    begin, end = _BEGIN * secret[0].isalnum(), _END * secret[-1].isalnum()
    found = re.escape(secret)
    return found if len(secret) >= _SURE_CHARACTERS else f"{begin}{found}{end}"


def encodable(text: str) -> str:
    r"""Return *text* with a surrogate that stands for no undecodable byte as ``\ud800``.

    What a program made up, a step's exception for one, may hold such a thing; it is in no
    encoding, so that nothing could be written with it, or read that has it.
    """
    return text if text.isascii() else re.sub(_LONE, lambda match: f"\\u{ord(match[0]):04x}", text)


_LONE: Final = "[\\ud800-\\udc7f\\udd00-\\udfff]"
