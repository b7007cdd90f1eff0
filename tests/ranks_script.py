"""One rank of a model, beside the same model in rank 0 alone. Usage: ranks_script.py WHAT… MODEL [OPTIONS as JSON].

Rank 0 prints what differs as one JSON object. `ranks.py` starts it.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import struct
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from conftest import distance, roll_dice, until
from mlx.utils import tree_flatten

from exaone4_mlx import Chat, KVQuantization, PrefixStore, PromptCache, generate, load, stream_generate
from exaone4_mlx.checkpoint.share import Share, Stage
from exaone4_mlx.cluster.ranks import PORT_DISTANCE, join_ranks
from exaone4_mlx.conversation.chat_file import cache_path
from exaone4_mlx.generation.follow import Follower, follow
from exaone4_mlx.generation.prefill import prefill

PROMPT = "Which one is bigger, 3.12 vs 3.9? " * 4  # several windows of the demo


def logits(model: Any, tokenizer: Any, kv: int | None = None) -> mx.array:
    """The logits after a prompt in chunks, after one token, after a rewind, and after several tokens."""
    ids = tokenizer.apply_chat_template([{"role": "user", "content": PROMPT}], enable_thinking=True)
    cache, fused = model.make_cache(kv), model.fused()
    found = [prefill(fused, ids, cache, 40), fused(mx.array([[5]]), cache)[0]]
    for layer in cache:
        layer.rewind(3)
    found += [fused(mx.array([[7, 8, 9]]), cache)[0], fused(mx.array([ids[:20]]), cache)[0]]
    other = model.make_cache(kv)
    prefill(fused, ids[:50], other)
    together = fused.together([(mx.array([[5]]), cache), (mx.array([[6, 7]]), other)])
    return mx.concatenate([*found, *[part[0] for part in together]])


def long_logits(model: Any, tokenizer: Any) -> mx.array:
    """The logits after a prompt that a pipeline reads in parts, and after one more token."""
    ids, cache, fused = tokenizer.encode("word " * 250)[:700], model.make_cache(), model.fused()
    return mx.concatenate([prefill(fused, ids, cache), fused(mx.array([[5]]), cache)[0]])


def greedy(model: Any, tokenizer: Any, count: int = 12) -> Any:
    return generate(model, tokenizer, PROMPT, temperature=0, max_tokens=count, min_tokens=count).token_ids


def many(model: Any, tokenizer: Any) -> Any:
    return greedy(model, tokenizer, 500)


def seeded(model: Any, tokenizer: Any) -> Any:
    given = {"temperature": 0.9, "top_p": 0.95, "seed": 4, "repetition_penalty": 1.1}
    return generate(model, tokenizer, "Tell me a story", max_tokens=12, thinking=True, **given).token_ids


def chat(model: Any, tokenizer: Any) -> Any:
    """Turns with thought, with tools and with reuse; one is cancelled, and one is made again."""
    talk = Chat(model, tokenizer, tools=[roll_dice], temperature=0, max_tokens=60, settle=False)
    replies = [talk.ask("Roll a dice with 20 sides.", thinking=True)]
    turn = talk.send("What is 17 * 23?")
    next(turn)
    turn.cancel()
    assert list(turn)[-1].finish_reason == "cancelled"
    talk.undo()  # how far it came depends on time
    replies += [talk.ask("Hello", max_tokens=8), talk.ask("And now?", thinking=True, max_tokens=8)]
    assert replies[-1].cached_tokens > 20
    tools = [message["content"] for message in talk.messages if message["role"] == "tool"]
    assert tools
    return [(reply.text, reply.thinking) for reply in replies], tools


def drafts(model: Any, tokenizer: Any) -> Any:
    draft, _ = load("demo-draft", dtype="float32")
    prompt = "Repeat: a b c d a b c d a b c d"
    by_lookup = generate(model, tokenizer, prompt, temperature=0, max_tokens=20, prompt_lookup=True)
    by_model = generate(model, tokenizer, prompt, temperature=0, max_tokens=20, draft_model=draft)
    return by_lookup.token_ids, by_model.token_ids


def batch(model: Any, tokenizer: Any) -> Any:
    """Replies together."""
    prompts = ["Hello", "What is 17 * 23?", PROMPT]
    made = [stream_generate(model, tokenizer, prompt, temperature=0, max_tokens=6) for prompt in prompts]
    for reply in made:
        next(reply)
    for reply in made:
        list(reply)
    return [reply.token_ids for reply in made]


def stopped(model: Any, tokenizer: Any) -> Any:
    """A prompt that is stopped within a chunk; then one that begins the same."""
    cache = PromptCache(model, tokenizer)
    ids = tokenizer.encode("word " * 600)

    class Stop(Exception):
        pass

    def progress(done: int, total: int) -> None:
        if done > 0:
            raise Stop

    import exaone4_mlx.generation.prefill as module

    module.CHECK_SECONDS = 0.0
    try:
        cache.prefill(ids, progress=progress)
    except Stop:
        pass
    else:
        raise AssertionError("the prompt was not stopped")
    return mx.argmax(cache.prefill(ids[:400])[0]).item()


def prefixes(model: Any, tokenizer: Any) -> Any:
    """Prompts that begin as others did: from memory, from files, and after a file of another rank was damaged."""
    system = {"role": "system", "content": PROMPT * 3}
    found = []

    def reply(store: PrefixStore, text: str) -> None:
        cache = PromptCache(model, tokenizer, prefix_store=store)
        messages = [system, {"role": "user", "content": text}]
        done = generate(model, tokenizer, messages, temperature=0, max_tokens=4, prompt_cache=cache)
        found.append((done.token_ids, done.cached_tokens))

    def opened() -> PrefixStore:
        return PrefixStore(folder="prefixes" if model.ranks else "whole", ranks=model.ranks)

    store = opened()
    for text in ("Hello", "What is 17 * 23?", "Hello"):
        reply(store, text)
    assert found[2] == (found[0][0], found[2][1]) and found[1][1] > 80 and found[2][1] > found[1][1]
    generate(model, tokenizer, "x", max_tokens=1)  # the others write
    store.flush()
    if model.ranks:
        mine, other = (Path(f"prefixes/rank{rank}of2") for rank in (0, 1))
        until(lambda: names_in(mine) == names_in(other))
        assert len(names_in(mine)) > 3
    store = opened()
    reply(store, "Hello")
    assert found[3] == found[2]
    if model.ranks:
        for path in other.iterdir():
            path.write_bytes(path.read_bytes()[:-4] + b"odd.")
        damaged = opened()
        reply(damaged, "Hello")
        assert found.pop() == (found[0][0], 0), "all ranks forget what one has lost"
    return found


def names_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def files(model: Any, tokenizer: Any, kv: int | None = None) -> Any:
    """A conversation that goes on from a file; then the file of another rank is of another time, or gone."""
    path = Path("turns")
    talk = Chat(model, tokenizer, temperature=0, max_tokens=8, settle=False, kv=kv)
    talk.ask(PROMPT, thinking=True)
    talk.save(path, caches=True)
    again = Chat.load(path, model, tokenizer, caches=True, kv=kv, settle=False)
    reply = again.ask("And now?")
    assert reply.cached_tokens > 40
    found = [reply.text, reply.cached_tokens]
    if model.ranks is None:
        return found
    caches = cache_path(path).name
    own, other = (Path(f"{caches}.rank{rank}of2") for rank in (0, 1))
    before = other.read_bytes()
    talk.ask("More")
    talk.save(path, caches=True)
    other.write_bytes(before)
    with pytest.warns(UserWarning, match=r"^rank 1 \(.*not written together with that of rank 0; starting without it"):
        assert not PromptCache.load(caches, model, tokenizer, kv=kv).ids
    other.unlink()
    with pytest.raises(ValueError, match=r"^rank 1 \(.*there is no prompt cache"):
        PromptCache.load(caches, model, tokenizer, kv=kv)
    other.mkdir()
    with pytest.raises(OSError, match=r"rank 1 \("):
        talk.save(path, caches=True)
    own.rename(own.with_name(f"{caches}.rank0of4"))
    with pytest.raises(ValueError, match="was written by 4 ranks, and here are 2"):
        PromptCache.load(caches, model, tokenizer, kv=kv)
    return found


def differing_codes(model: Any, whole: Any, tokenizer: Any, kv: int) -> list[tuple[int, int]]:
    """Of the quantized keys of each layer: how many codes of rank 0 are not those of one process, and by how much."""
    ids, caches = tokenizer.encode(PROMPT), []
    for one in (model, whole):
        caches.append(one.make_cache(KVQuantization(kv, kv, layers="all")))
        mx.eval(prefill(one.fused(), ids, caches[-1]))
    found = []
    for own, all_heads in zip(*caches, strict=True):
        rows, heads = min(own.past, len(ids)), own.rows.buffers[0].shape[1]
        codes = [cache.rows.buffers[0][:, :heads, :rows].view(mx.uint8) for cache in (own, all_heads)]
        places = [mx.stack([part & 15, part >> 4]) if kv == 4 else part for part in codes]
        steps = mx.abs(places[0].astype(mx.int32) - places[1].astype(mx.int32))
        found.append((mx.sum(steps > 0).item(), mx.max(steps).item()))
    return found


def ring_bytes_of(step: Callable[[], Any], tokens: int, count: int = 10) -> list[float]:
    """Bytes that the sockets of MLX's ring sent and received for a token, as Linux counts them for each connection."""
    before = ring_bytes()
    for _ in range(count):
        mx.eval(step())
    return [(now - then) / count / tokens for now, then in zip(ring_bytes(), before, strict=True)]


def bytes_per_token(model: Any, tokens: int = 1) -> list[float]:
    """Those of a step of one token, or of a prompt."""
    fused, cache = model.fused(), model.make_cache()
    mx.eval(fused(mx.array([[5]]), cache))
    if tokens == 1:
        return ring_bytes_of(lambda: fused(mx.array([[5]]), cache), 1)
    return ring_bytes_of(lambda: prefill(fused, [5] * tokens, cache), tokens)


def ring_bytes() -> list[int]:
    """Acknowledged and received bytes of all connections but those of the messages of the ranks."""
    hosts = json.loads(Path(os.environ["MLX_HOSTFILE"]).read_text())
    time.sleep(0.5)  # until all is acknowledged
    messages, found = {int(host[0].rpartition(":")[2]) + PORT_DISTANCE for host in hosts}, [0, 0]
    for fd in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError), socket.socket(fileno=os.dup(int(fd))) as one:
            if not {one.getsockname()[1], one.getpeername()[1]} & messages:
                info = one.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256)
                counts = struct.unpack_from("=QQ", info, 120)  # tcpi_bytes_acked, tcpi_bytes_received
                found = [total + count for total, count in zip(found, counts, strict=True)]
    return found


CHECKS: dict[str, Callable[..., Any]] = {
    check.__name__: check for check in (greedy, many, seeded, chat, drafts, batch, stopped, prefixes, files)
}


def main(*arguments: str) -> None:
    options = json.loads(arguments[-1]) if arguments[-1].startswith("{") else {}
    *names, name = arguments[:-1] if options else arguments
    kv, pipeline = options.pop("kv", None), options.pop("pipeline", False)
    without = options.pop("without", None)
    ranks = join_ranks(60, pipeline)
    assert ranks is not None
    before = read_bytes()
    model, tokenizer = load(name, group=ranks, **options)
    read = read_bytes() - before
    if ranks.rank:
        if without:  # a rule is broken on purpose
            change = Follower._change
            Follower._change = lambda self, *given: given[0] == without or change(self, *given)  # type: ignore
        follow(model)
        return
    found: dict[str, Any] = {"read": read, "kept": nbytes(model)}
    whole, _ = load(name, **options)
    found["whole"] = nbytes(whole)
    found["part"] = part_nbytes(whole, model.part, ranks.size)
    for check in names:
        if check in ("bytes", "prompt bytes"):
            found[check] = bytes_per_token(model, 1 if check == "bytes" else 100)
        elif check == "codes":
            found[check] = differing_codes(model, whole, tokenizer, kv)
        elif check == "long":
            found[check] = distance(long_logits(model, tokenizer), long_logits(whole, tokenizer)) < 1e-4
        elif check == "logits":
            ours, theirs = logits(model, tokenizer, kv), logits(whole, tokenizer, kv)
            found[check] = distance(ours, theirs)
            assert mx.max(mx.abs(theirs)).item() > 1
        else:
            given = {"kv": kv} if check == "files" else {}
            ours, theirs = (CHECKS[check](one, tokenizer, **given) for one in (model, whole))
            found[check] = ours == theirs or [ours, theirs]
    ranks.leave()
    print(json.dumps(found))


def part_nbytes(whole: Any, share: Share | Stage, size: int) -> int:
    """Bytes of the weights of a rank."""
    found = 0
    for name, array in tree_flatten(whole.parameters()):
        if share.has(f"{name.rpartition('.')[0]}.weight"):
            found += array.nbytes // (size if share.cut(name) else 1)
    return found


def nbytes(model: Any) -> int:
    return sum(array.nbytes for _, array in tree_flatten(model.parameters()))


def read_bytes() -> int:
    """Bytes that this process has read by system calls."""
    io = Path("/proc/self/io")
    return int(io.read_text().split()[1]) if io.is_file() else 0


if __name__ == "__main__":
    main(*sys.argv[1:])
