"""The messages of a turn in progress."""

from __future__ import annotations

from exaone4_mlx import Answer, Done, Thinking, ToolCall, ToolResult
from exaone4_mlx.text.live_messages import LiveMessages

CALL = ToolCall("roll_dice", {})


def live(*events: object) -> LiveMessages:
    made = LiveMessages()
    for event in events:
        made.add(event)
    return made


def counts(tokens: int, seconds: float) -> Done:
    return Done("unfinished", 1, 0, tokens, 0, 0.0, seconds, seconds, 0)


def thought(tokens: int, seconds: float) -> dict[str, float]:
    return {"thinking_tokens": tokens, "thinking_seconds": seconds}


def test_events_become_messages() -> None:
    made = live(
        Thinking("I "), Thinking("roll."), Answer("\nSo:\n"), CALL, ToolResult(CALL, 4, False, 0.5), Answer("4")
    )
    made.end("stop")
    called = {"type": "function", "function": {"name": "roll_dice", "arguments": {}}}
    assert made.messages == [
        {"role": "assistant", "content": "So:", "reasoning_content": "I roll.", "tool_calls": [called]},
        {"role": "tool", "content": 4, "failed": False, "seconds": 0.5},
        {"role": "assistant", "content": "4", "finish_reason": "stop"},
    ]


def test_counts_before_the_first_event_show_nothing() -> None:
    made = live()
    made.count(counts(1, 1.0))
    made.count(None)
    made.end("stop")
    assert made.messages == []


def test_counts_of_a_round_do_not_hold_those_of_the_rounds_before() -> None:
    made = live(Thinking("I roll."))
    made.count(counts(10, 1.0))
    made.add(CALL)
    made.add(ToolResult(CALL, 4, False, 0.5))
    made.count(counts(10, 1.0))
    made.add(Thinking("It is 4."))
    made.count(counts(13, 1.5))
    assert [message.get("stats") for message in made.messages] == [thought(10, 1.0), None, thought(3, 0.5)]


def test_counts_never_go_back() -> None:
    """Between two rounds the counts of a reply have ended, and the sum does not have them yet."""
    made = live(Thinking("Hm"))
    made.count(counts(10, 1.0))
    made.count(counts(0, 0.0))
    assert made.messages[0]["stats"] == thought(10, 1.0)


def test_the_thought_of_both_parts_of_a_continued_reply_is_counted() -> None:
    made = LiveMessages({"role": "assistant", "content": "", "reasoning_content": "a", "stats": vars(counts(4, 2.0))})
    assert made.messages[0]["stats"] == thought(4, 2.0)
    made.add(Thinking("b"))
    made.count(counts(3, 1.0))
    [message] = made.messages
    assert message["reasoning_content"] == "ab" and message["stats"] == thought(7, 3.0)
    for stats in (None, 5, {"thinking_tokens": "x"}):
        LiveMessages({"role": "assistant", "content": "", "stats": stats}).count(counts(3, 1.0))


def test_the_end_of_a_turn_changes_no_message() -> None:
    made = live(Answer("Hi"))
    before = made.messages
    made.add(Done("stop", 1, 0, 0, 1, 0.1, 0.1, 0.0, 0))
    assert made.messages == before


def test_messages_can_be_read_while_more_comes() -> None:
    made = live(ToolCall("a", {}))
    before = made.messages
    made.add(ToolCall("b", {}))
    assert len(before[0]["tool_calls"]) == 1
