"""`bench`: what it counts is right, engines take turns, and what it prints can be read. No speed is asserted."""

from __future__ import annotations

import csv
import dataclasses
import importlib.util
import io
import itertools
import json
import warnings
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import pytest
from conftest import TINY, tiny_model

from exaone4_mlx.cli.main import main
from exaone4_mlx.files import svg
from exaone4_mlx.measure import bandwidth, bench, engines, graph, measurements, peers, turns
from exaone4_mlx.measure.bench import Bench, BenchRow, Conditions
from exaone4_mlx.measure.measurements import BenchRequest, Measurement
from exaone4_mlx.model.kv import KVQuantization

ROWS = (
    BenchRow("prefill", "exaone4_mlx", "tokens/s", 200.0, 190.0, 210.0, tokens=512, peak_bytes=36_000_000),
    BenchRow("prefill", "mlx-lm", "tokens/s", 100.0, 95.0, 105.0, 512, None, 2.0, 1.9, 2.1, 30_000_000),
    BenchRow(
        "decode", "exaone4_mlx", "tokens/s", 50.0, 40.0, 60.0, 16, 0, None, None, None, 9_000_000, 22_000_000, 0.5
    ),
    BenchRow("decode", "mlx-lm", "tokens/s", 25.0, 20.0, 30.0, 16, 0, 2.0, 1.8, 2.2, 9_000_000, 22_000_000, 0.25),
    BenchRow("Python's share of a step", "exaone4_mlx", "ms", 0.5, 0.4, 0.6),
    BenchRow("dispatching nodes of a RoPE layer", "mlx-lm", "nodes", 19, 19, 19, ratio=0.789, ratio_low=0.789),
)
FOUND = Bench(
    Conditions(
        "AMD <EPYC>", 2, 25_000_000_000, "Linux 6", "cpu", {"Python": "3.11", "mlx": "0.32.4"}, "demo", 8, "float32",
        32.0, "", 2048, 3, 1.5, 4.6e9,
    ),
    ROWS,
)  # fmt: skip


# --- nodes ----------------------------------------------------------------------------------------------------


def their_nodes(pattern: str | None, layers: int, bits: int | None = 4) -> int:
    """Dispatching nodes of a step of mlx-lm's own model."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # transformers tells that there is no torch
        exaone4 = pytest.importorskip("mlx_lm.models.exaone4")
    sizes = {"hidden_size": 64, "intermediate_size": 64, "head_dim": 32, "sliding_window": 64 if pattern else None}
    rope = {"rope_theta": 1e4, "rope_scaling": None, "sliding_window_pattern": pattern}
    model = exaone4.Model(exaone4.ModelArgs.from_dict(TINY | sizes | rope | {"num_hidden_layers": layers}))
    if bits:
        nn.quantize(model, 64, bits)
    mx.eval(model.parameters())
    with graph.one_node_each():
        return graph.dispatching(graph.step_nodes(model, model.make_cache()))


@pytest.mark.heavy
def test_mlx_lm_has_19_nodes_in_a_rope_layer_and_17_in_a_global_one() -> None:
    """Counted on Metal's op list by hand: 7 products, 4 norms, 2 rotations, 2 cache writes, attention, 2 sums, SwiGLU."""
    least, rope, plain = (their_nodes(pattern, len(pattern)) for pattern in ("LG", "LLG", "LGG"))
    assert rope - least == 19
    assert plain - least == 17, "a global layer of a hybrid does not rotate"
    assert their_nodes(None, 2) - their_nodes(None, 1) == 19
    assert their_nodes(None, 2, None) - their_nodes(None, 1, None) == 19, "products in full precision count alike"


def test_without_stand_ins_the_count_is_that_of_the_cpu() -> None:
    model = tiny_model(sliding_window=64)
    plain = graph.step_nodes(model, model.make_cache())
    with graph.one_node_each():
        assert graph.step_nodes(model, model.make_cache()).total() < plain.total()


def test_the_step_alone_is_counted() -> None:
    def three_nodes(ids: mx.array, cache: Sequence[Any]) -> mx.array:
        """A cast, a square and a product, beside the views."""
        return mx.square(ids.astype(mx.float32))[..., None] * mx.array([1.0, 2.0])

    counted = graph.step_nodes(three_nodes, [])
    assert graph.dispatching(counted) == 4, f"the token's choice is the fourth: {counted}"
    assert counted.total() > 4


def test_stand_ins_have_the_shapes_of_what_they_stand_for_and_go_away() -> None:
    x, packed = mx.ones((2, 3, 64)), mx.quantize(mx.ones((128, 64)), 64, 4)

    def shapes() -> list[tuple[int, ...]]:
        return [
            mx.fast.rms_norm(x, None, 1e-5).shape,
            mx.fast.rope(x, 64, traditional=False, base=1e4, scale=1.0, offset=3).shape,
            mx.quantized_matmul(x, *packed, transpose=True, group_size=64, bits=4).shape,
            mx.quantized_matmul(mx.ones((2, 128)), *packed, transpose=False, group_size=64, bits=4).shape,
            mx.dequantize(*packed, group_size=64, bits=4).shape,
        ]

    real, rms_norm = shapes(), mx.fast.rms_norm
    with graph.one_node_each():
        assert shapes() == real
        assert mx.fast.rms_norm is not rms_norm
    assert mx.fast.rms_norm is rms_norm


@pytest.mark.heavy
def test_a_layer_of_ours_has_fewer_nodes_than_mlx_lms() -> None:
    ours, theirs = (
        graph.in_own_process("count_nodes", name, *bench._kind(quantized_tiny())) for name in ("exaone4_mlx", "mlx-lm")
    )
    assert theirs["dispatching nodes of a RoPE layer"] == 19 > ours["dispatching nodes of a RoPE layer"]
    assert theirs["dispatching nodes of a global layer"] == 17 > ours["dispatching nodes of a global layer"]


@pytest.mark.parametrize("is_quantized", [False, True])
def test_pythons_share_is_that_of_whole_steps_never_evaluated(is_quantized: bool, monkeypatch: Any) -> None:
    steps, argmax, rms_norm = [], mx.argmax, mx.fast.rms_norm
    monkeypatch.setattr(mx, "argmax", lambda logits, axis: steps.append(logits.shape) or argmax(logits, axis=axis))
    config = tiny_model(head_dim=64).config.to_dict()
    seconds = graph.host_seconds(["exaone4_mlx"], config, "float32", is_quantized, 2)["exaone4_mlx"]
    assert len(seconds) == 2 and min(seconds) > 0
    assert steps == [(1, 128)] * 3 * engines.BUILT_STEPS, "a round for warming up"
    assert mx.fast.rms_norm is rms_norm


def quantized_tiny() -> Any:
    model = tiny_model(hidden_size=64, intermediate_size=64)
    nn.quantize(model)
    return model


# --- bytes ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tied", [True, False])
def test_bytes_of_a_token_are_weights_one_embedding_and_the_rows_attended(tied: bool) -> None:
    model = tiny_model(tie_word_embeddings=tied, sliding_window=7)
    embeddings = 61 * 32 * 4
    read = engines.nbytes(model) - (0 if tied else embeddings) + 32 * 4
    row = 2 * 2 * 16 * 4  # keys and values of two heads
    assert bandwidth.bytes_per_token(model, 0) == read
    assert bandwidth.bytes_per_token(model, 5) == read + 4 * 5 * row, "all four layers see all of five tokens"
    assert bandwidth.bytes_per_token(model, 100) == read + (3 * 7 + 100) * row, "three see their window"


def test_bytes_of_a_token_with_a_quantized_cache() -> None:
    model = tiny_model(head_dim=64, sliding_window=7)
    more = bandwidth.bytes_per_token(model, 100) - bandwidth.bytes_per_token(model, 0)
    packed = bandwidth.bytes_per_token(model, 100, KVQuantization(8, 8, 64, "global")) - bandwidth.bytes_per_token(
        model, 0
    )
    assert more == (3 * 7 + 100) * 2 * 2 * 64 * 4
    assert packed == 3 * 7 * 2 * 2 * 64 * 4 + 100 * 2 * 2 * (64 + 8), "a byte for each number, and scale and bias"


def test_bits_per_weight_count_scales() -> None:
    model = quantized_tiny()
    assert bandwidth.bits_per_weight(model) == pytest.approx(5, abs=0.2), "4, and 2 * 32 for each 64; norms"


# --- turns ----------------------------------------------------------------------------------------------------


class Fake:
    weights_bytes = 0

    def __init__(self, name: str, log: list[str], seconds: Sequence[float] | None) -> None:
        self.name, self._log = name, log
        self._seconds = None if seconds is None else iter(seconds)

    def measured(self) -> list[float] | None:
        self._log.append(self.name)
        return None if self._seconds is None else [next(self._seconds)]


def test_engines_take_turns_and_the_first_round_does_not_count() -> None:
    log: list[str] = []
    fakes: Any = [Fake("a", log, [9, 1, 2, 3]), Fake("b", log, [9, 4, 5, 6]), Fake("c", log, None)]
    taken = turns.take_turns(fakes, Fake.measured, 3)  # type: ignore[arg-type]
    assert "".join(log) == "abc" + "ab" + "ba" + "ab", "who begins changes, and who cannot is asked once"
    assert {name: found.seconds for name, found in taken.items()} == {"a": ((1, 2, 3),), "b": ((4, 5, 6),)}


def test_ratios_are_of_neighbours_in_time() -> None:
    test = Measurement({"decode": 10}, "tokens/s", lambda engine: None, depth=3)
    taken = {
        "exaone4_mlx": turns.Samples(((1.0, 2.0, 5.0),), 70),
        "mlx-lm": turns.Samples(((2.0, 2.0, 15.0),), 80),
    }
    ours, theirs = bench._rows(test, taken, tiny_model(), bandwidth=1e6)
    assert (ours.median, ours.low, ours.high) == (5, 2, 10)
    assert (theirs.ratio, theirs.ratio_low, theirs.ratio_high) == (2, 1, 3)
    assert ours.ratio is None
    assert (ours.peak_bytes, theirs.peak_bytes) == (70, 80)
    assert ours.bandwidth_fraction == pytest.approx(5 * bandwidth.bytes_per_token(tiny_model(), 8) / 1e6)


def test_seconds_are_told_in_the_unit_of_the_row() -> None:
    assert Measurement({"x": None}, "ms", lambda engine: None).figure("x", 0.5) == 500
    assert Measurement({"x": None}, "s", lambda engine: None).figure("x", 0.5) == 0.5


def test_peak_is_without_what_other_engines_hold() -> None:
    other = mx.zeros(10_000_000)
    mx.eval(other)

    class Busy(Fake):
        weights_bytes = 1000

        def measured(self) -> list[float]:
            mx.eval(mx.ones(1_000_000) + 1)
            return [1.0]

    engine: Any = Busy("a", [], [])
    peak = turns.take_turns([engine], Busy.measured, 1)["a"].peak_bytes  # type: ignore[arg-type]
    assert 4_000_000 < peak < 20_000_000
    assert other.nbytes == 40_000_000


def test_prompts_are_always_the_same() -> None:
    assert measurements.random_ids(5, 61) == measurements.random_ids(5, 61)
    assert all(0 <= token < 61 for token in measurements.random_ids(500, 61))
    assert measurements.random_message(100) == measurements.random_message(100)
    assert len(measurements.random_message(100).split()) == 100


# --- engines --------------------------------------------------------------------------------------------------


def test_count_tokens_are_made_after_one() -> None:
    tokens = itertools.count()
    assert engines.seconds_of(tokens, 7) >= 0
    assert next(tokens) == 8


def test_ours_reads_and_decodes_as_asked(unread: tuple[Any, Any], tmp_path: Path, monkeypatch: Any) -> None:
    made: list[int] = []

    class Counted(engines.TokenStream):
        def __next__(self) -> int:
            made.append(super().__next__())
            return made[-1]

    monkeypatch.setattr(engines, "TokenStream", Counted)
    ours = engines.Ours(*unread, tmp_path, 16)
    assert ours.weights_bytes == engines.nbytes(unread[0])
    assert ours.prefill(range(40)) > 0
    assert ours.decode(range(10), 3) > 0
    assert len(made) == 4
    assert ours.build() > 0
    assert len(ours.conversation(["12", "7"])) == 2


def test_ours_keeps_caches_in_few_bits_where_asked(demo: tuple[Any, Any], tmp_path: Path, monkeypatch: Any) -> None:
    kinds = []
    make_cache = type(demo[0]).make_cache
    monkeypatch.setattr(type(demo[0]), "make_cache", lambda self, kv=None: kinds.append(kv) or make_cache(self, kv))
    kv = KVQuantization(8, 8, 64, "all")
    ours = engines.Ours(*demo, tmp_path, 16, kv)
    ours.prefill(range(10))
    ours.decode(range(10), 2)
    ours.conversation(["12"])
    assert kinds[:2] == [kv, kv] and set(kinds[2:]) == {kv}


def test_a_command_that_fails_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    class Broken(Fake):
        def command(self, prompt: str) -> list[str]:
            return [sys.executable, "-c", "import os; raise SystemExit(f'offline: {os.environ[\"HF_HUB_OFFLINE\"]}')"]

    broken: Any = Broken("a", [], [])
    with pytest.raises(RuntimeError, match="failed: offline: 1"):
        measurements._start(broken)


@pytest.mark.parametrize("q_bits", [None, 4])
def test_mlx_lm_runs_the_same_weights(q_bits: int | None) -> None:
    from exaone4_mlx import load
    from exaone4_mlx.files.folders import DEMO_FOLDER

    ours, _ = load("demo", dtype="float32", q_bits=q_bits)
    theirs = peers.MlxLm(ours, DEMO_FOLDER, 2048, mx.float32)
    ids = mx.array([measurements.random_ids(50, 3072)])
    assert mx.abs(ours(ids) - theirs._model(ids)).max().item() < 1e-3
    assert theirs.weights_bytes == engines.nbytes(ours)


@pytest.mark.heavy
def test_all_of_it_on_the_demo(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    here = [peer for peer, packages in peers.PEERS.items() if all(map(importlib.util.find_spec, packages))]
    asked = [part for peer in here for part in ("--peer", peer)]
    few = ["-p", "20,40", "-g", "3", "-d", "0,30", "--repeat", "1", "--dtype", "float32"]
    assert main(["bench", "--model", "demo", *few, *asked, "--format", "json", "--plot", str(tmp_path / "a.svg")]) == 0
    told = json.loads(capsys.readouterr().out)
    assert {row["engine"] for row in told["rows"]} == {"exaone4_mlx", *here}
    for row in told["rows"]:
        assert row["median"] > 0
        assert (row["ratio"] is None) == (row["engine"] == "exaone4_mlx")
    assert {row["test"] for row in told["rows"] if row["engine"] == "transformers"} <= {"prefill", "decode"}
    ElementTree.parse(tmp_path / "a.svg")


# --- what is refused ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"prompt_tokens": (512, 0)}, r"prompt_tokens \(-p\) must be 1 or more, not 0"),
        ({"depths": (-1,)}, r"depths \(-d\) must be 0 or more, not -1"),
        ({"decode_tokens": 0}, r"decode_tokens \(-g\) must be 1 or more, not 0"),
        ({"repeat": 0}, r"repeat \(--repeat\) must be 1 or more"),
        ({"dtype": "int8"}, "dtype must be one of"),
        ({"peers": ("llama.cpp",)}, "there is no peer 'llama.cpp'; there are mlx-lm and transformers"),
    ],
)
def test_what_cannot_be_measured_is_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        BenchRequest("demo", **wrong)


def test_peers_that_are_not_installed_are_named(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert main(["bench", "--model", "no such model", "--peer", "mlx-lm"]) == 1
    assert capsys.readouterr().err == "error: mlx-lm is not installed here: pip install mlx-lm\n"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["-d", "8192"], "8322 tokens are more than the model's context of 8192: ask for shorter prompts"),
        (["-p", "9000", "-d", "0"], "9000 tokens are more than the model's context"),
        (["--peer", "transformers", "--q-bits", "4"], "transformers reads weights in full precision only"),
        (["--plot", "a.png"], "--plot draws an SVG: the name must end in .svg, not a.png"),
        (["--plot", "no/such/folder/a.svg"], "--plot: there is no folder no/such/folder"),
    ],
)
def test_what_the_model_cannot_do_is_refused_before_work(
    flags: list[str], message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    monkeypatch.setattr(bench, "load_model", lambda *given, **named: pytest.fail("weights were read"))
    assert main(["bench", "--model", "demo", *flags]) == 1
    assert message in capsys.readouterr().err


def test_lengths_are_numbers(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["bench", "--model", "demo", "-p", "512;4096"])
    assert "'512;4096' is not a list of whole numbers separated by commas" in capsys.readouterr().err


# --- what is printed ------------------------------------------------------------------------------------------


@pytest.fixture
def printed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """printed(flags…) is what the command prints of FOUND."""
    asked: list[BenchRequest] = []

    def fake(request: BenchRequest, progress: Any) -> Bench:
        asked.append(request)
        return FOUND

    monkeypatch.setattr(bench, "bench", fake)

    def run(*flags: str) -> str:
        assert main(["bench", "--model", "demo", *flags]) == 0
        return capsys.readouterr().out

    run.asked = asked  # type: ignore[attr-defined]
    return run


def test_flags_become_a_request(printed: Any) -> None:
    printed("-p", "512,64", "-g", "16", "-d", "0", "--repeat", "2", "--prefill-step-size", "256", "--q-bits", "8")
    assert printed.asked == [BenchRequest("demo", (512, 64), 16, (0,), 2, q_bits=8, prefill_step_size=256)]
    printed("--kv-bits", "8", "--kv-layers", "all")
    assert printed.asked.pop() == BenchRequest("demo", kv=KVQuantization(8, 8, layers="all"))
    printed()
    assert printed.asked[1] == BenchRequest("demo"), "flags and class have the same defaults"


def test_markdown_names_conditions_and_leaves_no_row_out(printed: Any) -> None:
    out = printed()
    for told in ("AMD <EPYC>, 2 cores", "float32", "mlx 0.32.4", "3 rounds", "4.6 GB/s", "MLX on the CPU"):
        assert told in out
    table = [line[2:-2].split(" | ") for line in out.splitlines() if line.startswith("|")]
    assert len(table) == 2 + len(ROWS)
    assert len({len(line) for line in table}) == 1, "every line has every column"
    cells = [cell.strip() for cell in table[5]]
    assert cells == ["decode, 16 tokens at depth 0", "mlx-lm", "25 tokens/s", "20 to 30", "2", "1.8 to 2.2", "9 MB",
                     "22 MB", "25%"]  # fmt: skip
    assert "For tokens/s a ratio above 1 is better, for times and counts a ratio below 1" in out


def test_csv_repeats_the_conditions(printed: Any) -> None:
    lines = list(csv.DictReader(io.StringIO(printed("--format", "csv"))))
    assert len(lines) == len(ROWS)
    assert lines[1]["test"] == "prefill" and float(lines[1]["ratio"]) == 2 and lines[1]["versions"].startswith("Python")
    assert lines[4]["ratio"] == "" and lines[4]["machine"] == "AMD <EPYC>"


def test_json_holds_everything(printed: Any) -> None:
    told = json.loads(printed("--format", "json"))
    assert told == json.loads(json.dumps(dataclasses.asdict(FOUND)))


def test_plot_shows_each_speed_once_with_its_spread(printed: Any, tmp_path: Path) -> None:
    printed("--plot", str(tmp_path / "speeds.svg"))
    root = ElementTree.parse(tmp_path / "speeds.svg").getroot()
    texts = [element.text or "" for element in root.iter("{http://www.w3.org/2000/svg}text")]
    assert {"exaone4_mlx", "mlx-lm", "prefill, tokens/s", "decode, tokens/s", "512", "0"} <= set(texts)
    assert any("AMD <EPYC>" in text for text in texts), "others' text stands in it as text"
    marks = {
        f"{test} {engine}": marks_of(root, f"{test} {engine}")
        for test in ("prefill", "decode")
        for engine in ("exaone4_mlx", "mlx-lm")
    }
    assert [len(found) for found in marks.values()] == [1, 1, 1, 1]
    (ours, colour), (theirs, other) = marks["prefill exaone4_mlx"][0], marks["prefill mlx-lm"][0]
    assert ours < theirs, "200 tokens/s are above 100, where y is less"
    assert colour != other


def marks_of(root: ElementTree.Element, group_id: str) -> list[tuple[float, str]]:
    """y and style of the marks of a group."""
    (group,) = [element for element in root.iter() if element.get("id") == group_id]
    return [(float(use.get("y", "nan")), use.get("style", "")) for use in group.iter() if use.tag.endswith("}use")]


def test_plot_without_matplotlib_is_refused_before_work(
    printed: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(svg, "find_spec", lambda name: None)
    assert main(["bench", "--model", "demo", "--plot", "a.svg"]) == 1
    assert "--plot needs matplotlib: pip install 'exaone4_mlx[plot]'" in capsys.readouterr().err
    assert printed.asked == []
