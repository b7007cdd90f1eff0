"""`ScriptedModel`: a tiny random model whose replies a test sets."""

from __future__ import annotations

import time
from itertools import takewhile
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from conftest import tiny_model

from exaone4_mlx import Exaone4Config, Exaone4ForCausalLM, Tokenizer
from exaone4_mlx.generation.request import WRAP_UP


class Script:
    """The replies of a `ScriptedModel`. It follows the ids that the model reads, to know how far a reply is.

    Ids that begin with the scripted token continue the reply. So does the forced end of a thought, and with
    `constrained` any single token: the scripted token is dropped for it. All other ids are a prompt, and the logits
    after it begin the next reply.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        prompt = tokenizer.apply_chat_template([{"role": "user", "content": "x"}])
        self.mark = next(id for id in prompt if tokenizer.decode([id]) == "[|assistant|]")
        self.wrap_up = tokenizer.encode(WRAP_UP)
        self.play()

    def play(
        self,
        *replies: Any,
        then: str = "…",
        ends: bool = True,
        pause: float = 0.0,
        repeat: bool = False,
        constrained: bool = False,
    ) -> None:
        """Sets the next replies: texts, or lists of texts, ids and exceptions, which are raised. None: no script.

        A reply ends its turn, or with `ends=False` goes on with the token `then`. Each token after the first takes
        `pause` seconds. With `repeat` all further replies equal the last one.
        """
        self.replies = [self._ids(reply) + [self.tokenizer.eos_token_id] * ends for reply in replies]
        self.then, self.pause, self.repeat = self.tokenizer.encode(then)[0], pause, repeat
        self.constrained = constrained
        self.on, self.begins = bool(replies), True
        self.reply: list[Any] = []
        self.seen: list[int] = []  # all ids read since
        self.place = self.index = 0

    def read(self, ids: list[int]) -> None:
        """Notes that the model reads `ids`."""
        self.seen += ids
        self.index = self.place + 1  # of the token after ids[0]
        expected = self._token(self.place)
        forced = ids == self.wrap_up or (self.constrained and len(ids) == 1)
        if self.begins or self.mark in ids or not (forced or ids[0] == expected):
            self.begins = True
        elif ids[0] != expected:
            self.place += 1
        else:
            same = takewhile(lambda id: id == self._token(self.place), ids)  # a wrong guess ends what counts
            for _ in same:
                self.place += 1

    def tokens(self, count: int) -> list[int]:
        """The tokens after each of the last `count` ids that were read."""
        if self.begins:
            assert self.replies, "the model must reply more often than the script says"
            self.reply = self.replies[0] if self.repeat and len(self.replies) == 1 else self.replies.pop(0)
            self.place, self.index, self.begins = 0, 0, False
        else:
            time.sleep(self.pause)
        tokens = [self._token(self.index + i) for i in range(count)]
        for token in tokens:
            if isinstance(token, BaseException):
                raise token
        return tokens

    def _token(self, index: int) -> Any:
        return self.reply[index] if index < len(self.reply) else self.then

    def _ids(self, reply: Any) -> list[Any]:
        parts = [reply] if isinstance(reply, str) else reply
        return [id for part in parts for id in (self.tokenizer.encode(part) if isinstance(part, str) else [part])]


class ScriptedEmbedding(nn.Embedding):
    """Tells the script which ids are read."""

    script: Script

    def __call__(self, ids: mx.array) -> mx.array:
        if self.script.on:
            self.script.read(ids[0].tolist())  # type: ignore[arg-type]
        return super().__call__(ids)


class ScriptedHead(nn.Linear):
    """Logits [1, L, V] in which the scripted token is the most probable one by far, with every sampler."""

    script: Script

    def __call__(self, hidden: mx.array) -> mx.array:
        logits = super().__call__(hidden)
        if not self.script.on:
            return logits
        ids = mx.array(self.script.tokens(hidden.shape[1]))[:, None]
        return logits + 1e4 * (mx.arange(logits.shape[-1]) == ids)


class ScriptedModel(Exaone4ForCausalLM):
    """A tiny random model that says what `script.play(…)` sets. Its caches and its public calls are the real ones.

    Embedding and head are replaced as an adapter replaces them, so every form of the model calls them.
    """

    def __init__(self, config: Exaone4Config) -> None:
        super().__init__(config)
        self.model.embed_tokens = ScriptedEmbedding(config.vocab_size, config.hidden_size)
        self.lm_head = ScriptedHead(config.hidden_size, config.vocab_size, bias=False)

    @classmethod
    def tiny(cls, tokenizer: Tokenizer, seed: int = 0, **changes: Any) -> ScriptedModel:
        """With the vocabulary of the demo's tokenizer."""
        model = tiny_model(seed, kind=cls, **{"vocab_size": 3072, "max_position_embeddings": 8192} | changes)
        mx.eval(model.parameters())  # as `load` does: other threads can use them then
        model.script = model.model.embed_tokens.script = model.lm_head.script = Script(tokenizer)
        return model
