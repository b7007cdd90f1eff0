"""`bench`: what it counts is right, engines take turns, and what it prints can be read. No speed is asserted."""

from __future__ import annotations

import csv
import dataclasses
import importlib.util
import io
import json
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from conftest import tiny_model

from exaone4_mlx.cli.main import main
from exaone4_mlx.files import svg
from exaone4_mlx.measure import bench, engines, measurements, peers
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
    taken = engines.take_turns(fakes, Fake.measured, 3)  # type: ignore[arg-type]
    assert "".join(log) == "abc" + "ab" + "ba" + "ab", "who begins changes, and who cannot is asked once"
    assert {name: found.seconds for name, found in taken.items()} == {"a": ((1, 2, 3),), "b": ((4, 5, 6),)}


def test_ratios_are_of_neighbours_in_time() -> None:
    test = Measurement({"decode": 10}, "tokens/s", lambda engine: None, depth=3)
    taken = {"exaone4_mlx": engines.Samples(((1.0, 2.0, 5.0),), 70), "mlx-lm": engines.Samples(((2.0, 2.0, 15.0),), 80)}
    ours, theirs = bench._rows(test, taken, tiny_model(), bandwidth=1e6)
    assert (ours.median, ours.low, ours.high) == (5, 2, 10)
    assert (theirs.ratio, theirs.ratio_low, theirs.ratio_high) == (2, 1, 3)
    assert ours.ratio is None
    assert (ours.peak_bytes, theirs.peak_bytes) == (70, 80)
    assert ours.bandwidth_fraction == pytest.approx(5 * engines.bytes_per_token(tiny_model(), 8) / 1e6)


def test_seconds_are_converted_to_the_unit_of_the_row() -> None:
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
    peak = engines.take_turns([engine], Busy.measured, 1)["a"].peak_bytes  # type: ignore[arg-type]
    assert 4_000_000 < peak < 20_000_000
    assert other.nbytes == 40_000_000


def test_prompts_are_always_the_same() -> None:
    assert measurements.random_ids(5, 61) == measurements.random_ids(5, 61)
    assert all(0 <= token < 61 for token in measurements.random_ids(500, 61))
    assert measurements.random_message(100) == measurements.random_message(100)
    assert len(measurements.random_message(100).split()) == 100


def test_a_command_that_fails_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    class Broken(Fake):
        def command(self, prompt: str) -> list[str]:
            return [sys.executable, "-c", "import os; raise SystemExit(f'offline: {os.environ[\"HF_HUB_OFFLINE\"]}')"]

    broken: Any = Broken("a", [], [])
    with pytest.raises(RuntimeError, match="failed: offline: 1"):
        measurements._start(broken)


@pytest.mark.heavy
def test_all_of_it_on_the_demo(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    here = [peer for peer, packages in peers.PEERS.items() if all(map(importlib.util.find_spec, packages))]
    asked = [part for peer in here for part in ("--peer", peer)]
    few = ["-p", "20,40", "-g", "3", "-d", "0,30", "--repeat", "1", "--dtype", "float32"]
    assert main(["bench", "--model", "demo", *few, *asked, "--format", "json", "--plot", str(tmp_path / "a.svg")]) == 0
    report = json.loads(capsys.readouterr().out)
    assert {row["engine"] for row in report["rows"]} == {"exaone4_mlx", *here}
    for row in report["rows"]:
        assert row["median"] > 0
        assert (row["ratio"] is None) == (row["engine"] == "exaone4_mlx")
    assert {row["test"] for row in report["rows"] if row["engine"] == "transformers"} <= {"prefill", "decode"}
    ElementTree.parse(tmp_path / "a.svg")


# --- what is refused ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"prompt_tokens": (512, 0)}, r"prompt_tokens must be 1 or more, not 0"),
        ({"depths": (-1,)}, r"depths must be 0 or more, not -1"),
        ({"decode_tokens": 0}, r"decode_tokens must be 1 or more, not 0"),
        ({"repeat": 0}, r"repeat must be 1 or more"),
        ({"dtype": "int8"}, "dtype must be one of"),
        ({"peers": ("llama.cpp",)}, "there is no peer 'llama.cpp'; there are mlx-lm and transformers"),
    ],
)
def test_invalid_requests_raise(wrong: dict[str, Any], message: str) -> None:
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
def test_invalid_flags_are_refused_before_work(
    flags: list[str], message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    monkeypatch.setattr(bench, "load_network", lambda *given, **named: pytest.fail("weights were read"))
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

    def fake(request: BenchRequest, progress: Any, ranks: Any = None) -> Bench:
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
    for part in ("AMD <EPYC>, 2 cores", "float32", "mlx 0.32.4", "3 rounds", "4.6 GB/s", "MLX on the CPU"):
        assert part in out
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
    report = json.loads(printed("--format", "json"))
    assert report == json.loads(json.dumps(dataclasses.asdict(FOUND)))


def test_plot_shows_each_speed_once_with_its_spread(printed: Any, tmp_path: Path) -> None:
    printed("--plot", str(tmp_path / "speeds.svg"))
    root = ElementTree.parse(tmp_path / "speeds.svg").getroot()
    texts = [element.text or "" for element in root.iter("{http://www.w3.org/2000/svg}text")]
    assert {"exaone4_mlx", "mlx-lm", "prefill, tokens/s", "decode, tokens/s", "512", "0"} <= set(texts)
    assert any("AMD <EPYC>" in text for text in texts), "untrusted text is escaped"
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
