"""Recipes: rules about the names and shapes of weights."""

from __future__ import annotations

import pytest

from exaone4_mlx.checkpoint.quantize import Quantization
from exaone4_mlx.conversion.recipe import RECIPES, bits_per_weight, settings_of


def shapes(layers: int = 30, hidden: int = 2048, tied: bool = True) -> dict[str, tuple[int, ...]]:
    """The shapes of the 1.2B."""
    found: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (102400, hidden), "model.norm.weight": (hidden,)}
    for i in range(layers):
        for name, size in {"q": hidden, "k": 512, "v": 512, "o": hidden}.items():
            found[f"model.layers.{i}.self_attn.{name}_proj.weight"] = (size, hidden)
        for name, shape in {"gate": (4096, hidden), "up": (4096, hidden), "down": (hidden, 4096)}.items():
            found[f"model.layers.{i}.mlp.{name}_proj.weight"] = shape
        found[f"model.layers.{i}.self_attn.q_norm.weight"] = (64,)
    return found if tied else found | {"lm_head.weight": (102400, hidden)}


@pytest.mark.parametrize(
    ("recipe", "bpw"), [("4bit", 4.5), ("8bit", 8.5), ("mxfp4", 4.25), ("nvfp4", 4.5), ("mxfp8", 8.25)]
)
def test_uniform_recipes_have_the_bits_of_their_format(recipe: str, bpw: float) -> None:
    assert bits_per_weight(settings_of(recipe, shapes()), shapes()) == pytest.approx(bpw, abs=0.002)


def test_group_size_is_for_affine_recipes() -> None:
    assert bits_per_weight(settings_of("4bit", shapes(), group_size=32), shapes()) == pytest.approx(5.0, abs=0.002)
    with pytest.raises(ValueError, match="mxfp4 quantization has groups of 32, not 64"):
        settings_of("mxfp4", shapes(), group_size=64)


def test_quality_gives_the_head_six_bits_also_if_it_is_the_embedding() -> None:
    assert settings_of("4bit-quality", shapes())["model.embed_tokens.weight"].bits == 6
    untied = settings_of("4bit-quality", shapes(tied=False), target_bpw=4.9)
    assert untied["lm_head.weight"].bits == 6
    assert untied["model.embed_tokens.weight"].bits == 4, "a token needs one row of an input embedding"


@pytest.mark.parametrize("target", [4.85, 5.0, 5.5])
def test_quality_uses_its_target(target: float) -> None:
    spent = bits_per_weight(settings_of("4bit-quality", shapes(), target_bpw=target), shapes())
    assert target - 0.01 < spent <= target


def test_v_proj_is_first_and_the_ends_of_the_network_come_before_its_middle() -> None:
    chosen = settings_of("4bit-quality", shapes(), target_bpw=4.845)
    raised = [name for name, how in chosen.items() if how.bits == 5]
    assert raised and all("v_proj" in name for name in raised)
    assert "model.layers.29.self_attn.v_proj.weight" in raised and "model.layers.0.self_attn.v_proj.weight" in raised
    assert "model.layers.14.self_attn.v_proj.weight" not in raised
    more = settings_of("4bit-quality", shapes(), target_bpw=4.9)
    assert all(more[f"model.layers.{i}.self_attn.v_proj.weight"].bits == 5 for i in range(30))
    assert any(more[f"model.layers.{i}.self_attn.o_proj.weight"].bits == 5 for i in range(30))


def test_measured_errors_decide_the_bits() -> None:
    """The most error per bit first: a small weight before a large one, and 8 bits before another gets its fifth."""
    names = [name for name, shape in shapes().items() if "proj" in name]
    errors = dict.fromkeys(names, 1e-6) | {names[-1]: 1.0, names[9]: 1e-3}
    chosen = settings_of("4bit-quality", shapes(), target_bpw=4.9, errors=errors)
    assert (chosen[names[-1]].bits, chosen[names[9]].bits, chosen[names[0]].bits) == (8, 8, 4)
    assert 4.89 < bits_per_weight(chosen, shapes()) <= 4.9
    equal = settings_of("4bit-quality", shapes(), errors=dict.fromkeys(names, 1e-3))
    assert 4.84 < bits_per_weight(equal, shapes()) <= 4.85
    raised = [name for name in names if equal[name].bits > 4]
    assert raised and all("k_proj" in name or "v_proj" in name for name in raised), "the smallest weights"


def test_a_larger_target_removes_no_bit() -> None:
    less, more = (settings_of("4bit-quality", shapes(), target_bpw=target) for target in (4.9, 5.2))
    assert all(less[name].bits <= more[name].bits for name in less)


def test_impossible_targets_are_refused() -> None:
    with pytest.raises(ValueError, match=r"4bit-quality needs at least 4\.\d+ bits per weight, and target_bpw is 4.5"):
        settings_of("4bit-quality", shapes(), target_bpw=4.5)


@pytest.mark.parametrize("recipe", [name for name in RECIPES if name.startswith("mixed")])
@pytest.mark.parametrize("tied", [True, False])
def test_mixed_recipes_equal_mlx_lm(recipe: str, tied: bool) -> None:
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # transformers warns that torch is missing
        convert = pytest.importorskip("mlx_lm.convert")
    all_shapes = shapes(layers=16, tied=tied)

    class Names:
        layers = range(16)

        def named_modules(self) -> list[tuple[str, None]]:
            return [(name.removesuffix(".weight"), None) for name in all_shapes]

    theirs = convert.mixed_quant_predicate_builder(recipe, Names())
    ours = settings_of(recipe, all_shapes)
    for name, quantization in ours.items():
        assert Quantization(**theirs(name.removesuffix(".weight"), None)) == quantization, name
    assert len({quantization.bits for quantization in ours.values()}) == 2
