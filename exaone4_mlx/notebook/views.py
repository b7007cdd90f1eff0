"""Objects -> HTML and Markdown, as notebooks show them.

What is peculiar here:
- What a model, a person or a tool wrote is a stranger's text. In HTML it is escaped, whatever it holds; in Markdown it
  stands escaped in `<pre>`. Only answers are read as Markdown: by a parser that passes no HTML on and loads no picture,
  or, where the front end reads them, with all broken that could be HTML.
- Colours (Okabe and Ito's) never stand alone: letters and words say the same. Lines and backgrounds are half
  transparent, and styles stand in the elements, so that light and dark themes and untrusted notebooks show them alike.
- Only the standard library is imported, here and above; `markdown_it` comes with rich.
"""

from __future__ import annotations

import functools
import html
import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from ..files.format import size_text
from ..terminal.format import call_text, clean, result_text
from ..tools.call import ToolCall
from ..tools.schema import shortened

if TYPE_CHECKING:
    from ..conversation.chat import Chat
    from ..conversion.convert import ConversionSummary
    from ..conversion.evaluate import Evaluation
    from ..generation.generate import Reply
    from ..measure.fit import Fit
    from ..model.config import Exaone4Config, LayerAttention
    from ..text.events import Done

Message = Mapping[str, Any]

BLUE, ORANGE, GREEN, RED = "#56b4e9", "#e69f00", "#009e73", "#d55e00"  # Okabe and Ito's, black is readable on each
GREY = "rgba(127,127,127,.4)"  # of lines and frames
FAINT = "rgba(127,127,127,.12)"  # of backgrounds
ENDS = {
    "cancelled": "cut: it was stopped",
    "length": "cut: the limit of tokens was reached",
    "repetition": "cut: it went round in a loop",
    "error": "cut: an error came",
}
SHORT, LONG = 60, 20_000  # characters of a value in a title, and in what is unfolded
ROW = 16  # layers drawn in a line
FORMULAS = ((r"\(", r"\)"), (r"\[", r"\]"), ("$$", "$$"))
#: What could begin a tag, an entity, a picture or the address of a script, in Markdown that passes HTML on.
ACTIVE = re.compile(r"<(?=[A-Za-z/!?])|&(?=[#A-Za-z])|!(?=\[)|(?:script|data)(?=\s*\\?:)", re.IGNORECASE)
JOINER = "\u2060"  # no width, and no letter of any of these
FENCE = re.compile(r" *(`{3,}(?=[^`]*$)|~{3,})")
HALF = re.compile("[\ud800-\udfff]")  # of a character, which no front end can be sent


# --- replies and conversations --------------------------------------------------


@dataclass(frozen=True)
class Block:
    """One thing that is shown: its kind, a title of one line, and a text. All of it may be a stranger's."""

    kind: str  # "system", "user", "reply" (where one begins), "thought", "call", "answer", "note"
    title: str
    text: str
    unfolded: bool = False


def reply_html(reply: Reply) -> str:
    return turn_html([reply_message(reply)], reply)


def reply_markdown(reply: Reply) -> str:
    return "\n\n".join([*_markdown(blocks([reply_message(reply)])), f"*{_plain(counts_text(reply))}*"])


def turn_html(messages: Sequence[Message], counts: Reply | Done) -> str:
    """Replies and results of tools, and what they took."""
    return f"<div>{messages_html(messages)}{_small(counts_text(counts))}</div>"


def messages_html(messages: Sequence[Message], under_way: bool = False) -> str:
    """Messages as a chat has them. The thought of a reply `under_way` is unfolded until its answer begins."""
    shown = "".join(map(_block_html, blocks(messages, under_way)))
    return f'<div style="line-height:1.4">{shown}</div>'


def chat_html(chat: Chat) -> str:
    return f"<div>{messages_html(chat.messages)}{_small(chat_text(chat))}</div>"


def chat_markdown(chat: Chat) -> str:
    return "\n\n".join([*_markdown(blocks(chat.messages)), f"*{_plain(chat_text(chat))}*"])


def chat_text(chat: Chat) -> str:
    """How long a conversation is."""
    turns = len(chat.turns)
    dropped = f" · the model no longer sees the first {chat.dropped:,} messages" if chat.dropped else ""
    return (
        f"{turns:,} turn{'s' * (turns != 1)} · {chat.context_tokens:,} of {chat.max_kv_size:,} tokens of the "
        f"context{dropped}"
    )


def counts_text(counts: Reply | Done) -> str:
    """What a reply took, on one line."""
    generated = counts.thinking_tokens + counts.answer_tokens
    thought = f" ({counts.thinking_tokens:,} of them thought)" if counts.thinking_tokens else ""
    rate = f" · {generated / counts.decode_seconds:,.1f} tokens/s" if generated > 1 and counts.decode_seconds else ""
    cached = f", {counts.cached_tokens:,} of them cached" if counts.cached_tokens else ""
    drafted = f", {counts.accepted_tokens:,} of {counts.drafted_tokens:,} drafted ones accepted"
    return (
        f"{generated:,} tokens{thought} in {_seconds(counts.decode_seconds)}{rate}"
        f"{drafted if counts.drafted_tokens else ''} · prompt {counts.prompt_tokens:,} "
        f"tokens in {_seconds(counts.prefill_seconds)}{cached} · peak memory {size_text(counts.peak_bytes)}"
    )


def reply_message(reply: Reply) -> dict[str, Any]:
    """A reply in the form in which a chat keeps it."""
    return {
        "role": "assistant",
        "content": reply.text,
        "reasoning_content": reply.thinking,
        "tool_calls": [{"function": asdict(call)} for call in reply.tool_calls],
        "finish_reason": reply.finish_reason,
        "stats": {"thinking_tokens": reply.thinking_tokens, "thinking_seconds": reply.thinking_seconds},
    }


def blocks(messages: Sequence[Message], under_way: bool = False) -> list[Block]:
    """What is shown of messages as a chat has them, each result with its call."""
    shown: list[Block] = []
    for place, message in enumerate(messages):
        text = str(message.get("content") or "").strip()
        if message["role"] == "system":
            shown.append(Block("system", "System prompt", text))
        elif message["role"] == "user":
            shown.append(Block("user", "You", text))
        elif message["role"] == "assistant":
            if place and messages[place - 1]["role"] == "user":
                shown.append(Block("reply", "Reply", ""))
            results = []
            for following in messages[place + 1 :]:
                if following["role"] != "tool":
                    break
                results.append(following)
            shown += _reply_blocks(message, text, results, under_way and place + 1 == len(messages))
    return shown


def _reply_blocks(message: Message, text: str, results: Sequence[Message], under_way: bool) -> Iterator[Block]:
    calls = message.get("tool_calls") or ()
    if thought := message.get("reasoning_content"):
        growing = under_way and not text and not calls
        yield Block("thought", _thought_title(message.get("stats") or {}, growing), str(thought).strip(), growing)
    if text:
        yield Block("answer", "", text)
    for number, call in enumerate(calls):
        given = call.get("function", call)
        result = results[number] if number < len(results) else None
        yield _call_block(str(given.get("name")), given.get("arguments", given.get("parameters")), result, under_way)
    for result in results[len(calls) :]:  # of a text in tool-call tags that was no call
        yield Block("note", "", result_text(result.get("content"), True))
    if (end := ENDS.get(str(message.get("finish_reason")))) is not None:
        yield Block("note", "", end)


def _thought_title(stats: Mapping[str, Any], growing: bool) -> str:
    tokens, seconds = stats.get("thinking_tokens"), stats.get("thinking_seconds")
    if not tokens or seconds is None:
        return "Thinking …" if growing else "Thought"
    return f"{'Thinking' if growing else 'Thought'} for {_seconds(seconds)} · {tokens:,} tokens"


def _call_block(name: str, arguments: Any, result: Message | None, under_way: bool) -> Block:
    title = shortened(call_text(ToolCall(name, arguments)), 2 * SHORT)
    text = f"arguments: {_pretty(arguments)}"
    if result is None:
        return Block("call", f"{title} …" if under_way else title, text)
    failed, content, seconds = bool(result.get("failed")), result.get("content"), result.get("seconds")
    took = "" if seconds is None else f" · {_seconds(seconds)}"
    told = shortened(result_text(content, failed), SHORT)
    title = f"{title} → {'failed: ' * failed}{told}{took}"
    return Block("failed" if failed else "call", title, f"{text}\nresult: {_pretty(content)}")


def _block_html(block: Block) -> str:
    title, text = escaped(clean(block.title)), escaped(block.text)
    if block.kind == "answer":
        return f'<div style="margin:.4em 0">{markdown_html(block.text)}</div>'
    if block.kind == "note":
        return f'<div style="margin:.3em 0"><em>[{text}]</em></div>'
    if block.kind == "reply":
        return f'<div style="margin:.4em 0 0"><b>{title}</b></div>'
    tag = "pre" if block.kind in ("call", "failed") else "div"  # code, or words
    plain = f'<{tag} style="white-space:pre-wrap;overflow-wrap:anywhere;margin:.3em 0">{text}</{tag}>'
    if block.kind == "user":
        return (
            f'<div style="margin:.8em 0 .4em;padding:.2em .8em;background:{FAINT};border-left:4px solid {BLUE};'
            f'border-radius:4px"><b>{title}</b>{plain}</div>'
        )
    side = {"call": GREEN, "failed": RED}.get(block.kind, GREY)
    title = f"<code>{title}</code>" if block.kind in ("call", "failed") else title
    return (
        f'<details style="margin:.3em 0;padding:.1em .8em;border-left:4px solid {side}"{" open" * block.unfolded}>'
        f'<summary style="cursor:pointer">{title}</summary>{plain}</details>'
    )


def _markdown(shown: Sequence[Block]) -> Iterator[str]:
    for block in shown:
        if block.kind == "answer":
            yield inert_markdown(block.text)
        elif block.kind == "note":
            yield f"*[{_plain(block.text)}]*"
        elif block.kind == "reply":
            yield f"**{_plain(block.title)}**"
        elif block.kind == "user":
            yield f"**{_plain(block.title)}**\n\n<pre>{escaped(block.text)}</pre>"
        else:
            title = escaped(" ".join(clean(block.title).split()))
            yield f"<details><summary>{title}</summary>\n\n<pre>{escaped(block.text)}</pre>\n\n</details>"


def markdown_html(text: str) -> str:
    """Markdown that a stranger wrote, as HTML: tags in it are text, links lead to no script, pictures are links."""
    return _markdown_parser().render(HALF.sub("\ufffd", text))


@functools.cache
def _markdown_parser() -> Any:
    from markdown_it import MarkdownIt

    parser = MarkdownIt("commonmark", {"html": False}).enable(["table", "strikethrough"]).disable("image")
    parser.inline.ruler.before("escape", "formula", _formula)
    return parser


def _formula(state: Any, silent: bool) -> bool:
    """Leaves formulas to the front end: Markdown would take the backslashes out of them."""
    for begin, end in FORMULAS:
        if state.src.startswith(begin, state.pos) and (stop := state.src.find(end, state.pos + 2)) >= 0:
            if not silent:
                state.push("text", "", 0).content = state.src[state.pos : stop + 2]
            state.pos = stop + 2
            return True
    return False


def inert_markdown(text: str) -> str:
    """Markdown that a stranger wrote, for a front end that passes HTML on; an open code block is closed.

    What could become a tag gets a character without width in it, in code too: what is code, parsers disagree on.
    """
    fence = ""
    for line in text.splitlines():
        found = FENCE.match(line)
        if not fence and found:
            fence = found[1]
        elif fence and line.strip().startswith(fence) and not line.strip().strip("`~"):
            fence = ""
    text = ACTIVE.sub(lambda found: found[0] + JOINER, HALF.sub("\ufffd", text))
    return f"{text}\n{fence}" if fence else text


def _plain(text: str) -> str:
    """A line in which Markdown sees no mark."""
    return re.sub(r"([\\`*_\[\]#|~$])", r"\\\1", escaped(" ".join(clean(text).split())))


# --- a config ---------------------------------------------------------------------


def config_html(config: Exaone4Config) -> str:
    lines = []
    for start in range(0, config.num_hidden_layers, ROW):
        cells = "".join(
            _layer_cell(start + place, layer) for place, layer in enumerate(config.layers[start : start + ROW])
        )
        number = f'<span style="display:inline-block;width:3em;text-align:right;padding-right:.6em">{start}</span>'
        lines.append(f'<div style="white-space:nowrap;line-height:1.7em">{number}{cells}</div>')
    legend = "".join(
        f"<div>{_layer_cell(None, layer)} {count} &times; {escaped(layer_text(layer))}</div>"
        for layer, count in Counter(config.layers).items()
    )
    return (
        f"<div><b>{config.num_hidden_layers} layers</b> (numbers: the first of each line){''.join(lines)}"
        f'<div style="margin:.5em 0">{legend}</div>{_table(config_rows(config))}</div>'
    )


def config_rows(config: Exaone4Config) -> dict[str, str]:
    """The sizes of an architecture; that of the RoPE, too."""
    rope = config.rope_parameters
    return {
        "context": f"{config.max_position_embeddings:,} tokens",
        "vocabulary": f"{config.vocab_size:,} tokens"
        + (", embedding and output head are one" if config.tie_word_embeddings else ""),
        "hidden size": f"{config.hidden_size:,}",
        "MLP size": f"{config.intermediate_size:,}",
        "heads": f"{config.num_attention_heads} for queries, {config.num_key_value_heads} for keys and values, "
        f"each of {config.head_dim}",
        "RoPE": f"{rope.rope_type}, theta {rope.rope_theta:,.10g}",
    }


def layer_text(layer: LayerAttention) -> str:
    """What a kind of layer attends to."""
    place = "RoPE" if layer.rope else "no position encoding"
    if layer.window is None:
        return f"global: sees everything, {place}"
    return f"local: sees the last {layer.window:,} tokens, {place}"


def _layer_cell(number: int | None, layer: LayerAttention) -> str:
    letter, colour = ("G", ORANGE) if layer.window is None else ("L", BLUE)
    title = layer_text(layer) if number is None else f"layer {number}, {layer_text(layer)}"
    return (
        f'<span title="{escaped(title)}" style="display:inline-block;width:1.5em;line-height:1.5em;text-align:center;'
        f'margin:1px;border-radius:3px;background:{colour};color:#000;font-family:monospace">{letter}</span>'
    )


# --- a conversion, and what a model needs -------------------------------------------


def summary_html(summary: ConversionSummary) -> str:
    notes = "".join(f"<li>{escaped(note)}</li>" for note in summary.notes)
    evaluated = "" if summary.evaluation is None else evaluation_html(summary.evaluation)
    return f"<div>{_table(summary_rows(summary))}{evaluated}{f'<ul>{notes}</ul>' if notes else ''}</div>"


def summary_rows(summary: ConversionSummary) -> dict[str, str]:
    """What a person wants to know of a conversion."""
    smaller = summary.source_bytes / summary.bytes if summary.bytes else 0
    rows = {
        "folder": str(summary.path),
        "size": f"{size_text(summary.bytes)} from {size_text(summary.source_bytes)} ({smaller:.1f} times smaller)",
        "bits per weight": f"{summary.bits_per_weight:.3f}, scales and biases counted",
        "parameters": f"{summary.parameters:,}",
        "time": _seconds(summary.seconds),
        "peak memory": size_text(summary.peak_bytes),
    }
    if summary.errors:
        worst = max(summary.errors, key=lambda error: error.relative_error)
        rows["verified"] = (
            f"{len(summary.errors):,} tensors; the largest error is {100 * worst.relative_error:.1f} % "
            f"({worst.sqnr_db:.1f} dB), {worst.name}"
        )
    if summary.page:
        rows["published"] = summary.page
    return rows


def evaluation_html(evaluation: Evaluation) -> str:
    """The table of what a conversion cost."""
    head = ("texts", "mean KL (nats)", "99 % KL (nats)", "same top-1", "perplexity", "ratio", "95 % interval")
    rows = [
        (
            row.kind,
            f"{row.mean_kl:.5f}",
            f"{row.p99_kl:.4f}",
            f"{100 * row.top1_agreement:.2f} %",
            f"{row.perplexity:.4g}",
            f"{row.perplexity_ratio:.4f}",
            f"{row.perplexity_ratio_low:.4f} to {row.perplexity_ratio_high:.4f}",
        )
        for row in evaluation.rows
    ]
    about = (
        f"{evaluation.model} against {evaluation.reference}, on {evaluation.documents:,} texts of "
        f"{evaluation.tokens:,} tokens"
    )
    return table_html(head, rows) + _small(about)


def fit_html(fit: Fit) -> str:
    return _table(fit_rows(fit))


def fit_rows(fit: Fit) -> dict[str, str]:
    """The rows of `exaone4-mlx fit`."""
    return {
        "context": f"{fit.context:,} tokens",
        "weights": size_text(fit.weights_bytes),
        "global cache": size_text(fit.global_cache_bytes),
        "local windows": size_text(fit.local_window_bytes),
        "rewind reserve and slack": size_text(fit.local_reserve_bytes),
        "prefill transient": size_text(fit.prefill_bytes),
        **({"draft model": size_text(fit.draft_bytes)} if fit.draft_bytes else {}),
        "total": size_text(fit.total_bytes),
        f"fits into {size_text(fit.memory_bytes)}": "yes" if fit.fits else "no",
        "largest context that fits": f"{fit.largest_context:,} tokens" if fit.largest_context else "none",
    }


# --- small things -------------------------------------------------------------------


def escaped(text: str) -> str:
    """A text as HTML, in elements and attributes."""
    return html.escape(HALF.sub("\ufffd", text))


def table_html(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of texts with a head."""
    first = "".join(f'<th style="text-align:left">{escaped(cell)}</th>' for cell in head)
    lines = ("".join(f'<td style="text-align:left">{escaped(cell)}</td>' for cell in row) for row in rows)
    others = "".join(f"<tr>{line}</tr>" for line in lines)
    return f'<table style="color:inherit"><thead><tr>{first}</tr></thead><tbody>{others}</tbody></table>'


def _table(rows: Mapping[str, str]) -> str:
    cells = "".join(
        f'<tr><th style="text-align:left">{escaped(name)}</th><td style="text-align:left">{escaped(value)}</td></tr>'
        for name, value in rows.items()
    )
    return f'<table style="color:inherit"><tbody>{cells}</tbody></table>'


def _small(text: str) -> str:
    return f'<div style="font-size:85%;opacity:.75;margin:.4em 0">{escaped(text)}</div>'


def _seconds(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds < 1 else f"{seconds:.1f} s"


def _pretty(value: Any) -> str:
    if not isinstance(value, str):
        try:
            value = json.dumps(value, ensure_ascii=False, indent=2)
        except (TypeError, ValueError, RecursionError):
            value = repr(value)
    return value if len(value) <= LONG else f"{value[:LONG]}… ({len(value) - LONG:,} characters more)"
