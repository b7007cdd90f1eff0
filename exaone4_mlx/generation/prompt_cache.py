"""The caches of one conversation: what a new prompt can reuse, and how far the caches can go back.

Notes:
- EXAONE's template removes earlier thoughts. So after a turn with a thought, the next prompt differs from the cached
  tokens directly after `[|assistant|]\\n<think>\\n`. A local layer alone cannot go back that far. So `prefill` takes
  checkpoints where a new turn begins and where a prompt ends, and the caches go back to the best checkpoint.
- A checkpoint of a global layer is a number, because its rows are only appended. Windows are copied. A
  `CheckpointPool` limits the number and the size of the checkpoints of all conversations that share it.
- A `PrefixStore` has what other conversations read. A prompt continues from it where that reaches further, and what
  is read goes into it: where a turn begins, where a prompt and a reply end, and where an earlier prompt differs.
- `settle` processes a history in small chunks, in idle time, so that the next prompt has only new tokens.
"""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Callable, Generator, Iterator, Sequence
from pathlib import Path

import mlx.core as mx

from ..files.safetensors import CheckpointError
from ..model.cache import RotatingKVCache, Snapshot
from ..model.fused import FusedModel
from ..model.kv import KVQuantization
from ..model.led import LedModel, own_config
from ..model.network import Exaone4ForCausalLM
from ..text.tokenizer import Tokenizer
from .cache_file import CacheContent, check_count, fingerprints, place_of, read_cache, write_cache
from .decode import checked
from .options import PREFILL_STEP_SIZE, PrefillProgress
from .prefill import CacheCheckpoint, CheckpointPool, StepSize, common_prefix, prefill_chunks
from .prefix_store import PrefixStore
from .rank_files import read_others, write_others

SETTLE_STEP_SIZE = 128  # tokens; a new prompt waits for one such chunk at most


class PromptCache:
    """The caches of one conversation. `ids` are the tokens that they hold.

    `prefill` takes any prompt. It does not process the tokens again that the prompt shares with `ids`, as far back as
    the caches and the checkpoints reach. If a weight was replaced (by an update, a cast or a quantization), the caches
    are cleared; after a write into a weight in place, call `clear()`. Use a prompt cache in one thread at a time.
    """

    def __init__(
        self,
        model: Exaone4ForCausalLM,
        tokenizer: Tokenizer,
        pool: CheckpointPool | None = None,
        kv: KVQuantization | int | None = None,
        prefix_store: PrefixStore | None = None,
        salt: str = "",
        fused: FusedModel | None = None,
    ) -> None:
        """`pool` limits the checkpoints (default: a new pool). `kv` quantizes the caches: 8, 4 or a KVQuantization.

        `prefix_store` has what other conversations read, and gets what this one reads. It is used among prompt caches
        of the same `salt` only: a client, say, or whatever else the rows depend on. `fused` is a form of the model with
        other adapters, which all prompts use (default: `model.fused()` when a prompt begins).
        """
        self.model, self._tokenizer, self._salt = model, tokenizer, salt
        self.kv = KVQuantization.coerce(kv, model.config)
        # Rows of a RoPE that depends on the length belong to one prompt.
        cannot_share = model.config.rope_parameters.depends_on_length
        self.prefix_store = None if cannot_share else prefix_store
        self._prefix_root = ""  # where the conversations of this model and salt begin in the store
        self._shared = 0  # tokens that an earlier prompt shares with the one in progress
        self._fused: FusedModel | None = None
        self._form = fused
        self._pool = pool or CheckpointPool()
        self.checkpoints: list[CacheCheckpoint] = []  # shortest first; each one is a prefix of `ids`
        self.clear()

    def __repr__(self) -> str:
        return f"PromptCache({len(self.ids)} tokens, {len(self.checkpoints)} checkpoints, {self.nbytes} bytes)"

    def check_model(self, model: Exaone4ForCausalLM, kv: KVQuantization | int | None = None) -> None:
        """Raises ValueError if `model` is another model, or if `kv` is not None and differs from the caches'."""
        if self.model is not model:
            raise ValueError("this prompt cache was made for another model")
        if (kv := KVQuantization.coerce(kv, model.config)) not in (None, self.kv):
            raise ValueError(f"the prompt cache holds {self.kv or 'full precision'}; asked for is {kv}")

    def clear(self) -> None:
        """Removes all tokens and checkpoints, and frees their memory."""
        self.ids: list[int] = []
        self.work: object = None  # identifies the work in progress; new work ends it
        self.layers = self.model.make_cache(self.kv)
        self.checkpoints.clear()
        reserves = [layer.rewind_capacity for layer in self.layers if isinstance(layer, RotatingKVCache)]
        #: Tokens that every layer can always remove. None without local layers: they can remove all.
        self._reserve = min(reserves, default=None)

    @property
    def fused(self) -> FusedModel:
        """The inference form of the model that the work in progress uses."""
        assert self._fused is not None, "call prefill first"
        return self._fused

    @property
    def nbytes(self) -> int:
        """Bytes of the caches without the checkpoints."""
        return sum(layer.nbytes for layer in self.layers)

    def prefill(
        self, ids: Sequence[int], step_size: int = PREFILL_STEP_SIZE, progress: PrefillProgress | None = None
    ) -> tuple[mx.array, int]:
        """All of `prefill_steps`: the logits after the prompt, and the number of reused tokens."""
        steps = self.prefill_steps(ids, step_size, progress)
        while True:
            try:
                next(steps)
            except StopIteration as end:
                return end.value

    def prefill_steps(
        self, ids: Sequence[int], step_size: StepSize = PREFILL_STEP_SIZE, progress: PrefillProgress | None = None
    ) -> Generator[int, None, tuple[mx.array, int]]:
        """Processes a prompt. Returns the logits after it, [1, V], and the number of tokens that were reused.

        Yields the tokens of each chunk but the last one, after the chunk, and before that 0 after each file of the
        prefix store. `progress(done, total)` is first called with the reused tokens, then after each chunk and within a
        long chunk. An exception that it raises ends the prefill. The chunks that are done stay in the caches; where a
        local layer cannot go back to them, the caches go back to the last checkpoint. Raises NonFiniteLogits.
        """
        ids, total = list(ids), len(ids)

        def report(done: int) -> None:
            if progress:
                progress(done, total)

        for _ in self._fetch(ids, total - 1):
            yield 0
        cached = read = self.reuse(ids, total - 1)  # the last token is always processed, for its logits
        report(cached)
        begin = max(self._turn_start(ids), cached)  # of the new turn, or of its part that is not cached
        for stop in (*self._stops(ids, cached, begin), total):
            for done, last in self._process(ids[:stop], step_size, report):
                hidden = last
                if done < total:
                    report(done)
                    self.finish()
                    yield done - read
                    read = done
            if stop == begin < total:
                self._take_checkpoint()
            if stop < total:
                self.keep()
        logits = checked(self.fused.logits(hidden)[:, -1])
        self.finish()
        self._take_checkpoint()
        self.keep()
        report(total)
        return logits, cached

    def settle(self, ids: Sequence[int], step_size: int = SETTLE_STEP_SIZE) -> Iterator[int]:
        """Processes a history. Yields the number of tokens in the caches after each chunk; it may be dropped then."""
        ids = list(ids)
        for _ in self._fetch(ids, len(ids)):
            yield 0
        reused, work = self.reuse(ids, len(ids)), self.work
        yield reused
        if self.work is work:
            for done, _ in self._process(ids, step_size):
                self.finish()
                yield done
            if self.work is work:
                self.keep()

    def keep(self) -> None:
        """Adds what the caches hold to the prefix store, if there is one."""
        if self.prefix_store is not None and self.ids:
            self._repair()
            self.prefix_store.add(self._prefix_root, self.ids, self.layers, self._tokenizer.turn_start_ids)

    def finish(self, keeps: bool = False) -> None:
        """Evaluates the caches, so that any thread can use them. With `keeps` it is followed by `keep`."""
        mx.eval([layer.buffers for layer in self.layers])
        if keeps:
            self.keep()

    def reuse(self, ids: Sequence[int], limit: int) -> int:
        """Takes the caches back to the prefix that they share with `ids`. Returns its length, at most `limit`.

        The reachable states are the present one and the checkpoints, each with its possible rewind, and the prefix
        store. The state with the longest shared prefix is used.
        """
        self.work = object()
        fused = self._form or self.model.fused()
        if fused is not self._fused:
            self._prefix_root = ""
            if self.ids:
                self.clear()  # the weights have changed
        self._fused = fused
        self._repair()
        shared = common_prefix(self.ids, ids)
        wanted = min(shared, limit)
        best, source = 0, None
        if len(self.ids) - wanted <= min(layer.rewindable for layer in self.layers):
            best = wanted
        for checkpoint in self.checkpoints:
            length = min(wanted, checkpoint.length)
            pairs = zip(self.layers, checkpoint.layers, strict=True)
            rewindable = min(layer.rewindable_from(snapshot) for layer, snapshot in pairs)
            if length > best and checkpoint.length - length <= rewindable:
                best, source = length, checkpoint
        self.checkpoints[:] = [c for c in self.checkpoints if c.length <= shared]
        if (store := self.prefix_store) is not None:
            self._prefix_root = self._prefix_root or self._root(fused)
            given = self._prefix_root, list(ids), self.layers, own_config(self.model)
            length, self._shared = store.restore(*given, least=best, limit=limit)
            if length:
                self.ids = list(ids[:length])
                return length
        self._go_to(best, source)
        return best

    def _root(self, fused: FusedModel) -> str:
        """Where the conversations of this model and salt begin in the prefix store."""
        assert self.prefix_store is not None
        return self.prefix_store.root(self.model, fused, self._tokenizer, self.layers, self.kv, self._salt)

    def _fetch(self, ids: list[int], limit: int) -> Iterator[None]:
        """Reads what `reuse` needs from the files of the prefix store, one at a time."""
        if (store := self.prefix_store) is not None:
            root = self._root(self._form or self.model.fused())
            yield from store.fetch(root, ids, self.layers, own_config(self.model), limit)

    def _go_to(self, length: int, source: CacheCheckpoint | None) -> None:
        """Goes back to `length` tokens, from a checkpoint, or from the present state if `source` is None."""
        for i, layer in enumerate(self.layers):
            if source is not None:
                layer.restore(source.layers[i])
            elif length == 0:
                layer.restore(Snapshot(0))
            layer.rewind(layer.offset - length)
        if source is not None:
            self.finish()
            self._pool.use(source)
        self.ids = self.ids[:length]

    def _repair(self) -> None:
        """Makes the caches agree with `ids` after an interrupt in the middle of a step."""
        offsets = {layer.offset for layer in self.layers}
        surplus = max(offsets) - len(self.ids)
        if len(offsets) > 1 or not 0 <= surplus <= min(layer.rewindable for layer in self.layers):
            self.clear()
        elif surplus:
            for layer in self.layers:
                layer.rewind(surplus)

    def _turn_start(self, ids: Sequence[int]) -> int:
        """The position where the last turn of the user or of a tool begins; 0 if there is none."""
        marks = self._tokenizer.turn_start_ids
        return next((i for i in range(len(ids) - 1, -1, -1) if ids[i] in marks), 0)

    def _stops(self, ids: Sequence[int], cached: int, begin: int) -> list[int]:
        """The positions within a prompt whose state is kept: `begin`, where the last turn begins.

        With a prefix store also where the first new turn begins, after a system prompt, say, and where an earlier
        prompt differs. Without local layers any position can be reused later.
        """
        if self._reserve is None:
            return []
        wanted = {begin} if self._pool.max_count else set()
        if self.prefix_store is not None:
            marks = self._tokenizer.turn_start_ids
            first = next((i for i in range(cached + 1, begin) if ids[i] in marks), begin)
            wanted |= {begin, *(stop for stop in (first, self._shared) if stop > cached)}
        return sorted(stop for stop in wanted if 0 < stop < len(ids) - self._reserve)

    def _process(
        self, ids: list[int], step_size: StepSize, report: Callable[[int], None] = lambda done: None
    ) -> Iterator[tuple[int, mx.array]]:
        """Processes the tokens of `ids` that are not cached. Yields the cached number and the last hidden state.

        `report(done)` is called within long chunks. If it raises an exception, the chunk is removed from the caches.
        """
        start, work, reporting = len(self.ids), self.work, False

        def check(done: int) -> None:
            nonlocal reporting
            reporting = True
            report(start + done)
            reporting = False

        try:
            for done, hidden in prefill_chunks(self.fused, ids[start:], self.layers, step_size, check):
                self.ids += ids[len(self.ids) : start + done]
                yield start + done, hidden
                if self.work is not work:
                    return
        except Exception:
            if reporting:
                self._remove_partial_chunk()
            else:
                self.clear()  # the next step would fail on the arrays of a failed step
            raise

    def _remove_partial_chunk(self) -> None:
        """Goes back to `ids`, from a chunk that some layers have processed; else to the last checkpoint, or clears."""
        if all(layer.undo(layer.offset - len(self.ids)) for layer in self.layers):
            return
        if self.checkpoints:
            self._go_to(self.checkpoints[-1].length, self.checkpoints[-1])
        else:
            self.clear()

    def _take_checkpoint(self) -> None:
        """Takes a checkpoint of the present state, if a layer could lose it."""
        wanted = self._reserve is not None and self._pool.max_count
        if not wanted or any(c.length == len(self.ids) for c in self.checkpoints):
            return
        snapshots = tuple(layer.snapshot() for layer in self.layers)
        mx.eval([snapshot.arrays for snapshot in snapshots])
        self._add(snapshots)

    def _add(self, snapshots: tuple[Snapshot, ...]) -> None:
        self.checkpoints.append(CacheCheckpoint(snapshots[0].offset, snapshots, weakref.ref(self)))
        self._pool.use(self.checkpoints[-1])

    def save(self, path: str | Path) -> None:
        """Writes the file, whole or not at all. Errors as for `write_cache`.

        Each of several ranks writes its part: rank 0 of 2 `path` with ".rank0of2" at the end.
        """
        path = Path(path)
        place = place_of(path, self.model.ranks)
        self._repair()
        whole = [layer.snapshot(whole=True) for layer in self.layers]
        content = CacheContent(self.ids, whole, [checkpoint.layers for checkpoint in self.checkpoints])
        about = self._about
        if isinstance(fused := self.model.fused(), LedModel):
            content = write_others(fused, path, content, about, self.layers)
        write_cache(place, content, about, self.layers)

    @property
    def _about(self) -> dict[str, str]:
        return fingerprints(self.model, self._tokenizer, self.layers, self.kv)

    @classmethod
    def load(
        cls,
        path: str | Path,
        model: Exaone4ForCausalLM,
        tokenizer: Tokenizer,
        pool: CheckpointPool | None = None,
        kv: KVQuantization | int | None = None,
        prefix_store: PrefixStore | None = None,
    ) -> PromptCache:
        """Reads a file that `save` wrote. A damaged file gives a warning and an empty prompt cache.

        Raises FileNotFoundError, and ValueError for a file that is no prompt cache, or one of another model, layout or
        division of ranks.
        """
        path, cache, fused = Path(path), cls(model, tokenizer, pool, kv, prefix_store), model.fused()
        check_count(path, model.ranks)
        try:
            content = read_cache(place_of(path, model.ranks), cache._about, cache.layers, own_config(model))
            if isinstance(fused, LedModel):
                content = read_others(fused, path, content, cache._about, cache.layers)
        except CheckpointError as error:
            warnings.warn(f"{error}; starting without it", stacklevel=2)
            return cache
        cache.ids, cache._fused = content.ids, fused
        for layer, snapshot in zip(cache.layers, content.layers, strict=True):
            layer.restore(snapshot)
        cache.finish()
        for snapshots in content.checkpoints:
            cache._add(snapshots)
        return cache
