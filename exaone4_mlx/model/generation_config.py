"""generation_config.json -> `GenerationConfig`: the defaults of the arguments of `model.generate`."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..files.folders import read_json

#: Settings of transformers that are not offered here, their values without an effect, and what to use.
NOT_OFFERED: dict[str, tuple[tuple[Any, ...], str]] = {
    "num_beams": ((1,), "beam search is not offered"),
    "num_beam_groups": ((1,), "beam search is not offered"),
    "early_stopping": ((False,), "beam search is not offered"),
    "length_penalty": ((1,), "beam search is not offered"),
    "diversity_penalty": ((0,), "beam search is not offered"),
    "constraints": ((), "constrained decoding is not offered; exaone4_mlx.generate has response_format"),
    "force_words_ids": ((), "constrained decoding is not offered"),
    "prefix_allowed_tokens_fn": ((), "constrained decoding is not offered"),
    "penalty_alpha": ((0,), "contrastive search is not offered"),
    "typical_p": ((1,), "use top_p or min_p"),
    "epsilon_cutoff": ((0,), "use min_p"),
    "eta_cutoff": ((0,), "use min_p"),
    "no_repeat_ngram_size": ((0,), "use repetition_penalty"),
    "encoder_repetition_penalty": ((1,), "use repetition_penalty"),
    "bad_words_ids": ((), "exaone4_mlx.generate has logit_bias"),
    "sequence_bias": ((), "exaone4_mlx.generate has logit_bias"),
    "suppress_tokens": ((), "exaone4_mlx.generate has logit_bias"),
    "begin_suppress_tokens": ((), "exaone4_mlx.generate has logit_bias"),
    "forced_bos_token_id": ((), "put the token into the prompt"),
    "forced_eos_token_id": ((), "forced tokens are not offered"),
    "guidance_scale": ((1,), "guidance is not offered"),
    "min_length": ((0,), "a minimal length is not offered here; exaone4_mlx.generate has min_tokens"),
    "min_new_tokens": ((0,), "a minimal length is not offered here; exaone4_mlx.generate has min_tokens"),
    "max_time": ((), "stream_generate(…).cancel() ends a reply at any time"),
    "stop_strings": ((), "exaone4_mlx.generate has stop"),
    "stopping_criteria": ((), "stream_generate(…).cancel() ends a reply at any time"),
    "logits_processor": ((), "exaone4_mlx.generate has logits_processors"),
    "streamer": ((), "exaone4_mlx.stream_generate streams"),
    "assistant_model": ((), "exaone4_mlx.generate has draft_model"),
    "prompt_lookup_num_tokens": ((0,), "exaone4_mlx.generate has prompt_lookup"),
    "past_key_values": ((), "exaone4_mlx.generate has prompt_cache"),
    "inputs_embeds": ((), "give input_ids"),
    "position_ids": ((), "positions count the tokens that attention_mask leaves"),
    "use_cache": ((True,), "generation always has a cache"),
    "cache_implementation": (("dynamic", "hybrid"), "exaone4_mlx.generate has kv"),
    "return_dict_in_generate": ((False,), "the tokens are returned; exaone4_mlx.generate has logprobs"),
    "output_scores": ((False,), "exaone4_mlx.generate has logprobs"),
    "output_logits": ((False,), "exaone4_mlx.generate has logprobs"),
    "output_attentions": ((False,), "model.forward(…, output_attentions=True) has them"),
    "output_hidden_states": ((False,), "model.forward(…, output_hidden_states=True) has them"),
}


@dataclass
class GenerationConfig:
    """Defaults of `model.generate`, under transformers' names. None leaves the default of `generate`.

    `from_pretrained` and `load` read them from generation_config.json. A field may be set:
    `model.generation_config.do_sample = True`. Raises ValueError for a setting that is not offered.
    """

    max_new_tokens: int | None = None
    max_length: int | None = None
    do_sample: bool | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    num_return_sequences: int | None = None
    seed: int | None = None
    bos_token_id: int | None = None
    eos_token_id: int | Sequence[int] | None = None
    pad_token_id: int | None = None
    #: Settings of the file that are not offered.
    others: Mapping[str, Any] = field(default_factory=dict, repr=False, compare=False)

    def with_options(self, options: Mapping[str, Any]) -> GenerationConfig:
        """The same with the options that are not None.

        Raises TypeError for an unknown option, and ValueError for one that is not offered, with what to use.
        """
        names = {item.name for item in dataclasses.fields(self)} - {"others"}
        for name, value in {**self.others, **options}.items():
            if name in names:
                continue
            if name not in NOT_OFFERED:
                raise TypeError(f"generate() has no option {name!r}; the options are {', '.join(sorted(names))}")
            neutral, hint = NOT_OFFERED[name]
            if value is not None and value not in neutral:
                raise ValueError(f"generate does not offer {name}={value!r}: {hint}")
        given = {name: value for name, value in options.items() if name in names and value is not None}
        return dataclasses.replace(self, **given)

    @classmethod
    def from_folder(cls, folder: Path) -> GenerationConfig:
        """The generation_config.json of a folder; without the file, no defaults. Keys that are no settings are ignored.

        A setting that is not offered is an error of `generate`, and not here: the file is also read for other uses.
        """
        file = folder / "generation_config.json"
        values = read_json(file) if file.is_file() else {}
        names = [item.name for item in dataclasses.fields(cls)]
        others = {name: values[name] for name in NOT_OFFERED if name in values}
        return cls(**{name: values[name] for name in names if name in values} | {"others": others})
