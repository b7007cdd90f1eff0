"""Replies and chats -> HTML and Markdown.

Notes:
- Only answers are rendered as Markdown. All other text is escaped.
- This module imports no MLX, and markdown_it (a dependency of rich) where it is used.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..text.format import call_text, clean, count_text, result_text, size_text
from ..text.message import PartialReply, Reply
from ..tools.call import ToolCall
from ..tools.schema import shortened
from .html import BLUE, FAINT, GREEN, GREY, RED, escaped, pretty, seconds_text, small_html
from .markdown import inert_markdown, markdown_html, plain_markdown

if TYPE_CHECKING:
    from ..conversation.chat import Chat
    from ..text.events import Done

Message = Mapping[str, Any]

ENDS = {
    "cancelled": "cut: it was stopped",
    "length": "cut: the limit of tokens was reached",
    "repetition": "cut: the reply repeated itself",
    "error": "cut: an error occurred",
}
TITLE_WIDTH = 60  # characters of a value in a title


@dataclass(frozen=True)
class ViewSection:
    """One part of a conversation: its kind, a title of one line, and a text. Title and text are untrusted."""

    kind: str  # "system", "user", "reply" (the begin of one), "thought", "call", "failed", "answer", "note"
    title: str
    text: str
    unfolded: bool = False


def reply_html(reply: Reply) -> str:
    return turn_html([reply_message(reply)], reply)


def reply_markdown(reply: Reply) -> str:
    return "\n\n".join([*_markdown(sections([reply_message(reply)])), f"*{plain_markdown(counts_text(reply))}*"])


def turn_html(messages: Sequence[Message], counts: Reply | Done) -> str:
    """Replies and results of tools, and their counts and times."""
    return f"<div>{messages_html(messages)}{small_html(counts_text(counts))}</div>"


def messages_html(messages: Sequence[Message], in_progress: bool = False) -> str:
    """The messages of a chat. The thought of a reply in progress is unfolded until its answer begins."""
    shown = "".join(map(_section_html, sections(messages, in_progress)))
    return f'<div style="line-height:1.4">{shown}</div>'


def chat_html(chat: Chat) -> str:
    return f"<div>{messages_html(chat.messages)}{small_html(chat_text(chat))}</div>"


def chat_markdown(chat: Chat) -> str:
    return "\n\n".join([*_markdown(sections(chat.messages)), f"*{plain_markdown(chat_text(chat))}*"])


def chat_text(chat: Chat) -> str:
    """The length of a conversation."""
    seen = f" · the model no longer sees the first {count_text(chat.dropped, 'message')}" if chat.dropped else ""
    return (
        f"{count_text(len(chat.turns), 'turn')} · {chat.context_tokens:,} of {chat.max_kv_size:,} tokens of the "
        f"context{seen}"
    )


def counts_text(counts: Reply | Done) -> str:
    """Counts and times of a reply, on one line."""
    generated = counts.thinking_tokens + counts.answer_tokens
    thought = f" ({counts.thinking_tokens:,} of them thought)" if counts.thinking_tokens else ""
    rate = f" · {generated / counts.decode_seconds:,.1f} tokens/s" if generated > 1 and counts.decode_seconds else ""
    cached = f", {counts.cached_tokens:,} of them cached" if counts.cached_tokens else ""
    drafted = f", {counts.accepted_tokens:,} of {counts.drafted_tokens:,} drafted ones accepted"
    return (
        f"{count_text(generated, 'token')}{thought} in {seconds_text(counts.decode_seconds)}{rate}"
        f"{drafted if counts.drafted_tokens else ''} · prompt {counts.prompt_tokens:,} "
        f"tokens in {seconds_text(counts.prefill_seconds)}{cached} · peak memory {size_text(counts.peak_bytes)}"
    )


def reply_message(reply: Reply) -> dict[str, Any]:
    """A reply as a message of a chat."""
    stats = {"thinking_tokens": reply.thinking_tokens, "thinking_seconds": reply.thinking_seconds}
    partial = PartialReply(reply.thinking, reply.text, list(reply.tool_calls))
    return partial.message(finish_reason=reply.finish_reason, stats=stats)


def sections(messages: Sequence[Message], in_progress: bool = False) -> list[ViewSection]:
    """The parts of a conversation. A tool's result is in the section of its call."""
    found: list[ViewSection] = []
    replied = False  # the last message that is no result is a reply, whose section has its results
    for place, message in enumerate(messages):
        replied = message["role"] == "assistant" or (replied and message["role"] == "tool")
        text = str(message.get("content") or "").strip()
        if message["role"] == "system":
            found.append(ViewSection("system", "System prompt", text))
        elif message["role"] == "user":
            found.append(ViewSection("user", "You", text))
        elif message["role"] == "tool" and not replied:  # of no call
            found.append(ViewSection("note", "", result_text(message.get("content"), bool(message.get("failed")))))
        elif message["role"] == "assistant":
            if place and messages[place - 1]["role"] == "user":
                found.append(ViewSection("reply", "Reply", ""))
            results = []
            for following in messages[place + 1 :]:
                if following["role"] != "tool":
                    break
                results.append(following)
            found += _reply_sections(message, text, results, in_progress and place + 1 == len(messages))
    return found


def _reply_sections(
    message: Message, text: str, results: Sequence[Message], in_progress: bool
) -> Iterator[ViewSection]:
    calls = message.get("tool_calls") or ()
    if thought := message.get("reasoning_content"):
        growing = in_progress and not text and not calls
        yield ViewSection("thought", _thought_title(message.get("stats") or {}, growing), str(thought).strip(), growing)
    if text:
        yield ViewSection("answer", "", text)
    for number, call in enumerate(calls):
        function = call.get("function", call)
        arguments = function.get("arguments", function.get("parameters"))
        result = results[number] if number < len(results) else None
        yield _call_section(str(function.get("name")), arguments, result, in_progress)
    for result in results[len(calls) :]:  # of a text in tool-call tags that is not a call
        yield ViewSection("note", "", result_text(result.get("content"), True))
    if (end := ENDS.get(str(message.get("finish_reason")))) is not None:
        yield ViewSection("note", "", end)


def _thought_title(stats: Mapping[str, Any], growing: bool) -> str:
    tokens, seconds = stats.get("thinking_tokens"), stats.get("thinking_seconds")
    if not tokens or seconds is None:
        return "Thinking …" if growing else "Thought"
    return f"{'Thinking' if growing else 'Thought'} for {seconds_text(seconds)} · {count_text(tokens, 'token')}"


def _call_section(name: str, arguments: Any, result: Message | None, in_progress: bool) -> ViewSection:
    title = shortened(call_text(ToolCall(name, arguments)), 2 * TITLE_WIDTH)
    text = f"arguments: {pretty(arguments)}"
    if result is None:
        return ViewSection("call", f"{title} …" if in_progress else title, text)
    failed, content, seconds = bool(result.get("failed")), result.get("content"), result.get("seconds")
    took = "" if seconds is None else f" · {seconds_text(seconds)}"
    shown = shortened(result_text(content, failed), TITLE_WIDTH)
    title = f"{title} → {'failed: ' * failed}{shown}{took}"
    return ViewSection("failed" if failed else "call", title, f"{text}\nresult: {pretty(content)}")


def _section_html(section: ViewSection) -> str:
    title, text = escaped(clean(section.title)), escaped(section.text)
    if section.kind == "answer":
        return f'<div style="margin:.4em 0">{markdown_html(section.text)}</div>'
    if section.kind == "note":
        return f'<div style="margin:.3em 0"><em>[{text}]</em></div>'
    if section.kind == "reply":
        return f'<div style="margin:.4em 0 0"><b>{title}</b></div>'
    tag = "pre" if section.kind in ("call", "failed") else "div"  # code, or words
    plain = f'<{tag} style="white-space:pre-wrap;overflow-wrap:anywhere;margin:.3em 0">{text}</{tag}>'
    if section.kind == "user":
        return (
            f'<div style="margin:.8em 0 .4em;padding:.2em .8em;background:{FAINT};border-left:4px solid {BLUE};'
            f'border-radius:4px"><b>{title}</b>{plain}</div>'
        )
    side = {"call": GREEN, "failed": RED}.get(section.kind, GREY)
    title = f"<code>{title}</code>" if section.kind in ("call", "failed") else title
    return (
        f'<details style="margin:.3em 0;padding:.1em .8em;border-left:4px solid {side}"{" open" * section.unfolded}>'
        f'<summary style="cursor:pointer">{title}</summary>{plain}</details>'
    )


def _markdown(found: Sequence[ViewSection]) -> Iterator[str]:
    for section in found:
        if section.kind == "answer":
            yield inert_markdown(section.text)
        elif section.kind == "note":
            yield f"*[{plain_markdown(section.text)}]*"
        elif section.kind == "reply":
            yield f"**{plain_markdown(section.title)}**"
        elif section.kind == "user":
            yield f"**{plain_markdown(section.title)}**\n\n<pre>{escaped(section.text)}</pre>"
        else:
            title = escaped(" ".join(clean(section.title).split()))
            yield f"<details><summary>{title}</summary>\n\n<pre>{escaped(section.text)}</pre>\n\n</details>"
