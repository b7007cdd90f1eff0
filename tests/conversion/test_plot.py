"""The picture of the errors: a mark for each tensor, in the order of the network, and the same bytes each time."""

from __future__ import annotations

import sys
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pytest

from exaone4_mlx import convert
from exaone4_mlx.conversion.plot import TENSOR_KINDS, kind_of, measured_tensors, write_error_plot
from exaone4_mlx.files import svg

pytest.importorskip("matplotlib")
PARTS = [f"self_attn.{name}_proj" for name in "qkvo"] + [f"mlp.{name}_proj" for name in ("gate", "up", "down")]


def network(layers: int, error: float | None = 0.09) -> list[dict[str, Any]]:
    """Sorted by name, as a checkpoint is: layer 10 before layer 2, the output head first."""
    names = [f"model.layers.{i}.{part}.weight" for i in range(layers) for part in PARTS]
    return [tensor(name, error) for name in sorted(["lm_head.weight", "model.embed_tokens.weight", *names])]


def tensor(name: str, error: float | None) -> dict[str, Any]:
    return {"name": name, "relative_error": error}


def layers_with(*errors: float) -> list[dict[str, Any]]:
    return [tensor(f"model.layers.{i}.mlp.up_proj.weight", error) for i, error in enumerate(errors)]


def drawn(tmp_path: Path, tensors: list[dict[str, Any]]) -> str:
    write_error_plot(tmp_path / "errors.svg", tensors)
    text = (tmp_path / "errors.svg").read_text()
    ET.fromstring(text)
    return text


def marks(picture: str, kind: str) -> list[tuple[float, float]]:
    """x and y of the marks of one kind. y grows downwards."""
    (group,) = [node for node in ET.fromstring(picture).iter() if node.attrib.get("id") == kind]
    return [(float(node.attrib["x"]), float(node.attrib["y"])) for node in group.iter() if node.tag.endswith("}use")]


def test_tensors_are_in_network_order() -> None:
    names = [entry["name"] for entry in measured_tensors(network(12))]
    assert names[0] == "model.embed_tokens.weight" and names[-1] == "lm_head.weight"
    assert names[1:8] == [f"model.layers.0.{part}.weight" for part in PARTS]
    assert names.index("model.layers.2.mlp.up_proj.weight") < names.index("model.layers.10.mlp.up_proj.weight")
    assert measured_tensors([*network(1, None), tensor("x", float("nan")), tensor("y", True)]) == []


def test_every_tensor_has_a_mark_and_larger_errors_are_higher(tmp_path: Path) -> None:
    for errors in ((0.08, 0.09, 0.1), (0.004, 0.09, 0.3), (0.0, 0.05, 0.1), (0.0, 0.001, 0.3)):
        places = marks(drawn(tmp_path, layers_with(*errors)), "MLP up")
        assert len(places) == len(errors)
        assert [x for x, _ in places] == sorted(x for x, _ in places)
        assert [y for _, y in places] == sorted((y for _, y in places), reverse=True), errors


def test_labels_are_those_of_the_kinds_and_axes(tmp_path: Path) -> None:
    picture = drawn(tmp_path, network(2))
    shown = [kind.label for kind in TENSOR_KINDS if f">{kind.label}<" in picture]
    assert shown == [kind.label for kind in TENSOR_KINDS if kind.label not in ("norm", "other")]
    assert ">relative error<" in picture and ">layer<" in picture and ">9 %<" in picture
    mixed = drawn(tmp_path, [*network(2), tensor("model.norm.weight", 0.001)])
    assert ">relative error, logarithmic<" in mixed and ">norm<" in mixed and ">0.2 %<" in mixed


def test_the_same_report_gives_the_same_bytes_without_a_date(tmp_path: Path) -> None:
    first = drawn(tmp_path, network(3))
    assert drawn(tmp_path, network(3)) == first
    assert "date" not in first


@pytest.mark.parametrize("errors", [[0.0], [0.1], [0.0, 0.0], [1e-9, 1.0]])
def test_extreme_errors_are_drawn(errors: list[float], tmp_path: Path) -> None:
    assert drawn(tmp_path, layers_with(*errors))


def test_names_of_tensors_are_text(tmp_path: Path) -> None:
    assert "<script" not in drawn(tmp_path, [*network(1), tensor("model.layers.0.<script>$x^2$\n", 0.1)])


def test_marks_differ_in_colour_or_shape() -> None:
    assert len({(kind.colour, kind.marker) for kind in TENSOR_KINDS}) == len(TENSOR_KINDS)
    assert kind_of("something").label == "other"


def test_without_matplotlib_a_conversion_has_no_picture_and_a_note_says_how_to_get_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(svg, "find_spec", lambda name: None)
    monkeypatch.setitem(sys.modules, "matplotlib", None)  # its import fails
    summary = convert("demo", tmp_path / "out", search=False, verify=True)
    assert "errors.svg is not drawn, because matplotlib is missing: pip install" in summary.notes[0]
    assert not (tmp_path / "out" / "errors.svg").exists()
    card = (tmp_path / "out" / "README.md").read_text()
    assert "errors.svg" not in card and "largest relative error" in card
