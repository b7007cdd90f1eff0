"""Unknown names of options, and the names that were probably meant."""

from __future__ import annotations

import difflib
from collections.abc import Collection

#: What to write in place of names of other libraries, and of options that belong elsewhere.
MEANT = {
    "max_tokens": "max_new_tokens max_length max_completion_tokens num_predict",
    "thinking": "enable_thinking",
    "temperature": "temp",
    "temperature (0 takes the most probable token)": "do_sample",
    "stop": "stop_strings stop_sequences",
    "logprobs": "top_logprobs",
    "system_prompt of a Chat, or a first message of the role 'system'": "system system_prompt",
    "stream_generate, which always streams": "stream streamer",
    "prompt, which may be a list of messages": "messages",
    "max_kv_size": "context context_limit",
    "kv=8, kv=4 or kv=KVQuantization(…)": "kv_bits kv_bits_keys kv_bits_values kv_group_size kv_layers",
    "the option of this name where the Chat is made": "max_kv_size kv draft_model prompt_cache prefix_store "
    "overflow settle tool_timeout max_tool_rounds approve",
}


def refuse_unknown(given: Collection[str], known: Collection[str]) -> None:
    """Raises TypeError for a name that is not known, with the name that was probably meant."""
    hints = {name: meant for meant, names in MEANT.items() for name in names.split()}
    for name in given:
        if name in known:
            continue
        close = difflib.get_close_matches(name, known, n=1, cutoff=0.75)
        meant = hints.get(name) or (close[0] if close else None)
        hint = f"did you mean {meant}?" if meant else f"the options are {', '.join(sorted(known))}"
        raise TypeError(f"there is no option {name!r}; {hint}")
