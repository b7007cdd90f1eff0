"""The list of models never fails; a model is loaded in the background and returned once."""

from __future__ import annotations

import contextlib
import gc
import json
import os
import shutil
import subprocess
import sys
import threading
import warnings
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from conftest import ROOT, in_a_thread
from huggingface_hub import constants
from mlx.utils import tree_flatten

from app import models
from app.models import Choice, Loading, choices, memory_in_use
from exaone4_mlx import CheckpointError, convert, load
from exaone4_mlx.files.folders import DEMO_FOLDER
from exaone4_mlx.measure import library

REPO = "LGAI-EXAONE/EXAONE-4.0-1.2B"
DEMO = Choice("demo", "demo")


@pytest.fixture(autouse=True)
def hub(tmp_path: Path, monkeypatch: Any) -> Path:
    """An empty hub cache."""
    cache = tmp_path / "hub"
    cache.mkdir()
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    return cache


@pytest.fixture
def shelf(tmp_path: Path) -> Path:
    """A folder of models: nothing but what makes a folder count."""
    for name in ("small", "large"):
        make(tmp_path / "shelf" / name)
    return tmp_path / "shelf"


def make(folder: Path, **config: Any) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"model_type": "exaone4"} | config))
    (folder / "model.safetensors").touch()
    return folder


def in_cache(hub: Path, repo: str, ref: str = "main", source: Path = DEMO_FOLDER) -> Path:
    """A snapshot as the hub's client lays it down."""
    root = hub / f"models--{repo.replace('/', '--')}"
    (root / "refs").mkdir(parents=True)
    (root / "refs" / ref).write_text("c0ffee")
    return shutil.copytree(source, root / "snapshots" / "c0ffee", ignore=shutil.ignore_patterns("recipe"))


def paths(given: str = "demo", *folders: Path) -> list[str]:
    return [choice.path for choice in choices(given, folders)]


# --- choices ------------------------------------------------------------------


def test_the_demo_is_always_there() -> None:
    assert choices("demo") == [DEMO]


def test_what_was_given_comes_first_then_the_demo_then_what_is_found(shelf: Path) -> None:
    assert paths(REPO, shelf) == [REPO, "demo", str(shelf / "large"), str(shelf / "small")]


def test_the_folder_itself_may_be_a_model(shelf: Path) -> None:
    make(shelf / "small" / "within")
    assert paths("demo", shelf / "small") == ["demo", str(shelf / "small"), str(shelf / "small" / "within")]


def test_paths_of_what_is_found_are_absolute(shelf: Path, monkeypatch: Any) -> None:
    """A folder "demo" here would be the package's own demo otherwise."""
    monkeypatch.chdir(shelf)
    make(shelf / "demo")
    assert paths("demo", Path()) == ["demo", str(shelf / "demo"), str(shelf / "large"), str(shelf / "small")]


def test_one_level_below_is_as_deep_as_it_goes(shelf: Path) -> None:
    make(shelf / "deeper" / "model")
    assert paths("demo", shelf) == ["demo", str(shelf / "large"), str(shelf / "small")]


def test_models_of_several_folders_are_sorted_together_by_name(shelf: Path, tmp_path: Path) -> None:
    make(tmp_path / "other" / "medium")
    assert [choice.label for choice in choices("demo", [shelf, tmp_path / "other"])] == [
        "demo", "large", "medium", "small",
    ]  # fmt: skip


def test_a_label_tells_the_size_of_the_weights_and_their_bits(tmp_path: Path) -> None:
    convert("demo", tmp_path / "shelf" / "full", quantize=False)
    convert("demo", tmp_path / "shelf" / "short", q_bits=4, search=False)
    labels = [choice.label for choice in choices("demo", [tmp_path / "shelf"])]
    assert labels == ["demo", "full (11 MB)", "short (3 MB, 4 bits)"]


def test_gigabytes_have_a_decimal(shelf: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(library, "_facts", lambda _: (1_340_000_000, None, False))
    assert [choice.label for choice in choices("demo", [shelf])][1:] == ["large (1.3 GB)", "small (1.3 GB)"]


def test_a_given_folder_is_called_by_its_name(hf_folder: Path, monkeypatch: Any) -> None:
    assert choices(str(hf_folder)) == [Choice("checkpoint (11 MB)", str(hf_folder)), DEMO]
    monkeypatch.chdir(hf_folder)
    assert choices(".") == [Choice("checkpoint (11 MB)", "."), DEMO]


def test_a_given_folder_called_demo_is_not_the_demo(hf_folder: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(hf_folder.parent)
    hf_folder.rename("demo")
    (hf_folder.parent / "demo" / "model.safetensors").write_bytes(b"")
    assert choices("./demo", [Path()]) == [Choice("./demo", "./demo"), DEMO]


def test_models_of_one_name_get_different_labels(shelf: Path, tmp_path: Path) -> None:
    make(tmp_path / "other" / "small")
    assert [choice.label for choice in choices("demo", [shelf, tmp_path / "other"])] == [
        "demo", "large", str(tmp_path / "other" / "small"), str(shelf / "small"),
    ]  # fmt: skip


def test_no_model_is_there_twice(shelf: Path, tmp_path: Path, monkeypatch: Any) -> None:
    (tmp_path / "link").symlink_to(shelf / "small")
    monkeypatch.chdir(shelf)
    assert paths("small", shelf, shelf, tmp_path) == ["small", "demo", str(shelf / "large")]


def test_the_demo_found_in_a_folder_is_still_the_demo() -> None:
    assert paths("demo", DEMO_FOLDER.parent) == ["demo"]


def test_there_are_a_hundred_choices_at_most(tmp_path: Path) -> None:
    for number in range(105):
        make(tmp_path / "shelf" / f"{number:03}")
    found = paths(REPO, tmp_path / "shelf")
    assert len(found) == 100 and found[:3] == [REPO, "demo", str(tmp_path / "shelf" / "000")]


@pytest.mark.parametrize(
    "spoil",
    [
        lambda folder: (folder / "config.json").unlink(),
        lambda folder: (folder / "config.json").write_text('{"model_type": "llama"}'),
        lambda folder: (folder / "config.json").write_text("no JSON"),
        lambda folder: (folder / "config.json").write_bytes(b"\xff\xfe\xff"),
        lambda folder: (folder / "config.json").write_text("[" * 100_000),
        lambda folder: (folder / "config.json").write_text("[]"),
        lambda folder: (folder / "model.safetensors").rename(folder / "pytorch_model.bin"),
        lambda folder: folder.rename(folder.with_name("small.partial")),
        lambda folder: os.rename(folder, os.fsencode(folder) + b"\xff"),
        lambda folder: shutil.rmtree(folder) or folder.symlink_to(folder),
    ],
    ids=[
        "no config",
        "llama",
        "no JSON",
        "no UTF-8",
        "deep",
        "no object",
        "no weights",
        "half converted",
        "name",
        "loop",
    ],
)
def test_what_is_no_model_is_no_choice(shelf: Path, spoil: Callable[[Path], Any]) -> None:
    spoil(shelf / "small")
    assert paths("demo", shelf) == ["demo", str(shelf / "large")]


def test_folders_that_cannot_be_read_are_passed_over(shelf: Path, tmp_path: Path, monkeypatch: Any) -> None:
    is_dir = Path.is_dir

    def refuse(path: Path) -> bool:
        if path.name == "small":
            raise PermissionError(13, "Permission denied")
        return is_dir(path)

    monkeypatch.setattr(Path, "is_dir", refuse)
    file = shelf / "small" / "config.json"
    assert paths("demo", shelf, tmp_path / "gone", file) == ["demo", str(shelf / "large")]
    assert paths(str(shelf / "small")) == [str(shelf / "small"), "demo"]


@pytest.mark.parametrize("config", [{"vocab_size": []}, {"max_position_embeddings": 10**30}, {"rope_parameters": [1]}])
def test_a_model_with_a_broken_config_can_be_chosen_so_that_loading_says_why(tmp_path: Path, config: Any) -> None:
    make(tmp_path / "shelf" / "broken", **config)
    shutil.copyfile(DEMO_FOLDER / "model.safetensors", tmp_path / "shelf" / "broken" / "model.safetensors")
    assert choices("demo", [tmp_path / "shelf"])[1:] == [Choice("broken", str(tmp_path / "shelf" / "broken"))]


def test_models_in_the_hub_cache_are_choices(hub: Path, shelf: Path) -> None:
    in_cache(hub, REPO)
    assert choices("demo", [shelf / "small"]) == [
        DEMO,
        Choice("small", str(shelf / "small")),
        Choice(f"{REPO} (11 MB)", REPO),
    ]


def test_a_given_hub_id_is_there_once(hub: Path) -> None:
    assert choices(REPO) == [Choice(REPO, REPO), DEMO]
    in_cache(hub, REPO)
    assert choices(REPO) == [Choice(f"{REPO} (11 MB)", REPO), DEMO]


def drop(name: str) -> Callable[[Path], Any]:
    return lambda snapshot: (snapshot / name).unlink()


@pytest.mark.parametrize(
    "spoil",
    [
        drop("config.json"),
        drop("tokenizer.json"),
        drop("model.safetensors"),
        lambda snapshot: os.truncate(snapshot / "model.safetensors", 1_000_000),
        lambda snapshot: (snapshot / "model.safetensors.index.json").write_text(
            json.dumps({"weight_map": {"model.norm.weight": "model-00002-of-00002.safetensors"}})
        ),
        lambda snapshot: (snapshot / "config.json").write_text('{"model_type": "llama"}'),
        lambda snapshot: snapshot.parents[1].rename(snapshot.parents[2] / "datasets--a--b"),
        lambda snapshot: shutil.rmtree(snapshot.parents[2]),
    ],
    ids=["config", "tokenizer", "weights", "cut off", "a shard", "llama", "data", "no cache"],
)
def test_a_repository_that_is_not_all_there_is_no_choice(hub: Path, spoil: Callable[[Path], Any]) -> None:
    spoil(in_cache(hub, REPO))
    assert choices("demo") == [DEMO]


def test_a_repository_without_its_main_revision_is_no_choice(hub: Path) -> None:
    """`load` would go and download that one."""
    in_cache(hub, REPO, ref="v1")
    assert choices("demo") == [DEMO]


def test_without_the_hub_s_client_there_are_folders_still(shelf: Path, monkeypatch: Any) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    assert len(choices("demo", [shelf])) == 3


# --- loading ------------------------------------------------------------------


def test_a_model_is_loaded_beside_what_goes_on() -> None:
    loading = Loading("demo")
    model, tokenizer = loading.result()
    assert tokenizer.decode(tokenizer.encode("Hello")) == "Hello"
    assert model(mx.array([[40, 50]])).shape == (1, 2, 3072), "arrays can be used in another thread"
    assert in_a_thread(lambda: model(mx.array([[40, 50]])).shape) == (1, 2, 3072)


def test_options_are_those_of_load() -> None:
    model, _ = Loading("demo", dtype="float16", q_bits=8).result()
    assert model.layers[0].mlp.gate_proj.bits == 8 and model.layers[0].mlp.gate_proj.scales.dtype == mx.float16
    with pytest.raises(ValueError, match="the demo model has no revisions"):
        Loading("demo", revision="main").result()


def test_progress_is_in_bytes(monkeypatch: Any) -> None:
    begun, go_on = threading.Event(), threading.Event()

    def slow_load(path: str, *, progress: Callable[[int, int], None], **_: Any) -> Any:
        begun.set()
        assert go_on.wait(10)
        progress(30, 100)
        begun.set()
        assert go_on.wait(10)
        return load(path, progress=progress)

    monkeypatch.setattr(models, "load", slow_load)
    loading = Loading("demo")
    assert begun.wait(10) and (loading.done, loading.total, loading.finished) == (0, 0, False)
    assert not loading.wait(0.01)
    begun.clear()
    go_on.set()
    assert begun.wait(10) and loading.wait() and loading.finished
    assert (
        loading.done
        == loading.total
        == sum(array.nbytes for _, array in tree_flatten(loading.result()[0].parameters()))
    )


def test_a_failure_is_raised_where_the_result_is_asked_for(hf_folder: Path) -> None:
    (hf_folder / "model.safetensors").write_bytes(b"no tensors here")
    loading = Loading(str(hf_folder))
    assert loading.wait(10) and loading.finished
    with pytest.raises(CheckpointError, match="is not a safetensors file"):
        loading.result()


def test_a_result_is_handed_over_once(tmp_path: Path) -> None:
    loading = Loading("demo")
    loading.result()
    with pytest.raises(RuntimeError, match="the result of this loading was handed over already"):
        loading.result()
    loading = Loading(str(tmp_path / "gone"))
    with pytest.raises(FileNotFoundError, match="no folder"):
        loading.result()
    with pytest.raises(RuntimeError, match="handed over already"):
        loading.result()


def test_what_was_handed_over_is_freed_when_it_is_dropped() -> None:
    loading = Loading("demo")
    model, tokenizer = loading.result()
    remains = weakref.ref(model), weakref.ref(tokenizer)
    before = memory_in_use()
    del model, tokenizer
    gc.collect()
    assert [remain() for remain in remains] == [None, None], "the Loading, still here, must hold nothing"
    assert loading.finished and before - memory_in_use() > 10_000_000


def test_a_failure_that_was_handed_over_is_freed_too(monkeypatch: Any) -> None:
    """Its traceback holds what was loaded when it was met."""
    remains = []

    def failing_load(path: str, **_: Any) -> Any:
        half_loaded = Unfinished()
        remains.append(weakref.ref(half_loaded))
        raise ValueError("half way")

    monkeypatch.setattr(models, "load", failing_load)
    loading = Loading("demo")
    assert loading.wait(10) and remains[0]() is not None
    gc.collect()
    gc.disable()
    try:
        with contextlib.suppress(ValueError):
            loading.result()
        assert remains[0]() is None, "freed at once, not when garbage is next collected"
    finally:
        gc.enable()


class Unfinished:
    """A model that weighs nothing."""


def test_a_loading_that_is_over_is_itself_freed() -> None:
    loading = Loading("demo")
    assert loading.wait(10)
    remains = weakref.ref(loading)
    del loading
    gc.collect()
    assert remains() is None


@pytest.mark.parametrize("path", ["demo", "/nowhere/at/all"])
def test_the_thread_clears_its_streams_last(path: str, monkeypatch: Any) -> None:
    cleared: list[str] = []
    clear = mx.clear_streams
    monkeypatch.setattr(mx, "clear_streams", lambda: cleared.append(threading.current_thread().name) or clear())
    assert Loading(path).wait(10)
    assert cleared == ["loading"]


@pytest.mark.filterwarnings("ignore:the tokenizer knows")
def test_what_load_warns_of_is_kept(hf_folder: Path, edit_json: Callable[..., None]) -> None:
    tensors = mx.load(str(hf_folder / "model.safetensors"))
    assert isinstance(tensors, dict)
    tensors["model.embed_tokens.weight"] = tensors["model.embed_tokens.weight"][:3000]
    mx.save_safetensors(str(hf_folder / "changed.safetensors"), tensors)
    (hf_folder / "changed.safetensors").rename(hf_folder / "model.safetensors")
    edit_json(hf_folder / "config.json", vocab_size=3000)
    loading = Loading(str(hf_folder))
    assert loading.wait(10)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        load(hf_folder)
    assert loading.warnings == [str(warning.message) for warning in said] and len(said) == 1


def test_a_model_without_faults_has_no_warnings() -> None:
    loading = Loading("demo")
    assert loading.wait(10) and loading.warnings == []


@pytest.mark.parametrize("wait", ["", "loading.wait()"], ids=["half loaded", "loaded"])
def test_the_process_may_end_at_any_time(wait: str) -> None:
    code = f"from app.models import Loading; loading = Loading('demo'); {wait}"
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    assert (run.returncode, run.stdout, run.stderr) == (0, "", "")


def test_a_process_that_ends_stops_the_loading() -> None:
    code = """if True:
        from app import models

        def endless_load(path, *, progress, **_):
            try:
                while True:
                    progress(1, 2)
            except SystemExit:
                print("stopped", flush=True)
                raise

        models.load = endless_load
        loading = models.Loading("demo")
    """
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    assert (run.returncode, run.stdout, run.stderr) == (0, "stopped\n", "")
