"""The model card: correct, complete, and safe against untrusted text."""

from __future__ import annotations

import ast
import math
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml

from exaone4_mlx.conversion.card import model_card

LG = "LGAI-EXAONE/EXAONE-4.0-1.2B"
LG_CARD = "---\nlicense: other\nlicense_name: exaone\nlicense_link: LICENSE\nlanguage:\n- en\n- ko\n---\n# EXAONE\n"
PROJECTIONS = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj")
PROJECTIONS += ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")
HOSTILE = "![x](http://e) | `a` <script>\n---\nlicense: mit\n```\n| b | \x07\u2028\"'; $(rm -rf ~) \\|"


def tensor(name: str, error: float | None = 0.09, bits: int = 4, size: int = 1000) -> dict[str, Any]:
    sqnr = None if error is None else -20 * math.log10(error) if error else math.inf
    values = {"name": name, "shape": [8, 8], "bits": bits, "group_size": 64, "mode": "affine"}
    return values | {"bytes": size, "relative_error": error, "sqnr_db": sqnr}


def network(layers: int, **options: Any) -> list[dict[str, Any]]:
    """Sorted by name, as a checkpoint is: layer 10 before layer 2, the output head first."""
    names = [f"model.layers.{i}.{part}.weight" for i in range(layers) for part in PROJECTIONS]
    return [tensor(name, **options) for name in sorted(["lm_head.weight", "model.embed_tokens.weight", *names])]


def report(tensors: list[dict[str, Any]] | None = None, **parts: Any) -> dict[str, Any]:
    conversion = {"origin": LG, "format": "bfloat16", "recipe": "4bit", "calibrate": None, "bits_per_weight": 4.5004}
    sizes = {"bytes": 720_000_000, "source_bytes": 2_560_000_000, "parameters": 1_280_000_000}
    return {"conversion": conversion | sizes | {"tensors": tensors or []}} | parts


def card_of(**changes: Any) -> str:
    given: dict[str, Any] = {"name": "EXAONE-mine", "origin": LG, "report": report(network(2))}
    return model_card(**(given | {"licence_files": ["LICENSE"], "source_card": LG_CARD} | changes))


def header(card: str) -> dict[str, Any]:
    """The YAML header, read with PyYAML."""
    return yaml.safe_load(card.split("---\n")[1])


def tables(card: str) -> list[list[str]]:
    """The lines of each table."""
    return [block.splitlines() for block in card.split("\n\n") if block.startswith("|")]


# --- the YAML header --------------------------------------------------------------


def test_the_header_describes_the_model() -> None:
    fields = header(card_of())
    assert fields == {
        "library_name": "mlx",
        "pipeline_tag": "text-generation",
        "tags": ["mlx", "exaone4", "4-bit"],
        "language": ["ko", "en", "es"],
        "base_model": LG,
        "base_model_relation": "quantized",
        "license": "other",
        "license_name": "exaone",
        "license_link": "LICENSE",
    }


def test_an_unquantized_model_is_not_a_quantization() -> None:
    whole = tensor("model.embed_tokens.weight", None, 16) | {"group_size": None, "mode": None}
    fields = header(card_of(report=report([whole])))
    assert "base_model_relation" not in fields and fields["tags"] == ["mlx", "exaone4"]
    assert "| embedding | 16 | not quantized | 1 | 1,000 |" in card_of(report=report([whole]))


@pytest.mark.parametrize(
    ("origin", "source_card", "files", "expected"),
    [
        (LG, None, ["LICENSE"], {"license": "other", "license_name": "exaone", "license_link": "LICENSE"}),
        (
            LG,
            LG_CARD,
            [],
            {
                "license": "other",
                "license_name": "exaone",
                "license_link": f"https://huggingface.co/{LG}/blob/main/LICENSE",
            },
        ),
        ("/models/mine", LG_CARD, [], {"license": "other", "license_name": "exaone"}),
        ("/models/mine", None, ["LICENSE"], {}),
        ("mina/mine", None, [], {}),
        ("demo", LG_CARD, [], {"license": "mit"}),
        ("mina/mine", "---\nlicense: [mit, apache-2.0]\n---\n", [], {"license": ["mit", "apache-2.0"]}),
        ("mina/mine", '---\nlicense: "a: b\\n- c"\nlicense_link: /etc/passwd\n---\n', [], {}),
        ("mina/mine", "---\nlicense: mit\nlicense_link: javascript:alert(1)\n---\n", [], {"license": "mit"}),
    ],
)
def test_the_licence_is_that_of_the_source(
    origin: str, source_card: str | None, files: list[str], expected: dict[str, Any]
) -> None:
    fields = header(card_of(origin=origin, source_card=source_card, licence_files=files))
    assert {key: value for key, value in fields.items() if key.startswith("license")} == expected


def test_only_a_hub_id_is_a_base_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "base_model" not in header(card_of(origin="demo"))
    assert "base_model" not in header(card_of(origin="/models/EXAONE"))
    monkeypatch.chdir(tmp_path)
    Path(LG).mkdir(parents=True)
    assert "base_model" not in header(card_of()), "the source is a folder of that name"


# --- the text -----------------------------------------------------------------------


def test_the_card_shows_how_to_run_the_model() -> None:
    card = card_of(name="mina/EXAONE mine")
    assert "\n# EXAONE mine\n" in card
    commands = [shlex.split(line) for line in card.splitlines() if line.startswith(("exaone4-mlx ", "mlx_lm."))]
    assert [command[:2] for command in commands] == [
        ["exaone4-mlx", "generate"],
        ["exaone4-mlx", "chat"],
        ["mlx_lm.generate", "--model"],
    ]
    assert all("mina/EXAONE mine" in command for command in commands)
    ast.parse(card.partition("```python\n")[2].partition("```")[0])


def test_bits_are_listed_by_kind_with_count_and_bytes() -> None:
    tensors = [*network(2), tensor("model.layers.2.mlp.down_proj.weight", bits=6, size=1500)]
    card = card_of(report=report(tensors))
    for line in (
        "| recipe | 4bit |",
        "| bits per weight | 4.500 |",
        "| parameters | 1,280,000,000 |",
        "| embedding | 4 | affine, groups of 64 | 1 | 1,000 |",
        "| query | 4 | affine, groups of 64 | 2 | 2,000 |",
        "| MLP down | 4 | affine, groups of 64 | 2 | 2,000 |",
        "| MLP down | 6 | affine, groups of 64 | 1 | 1,500 |",
    ):
        assert line in card
    assert "calibration" not in card, "there was no calibration"


def test_measured_losses_are_listed() -> None:
    row = {"kind": "ko", "tokens": 12_345, "mean_kl": 0.01234, "p99_kl": 0.2, "top1_agreement": 0.9712}
    row |= {"perplexity": 8.1, "reference_perplexity": 8.0, "perplexity_ratio": 1.0125}
    row |= {"perplexity_ratio_low": 1.001, "perplexity_ratio_high": 1.024}
    evaluation = {"data": "/home/mina/held out.jsonl", "reference": LG, "documents": 40, "rows": [row]}
    tensors = [*network(2), tensor("model.layers.2.mlp.up_proj.weight", 0.25)]
    card = card_of(report=report(tensors, evaluation=evaluation), has_plot=True)
    assert "| ko | 12,345 | 0.0123 | 0.200 | 97.12 % | 8.100 | 8.000 | 1.0125 (1.0010 to 1.0240) |" in card
    assert "(held out.jsonl)" in card and "/home/mina" not in card
    assert "| model.layers.2.mlp.up_proj.weight | 4 | 25.00 % | 12.0 |" in tables(card)[-1][2], (
        "the largest error is first"
    )
    assert "(errors.svg)" in card
    assert "/home/mina" not in card_of(origin="/home/mina/models/EXAONE-4.0-1.2B")
    unmeasured = card_of(report=report(network(2, error=None)))
    assert "## Quality" not in unmeasured and "errors.svg" not in unmeasured


def test_nan_and_infinity_do_not_break_tables() -> None:
    rows = [{"kind": "all", "tokens": 1, "mean_kl": math.nan, "perplexity_ratio": math.inf}]
    tensors = [tensor("lm_head.weight", 0.0), tensor("model.embed_tokens.weight") | {"relative_error": math.nan}]
    card = card_of(report=report(tensors, evaluation={"rows": rows}))
    assert "| lm_head.weight | 4 | 0.00 % | – |" in card
    assert not {"nan", "inf"} & set(card.partition("## Quality")[2].split())
    for table in tables(card):
        assert len({line.count("|") for line in table}) == 1


def test_only_exaone_has_the_licence_notice() -> None:
    assert "research and education only" in card_of(source_card=None)
    assert "The text is in LICENSE." in card_of()
    demo = card_of(origin="demo", source_card=None)
    assert "research and education" not in demo and "not EXAONE" in demo
    assert "research and education" not in card_of(origin="mina/own", source_card="---\nlicense: mit\n---\n")


def test_hostile_text_breaks_nothing() -> None:
    """Names, paths and a source card that contain markup, YAML and commands."""
    hostile_card = f"---\nlicense: other\nlicense_name: {yaml.safe_dump(HOSTILE).strip()}\nlicense_link: LICENSE\n---\n"
    named = [tensor(f"model.layers.0.{HOSTILE}"), *network(1)]
    rows = [{"kind": HOSTILE, "tokens": 1}]
    evil = report(named, evaluation={"rows": rows, "data": HOSTILE, "reference": HOSTILE})
    evil["conversion"] |= {"recipe": HOSTILE, "format": HOSTILE, "calibrate": HOSTILE}
    card = card_of(
        name=HOSTILE, origin=f"/models/{HOSTILE}", report=evil, source_card=hostile_card, licence_files=[HOSTILE]
    )
    fields = header(card)
    assert fields["license"] == "other" and set(fields) >= {"license_name", "tags"}
    assert "\n" not in fields["license_name"]
    assert card.count("\n---\n") == 1, "the YAML ends once"
    lines = card.partition("\n---\n")[2].splitlines()
    fences = [number for number, line in enumerate(lines) if line.startswith("```")]
    assert len(fences) == 6, "three code blocks, opened and closed"
    text = "\n".join(line for n, line in enumerate(lines) if sum(fence < n for fence in fences) % 2 == 0)
    assert "<script>" not in text and "![x]" not in text and "`a`" not in text
    for table in tables(card):
        assert len({line.count("|") for line in table}) == 1
    commands = [line for line in card.splitlines() if line.startswith("exaone4-mlx chat")]
    assert len(shlex.split(commands[0])) == 4, "the name is one word for the shell"
