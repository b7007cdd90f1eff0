"""`cluster check`: machines and links of several ranks."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import ROOT
from ranks import free_ports

from exaone4_mlx.checkpoint.quantize import Quantization
from exaone4_mlx.cli.cluster import _lines
from exaone4_mlx.cli.main import main
from exaone4_mlx.measure.links import ClusterReport, Link, Prediction, RankMachine, jaccl_advice, predict
from exaone4_mlx.measure.sizes import read_sizes

VERSIONS = {"exaone4_mlx": "0.2.0", "Python": "3.12.1", "mlx": "0.32.4"}
MAC = RankMachine(0, "mac0", "Apple M4 Max", "Darwin 25 arm64", "26.2", VERSIONS, 96 * 10**9, 500e9, 3)
PREDICTION = Prediction(2, 0.016, 129, 50e-6, 0.033)
REPORT = ClusterReport(
    "ring", (MAC, replace(MAC, rank=1, host="mac1")), (Link(0, 1, 40e-6, 4e9),), 10_240, 5e-5, PREDICTION
)


def test_the_report_in_words() -> None:
    lines = list(_lines(REPORT))
    assert lines[0].startswith("rank 0  mac0: Apple M4 Max, 26.2, 96.00 GB for models at 500 GB/s; exaone4_mlx 0.2.0")
    assert lines[2:5] == [
        "link  0 – 1 (ring): 40 µs, 4 GB/s",
        "a sum of 10,240 bytes over all ranks: 50 µs",
        "predicted, not measured: at most 44.5 tokens/s (16.0 ms to read weights and 129 sums in 6.5 ms); "
        "30.3 on rank 0 alone, if the model fits",
    ]
    assert lines[5].startswith("for JACCL: Join them by a Thunderbolt 5 cable, and write a host file")


def test_what_is_left_to_do_for_jaccl() -> None:
    old, without = replace(MAC, rank=1, host="mac1", macos="15.7"), replace(MAC, rank=2, host="mac2", rdma_devices=0)
    old_advice, other, cables = jaccl_advice(replace(REPORT, machines=(MAC, old, without)))
    assert old_advice == "rank 1 (mac1) has macOS 15.7: JACCL needs 26.2."
    assert "rank 2 (mac2) has no RDMA device" in other and "rdma_ctl enable" in other
    assert "a cable from each Mac to each other" in cables
    assert jaccl_advice(replace(REPORT, backend="jaccl")) == []
    linux = replace(MAC, macos="")
    assert jaccl_advice(replace(REPORT, machines=(MAC, linux))) == ["JACCL needs Macs with Thunderbolt 5 in all ranks."]


def test_versions_that_differ_are_named() -> None:
    other = replace(MAC, rank=1, host="mac1", versions=VERSIONS | {"mlx": "0.31.0", "Python": "3.13.0"})
    found = replace(REPORT, machines=(MAC, other)).differences
    assert found == ["rank 1 (mac1) has mlx 0.31.0, and rank 0 0.32.4"]


def test_a_host_file_is_needed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["cluster", "check"]) == 1
    assert main(["cluster", "check", "--hostfile", str(tmp_path / "none")]) == 1
    error = capsys.readouterr().err
    assert "--hostfile FILE is needed" in error and "there is no file" in error
    for text, message in (("[]", "must name two hosts or more"), ('{"a": 1}', "must name two"), ("{", "is not JSON")):
        (tmp_path / "hosts").write_text(text)
        assert main(["cluster", "check", "--hostfile", str(tmp_path / "hosts")]) == 1
        assert message in capsys.readouterr().err


#: Seconds of a short sum and bytes per second, as docs/several-macs.md assumes them, with its sources.
LINKS = ((25e-6, 8e9), (300e-6, 6e9), (300e-6, 1.2e9))
BANDWIDTH, OPERATIONS = 546e9, 15e12  # of the memory of an M4 Max, and of its GPU


@pytest.mark.parametrize("name", ["1.2B", "32B"])
def test_the_predicted_times_of_the_documentation(shared: Path, name: str) -> None:
    sizes = read_sizes(shared / "configs" / f"EXAONE-4.0-{name}.config.json")
    row_bytes, layers = 2 * sizes.config.hidden_size, sizes.config.num_hidden_layers

    def seconds(latency: float, link: float, rows: int) -> float:
        return latency + rows * row_bytes / link  # 2 ranks send 2 (2 - 1) / 2 of the bytes of a sum

    def row(title: str, times: list[float], unit: str) -> str:
        digits = [f"{time:#.2g}" if time < 10 else f"{time:.0f}" for time in times]
        return f"| {name}, {title} | " + " | ".join(f"{text} {unit}" for text in digits) + " |"

    rows = []
    for bits in (4, 8):
        found = [predict(sizes, [BANDWIDTH] * 2, seconds(*link, 1), Quantization(bits)) for link in LINKS]
        times = [found[0].alone_seconds, *(1 / one.tokens_per_second for one in found)]
        rows.append(row(f"{bits} bits, a token", [1e3 * time for time in times], "ms"))
    weights = sum(math.prod(tensor.shape) for key, tensor in sizes.tensors.items() if ".layers." in key)
    computed = 2 * weights * 1000 / OPERATIONS
    sums = [2 * (layers - 1) * seconds(*link, 1000) + 2 * seconds(*link, 1) for link in LINKS]
    rows.append(row("1,000 tokens of a prompt", [computed, *(computed / 2 + time for time in sums)], "s"))
    documented = (ROOT / "docs" / "several-macs.md").read_text()
    assert all(row in documented for row in rows), "\n".join(rows)


@pytest.mark.heavy
def test_two_processes_of_this_machine(tmp_path: Path) -> None:
    host = {"ssh": "127.0.0.1", "ips": ["127.0.0.1"]}
    hosts = tmp_path / "hosts.json"
    hosts.write_text(json.dumps({"hosts": [host, host]}))
    command = [sys.executable, "-m", "exaone4_mlx", "cluster", "check", "--hostfile", str(hosts), "--json"]
    command += ["--model", "demo", "--starting-port", str(free_ports(1)[0])]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert [machine["rank"] for machine in found["machines"]] == [0, 1]
    [link] = found["links"]
    assert link["latency"] > 0 and link["bandwidth"] > 0 and found["sum_seconds"] > 0
    assert found["sum_bytes"] == 512 and found["prediction"]["sums"] == 17
    assert found["prediction"]["read_seconds"] > 0 and not found["differences"]
