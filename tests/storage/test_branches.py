"""Branches: a retry and an edit lose nothing, a switch shows all of the other branch, and Undo takes back each action."""

from __future__ import annotations

import copy
import json
import random
from typing import Any

import pytest

from exaone4_mlx import Conversation
from exaone4_mlx.storage.branches import Tree, check_branches
from exaone4_mlx.storage.conversation import check, to_json
from exaone4_mlx.storage.transcript import from_text, to_markdown


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def reply(text: str) -> dict[str, Any]:
    return {"role": "assistant", "content": text}


def grown(tree: Tree, what: str, at: int, *messages: dict[str, Any], dropped: int = 0) -> Tree:
    """An action and the messages that come of it."""
    tree = tree.begun(what, at)
    return Tree([*tree.messages, *messages], dropped, tree.branches, tree.steps)


def texts(tree: Tree) -> str:
    return " ".join(message["content"] for message in tree.messages)


def everything(tree: Tree) -> list[str]:
    beside = [message for branch in tree.branches for message in branch["messages"]]
    return sorted(message["content"] for message in (*tree.messages, *beside))


def checked(tree: Tree) -> Tree:
    """The tree, which a file can hold."""
    conversation = Conversation.new()
    conversation.show(tree)
    check(conversation)
    return tree


@pytest.fixture
def tree() -> Tree:
    """Two turns, a retry of the last, an edit of the first, and a retry of the edited one."""
    tree = grown(Tree(), "send", 0, user("a"), reply("A"))
    tree = grown(tree, "send", 2, user("b"), reply("B1"))
    tree = grown(tree, "retry", 3, reply("B2"))
    tree = grown(tree, "edit", 0, user("x"), reply("X1"))
    return grown(tree, "retry", 1, reply("X2"))


def test_a_retry_and_an_edit_keep_what_was_there(tree: Tree) -> None:
    assert texts(checked(tree)) == "x X2"
    assert everything(tree) == sorted(["a", "A", "b", "B1", "B2", "x", "X1", "X2"])
    assert tree.forks == {0: (1, 2), 1: (1, 2)}


def test_a_switch_shows_the_later_turns_and_the_branches_of_the_other_branch(tree: Tree) -> None:
    other = checked(tree.switched(0, 0))
    assert texts(other) == "a A b B2" and other.forks == {0: (0, 2), 3: (1, 2)}
    first = checked(other.switched(3, 0))
    assert texts(first) == "a A b B1" and first.forks == {0: (0, 2), 3: (0, 2)}
    back = checked(first.switched(0, 1))
    assert texts(back) == "x X2" and texts(back.switched(0, 0)) == "a A b B1", "the branch that was shown last"
    assert everything(back) == everything(tree)


def test_undo_goes_back_through_every_action(tree: Tree) -> None:
    tree = tree.switched(0, 0).switched(3, 0)
    shown = []
    while tree.messages:
        tree = checked(tree.undone())
        shown.append(texts(tree))
    assert shown == ["a A b B2", "x X2", "x X1", "a A b B2", "a A b B1", "a A", ""]
    assert tree == Tree()


def test_each_branch_knows_what_the_model_no_longer_sees() -> None:
    tree = Tree()
    for at in range(0, 8, 2):
        tree = grown(tree, "send", at, user(f"u{at}"), reply(f"r{at}"), dropped=max(0, at - 2))
    edited = grown(tree, "edit", 2, user("x"), reply("X"))
    assert (tree.dropped, edited.dropped) == (4, 0)
    assert checked(edited.switched(2, 0)).dropped == 4
    assert edited.switched(2, 0).switched(2, 1).dropped == 0
    assert edited.undone().dropped == 4 and tree.undone().dropped == 2


@pytest.mark.parametrize("seed", range(20))
def test_random_actions_lose_nothing_and_can_be_taken_back(seed: int) -> None:
    made = random.Random(seed)
    tree, states, said = Tree(), [], []
    for number in range(40):
        states.append(tree)
        turns = [at for at, message in enumerate(tree.messages) if message["role"] == "user"]
        what = made.choice(["send", "retry", "edit", "switch"]) if turns else "send"
        if what == "switch" and tree.forks:
            at = made.choice(sorted(tree.forks))
            shown, count = tree.forks[at]
            tree = tree.switched(at, made.choice([place for place in range(count) if place != shown]))
        else:
            at = len(tree.messages) if what not in ("retry", "edit") else made.choice(turns) + (what == "retry")
            new = [reply(f"r{number}")] if what == "retry" else [user(f"u{number}"), reply(f"r{number}")]
            said += [message["content"] for message in new]
            tree = grown(tree, "send" if what == "switch" else what, at, *new, dropped=made.randrange(at + 1))
        assert everything(checked(tree)) == sorted(said)
        conversation = Conversation.new()
        conversation.show(tree)
        assert from_text(to_json(conversation)).tree == tree
    for before in reversed(states):
        tree = checked(tree.undone())
        assert tree == before


def test_undo_without_a_record_removes_the_last_turn(tree: Tree) -> None:
    """Of a file of version 1, or of one that was changed by hand."""
    plain = Tree([user("a"), reply("A"), user("b"), reply("B")])
    assert plain.last_step == {"what": "send", "at": 2, "place": None, "dropped": 0}
    assert texts(plain.undone()) == "a A"
    bare = Tree(tree.messages, 0, tree.branches)
    assert texts(checked(bare.undone())) == "a A b B2", "the turn that remains in its place"
    odd = Tree(plain.messages, 0, [], [{"what": "switch", "at": 0, "place": 3, "dropped": 0}])
    assert texts(odd.undone()) == "a A"
    with pytest.raises(ValueError, match="no turns yet"):
        Tree().undone()
    with pytest.raises(ValueError, match="there is no branch 3 at message 0"):
        tree.switched(0, 2)


# --- files ------------------------------------------------------------------------

BRANCH: dict[str, Any] = {"parent": None, "at": 0, "place": 0, "dropped": 0, "messages": [user("a"), reply("A")]}
STEP: dict[str, Any] = {"what": "retry", "at": 1, "place": 0, "dropped": 0}


@pytest.mark.parametrize(
    ("branches", "problem"),
    [
        ({}, "branches must be a list, not dict"),
        ([7], "branch 0 must be an object with parent, at, place, dropped and messages"),
        ([BRANCH | {"more": 1}], "branch 0 must be an object with parent"),
        ([BRANCH | {"messages": []}], "branch 0 must have a list of messages"),
        ([BRANCH | {"messages": [7]}], "branch 0, message 0 must be an object with a role"),
        ([BRANCH | {"messages": [{"role": "system", "content": "x"}]}], "branch 0, message 0: a system message"),
        ([BRANCH | {"messages": [{"role": "tool", "content": 1}]}], "branch 0 begins with a message of role tool"),
        ([BRANCH | {"parent": 1}], "branch 0 has the unknown parent 1"),
        ([BRANCH | {"parent": "0"}], "branch 0 has the unknown parent '0'"),
        ([BRANCH | {"parent": 0}], "branch 0 begins before its parent, branch 0: that is a circle"),
        ([BRANCH | {"parent": 1, "at": 1}, BRANCH | {"parent": 0, "at": 1}], "branch 0 begins before its parent, branch 1: that is a circle"),
        ([BRANCH | {"at": 2}], "branch 0 begins at message 2, and its parent ends with 1"),
        ([BRANCH | {"at": -1}], "branch 0: at cannot be -1"),
        ([BRANCH | {"at": True}], "branch 0: at cannot be True"),
        ([BRANCH | {"dropped": 3}], "branch 0: dropped cannot be 3"),
        ([BRANCH | {"place": 2}], r"the 1 branches at message 0 cannot have the places \[2\]"),
        ([BRANCH, BRANCH], r"the 2 branches at message 0 cannot have the places \[0, 0\]"),
    ],
)  # fmt: skip
def test_branches_without_their_form_are_refused_by_name(branches: Any, problem: str) -> None:
    conversation = Conversation.new()
    conversation.messages = [user("x"), reply("X")]
    conversation.branches = branches
    with pytest.raises(ValueError, match=problem):
        check(conversation)
    text = json.dumps(json.loads(to_json(conversation)))
    with pytest.raises(ValueError, match=f"x.json cannot be imported: {problem}"):
        from_text(text, "x.json")


@pytest.mark.parametrize(
    "step", [7, {}, STEP | {"what": "jump"}, STEP | {"at": "1"}, STEP | {"what": "switch", "place": None}]
)
def test_steps_without_their_form_are_refused_by_name(step: Any) -> None:
    with pytest.raises(ValueError, match="step 1 cannot be"):
        check_branches(2, [], [STEP, step], lambda messages, name: None)
    with pytest.raises(ValueError, match="steps must be a list, not int"):
        check_branches(2, [], 7, lambda messages, name: None)


def test_json_has_all_branches_and_markdown_says_that_they_exist(tree: Tree) -> None:
    conversation = Conversation.new()
    conversation.messages = [{"role": "system", "content": "Be brief."}]
    conversation.show(copy.deepcopy(tree))
    read = from_text(to_json(conversation))
    assert (read.messages, read.tree) == (conversation.messages, tree)
    page = to_markdown(conversation)
    assert "Other branches that are not shown here: 3. An export as JSON has all of them." in page and "B1" not in page
    again = from_text(page)
    assert again.messages == conversation.messages and again.branches == []
    conversation.show(Tree(tree.messages))
    assert "branch" not in to_markdown(conversation)
