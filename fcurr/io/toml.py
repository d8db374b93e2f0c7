"""Configs as files: reading them, and finding the line and column of a key."""

import re
import tomllib
from pathlib import Path
from typing import Any

from fcurr.errors import BadInput

Places = dict[str, tuple[int, int]]  # dotted key -> line and column of what was written there, from 1


def read(path: Path) -> tuple[dict[str, Any], Places]:
    """The table in a file and where its keys stand. A file that cannot be read, or is not TOML, is BadInput."""
    try:
        text = path.read_bytes().decode()
    except FileNotFoundError:
        raise BadInput(f"there is no file {path}") from None
    except (OSError, UnicodeDecodeError) as wrong:
        raise BadInput(f"{path} cannot be read: {wrong}") from None
    try:
        return tomllib.loads(text), places(text)
    except tomllib.TOMLDecodeError as wrong:
        message = str(wrong)
        found = re.search(r" \(at line (\d+), column (\d+)\)$", message)
        line, column = found.groups() if found else (text.count("\n") + 1, 1)
        said = message[: found.start()] if found else message.removesuffix(" (at end of document)")
        raise BadInput(f"{path}:{line}:{column}: not TOML: {said[0].lower()}{said[1:]}") from None
    except (ValueError, RecursionError) as wrong:  # a number of thousands of digits, brackets within brackets
        raise BadInput(f"{path} is not a config: {wrong}") from None


def value(text: str) -> Any:
    """What the right-hand side of `key=value` means: TOML if it is TOML, otherwise the text itself."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except (ValueError, RecursionError):
        return text


def places(text: str) -> Places:
    """Where each key's value stands; a table's own place is its header."""
    import tree_sitter
    import tree_sitter_toml

    source = text.encode()
    root = tree_sitter.Parser(tree_sitter.Language(tree_sitter_toml.language())).parse(source).root_node
    found: Places = {}
    lines = source.splitlines()

    def note(key: str, node: Any) -> None:
        row, column = node.start_point
        line = lines[row] if lines else b""
        found.setdefault(key, (row + 1, len(line[:column].decode(errors="replace")) + 1))

    def visit(node: Any, path: tuple[str, ...]) -> None:
        for child in node.named_children:
            if child.type in ("table", "table_array_element"):
                own = _key(child.named_children[0])
                note(".".join(own), child)
                visit(child, own)
            elif child.type == "pair":
                key, content = child.named_children[:2]
                own = path + _key(key)
                for depth in range(len(path) + 1, len(own)):  # the tables that a dotted key opens
                    note(".".join(own[:depth]), key)
                note(".".join(own), content)
                if content.type == "inline_table":
                    visit(content, own)

    visit(root, ())
    return found


def _key(node: Any) -> tuple[str, ...]:
    if node.type == "dotted_key":
        return sum((_key(child) for child in node.named_children), ())
    text = node.text.decode()
    return (text[1:-1] if node.type == "quoted_key" else text,)
