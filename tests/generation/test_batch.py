"""Replies of one model that are made together: each equals the reply alone, whatever the others do."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator
from itertools import islice, pairwise
from typing import Any

import mlx.core as mx
import pytest
from conftest import Always, Greedy, hold, random_ids, roll_dice, run_all, tiny_model, until

from exaone4_mlx import BUILTIN_TOOLS, Chat, Sampling, generate, load, stream_generate
from exaone4_mlx.generation import decode, worker
from exaone4_mlx.generation.decode import Sampler, TokenStream
from exaone4_mlx.generation.draft import DraftModel
from exaone4_mlx.generation.prefill import FIRST_CHUNK, Batch, Piece, prefill
from exaone4_mlx.generation.worker import Job, Worker

CALCULATOR = [tool for tool in BUILTIN_TOOLS if getattr(tool, "__name__", "") == "calculator"]
TEXTS = (
    "What is the capital of Peru?",
    "Write a poem about the sea.",
    "Which one is bigger, 3.12 vs 3.9?",
    "안녕하세요",
)


@pytest.fixture
def widths(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of streams in each step."""
    found: list[int] = []
    original = decode.take_step
    monkeypatch.setattr(decode, "take_step", lambda streams: found.append(len(streams)) or original(streams))
    return found


# --- streams ------------------------------------------------------------------

SAMPLINGS = (
    Sampling(temperature=0.0, top_p=1.0),
    Sampling(temperature=0.9, top_p=0.95, seed=7),
    Sampling(temperature=0.7, top_p=1.0, presence_penalty=1.5, seed=3),
    Sampling(temperature=0.0, top_p=1.0, repetition_penalty=1.3),
    Sampling(temperature=1.0, top_p=1.0, min_p=0.05, xtc_probability=0.5, seed=11),
)


def schedule(seed: int, count: int = 8) -> None:
    """Streams join and leave at random. Some are forced or restricted on the way."""
    rng = random.Random(seed)
    model = tiny_model(sliding_window=rng.choice((7, None)))
    form, allowed = model.fused(), mx.arange(61) % 2 == 0

    def begin(job: dict[str, Any], together: list[TokenStream] | None) -> TokenStream:
        cache = model.make_cache()
        logits = prefill(form, job["ids"], cache, job["chunk"])
        return TokenStream(form, logits, cache, Sampler(job["sampling"], job["ids"], 61), 2, together)

    def take(stream: TokenStream, job: dict[str, Any], got: list[Any]) -> None:
        got.append((next(stream), [part.tolist() for part in stream.logprobs]))
        if len(got) == job["forced"]:
            stream.force([5, 6])
        if len(got) == job["restricted"]:
            stream.restrict(allowed)

    jobs = [
        {
            "ids": random_ids(rng.randrange(1, 40), rng.random())[0].tolist(),
            "sampling": rng.choice(SAMPLINGS),
            "chunk": rng.choice((1, 5, 64)),
            "length": rng.randrange(1, 25),
            "forced": rng.randrange(20),
            "restricted": rng.randrange(20),
        }
        for _ in range(count)
    ]
    together: list[TokenStream] = []
    waiting, live, results = list(range(count)), dict[int, TokenStream](), [list[Any]() for _ in jobs]
    while waiting or live:
        if waiting and (not live or rng.random() < 0.4):
            number = waiting.pop()
            live[number] = begin(jobs[number], together)
        for number, stream in list(live.items()):
            take(stream, jobs[number], results[number])
            if len(results[number]) == jobs[number]["length"]:
                stream.close()
                together.remove(live.pop(number))
    for job, got in zip(jobs, results, strict=True):
        stream, alone = begin(job, None), list[Any]()
        for _ in range(job["length"]):
            take(stream, job, alone)
        assert [token for token, _ in got] == [token for token, _ in alone]
        for (_, (ids, values)), (_, (other_ids, other_values)) in zip(got, alone, strict=True):
            assert ids == other_ids and values == pytest.approx(other_values, abs=1e-3)


def test_streams_together_equal_streams_alone() -> None:
    schedule(0)


@pytest.mark.heavy
@pytest.mark.parametrize("seed", range(1, 30))
def test_streams_together_equal_streams_alone_at_thirty_schedules(seed: int) -> None:
    schedule(seed)


def test_an_error_of_a_sampler_ends_its_own_stream() -> None:
    class Failing(Greedy):
        def __call__(self, logits: mx.array, allowed: mx.array | None = None) -> mx.array:
            if self.replaced:
                raise ZeroDivisionError
            return super().__call__(logits, allowed)

    model = tiny_model()
    form, together, failing = model.fused(), list[TokenStream](), Failing()
    streams = []
    for sample in (Greedy(), failing):
        cache = model.make_cache()
        streams.append(TokenStream(form, prefill(form, [5, 6], cache), cache, sample, None, together))
    assert next(streams[0]) == next(streams[1])
    failing.replaced.append(())
    assert next(streams[0]) > 0
    with pytest.raises(ZeroDivisionError):
        next(streams[1])
    together.pop()
    cache = model.make_cache()
    alone = TokenStream(form, prefill(form, [5, 6], cache), cache, Greedy())
    assert list(islice(streams[0], 5)) == list(islice(alone, 7))[2:]


def test_streams_of_changed_weights_take_steps_of_their_own() -> None:
    """A reply in progress goes on with the weights that it began with."""
    old, new = tiny_model(), tiny_model(seed=1)
    together: list[TokenStream] = []

    def begin(model: Any, together: list[TokenStream] | None) -> TokenStream:
        cache = model.make_cache()
        return TokenStream(model.fused(), prefill(model.fused(), [5, 6], cache), cache, Greedy(), None, together)

    streams = [begin(model, together) for model in (old, new)]
    found = [[next(stream) for stream in streams] for _ in range(9)]
    assert [list(row) for row in zip(*found, strict=True)] == [list(islice(begin(m, None), 9)) for m in (old, new)]


# --- the worker ---------------------------------------------------------------


def logged(log: list[str], name: str, *kinds: Piece) -> Iterator[Any]:
    for kind in kinds:
        yield kind
        log.append(f"{name} {kind.value}")


def test_a_round_has_all_short_pieces_and_one_long_piece() -> None:
    model = tiny_model()
    log, short, long = list[str](), [Piece.SHORT] * 4, [Piece.LONG] * 2
    go = hold(Worker.of(model))
    jobs = [Worker.of(model).submit(logged(log, *given)) for given in (("a", *short), ("b", *long), ("c", *long))]
    go.set()
    assert [list(job) for job in jobs] == [[], [], []]
    steps = [place for place, entry in enumerate(log) if entry == "a step"]
    assert all(b - a <= 2 for a, b in pairwise(steps)), f"two chunks between two steps: {log}"
    assert [entry for entry in log if "chunk" in entry] == ["b chunk"] * 2 + ["c chunk"] * 2, "the oldest first"


def test_jobs_that_use_the_same_cache_run_one_after_the_other() -> None:
    model = tiny_model()
    log: list[str] = []
    jobs = [Worker.of(model).submit(logged(log, name, *[Piece.SHORT] * 5), uses=1) for name in "ab"]
    assert [list(job) for job in jobs] == [[], []]
    assert log == ["a step"] * 5 + ["b step"] * 5


def test_at_most_so_many_jobs_run_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "MOST_TOGETHER", 2)
    model = tiny_model()
    running, most = set[int](), list[int]()

    def work(number: int) -> Iterator[Any]:
        running.add(number)
        for _ in range(5):
            most.append(len(running))
            yield Piece.SHORT
        running.remove(number)

    for job in [Worker.of(model).submit(work(number)) for number in range(6)]:
        list(job)
    assert max(most) == 2


def test_a_chunk_takes_about_the_same_time_while_others_wait() -> None:
    batch = Batch()
    assert batch.chunk_size(2048) == 2048
    batch.has_others = True
    assert batch.chunk_size(2048) == FIRST_CHUNK and batch.chunk_size(16) == 16
    batch.measured(500, 1.0)
    assert batch.chunk_size(2048, "draft model") == FIRST_CHUNK, "another reader has another speed"
    assert batch.chunk_size(2048) == 100


@pytest.mark.heavy
def test_the_prompt_of_a_draft_model_is_read_in_chunks_between_steps(
    demo: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A decoding reply waits for one chunk at most, of a prompt or of a draft model's prompt."""
    ran: list[tuple[int, Piece]] = []  # the pieces, with their jobs
    original = Job.run
    monkeypatch.setattr(Job, "run", lambda job: ran.append((id(job), job.next_piece)) or original(job))
    monkeypatch.setattr("exaone4_mlx.generation.draft.DraftScheduler", Always)
    monkeypatch.setattr("exaone4_mlx.generation.prefill.CHUNK_SECONDS", 0.004)
    read: list[int] = []
    real = DraftModel._read
    monkeypatch.setattr(DraftModel, "_read", lambda self, ids: read.append(len(ids)) or real(self, ids))
    draft = load("demo-draft", dtype="float32")[0]
    long = "Tell me about the sea. " * 60
    found: dict[str, Any] = {}

    def reply(name: str, text: str, **options: Any) -> None:
        found[name] = generate(*demo, text, temperature=0, max_tokens=60, min_tokens=60, **options).text

    reply("alone", long)
    ran.clear()
    first = stream_generate(*demo, "Hello", temperature=0, max_tokens=400, min_tokens=400)
    next(first)
    run_all([threading.Thread(target=reply, args=("drafted", long), kwargs={"draft_model": draft})])
    first.close()
    assert found["drafted"] == found["alone"]
    assert len(read) > 3, "in chunks"
    steps = [place for place, (job, _) in enumerate(ran) if job == ran[0][0]]
    for a, b in pairwise(steps):
        assert sum(piece is Piece.LONG for _, piece in ran[a + 1 : b]) <= 1


# --- replies ------------------------------------------------------------------

GREEDY = Sampling(temperature=0)
SCRIPTS: tuple[dict[str, Any], ...] = (
    {"turns": ["Tell me about quantum physics."], "thinking": True, "thinking_budget": 8},
    {"turns": ["1234 * 56은?"], "tools": CALCULATOR},
    {
        "turns": ["Write a poem about the sea."],
        "sampling": Sampling(temperature=0.9, top_p=0.95, seed=5, presence_penalty=1.0),
    },
    {"turns": ["What is the capital of Peru?", "Which one is bigger, 3.12 vs 3.9?"], "thinking": True},
    {"turns": ["안녕하세요", "고마워요"], "tools": CALCULATOR},
    {"turns": ["Hello!", "What is 17 + 25?"], "kv": 8},
    {"turns": ["What can you do?"], "prompt_lookup": True},
)


def converse(model: Any, tokenizer: Any, script: dict[str, Any]) -> list[Any]:
    settings = {"sampling": GREEDY, "max_tokens": 60, "settle": False, **script}
    turns = settings.pop("turns")
    chat = Chat(model, tokenizer, **settings)
    for text in turns:
        list(chat.send(text, prefill_step_size=64))
    kept = ("role", "content", "reasoning_content", "tool_calls", "finish_reason")
    cached = [message["stats"]["cached_tokens"] for message in chat.messages if message.get("stats")]
    return [[{name: message.get(name) for name in kept} for message in chat.messages], cached]


@pytest.mark.parametrize("count", [3, pytest.param(len(SCRIPTS), marks=pytest.mark.heavy)])
def test_conversations_together_equal_conversations_alone(demo: Any, widths: list[int], count: int) -> None:
    scripts = [{"max_tokens": 20 * count - 40, **script} for script in SCRIPTS[:count]]
    alone = [converse(*demo, script) for script in scripts]
    assert set(widths) == {1}
    found: dict[int, Any] = {}
    run_all(
        threading.Thread(target=lambda i=i, script=script: found.update({i: converse(*demo, script)}))
        for i, script in enumerate(scripts)
    )
    assert [found[i] for i in range(count)] == alone
    assert max(widths) > 1, "several replies took a step together"
    assert Worker.of(demo[0]).batch.streams == []


@pytest.mark.heavy
def test_a_cancelled_and_a_dropped_reply_leave_the_batch(demo: Any) -> None:
    batch = Worker.of(demo[0]).batch
    expected = generate(*demo, TEXTS[1], temperature=0, max_tokens=40).text
    streams = [stream_generate(*demo, text, temperature=0, max_tokens=400, min_tokens=400) for text in TEXTS[:3]]
    for stream in streams:
        next(stream)
    streams[0].cancel()
    assert [event.finish_reason for event in streams[0] if hasattr(event, "finish_reason")] == ["cancelled"]
    streams[1].close()
    del streams
    assert generate(*demo, TEXTS[1], temperature=0, max_tokens=40).text == expected
    until(lambda: not batch.streams)


def test_a_failing_reply_does_not_end_the_others(demo: Any) -> None:
    def fails(tokens: mx.array, logits: mx.array) -> mx.array:
        if tokens.size > 30:
            raise ZeroDivisionError("of this reply")
        return logits

    expected = generate(*demo, TEXTS[1], temperature=0, max_tokens=60).text
    good = stream_generate(*demo, TEXTS[1], temperature=0, max_tokens=60)
    first = next(good)
    with pytest.raises(ZeroDivisionError, match="of this reply"):
        generate(*demo, TEXTS[0], temperature=0, min_tokens=60, logits_processors=[fails])
    assert first.text + "".join(getattr(event, "text", "") for event in good) == expected


@pytest.mark.heavy
def test_a_short_reply_does_not_wait_for_a_long_prompt(demo: Any) -> None:
    """Those that decode take steps between the chunks of a newcomer's prompt."""
    order: list[str] = []
    long = " ".join(TEXTS) * 12
    decoding = stream_generate(*demo, TEXTS[1], temperature=0, min_tokens=60, max_tokens=60)
    next(decoding)

    def read() -> None:
        chunks = lambda done, total: order.append("chunk")  # noqa: E731
        generate(*demo, long, max_tokens=1, prefill_step_size=32, progress=chunks)
        order.append("read")

    thread = threading.Thread(target=read)
    thread.start()
    for event in decoding:
        order.append("token" if hasattr(event, "text") else "done")
    thread.join()
    between = order[order.index("chunk") : len(order) - order[::-1].index("chunk")]
    assert "token" in between or "done" in order[: order.index("chunk")], order


def test_a_constrained_reply_beside_others(demo: Any, scripted: Any) -> None:
    schema = {"type": "object", "properties": {"city": {"enum": ["Lima", "Seoul"]}}, "required": ["city"]}
    given = {"response_format": {"type": "json_schema", "json_schema": {"schema": schema}}, "temperature": 0}
    alone = generate(*demo, TEXTS[0], **given).text
    found: list[str] = []
    run_all(
        [
            threading.Thread(target=lambda: found.append(generate(*demo, TEXTS[0], **given).text)),
            threading.Thread(target=lambda: generate(*demo, TEXTS[1], temperature=0, max_tokens=60)),
            threading.Thread(target=lambda: generate(*demo, TEXTS[2], temperature=0, tools=[roll_dice], max_tokens=60)),
        ]
    )
    assert found == [alone] and '"city"' in alone
