"""A training that goes on from another of the same study: [start] config = "other.toml", which is trained first."""

from collections.abc import Mapping, Sequence
from typing import Any

from fcurr.errors import BadInput
from fcurr.study import sections
from fcurr.study.schedule import Command


def config(own: Mapping[str, Any], configs: Mapping[str, dict[str, Any]]) -> dict[str, Any] | None:
    """The config that is trained first, if there is one."""
    start = own.get("start")
    path = start.get("config") if isinstance(start, Mapping) else None
    if not path:
        return None
    found = configs.get(path)
    if found is None:
        raise BadInput(f"{path} was not read as a config: name it as `config` of [start]", "start.config")
    if sections.holds(found):
        raise BadInput(f"{path} is a study: what is trained first is one run", "start.config")
    return found


def chosen(own: Mapping[str, Any], commands: Sequence[Command]) -> Command:
    """The training to go on from: that of the member that is named, or the one with the same seed, or the only one."""
    trained = [command for command in commands if command.function == "train"]
    member = own["start"].get("member")
    if member is not None:
        if not 0 <= member < len(trained):
            raise BadInput(f"{own['start']['config']} has members 0 to {len(trained) - 1}, no {member}", "start.member")
        return trained[member]
    (seed,) = own["members"]["seed"]
    same = [command for command in trained if command.config["members"]["seed"] == [seed]]
    for found in (same, trained):
        if len(found) == 1:
            return found[0]
    words = f"{own['start']['config']} comes to {len(trained)} trainings, {len(same)} with the seed {seed}"
    raise BadInput(f"{words}: name one with `member`", "start")
