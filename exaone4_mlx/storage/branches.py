"""The branches of a conversation: what else was said in the place of messages that are shown.

Notes:
- Positions count the messages after the system prompt, which all branches share.
- A branch holds the messages from position `at` on, in the place of those of its parent: another branch, or the shown
  messages (None). It begins later than its parent, so that no branch is its own ancestor.
- Branches of one parent and position are alternatives, numbered by `place` in the order in which they were made. The
  parent's own messages have the number that is left.
- A `Tree` does not change: an action returns another. So an earlier tree can be shown again.
"""

from __future__ import annotations

import reprlib
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from ..text.message import Message, turn_starts

#: {"parent": None or a number, "at": …, "place": …, "dropped": …, "messages": […]}, as in the file
Branch = dict[str, Any]
#: {"what": …, "at": …, "place": …, "dropped": …}: an action, and what was shown before at position `at`
Step = dict[str, Any]

ACTIONS = ("send", "retry", "edit", "continue", "switch")


@dataclass(frozen=True)
class Tree:
    """The messages that are shown, the branches beside them, and the actions that made them, oldest first.

    `dropped` is the number of messages that the model no longer sees.
    """

    messages: list[Message] = field(default_factory=list)
    dropped: int = 0
    branches: list[Branch] = field(default_factory=list)
    steps: list[Step] = field(default_factory=list)

    @cached_property
    def forks(self) -> dict[int, tuple[int, int]]:
        """Position of a message with alternatives -> the number of the shown one, and how many there are."""
        hidden: dict[int, set[int]] = {}
        for branch in self.branches:
            if branch["parent"] is None:
                hidden.setdefault(branch["at"], set()).add(branch["place"])
        return {at: (min(set(range(len(made) + 1)) - made), len(made) + 1) for at, made in hidden.items()}

    @cached_property
    def last_step(self) -> Step | None:
        """What `undone` takes back: the last action; without a record of it, the last turn."""
        for step in self.steps[-1:]:
            at, place = step["at"], step["place"]
            if at <= len(self.messages) and (place is None or place in range(self.forks.get(at, (0, 1))[1])):
                return step  # of a file that was changed by hand it may not fit
        turns = turn_starts(self.messages)
        return {"what": "send", "at": turns[-1], "place": None, "dropped": 0} if turns else None

    def begun(self, what: str, at: int) -> Tree:
        """For new messages at position `at`. Messages that are there become a branch."""
        step = {"what": what, "at": at, "place": None, "dropped": self.dropped}
        if at >= len(self.messages):
            return replace(self, steps=[*self.steps, step])
        place, _ = self.forks.get(at, (0, 1))
        branches = [*self._moved(at, {None: len(self.branches)}), self._hidden(at, place)]
        return Tree(self.messages[:at], min(self.dropped, at), branches, [*self.steps, step | {"place": place}])

    def switched(self, at: int, place: int) -> Tree:
        """With another alternative at position `at`. Raises ValueError for one that does not exist."""
        here = [(branch["parent"], branch["at"], branch["place"]) for branch in self.branches]
        if (None, at, place) not in here:
            raise ValueError(f"there is no branch {place + 1} at message {at}")
        number, (shown, _) = here.index((None, at, place)), self.forks[at]
        chosen = self.branches[number]
        branches = self._moved(at, {None: number, number: None})
        branches[number] = self._hidden(at, shown)
        step = {"what": "switch", "at": at, "place": shown, "dropped": self.dropped}
        return Tree([*self.messages[:at], *chosen["messages"]], chosen["dropped"], branches, [*self.steps, step])

    def undone(self) -> Tree:
        """As before the last action. Raises ValueError for a tree without turns."""
        if (step := self.last_step) is None:
            raise ValueError("the conversation has no turns yet")
        at, place = step["at"], step["place"]
        if step["what"] == "switch":
            return replace(self.switched(at, place), steps=self.steps[:-1])
        removed, count = self.forks.get(at, (0, 1))
        later = {n for n, one in enumerate(self.branches) if one["parent"] is None and one["at"] > at}
        tree = Tree(self.messages[:at], min(step["dropped"], at), self._without(later))
        if count > 1:
            tree = tree.switched(at, place if place is not None else removed - 1 if removed else 1)
            branches = tree._without({n for n, one in enumerate(tree.branches) if not one["messages"]})
            for n, one in enumerate(branches):
                if (one["parent"], one["at"]) == (None, at) and one["place"] > removed:
                    branches[n] = one | {"place": one["place"] - 1}
            tree = replace(tree, branches=branches)
        return replace(tree, steps=self.steps[:-1])

    def _hidden(self, at: int, place: int) -> Branch:
        return {"parent": None, "at": at, "place": place, "dropped": self.dropped, "messages": self.messages[at:]}

    def _moved(self, at: int, parents: Mapping[int | None, int | None]) -> list[Branch]:
        """The branches; those that begin after `at` get other parents."""
        return [
            one | {"parent": parents.get(one["parent"], one["parent"])} if one["at"] > at else one
            for one in self.branches
        ]

    def _without(self, removed: Collection[int]) -> list[Branch]:
        """The branches without some, and without what branches off from those."""
        gone = set(removed)
        for number in sorted(range(len(self.branches)), key=lambda number: self.branches[number]["at"]):
            if self.branches[number]["parent"] in gone:
                gone.add(number)
        numbers = {old: new for new, old in enumerate(n for n in range(len(self.branches)) if n not in gone)}
        return [self.branches[old] | {"parent": numbers.get(self.branches[old]["parent"])} for old in numbers]


def check_branches(shown: int, branches: Any, steps: Any, check: Callable[[Any, str], None]) -> None:
    """Raises ValueError for branches without their form. `shown` is the number of messages after the system prompt.

    `check(messages, name)` checks the messages of a branch, and refuses a system prompt among them.
    """
    if not isinstance(branches, list):
        raise ValueError(f"branches must be a list, not {type(branches).__name__}")
    for number, branch in enumerate(branches):
        name = f"branch {number}"
        if not isinstance(branch, dict) or branch.keys() != {"parent", "at", "place", "dropped", "messages"}:
            raise ValueError(f"{name} must be an object with parent, at, place, dropped and messages")
        if not isinstance(branch["messages"], list) or not branch["messages"]:
            raise ValueError(f"{name} must have a list of messages")
        check(branch["messages"], f"{name}, message")
        if branch["messages"][0]["role"] not in ("user", "assistant"):
            raise ValueError(f"{name} begins with a message of role {branch['messages'][0]['role']}")
        if branch["parent"] is not None and not _is_count(branch["parent"], len(branches) - 1):
            raise ValueError(f"{name} has the unknown parent {reprlib.repr(branch['parent'])}")
        if not _is_count(branch["at"]):
            raise ValueError(f"{name}: at cannot be {reprlib.repr(branch['at'])}")
        if not _is_count(branch["dropped"], branch["at"] + len(branch["messages"])):
            raise ValueError(f"{name}: dropped cannot be {reprlib.repr(branch['dropped'])}")
    places: dict[tuple[Any, int], list[Any]] = {}
    for number, branch in enumerate(branches):
        parent = None if branch["parent"] is None else branches[branch["parent"]]
        first, end = (0, shown) if parent is None else (parent["at"] + 1, parent["at"] + len(parent["messages"]))
        if branch["at"] < first:
            raise ValueError(f"branch {number} begins before its parent, branch {branch['parent']}: that is a circle")
        if branch["at"] >= end:
            raise ValueError(f"branch {number} begins at message {branch['at']}, and its parent ends with {end - 1}")
        places.setdefault((branch["parent"], branch["at"]), []).append(branch["place"])
    for (_, at), given in places.items():
        if not all(_is_count(place, len(given)) for place in given) or len(set(given)) < len(given):
            raise ValueError(f"the {len(given)} branches at message {at} cannot have the places {reprlib.repr(given)}")
    if not isinstance(steps, list):
        raise ValueError(f"steps must be a list, not {type(steps).__name__}")
    for number, step in enumerate(steps):
        right = isinstance(step, dict) and step.keys() == {"what", "at", "place", "dropped"}
        right = right and step["what"] in ACTIONS and _is_count(step["at"]) and _is_count(step["dropped"])
        if not right or not (_is_count(step["place"]) or (step["place"] is None and step["what"] != "switch")):
            raise ValueError(f"step {number} cannot be {reprlib.repr(step)}")


def _is_count(value: Any, most: float = float("inf")) -> bool:
    return type(value) is int and 0 <= value <= most
