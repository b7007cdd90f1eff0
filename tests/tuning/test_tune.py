"""`tune` on a tiny model: what it changes, what it leaves, its files, and runs that are resumed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from conftest import distance, mostly_heavy, random_ids
from mlx.utils import tree_flatten

from exaone4_mlx import CheckpointError, load, tune
from exaone4_mlx.tuning.loop import Loop
from exaone4_mlx.tuning.state import STATE_NAME

FAST: dict[str, Any] = {"iters": 6, "learning_rate": 1e-2, "rank": 2, "batch_size": 3}


def adapter_of(folder: Path) -> bytes:
    return (folder / "adapters.safetensors").read_bytes()


def test_losses_fall_and_the_adapter_is_on_the_model(student: Any, lessons: Any) -> None:
    model, tokenizer = student
    ids = random_ids(9)
    before, weights = model(ids), dict(tree_flatten(model.parameters()))
    result = tune(model, tokenizer, lessons, **FAST)
    assert result.valid_loss is not None and result.valid_loss < 0.8 * result.valid_losses[0][1]
    assert result.train_losses[-1][1] < result.train_losses[0][1]
    assert [step for step, _ in result.valid_losses] == list(range(7))
    assert distance(model(ids), before) > 0.01
    assert result.drift > 0.001
    assert not model.training
    model.set_adapters([])
    assert distance(model(ids), before) == 0
    now = dict(tree_flatten(model.parameters()))
    assert set(now) == set(weights) and all(mx.array_equal(now[name], weights[name]).item() for name in weights)


@pytest.mark.parametrize("kind", mostly_heavy(["dora", "full", "lora"], 1))
def test_the_adapter_on_the_model_has_the_loss_of_the_trained_one(kind: str, student: Any, lessons: Any) -> None:
    model, tokenizer = student
    result = tune(model, tokenizer, lessons | {"test": lessons["valid"]}, fine_tune_type=kind, **FAST)
    assert result.valid_loss is not None
    assert result.test_loss == pytest.approx(result.valid_loss, rel=1e-4)


def test_the_best_step_is_the_result(student: Any, lessons: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokenizer = student
    losses = iter([5.0, 4.0, 3.0, 3.5, 3.6, 9.9])
    monkeypatch.setattr(Loop, "loss_of", lambda self, groups: next(losses))
    stopped = tune(model, tokenizer, lessons, patience=2, **FAST)
    assert (stopped.steps, stopped.best_step, stopped.valid_loss) == (4, 2, 3.0)
    monkeypatch.undo()
    model.set_adapters([])
    shorter = tune(model, tokenizer, {"train": lessons["train"]}, **FAST | {"lr_schedule": "constant", "iters": 2})
    losses = iter([5.0, 4.0, 3.0, 3.5, 3.6, 9.9, 9.9])
    monkeypatch.setattr(Loop, "loss_of", lambda self, groups: next(losses))
    model.set_adapters([])
    best = tune(model, tokenizer, lessons, **FAST | {"lr_schedule": "constant", "warmup_steps": 0})
    assert best.best_step == 2
    assert all(mx.array_equal(best.adapter.arrays[name], array) for name, array in shorter.adapter.arrays.items())


def test_accumulated_batches_are_one_large_batch(student: Any, lessons: Any) -> None:
    """The gradient is that of the mean over all learned tokens, also where the batches have different numbers."""
    model, tokenizer = student
    data = {"train": [*lessons["train"][:3], {"text": "one two three four five six seven"}]}
    both = []
    for options in ({"batch_size": 4}, {"batch_size": 1, "grad_accumulation_steps": 4}):
        both.append(tune(model, tokenizer, data, **FAST | options | {"iters": 3}))
        model.set_adapters([])
    for name, array in both[0].adapter.arrays.items():
        assert distance(array, both[1].adapter.arrays[name]) < 1e-4, name


def test_a_loss_that_is_nan_ends_the_run_and_leaves_the_model_as_it_was(student: Any, lessons: Any) -> None:
    model, tokenizer = student
    norm = model.model.norm.weight
    model.model.norm.weight = norm * float("nan")
    before = {name: id(module) for name, module in model.named_modules()}
    with pytest.raises(FloatingPointError, match=r"the loss of step 1 is nan.*lower learning_rate"):
        tune(model, tokenizer, lessons["train"], **FAST)
    assert {name: id(module) for name, module in model.named_modules()} == before
    assert model.trainable_parameters()["model"]["embed_tokens"], "the model is not frozen"


def test_random_numbers_of_the_caller_go_on(student: Any, lessons: Any) -> None:
    mx.random.seed(7)
    expected = mx.random.normal((3,)).tolist()
    mx.random.seed(7)
    tune(*student, lessons["train"], **FAST | {"iters": 1, "dropout": 0.5})
    assert mx.random.normal((3,)).tolist() == expected


# --- files ------------------------------------------------------------------------------------------------------


def test_the_folder_has_the_adapter_a_card_a_report_and_a_picture(student: Any, lessons: Any, tmp_path: Path) -> None:
    model, tokenizer = student
    result = tune(model, tokenizer, lessons, adapter_path=tmp_path / "mine", **FAST)
    names = {"adapters.safetensors", "adapter_config.json", "README.md", "report.json"}
    picture = {"loss.svg"} & {file.name for file in result.path.iterdir()}  # type: ignore[union-attr]
    assert {file.name for file in (tmp_path / "mine").iterdir()} == names | picture
    report = json.loads((tmp_path / "mine" / "report.json").read_text())
    assert report["result"]["valid_losses"][-1][1] == result.valid_losses[-1][1]
    assert report["options"]["adapter_path"] == "mine", "the report is public, and a path names the user"
    assert str(tmp_path) not in (tmp_path / "mine" / "README.md").read_text()
    logits = model(ids := random_ids(9))
    model.set_adapters([tmp_path / "mine"])
    assert distance(model(ids), logits) == 0


def interrupted(student: Any, lessons: Any, folder: Path, step: int, **options: Any) -> None:
    """A run that ends with Ctrl-C after a step."""

    def stop(done: Any) -> None:
        if done.step == step:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tune(*student, lessons, adapter_path=folder, progress=stop, **options)


@pytest.mark.parametrize("kind", ["lora", *(pytest.param(kind, marks=pytest.mark.heavy) for kind in ("dora", "full"))])
@pytest.mark.parametrize("is_best_first", mostly_heavy([True, False], 1))
def test_a_resumed_run_ends_with_the_same_bytes(
    kind: str, is_best_first: bool, student: Any, lessons: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if is_best_first:  # the result is then read from the state
        monkeypatch.setattr(Loop, "loss_of", lambda self, groups: abs(self.progress.step - 1) + 1.0)
    options = FAST | {"dropout": 0.3, "save_every": 2, "fine_tune_type": kind, "grad_accumulation_steps": 2}
    whole = tune(*student, lessons, adapter_path=tmp_path / "whole", **options)
    student[0].set_adapters([])
    interrupted(student, lessons, tmp_path / "parts", 5, **options)
    assert (tmp_path / "parts" / STATE_NAME).exists()
    resumed = tune(*student, lessons, adapter_path=tmp_path / "parts", resume=True, **options)
    assert adapter_of(tmp_path / "parts") == adapter_of(tmp_path / "whole")
    assert (resumed.train_losses, resumed.valid_losses) == (whole.train_losses, whole.valid_losses)
    assert not (tmp_path / "parts" / STATE_NAME).exists()


def test_without_the_state_of_the_optimizer_the_bytes_differ(
    student: Any, lessons: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = FAST | {"save_every": 2}
    tune(*student, lessons, adapter_path=tmp_path / "whole", **options)
    student[0].set_adapters([])
    interrupted(student, lessons, tmp_path / "parts", 5, **options)
    from exaone4_mlx.tuning import tune as module

    read = module.read_state

    def forgetful(file: Path, optimizer: Any, identity: Any) -> Any:
        state = optimizer.state
        found = read(file, optimizer, identity)
        optimizer.state = state
        return found

    monkeypatch.setattr(module, "read_state", forgetful)
    tune(*student, lessons, adapter_path=tmp_path / "parts", resume=True, **options)
    assert adapter_of(tmp_path / "parts") != adapter_of(tmp_path / "whole")


def test_a_state_of_another_run_is_refused(student: Any, lessons: Any, tmp_path: Path) -> None:
    options = FAST | {"save_every": 2}
    interrupted(student, lessons, tmp_path, 3, **options)
    with pytest.raises(FileExistsError, match="is of a run that was interrupted: resume it"):
        tune(*student, lessons, adapter_path=tmp_path, **options)
    again = options | {"adapter_path": tmp_path, "resume": True}
    with pytest.raises(ValueError, match="is the state of a run with another rank"):
        tune(*student, lessons, **again | {"rank": 3})
    with pytest.raises(ValueError, match="is the state of a run with another data"):
        tune(*student, lessons | {"valid": lessons["train"][:1]}, **again)
    student[0].model.norm.weight = student[0].model.norm.weight * 2
    with pytest.raises(ValueError, match="is the state of a run with another model"):
        tune(*student, lessons, **again)
    (tmp_path / STATE_NAME).write_bytes((tmp_path / STATE_NAME).read_bytes()[:1000])
    with pytest.raises(CheckpointError, match=r"training_state.* is damaged"):
        tune(*student, lessons, **again)
    with pytest.raises(FileNotFoundError, match="to resume from; a run that has ended needs none"):
        tune(*student, lessons, **again | {"adapter_path": tmp_path / "other"})


def test_what_does_not_fit_is_refused_before_anything_is_computed(
    student: Any, lessons: Any, machine: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine(1, 1)
    with pytest.raises(MemoryError, match=r"the training needs \d+ MB \(.* of weights, .*less take grad_checkpoint"):
        tune(*student, lessons, **FAST)
    assert tune(*student, lessons, **FAST | {"iters": 1}, ignore_memory=True).steps == 1


def test_an_unknown_option_is_refused_by_name(student: Any, lessons: Any) -> None:
    with pytest.raises(TypeError, match=r"there is no option 'epoch'; did you mean epochs\?"):
        tune(*student, lessons, epoch=3)  # type: ignore[call-arg]


def test_full_training_of_quantized_weights_is_refused(lessons: Any) -> None:
    model, tokenizer = load("demo", q_bits=4)
    with pytest.raises(ValueError, match=r"fine_tune_type full trains the weights, and .* is quantized: use lora"):
        tune(model, tokenizer, lessons, fine_tune_type="full")
    with pytest.raises(ValueError, match="num_layers is 9, and the model has 8 layers"):
        tune(model, tokenizer, lessons, num_layers=9)
    with pytest.raises(ValueError, match=r"not for 'q_proj'"):
        tune(model, tokenizer, lessons, keys=("q_proj",))
    with pytest.raises(ValueError, match=r"keys has lm_head, and this model's output head is its embedding"):
        tune(model, tokenizer, lessons, keys=("lm_head",))
