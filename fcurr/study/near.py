"""What somebody may have meant."""

import difflib
from collections.abc import Iterable


def near(word: str, words: Iterable[str]) -> str:
    """ " (did you mean `x`?)", if one of the words is near."""
    found = difflib.get_close_matches(word, list(words), n=1)
    return f" (did you mean `{found[0]}`?)" if found else ""
