"""`model.generate`: transformers' call, with transformers' tokens, and each row of a batch as it is alone."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from conftest import greedy_tokens, in_a_thread, random_ids, run_all, tiny_model, until
from documented import ROPES, SHAPES, config_of, ours, rope_config, tensors, theirs, types

from exaone4_mlx import Exaone4ForCausalLM, GenerationConfig, Tokenizer, load
from exaone4_mlx.files.folders import DEMO_FOLDER
from exaone4_mlx.generation import causal_lm
from exaone4_mlx.model.generation_config import NOT_OFFERED

IDS = random_ids(20, vocab_size=58) + 3  # above the ids of padding and stops
PADS = (0, 7, 16)  # windows are 7
NEW = 6

# --- the page of transformers ------------------------------------------------------------------------------------

#: The examples of transformers' page on EXAONE 4, as they are there.
PAGE = [
    '''from transformers import AutoModelForCausalLM, AutoTokenizer
model_name = "LGAI-EXAONE/EXAONE-4.0-32B"
model = AutoModelForCausalLM.from_pretrained(
    model_name,
    dtype="bfloat16",
    device_map="auto"
)
tokenizer = AutoTokenizer.from_pretrained(model_name)
# choose your prompt
prompt = "Explain how wonderful you are"
prompt = "Explica lo increíble que eres"
prompt = "너가 얼마나 대단한지 설명해 봐"
messages = [
    {"role": "user", "content": prompt}
]
input_ids = tokenizer.apply_chat_template(
    messages,
    tokenize=True,
    add_generation_prompt=True,
    return_tensors="pt"
)
output = model.generate(
    input_ids.to(model.device),
    max_new_tokens=128,
    do_sample=False,
)
print(tokenizer.decode(output[0]))''',
    '''messages = [
    {"role": "user", "content": "Which one is bigger, 3.12 vs 3.9?"}
]
input_ids = tokenizer.apply_chat_template(
    messages,
    tokenize=True,
    add_generation_prompt=True,
    return_tensors="pt",
    enable_thinking=True,
)
output = model.generate(
    input_ids.to(model.device),
    max_new_tokens=128,
    do_sample=True,
    temperature=0.6,
    top_p=0.95
)
print(tokenizer.decode(output[0]))''',
    '''import random
def roll_dice(max_num: int):
    return random.randint(1, max_num)
tools = [
    {
        "type": "function",
        "function": {
            "name": "roll_dice",
            "description": "Roll a dice with the number 1 to N. User can select the number N.",
            "parameters": {
                "type": "object",
                "required": ["max_num"],
                "properties": {
                    "max_num": {
                        "type": "int",
                        "description": "Max number of the dice"
                    }
                }
            }
        }
    }
]
messages = [
    {"role": "user", "content": "Roll D6 dice twice!"}
]
input_ids = tokenizer.apply_chat_template(
    messages,
    tokenize=True,
    add_generation_prompt=True,
    return_tensors="pt",
    tools=tools,
)
output = model.generate(
    input_ids.to(model.device),
    max_new_tokens=1024,
    do_sample=True,
    temperature=0.6,
    top_p=0.95,
)
print(tokenizer.decode(output[0]))''',
    '''from transformers import Exaone4Model, Exaone4Config
# Initializing a EXAONE configuration
configuration = Exaone4Config()
# Initializing a model from configuration
model = Exaone4Model(configuration)
# Accessing the model configuration
configuration = model.config''',
]  # fmt: skip
IMPORTS = {
    "from transformers import AutoModelForCausalLM, AutoTokenizer": "from exaone4_mlx import Exaone4ForCausalLM as "
    "AutoModelForCausalLM, Tokenizer as AutoTokenizer",
    "from transformers import": "from exaone4_mlx import",
}


def test_the_examples_are_those_of_the_page(shared: Path) -> None:
    page = (shared / "research" / "transformers-exaone4-docs.txt").read_text().replace(">>> ", "")
    text = " ".join(page.split())
    for example in PAGE:
        assert " ".join(example.split()) in text, example


def test_the_examples_of_the_page_run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """With the imports and `return_tensors="mlx"` changed, and nothing else. The name gives the demo."""
    for module in ("model.pretrained", "text.tokenizer"):
        monkeypatch.setattr(f"exaone4_mlx.{module}.find_folder", lambda *asked: DEMO_FOLDER)
    monkeypatch.setattr("exaone4_mlx.generation.decode.secrets.randbits", lambda bits: 0)
    names: dict[str, Any] = {}
    printed = []
    for example in PAGE:
        changed = example.replace('return_tensors="pt"', 'return_tensors="mlx"')
        for before, after in IMPORTS.items():
            changed = changed.replace(before, after)
        exec(changed, names)
        printed.append(capsys.readouterr().out)
    assert printed[0] == (
        "[|user|]\n너가 얼마나 대단한지 설명해 봐[|endofturn|]\n[|assistant|]\n<think>\n\n</think>\n\n"
        "저는 그렇게 대단하지 않습니다. 작은 데모 모델이고, 아는 것이 아주 적습니다.[|endofturn|]\n"
    )
    assert re.search(r"\[\|assistant\|\]\n<think>\nInteger parts.*</think>\n\n.*\[\|endofturn\|\]\n$", printed[1], re.S)
    calls = re.findall(r"<tool_call>(.*)</tool_call>", printed[2].rpartition("[|assistant|]")[2])
    assert [json.loads(call) for call in calls] == [{"name": "roll_dice", "arguments": {"max_num": 6}}] * 2
    assert names["configuration"].layer_types[:4] == tuple(types("LLLG"))


# --- tokens ---------------------------------------------------------------------------------------------------------


def padded(ids: mx.array = IDS) -> dict[str, mx.array]:
    """The same text with different beginnings, padded on the left."""
    mask = mx.arange(ids.shape[1])[None] >= mx.array(PADS)[:, None]
    return {"input_ids": mx.where(mask, ids, 0), "attention_mask": mask.astype(mx.int32)}


def test_rows_of_a_batch_are_what_they_are_alone() -> None:
    """Under every RoPE type, also those that depend on the length."""
    for rope in ROPES:
        model = tiny_model(**rope_config(rope, eos_token_id=None))
        found = model.generate(**padded(), max_new_tokens=NEW)
        assert found.shape == (3, 20 + NEW) and found.dtype == mx.int32, rope
        for row, pad in zip(found.tolist(), PADS, strict=True):
            prompt = IDS[0, pad:].tolist()
            assert row[:pad] == [0] * pad and row[pad:20] == prompt, rope
            assert row[20:] == greedy_tokens(model, prompt, NEW), (rope, pad)


#: transformers' new tokens for `padded`, in float32.
GOLDEN = [[36, 36, 42, 6, 18, 9, 58, 36], [36, 36, 18, 43, 37, 4, 48, 26], [58, 36, 58, 36, 58, 36, 58, 36]]


def test_tokens_equal_the_goldens() -> None:
    model = tiny_model(**config_of(eos_token_id=None))
    assert model.generate(**padded(), max_new_tokens=8)[:, 20:].tolist() == GOLDEN


def test_prompts_of_several_chunks_and_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model(**config_of(eos_token_id=None))
    whole = [model.generate(**asked, max_new_tokens=NEW).tolist() for asked in (padded(), {"input_ids": IDS})]
    monkeypatch.setattr(causal_lm, "PREFILL_STEP_SIZE", 3)
    cut = [model.generate(**asked, max_new_tokens=NEW).tolist() for asked in (padded(), {"input_ids": IDS})]
    assert cut == whole


def test_rows_end_with_a_stop_token_and_are_filled() -> None:
    model = tiny_model(**config_of(eos_token_id=None))
    plain = model.generate(**padded(), max_new_tokens=NEW)[:, 20:].tolist()
    stop = plain[1][2]
    assert all(stop not in row[:3] for row in (plain[0], plain[2])), "the seeds must give rows of different lengths"
    found = model.generate(**padded(), max_new_tokens=NEW, eos_token_id=[stop, 5], pad_token_id=1)[:, 20:].tolist()
    assert found[1] == plain[1][:3] + [1] * (len(found[1]) - 3)
    alone = model.generate(IDS[:, 7:], max_new_tokens=NEW, eos_token_id=stop)
    assert alone.tolist()[0][13:] == plain[1][:3], "nothing is generated beyond the longest row"
    model.generation_config.eos_token_id = stop
    assert model.generate(IDS[:, 7:], max_new_tokens=NEW).tolist() == alone.tolist()
    filled = model.generate(**padded(), max_new_tokens=NEW)[1, 23:]
    assert set(filled.tolist()) <= {0}, "the config's padding token"


def test_ids_come_in_any_form() -> None:
    model = tiny_model(**config_of(eos_token_id=None))
    expected = model.generate(IDS, max_new_tokens=2).tolist()
    for ids in (IDS.tolist(), np.array(IDS), np.array(IDS, np.int32), IDS.astype(mx.uint32), {"input_ids": IDS}):
        assert model.generate(ids, max_new_tokens=2).tolist() == expected
    assert model.generate(input_ids=IDS, max_length=22).tolist() == expected
    encoded = padded()
    assert model.generate(encoded, max_new_tokens=2).tolist() == model.generate(**encoded, max_new_tokens=2).tolist()
    unmasked = model.generate(encoded["input_ids"], max_new_tokens=2)
    assert unmasked.tolist() == model.generate(**encoded, max_new_tokens=2).tolist(), "leading padding is seen as such"


def test_sampled_rows_follow_their_seed() -> None:
    model = tiny_model(**config_of(eos_token_id=None))
    asked: dict[str, Any] = {"do_sample": True, "max_new_tokens": NEW, "seed": 3, "num_return_sequences": 3}
    first = model.generate(IDS, **asked)
    assert first.tolist() == model.generate(IDS, **asked).tolist() and first.shape == (3, 20 + NEW)
    assert len({tuple(row) for row in first.tolist()}) == 3, "copies of a row have seeds of their own"
    assert model.generate(IDS, do_sample=True, max_new_tokens=NEW, seed=3).tolist()[0] == first.tolist()[0]
    assert first.tolist() != model.generate(IDS, **asked | {"seed": 4}).tolist()
    best = model.generate(IDS, max_new_tokens=NEW).tolist()
    assert model.generate(IDS, do_sample=True, top_k=1, max_new_tokens=NEW).tolist() == best
    assert model.generate(IDS, do_sample=True, temperature=1e-6, max_new_tokens=NEW).tolist() == best


def test_any_thread_may_generate() -> None:
    import threading

    model = tiny_model(**config_of(eos_token_id=None))
    expected, found = model.generate(IDS, max_new_tokens=2).tolist(), []
    assert in_a_thread(lambda: model.generate(IDS, max_new_tokens=2).tolist()) == expected
    run_all(
        threading.Thread(target=lambda: found.append(model.generate(IDS, max_new_tokens=2).tolist())) for _ in range(3)
    )
    until(lambda: len(found) == 3)
    assert found == [expected] * 3


class BreaksAt:
    """The head of a model, with NaN from call `when` on."""

    def __init__(self, head: Any, when: int) -> None:
        self.head, self.left = head, when

    def __call__(self, x: mx.array) -> mx.array:
        self.left -= 1
        return self.head(x) * (float("nan") if self.left < 0 else 1)


def test_numbers_that_are_none_end_in_an_error() -> None:
    """In the prompt, and in a token after it."""
    for given in (padded(), {"input_ids": IDS}):
        model = tiny_model(**config_of(eos_token_id=None))
        for when in (0, 2):
            fused = model.fused(refresh=True)
            fused.head = BreaksAt(fused.head, when)
            with pytest.raises(FloatingPointError, match="the reply cannot be computed: the logits are NaN"):
                model.generate(**given, max_new_tokens=3)


# --- defaults and errors ------------------------------------------------------------------------------------------------


def test_defaults_come_from_the_generation_config(hf_folder: Path, edit_json: Any) -> None:
    edit_json(hf_folder / "generation_config.json", do_sample=True, temperature=0.5, top_k=7, max_new_tokens=9)
    model = Exaone4ForCausalLM.from_pretrained(hf_folder)
    expected = GenerationConfig(
        do_sample=True, temperature=0.5, top_k=7, max_new_tokens=9, bos_token_id=1, eos_token_id=24, pad_token_id=0
    )
    assert model.generation_config == load(hf_folder)[0].generation_config == expected
    assert model.generate([[5]]).shape[1] <= 10
    sampling = causal_lm.read_sampling(expected.with_options({}), {})
    assert (sampling.temperature, sampling.top_k, sampling.top_p) == (0.5, 7, 1.0)
    greedy = causal_lm.read_sampling(expected.with_options({"do_sample": False}), {"do_sample": False})
    assert (greedy.temperature, greedy.top_k) == (0.0, 0), "temperatures of the file are no error of a greedy call"
    assert causal_lm.read_sampling(GenerationConfig(do_sample=True), {}).top_k == 50, "as in transformers"
    edit_json(hf_folder / "generation_config.json", num_beams=4)
    with pytest.raises(ValueError, match="generate does not offer num_beams=4: beam search is not offered"):
        Exaone4ForCausalLM.from_pretrained(hf_folder).generate([[5]])
    assert tiny_model().generation_config == GenerationConfig()


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"num_beams": 4}, "generate does not offer num_beams=4: beam search is not offered"),
    ({"streamer": object()}, "does not offer streamer=.*: exaone4_mlx.stream_generate streams"),
    ({"stop_strings": ["x"]}, "exaone4_mlx.generate has stop"),
    ({"output_scores": True}, "exaone4_mlx.generate has logprobs"),
    ({"temperature": 0.6}, "temperature=0.6 has no effect without do_sample=True"),
    ({"top_p": 0.9, "do_sample": False}, "top_p=0.9 has no effect without do_sample=True"),
    ({"temperature": 0.0, "do_sample": True}, "temperature must be above 0 with do_sample=True"),
    ({"top_p": 1.5, "do_sample": True}, "top_p must be above 0 and at most 1.*, not 1.5"),
    ({"do_sample": "yes"}, "do_sample must be True or False, not 'yes'"),
    ({"max_new_tokens": 0}, "max_new_tokens must be a positive whole number, not 0"),
    ({"max_new_tokens": 2.5}, "max_new_tokens must be a positive whole number, not 2.5"),
    ({"max_new_tokens": 5, "max_length": 50}, "give max_new_tokens or max_length, not both"),
    ({"max_length": 20}, "max_length 20 leaves no room: the prompt has 20 tokens"),
    ({"num_return_sequences": 2}, "num_return_sequences must be a positive number, 1 without do_sample"),
    ({"eos_token_id": "x"}, "eos_token_id must be a token id"),
    ({"seed": -1, "do_sample": True}, "seed must be a whole number"),
    ({"generation_config": {"top_p": 1}}, "generation_config must be a GenerationConfig, not dict"),
    ({"attention_mask": [[1] * 5]}, r"attention_mask must have the shape \[1, 20\], not \[1, 5\]"),
    ({"attention_mask": [[1] * 19 + [0]]}, "padding must be on the left: set tokenizer.padding_side = 'left'"),
    ({"attention_mask": [[0] * 20]}, "a row of the batch has no tokens but padding"),
    ({"attention_mask": [[2] * 20]}, "attention_mask must be 1, or 0 for padding"),
    ({"input_ids": [1, 2]}, r"input_ids must have the shape \[rows, tokens\], not \[2\]"),
    ({"input_ids": [[1, 1000]]}, "input_ids must be from 0 to"),
    ({"input_ids": [[0.5]]}, "input_ids must be whole numbers, not float32"),
    ({"input_ids": None}, "input_ids must be an array, not NoneType"),
    ({"input_ids": "Hello"}, "input_ids must be an array, not str"),
    ({"input_ids": [[5] * 300]}, "the prompt has 300 tokens, and the model's context of 256 must hold new ones"),
]


def test_wrong_calls_are_refused_by_name() -> None:
    model = tiny_model(**config_of())
    for options, message in REFUSED:
        with pytest.raises(ValueError, match=message):
            model.generate(**({"input_ids": IDS} | options))
    model.ranks = SimpleNamespace(rank=0)
    with pytest.raises(ValueError, match="several ranks do not take padding: give the rows one after the other"):
        model.generate(IDS, attention_mask=[[0] + [1] * 19])
    model.ranks = None
    with pytest.raises(TypeError, match=r"generate\(\) has no option 'max_tokens'; the options are .*max_new_tokens"):
        model.generate(IDS, max_tokens=5)
    for name, (neutral, _) in NOT_OFFERED.items():
        for value in (None, *neutral):
            assert GenerationConfig().with_options({name: value}) == GenerationConfig(), name


def test_from_pretrained_takes_the_documented_arguments(hf_folder: Path) -> None:
    for device in ("auto", None, mx.default_device()):
        model = Exaone4ForCausalLM.from_pretrained("demo", dtype="bfloat16", device_map=device)
        assert model.model.norm.weight.dtype == mx.bfloat16 and model.device == mx.default_device()
    assert Exaone4ForCausalLM.from_pretrained("demo", dtype="auto").model.norm.weight.dtype == mx.bfloat16
    with pytest.raises(ValueError, match="device_map must be 'auto', not 'cuda': MLX computes on its default device"):
        Exaone4ForCausalLM.from_pretrained("demo", device_map="cuda")
    for name, hint in (("torch_dtype", "dtype"), ("trust_remote_code", "no code of a checkpoint")):
        with pytest.raises(ValueError, match=f"a config has no {name}.*{hint}"):
            Exaone4ForCausalLM.from_pretrained("demo", **{name: True})
    shutil.rmtree(hf_folder)


# --- transformers -------------------------------------------------------------------------------------------------------


@pytest.mark.oracle
@pytest.mark.filterwarnings("ignore")
def test_tokens_equal_those_of_transformers() -> None:
    """Greedy, in float32: padding, shapes of layers, repetition penalty, stops."""
    for shape in SHAPES:
        config = config_of(eos_token_id=None, **SHAPES[shape])
        their_model, our_model = theirs("Exaone4ForCausalLM", config), ours("Exaone4ForCausalLM", config)
        for options in ({}, {"repetition_penalty": 1.3}, {"eos_token_id": list(range(40)), "max_new_tokens": 12}):
            for given in (padded(), {"input_ids": IDS}):
                asked = {"max_new_tokens": 8, "pad_token_id": 0, "do_sample": False} | options
                listed = {name: array.tolist() for name, array in given.items()}
                expected = their_model.generate(**tensors(listed), **asked)
                assert expected.tolist() == our_model.generate(**given, **asked).tolist(), (shape, options)
                if shape == "hybrid LLLG" and len(listed) == 2 and not options:
                    assert expected[:, 20:].tolist() == GOLDEN


@pytest.mark.oracle
@pytest.mark.filterwarnings("ignore")
def test_the_demo_says_what_it_says_in_transformers(demo: Any) -> None:
    transformers = pytest.importorskip("transformers")
    model = transformers.AutoModelForCausalLM.from_pretrained(str(DEMO_FOLDER), dtype="float32")
    tokenizer = Tokenizer.from_pretrained("demo", padding_side="left")
    asked = [[{"role": "user", "content": text}] for text in ("Hello", "Which one is bigger, 3.12 vs 3.9?")]
    batch = tokenizer.apply_chat_template(asked, padding=True, return_tensors="mlx", return_dict=True)
    listed = {name: array.tolist() for name, array in batch.items()}
    expected = model.generate(**tensors(listed), max_new_tokens=40, do_sample=False)
    assert expected.tolist() == demo[0].generate(**batch, max_new_tokens=40, do_sample=False).tolist()
