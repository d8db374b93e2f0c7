"""Errors that are messages to a person."""


class BadInput(ValueError):
    """What was given cannot be used; the message says what was given and what would be right. `where` is the config key
    it belongs to ("data.path"), if it belongs to one: whoever knows the file puts file, line and column before it."""

    def __init__(self, message: str, where: str = "") -> None:
        super().__init__(message)
        self.where = where


class Halt(Exception):
    """The run ends here, by no fault of the function in which it does."""
