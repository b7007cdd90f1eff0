"""The heads equal transformers' on stored numbers, need each documented rule for that, and can be trained."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import pytest
from conftest import distance, mostly_heavy, random_ids, tiny_model
from documented import GOLDENS, HEADS, PADDED, PADDINGS, POSITION, arrays, config_of, labels_for, outputs_of, texts
from mlx.utils import tree_flatten

import exaone4_mlx
from exaone4_mlx import (
    Exaone4Config,
    Exaone4ForQuestionAnswering,
    Exaone4ForSequenceClassification,
    Exaone4ForTokenClassification,
)
from exaone4_mlx.model import heads, losses, network

Patch = pytest.MonkeyPatch


def head_class(head: str) -> Any:
    return getattr(exaone4_mlx, f"Exaone4For{head}")


def differences(head: str, padding: str) -> dict[str, float]:
    """The distances of loss and logits from transformers'."""
    given, golden = texts(padding), GOLDENS["heads"][f"{head}, {padding}"]
    output = tiny_model(kind=head_class(head), **config_of()).forward(**arrays(given | labels_for(head, given)))
    found = {"loss": output.loss} | {name: output[name][0] for name in outputs_of(head)}
    if head != "SequenceClassification":
        found |= {name: found[name][POSITION] for name in outputs_of(head)}
    return {name: distance(found[name].flatten(), mx.array(golden[name]).flatten()) for name in golden}


@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize("head", HEADS)
def test_heads_equal_transformers(head: str, padding: str) -> None:
    assert max(differences(head, padding).values()) < 1e-4


def pooled_at_the_end(patch: Patch) -> None:
    patch.setattr(heads, "_pooled", lambda hidden, ids, pad: hidden[:, -1])


def pooled_after_counting(patch: Patch) -> None:
    """At the number of tokens without padding, as if padding were always on the right."""

    def pooled(hidden: mx.array, ids: mx.array, pad: int) -> mx.array:
        last = (ids != pad).sum(axis=1) - 1
        return mx.take_along_axis(hidden, last[:, None, None], axis=1)[:, 0]

    patch.setattr(heads, "_pooled", pooled)


def nothing_ignored(patch: Patch) -> None:
    def cross_entropy(logits: mx.array, labels: mx.array, ignored: int = 0) -> mx.array:
        return nn.losses.cross_entropy(logits, mx.clip(labels, 0, logits.shape[-1] - 1), reduction="mean")

    patch.setattr(losses, "_cross_entropy", cross_entropy)


def labels_of_the_same_token(patch: Patch) -> None:
    patch.setattr(network, "causal_lm_loss", losses.token_loss)


def start_twice(patch: Patch) -> None:
    patch.setattr(heads, "span_loss", lambda start, end, *spans: losses.span_loss(start, start, spans[0], spans[0]))


def sum_of_both(patch: Patch) -> None:
    original = losses.span_loss
    patch.setattr(heads, "span_loss", lambda *args: 2 * original(*args))


def swapped(patch: Patch) -> None:
    original = nn.Linear.__call__
    patch.setattr(
        nn.Linear,
        "__call__",
        lambda self, x: original(self, x)[..., ::-1] if self.weight.shape[0] == 2 else original(self, x),
    )


def no_bias(patch: Patch) -> None:
    patch.setattr(nn.Linear, "__call__", lambda self, x: x @ self.weight.T)


BROKEN: dict[str, tuple[Callable[[Patch], None], str, str]] = {
    "the last token is pooled, not the last position": (pooled_at_the_end, "SequenceClassification", "right"),
    "padding may be on the left": (pooled_after_counting, "SequenceClassification", "left"),
    "-100 is ignored, next tokens": (nothing_ignored, "CausalLM", "right"),
    "-100 is ignored, labels of tokens": (nothing_ignored, "TokenClassification", "none"),
    "a position beyond the text is ignored": (nothing_ignored, "QuestionAnswering", "none"),
    "labels are the next tokens": (labels_of_the_same_token, "CausalLM", "none"),
    "a span has two ends": (start_twice, "QuestionAnswering", "none"),
    "the loss is the mean of both": (sum_of_both, "QuestionAnswering", "none"),
    "start comes first": (swapped, "QuestionAnswering", "none"),
    "the scores of tokens have a bias": (no_bias, "TokenClassification", "none"),
}


@pytest.mark.parametrize("rule", BROKEN)
def test_breaking_a_documented_rule_is_caught(rule: str, monkeypatch: Patch) -> None:
    break_it, head, padding = BROKEN[rule]
    break_it(monkeypatch)
    assert max(differences(head, padding).values()) > 1e-2, f"the goldens do not depend on: {rule}"


def test_positions_are_clamped_to_0() -> None:
    model = tiny_model(kind=Exaone4ForQuestionAnswering, **config_of())
    ids = random_ids(8)
    spans = {"start_positions": mx.array([-3]), "end_positions": mx.array([2])}
    at_zero = spans | {"start_positions": mx.array([0])}
    assert distance(model(ids, **spans).loss, model(ids, **at_zero).loss) == 0


def test_a_loss_without_labels_is_zero() -> None:
    """transformers divides by zero here. One such batch would end a training in NaN."""
    ids, nothing = random_ids(6), mx.full((1, 6), -100)
    language = tiny_model(**config_of())
    assert language.forward(ids, labels=nothing).loss.item() == 0
    assert language.forward(ids[:, :1], labels=ids[:, :1]).loss.item() == 0, "a single token has no next token"
    assert tiny_model(kind=Exaone4ForTokenClassification, **config_of())(ids, labels=nothing).loss.item() == 0
    answering = tiny_model(kind=Exaone4ForQuestionAnswering, **config_of())
    beyond = mx.array([99])
    assert answering(ids, start_positions=beyond, end_positions=beyond).loss.item() == 0


@pytest.mark.parametrize(
    ("labels", "changes", "expected"),
    [
        ([0.5], {"id2label": {"0": "score"}}, lambda z: mx.square(z[0, 0] - 0.5)),
        ([2], {}, lambda z: mx.logsumexp(z[0]) - z[0, 2]),
        ([[1.0, 0.0, 1.0]], {}, lambda z: mx.mean(mx.logaddexp(z[0], mx.zeros(3)) - z[0] * mx.array([1.0, 0.0, 1.0]))),
        ([[1.0, 2.0, 3.0]], {"problem_type": "regression"}, lambda z: mx.mean(mx.square(z[0] - mx.array([1.0, 2, 3])))),
    ],
    ids=["one label", "one of several", "any of several", "regression of several"],
)
def test_labels_or_the_config_select_the_problem_type(labels: Any, changes: dict[str, Any], expected: Any) -> None:
    model = tiny_model(kind=Exaone4ForSequenceClassification, **config_of(**changes))
    output = model(random_ids(6), labels=mx.array(labels))
    assert distance(output.loss, expected(output.logits)) < 1e-5


def test_num_labels_come_from_id2label() -> None:
    for kind in (Exaone4ForSequenceClassification, Exaone4ForTokenClassification):
        assert tiny_model(kind=kind, **config_of()).score.weight.shape == (3, 32)


SEQUENCE, TOKEN, SPAN = Exaone4ForSequenceClassification, Exaone4ForTokenClassification, Exaone4ForQuestionAnswering
IDS = [[5, 6, 7, 8], [5, 6, 7, 0]]
REFUSED: dict[str, tuple[Any, dict[str, Any], dict[str, Any], str]] = {
    "no padding token": (SEQUENCE, {"pad_token_id": None}, {}, "a batch of 2 sequences needs a pad_token_id"),
    "unknown label": (SEQUENCE, {}, {"labels": [0, 3]}, "labels must be from 0 to 2, not 3"),
    "labels of another batch": (SEQUENCE, {}, {"labels": [0]}, r"labels must have the shape \[2\], not \[1\]"),
    "numbers for two of three labels": (
        SEQUENCE, {}, {"labels": [[0.0, 1.0]] * 2}, r"labels for multi_label_classification \(inferred from their dtype\) must have the shape \[2, 3\]"),
    "labels of sequences for tokens": (TOKEN, {}, {"labels": [0, 1]}, r"labels must have the shape \[2, 4\], not \[2\]"),
    "a cache for tokens": (TOKEN, {}, {"use_cache": True}, "this output has no past_key_values"),
    "a cache for a span": (SPAN, {}, {"use_cache": True}, "this output has no past_key_values"),
    "a start without an end": (SPAN, {}, {"start_positions": [1, 1]}, "both or neither"),
    "spans of another batch": (
        SPAN, {}, {"start_positions": [1], "end_positions": [1, 1]}, r"start_positions must have the shape \[2\], not \[1\]"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_errors_name_the_wrong_argument(case: str) -> None:
    kind, changes, asked, message = REFUSED[case]
    with pytest.raises(ValueError, match=message):
        tiny_model(kind=kind, **config_of(**changes))(mx.array(IDS), **asked)


def test_embeddings_do_not_show_the_end_of_a_text() -> None:
    """The last position is pooled, as in transformers. A mask causes a warning."""
    model, given = tiny_model(kind=Exaone4ForSequenceClassification, **config_of()), arrays(texts("right"))
    embeddings = model.model.embed_tokens(given["input_ids"])
    with pytest.warns(UserWarning, match="inputs_embeds do not show the padding: the last position is pooled"):
        by_embeddings = model(inputs_embeds=embeddings, attention_mask=given["attention_mask"]).logits
    by_ids = model(**given).logits
    assert distance(by_embeddings[1], by_ids[1]) < 1e-4
    assert distance(by_embeddings[0], by_ids[0]) > 1e-2


def test_classification_continues_with_caches() -> None:
    model, ids = tiny_model(kind=Exaone4ForSequenceClassification, **config_of()), random_ids(20)
    first = model(ids[:, :15])
    assert distance(model(ids[:, 15:], past_key_values=first.past_key_values).logits, model(ids).logits) < 1e-4
    tagger = tiny_model(kind=Exaone4ForTokenClassification, **config_of())
    cache = tagger.model.make_cache()
    tagger(ids[:, :15], past_key_values=cache)
    assert distance(tagger(ids[:, 15:], past_key_values=cache).logits, tagger(ids).logits[:, 15:]) < 1e-4


def test_classifier_dropout_applies_in_training() -> None:
    tagger, ids = tiny_model(kind=Exaone4ForTokenClassification, **config_of(classifier_dropout=0.5)), random_ids(6)
    assert distance(tagger(ids).logits, tagger(ids).logits) == 0
    tagger.train()
    assert distance(tagger(ids).logits, tagger(ids).logits) > 0


def test_the_padding_token_is_not_trained() -> None:
    """As in torch's embedding with a padding index. Other tokens are trained."""
    model, given = tiny_model(kind=Exaone4ForQuestionAnswering, **config_of()), arrays(texts("left"))
    spans = {"start_positions": mx.array([12, 3]), "end_positions": mx.array([13, 4])}
    _, grads = nn.value_and_grad(model, lambda model: model(**given, **spans).loss)(model)
    rows = mx.abs(grads["transformer"]["embed_tokens"]["weight"]).max(axis=1)
    assert rows[0].item() == 0
    assert rows[given["input_ids"][0, PADDED]].item() > 0


@pytest.mark.parametrize("head", mostly_heavy(HEADS, 1))
def test_heads_can_be_trained_saved_and_read(head: str, tmp_path: Path) -> None:
    """A few steps of AdamW in training mode lower the loss. The saved folder gives the same network."""
    mx.random.seed(1)
    model = head_class(head)(Exaone4Config.from_dict(config_of(attention_dropout=0.1, num_hidden_layers=4)))
    model.train()
    given = texts("right")
    asked = arrays(given | labels_for(head, given))
    optimizer = optim.AdamW(learning_rate=3e-3)
    step = nn.value_and_grad(model, lambda model: model.forward(**asked).loss)
    seen = []
    for _ in range(30):
        loss, grads = step(model)
        optimizer.update(model, grads)
        mx.eval(model.parameters(), optimizer.state)
        seen.append(loss.item())
    assert all(mx.all(mx.isfinite(grad)).item() for _, grad in tree_flatten(grads))
    assert sum(seen[-5:]) < 0.7 * sum(seen[:5]), seen
    model.eval()
    model.save_pretrained(tmp_path / "new" / "folder")
    again = head_class(head).from_pretrained(tmp_path / "new" / "folder")
    name = outputs_of(head)[0]
    assert distance(again.forward(**asked)[name], model.forward(**asked)[name]) == 0
    assert again.config == model.config
    assert not again.training


def test_calling_a_head_calls_its_forward() -> None:
    for head in HEADS[1:]:
        model, ids = tiny_model(kind=head_class(head), **config_of()), random_ids(5)
        name = outputs_of(head)[0]
        assert distance(model(ids)[name], model.forward(input_ids=ids)[name]) == 0
    assert model(ids).start_logits.shape == (1, 5)
