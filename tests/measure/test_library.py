"""The library of models: the known repositories, the search on the hub, and what may be removed."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from fake_hub import FileServer

from exaone4_mlx import Exaone4Config, convert
from exaone4_mlx.conversion.staging import remove_result
from exaone4_mlx.files.folders import DEMO_FOLDER, USEFUL_FILES
from exaone4_mlx.files.hub_errors import DownloadError
from exaone4_mlx.files.resumable import blobs_of, download_resumably
from exaone4_mlx.measure.library import HubModel, find_models, known_models, remove_model, search_hub
from exaone4_mlx.measure.sizes import weight_shapes


@pytest.fixture
def made(tmp_path: Path) -> Path:
    """A folder with one conversion."""
    convert("demo", tmp_path / "made" / "short", q_bits=4, search=False)
    return tmp_path / "made"


def test_the_parameters_of_known_models_are_those_of_the_shapes(shared: Path) -> None:
    import math

    counts = {
        sum(map(math.prod, weight_shapes(Exaone4Config.from_file(file)).values()))
        for file in (shared / "configs").glob("EXAONE-4.0-*B.config.json")
    }
    assert {model.parameters for model in known_models()} == counts


def test_sizes_of_known_models_agree_with_their_bits() -> None:
    for model in known_models():
        assert not model.bytes or 0.8 < model.bytes / (model.parameters * model.bits / 8) < 1.2, model
        assert model.weights_bytes >= model.bytes * 0.95, model
    assert len({model.repo for model in known_models()}) == len(known_models())


def test_a_search_asks_the_hub_for_this_architecture(hub: FileServer) -> None:
    hub.listed = [
        {"id": "mina/EXAONE-4.0-1.2B-mine-8bit", "tags": ["exaone4"]},
        {"id": known_models()[0].repo, "tags": ["exaone4"]},
        {"id": "mina/EXAONE-4.0-GGUF", "tags": ["exaone4", "gguf"]},
    ]
    assert search_hub("mine") == [HubModel("mina/EXAONE-4.0-1.2B-mine-8bit", bits=8), known_models()[0]]
    assert "filter=exaone4" in hub.searches[0] and "search=mine" in hub.searches[0]
    hub.answer = (200, "text/html", b"<html>log in</html>")
    with pytest.raises(DownloadError, match="the list of models cannot be downloaded: the answer is not the hub's"):
        search_hub()


def test_a_conversion_is_removed_and_its_bytes_are_counted(made: Path) -> None:
    size = sum(file.stat().st_size for file in (made / "short").iterdir())
    model = next(model for model in find_models("demo", [made]) if model.name == "short")
    assert (model.bits, model.is_quantized) == (4, True)
    assert remove_model(model, made) == size and not (made / "short").exists()


def test_nothing_else_is_removed(made: Path, tmp_path: Path) -> None:
    foreign = shutil.copytree(made / "short", made / "mine")
    (foreign / "notes.txt").write_text("of the user")
    (made / "link").symlink_to(made / "short")
    elsewhere = find_models(str(DEMO_FOLDER), [made, tmp_path])
    for model, message in [
        (next(model for model in elsewhere if model.name == "demo"), "was not made here"),
        (next(model for model in elsewhere if model.name == "mine"), "holds notes.txt, which no conversion wrote"),
    ]:
        with pytest.raises((ValueError, OSError), match=message):
            remove_model(model, made)
    with pytest.raises(ValueError, match="was not made here"):
        remove_model(next(model for model in elsewhere if model.name == "short"), tmp_path)
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        remove_result(made / "link")
    assert sorted(path.name for path in made.iterdir()) == ["link", "mine", "short"] and DEMO_FOLDER.is_dir()


def test_a_revision_of_the_cache_is_removed(exaone: FileServer, tmp_path: Path) -> None:
    download_resumably("x/y", USEFUL_FILES, lambda *_: None)
    cached = next(model for model in find_models("demo") if model.repo == "x/y")
    assert remove_model(cached, tmp_path) == sum(map(len, exaone.files.values()))
    assert not any(blobs_of("x/y").glob("*")) and "x/y" not in [model.repo for model in find_models("demo")]
