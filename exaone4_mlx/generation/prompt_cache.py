"""One conversation's caches: what of a new prompt they can serve, how far back they can go, and their file.

What is peculiar here:
- EXAONE's template erases earlier thoughts, so after a thinking turn the next prompt differs from what the
  caches hold right behind `[|assistant|]\\n<think>\\n`. A local layer cannot go back that far by itself. So
  checkpoints are taken where a new turn begins and where a prompt ends, and the caches go back to the best one.
- A checkpoint of a global layer is a number, since its rows are only appended; windows are copied. How many
  there are, and how large, is bounded over all conversations that share a `CheckpointPool`.
- `settle` reads a history in small pieces, in idle time, so that the next prompt is new tokens only.
- A file carries digests of all that its numbers depend on. One made by another model is refused; one that is
  damaged means a cold start with a warning. Neither ever gives wrong tokens.
"""

from __future__ import annotations

import hashlib
import json
import warnings
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten

from ..files.folders import atomic_file
from ..files.safetensors import CheckpointError, read_header
from ..model.cache import Cache, KVCache, RotatingKVCache, Snapshot
from ..model.fused import FusedModel
from ..model.kv import KVQuantization
from ..model.network import Exaone4ForCausalLM
from ..text.tokenizer import Tokenizer
from .decode import prefill_chunks
from .options import PREFILL_STEP_SIZE, PrefillProgress

MAX_CHECKPOINTS = 16  # of all conversations that share a pool
MAX_CHECKPOINT_BYTES = 2 << 30  # of them together; one of the 32B's is 0.8 GB in bfloat16
SETTLE_STEP_SIZE = 128  # tokens: what a new prompt may have to wait for

DIGEST_BLOCK = 1 << 24  # weights that are looked at together

FILE_FORMAT = "exaone4_mlx prompt cache, version 1"


@dataclass(frozen=True, eq=False)
class CacheCheckpoint:
    """The state of every layer after `length` tokens. `conversation` is the prompt cache that it belongs to."""

    length: int
    layers: tuple[Snapshot, ...]
    conversation: weakref.ref[PromptCache]

    @property
    def nbytes(self) -> int:
        return sum(snapshot.nbytes for snapshot in self.layers)


class CheckpointPool:
    """Bounds the checkpoints of many conversations: the least recently used go, but the newest of each goes last."""

    def __init__(self, max_count: int = MAX_CHECKPOINTS, max_bytes: int = MAX_CHECKPOINT_BYTES) -> None:
        self.max_count, self.max_bytes = max_count, max_bytes
        self._used: list[weakref.ref[CacheCheckpoint]] = []  # least recently first

    @property
    def checkpoints(self) -> list[CacheCheckpoint]:
        """Those in use, least recently used first."""
        return [checkpoint for ref in self._used if (checkpoint := ref()) is not None]

    @property
    def nbytes(self) -> int:
        return sum(checkpoint.nbytes for checkpoint in self.checkpoints)

    def use(self, checkpoint: CacheCheckpoint) -> None:
        """Counts a new checkpoint, or one that is used again, and makes room."""
        others = [other for other in self.checkpoints if other is not checkpoint]
        self._used = [weakref.ref(other) for other in (*others, checkpoint)]
        newest = {id(other.conversation()): other for other in (*others, checkpoint)}
        victims = sorted((*others, checkpoint), key=lambda other: newest[id(other.conversation())] is other)
        count, size = len(victims), sum(other.nbytes for other in victims)
        for victim in victims:
            if count <= self.max_count and size <= self.max_bytes:
                break
            if (conversation := victim.conversation()) is not None:
                conversation.checkpoints[:] = [kept for kept in conversation.checkpoints if kept is not victim]
            count, size = count - 1, size - victim.nbytes


class PromptCache:
    """What a model has read of one conversation. `ids` are the tokens that its caches hold.

    `prefill` takes any prompt: what it shares with `ids` is not processed again, as far back as the caches
    and the checkpoints reach. Weights that were replaced (an update, a cast, a quantization) mean a fresh start;
    after writing into a weight in place call `clear()`. All work on one prompt cache belongs into one thread at a
    time.
    """

    def __init__(
        self,
        model: Exaone4ForCausalLM,
        tokenizer: Tokenizer,
        pool: CheckpointPool | None = None,
        kv: KVQuantization | int | None = None,
    ) -> None:
        """`pool` bounds the checkpoints; by default this conversation has its own.

        `kv` says how to quantize the caches: 8, 4 or a KVQuantization.
        """
        self.model, self._tokenizer = model, tokenizer
        self.kv = KVQuantization.coerce(kv, model.config)
        self._fused: FusedModel | None = None
        self._pool = pool or CheckpointPool()
        self.checkpoints: list[CacheCheckpoint] = []  # shortest first, all of them beginnings of `ids`
        self.clear()

    def __repr__(self) -> str:
        return f"PromptCache({len(self.ids)} tokens, {len(self.checkpoints)} checkpoints, {self.nbytes} bytes)"

    def check_model(self, model: Exaone4ForCausalLM, kv: KVQuantization | int | None = None) -> None:
        """Raises ValueError for a model that this was not made for, and for other bits than its caches have.

        `kv` None asks for none in particular.
        """
        if self.model is not model:
            raise ValueError("this prompt cache was made for another model")
        if (kv := KVQuantization.coerce(kv, model.config)) not in (None, self.kv):
            raise ValueError(f"the prompt cache holds {self.kv or 'full precision'}; asked for is {kv}")

    def clear(self) -> None:
        """Forgets everything, and frees its memory."""
        self.ids: list[int] = []
        self.work: object = None  # what is under way; other work ends it
        self.layers = self.model.make_cache(self.kv)
        self.checkpoints.clear()
        windows = [layer for layer in self.layers if isinstance(layer, RotatingKVCache)]
        #: Tokens that every layer can always forget; None where checkpoints are not needed, or not wanted.
        self._reserve = min((layer.rewind_capacity for layer in windows), default=None)
        if self._pool.max_count == 0:
            self._reserve = None

    @property
    def fused(self) -> FusedModel:
        """The inference form of the model, as the present work uses it."""
        assert self._fused is not None, "call prefill first"
        return self._fused

    @property
    def nbytes(self) -> int:
        """Bytes of the caches; checkpoints not counted."""
        return sum(layer.nbytes for layer in self.layers)

    def prefill(
        self,
        ids: Sequence[int],
        step_size: int = PREFILL_STEP_SIZE,
        progress: PrefillProgress | None = None,
    ) -> tuple[mx.array, int]:
        """Brings the caches to the end of a prompt: the logits after it, [1, V], and how many tokens were there.

        `progress(done, total)` is called first with what was there already, and after each chunk; an exception
        that it raises ends the work and leaves what was done.
        """
        ids, total = list(ids), len(ids)
        cached = self.reuse(ids, total - 1)  # the last token is always processed, for its logits
        if progress:
            progress(cached, total)
        begin = max(self._turn_start(ids), cached)  # of the new turn, as far as the caches do not know it yet
        far = self._reserve is not None and 0 < begin < total - self._reserve
        for stop in (begin, total) if far else (total,):
            for done, last in self._read(ids[:stop], step_size):
                hidden = last
                if progress and done < total:
                    progress(done, total)
            if stop < total:
                self._checkpoint()
        logits = self.fused.logits(hidden)[:, -1]
        mx.eval(logits, self._states)
        self._checkpoint()
        if progress:
            progress(total, total)
        return logits, cached

    def settle(self, ids: Sequence[int], step_size: int = SETTLE_STEP_SIZE) -> Iterator[int]:
        """Brings the caches to the end of a history, piece by piece; yields how many tokens are done.

        It may be dropped between two pieces: what was done stays.
        """
        ids = list(ids)
        reused, work = self.reuse(ids, len(ids)), self.work
        yield reused
        if self.work is work:
            for done, _ in self._read(ids, step_size):
                mx.eval(self._states)
                yield done

    def append(self, token: int) -> None:
        """Notes a token that the model has processed in the course of decoding."""
        self.ids.append(token)

    def finish(self) -> None:
        """Completes the work under way, so that the caches may be used from any thread."""
        mx.eval(self._states)

    def reuse(self, ids: Sequence[int], limit: int) -> int:
        """Takes the caches back to what they share with `ids`, `limit` tokens at most: how many that are.

        Of the states that can be reached (the present one or a checkpoint, each rewound by what it allows)
        the longest is taken.
        """
        self.work = object()
        fused = self.model.fused()
        if fused is not self._fused and self.ids:
            self.clear()  # the weights are others
        self._fused = fused
        self._repair()
        shared = common_prefix(self.ids, ids)
        wanted = min(shared, limit)
        best, source = 0, None
        if len(self.ids) - wanted <= min(layer.rewindable for layer in self.layers):
            best = wanted
        for checkpoint in self.checkpoints:
            length = min(wanted, checkpoint.length)
            if length > best and checkpoint.length - length <= self._rewindable_from(checkpoint):
                best, source = length, checkpoint
        self._go_to(best, source)
        self.checkpoints[:] = [c for c in self.checkpoints if c.length <= shared]
        return best

    def _go_to(self, length: int, source: CacheCheckpoint | None) -> None:
        """Goes back to `length` tokens, from a checkpoint or else from the present state; to 0 by itself."""
        for i, layer in enumerate(self.layers):
            if source is not None:
                layer.restore(source.layers[i])
            elif length == 0:
                layer.restore(Snapshot(0))
            layer.rewind(layer.offset - length)
        if source is not None:
            mx.eval(self._states)
            self._pool.use(source)
        self.ids = self.ids[:length]

    def _repair(self) -> None:
        """Makes the caches agree with `ids` again after an interrupt in the middle of a step."""
        offsets = {layer.offset for layer in self.layers}
        surplus = max(offsets) - len(self.ids)
        if len(offsets) > 1 or not 0 <= surplus <= min(layer.rewindable for layer in self.layers):
            self.clear()
        elif surplus:
            for layer in self.layers:
                layer.rewind(surplus)

    def _rewindable_from(self, checkpoint: CacheCheckpoint) -> int:
        pairs = zip(self.layers, checkpoint.layers, strict=True)
        return min(layer.rewindable_from(snapshot) for layer, snapshot in pairs)

    def _turn_start(self, ids: Sequence[int]) -> int:
        """Where the last user's or tool's turn begins; 0 without one."""
        marks = self._tokenizer.turn_start_ids
        return next((i for i in range(len(ids) - 1, -1, -1) if ids[i] in marks), 0)

    def _read(self, ids: list[int], step_size: int) -> Iterator[tuple[int, mx.array]]:
        """Processes what the caches lack of `ids`: how many they hold after each chunk, and its last hidden state."""
        start, work = len(self.ids), self.work
        try:
            for done, hidden in prefill_chunks(self.fused, ids[start:], self.layers, step_size):
                self.ids += ids[len(self.ids) : start + done]
                yield start + done, hidden
                if self.work is not work:
                    return
        except Exception:
            self.clear()  # what a failed step left behind fails again
            raise

    def _checkpoint(self) -> None:
        """Remembers the present state, if any layer could lose it."""
        if self._reserve is None or any(c.length == len(self.ids) for c in self.checkpoints):
            return
        made = CacheCheckpoint(len(self.ids), tuple(layer.snapshot() for layer in self.layers), weakref.ref(self))
        mx.eval([snapshot.arrays for snapshot in made.layers])
        self.checkpoints.append(made)
        self._pool.use(made)

    @property
    def _states(self) -> list[list[mx.array]]:
        return [layer.state for layer in self.layers]

    def save(self, path: str | Path) -> None:
        """Writes the caches and checkpoints to a file, whole or not at all; ValueError in place of any other file."""
        _check_ours(Path(path))
        self._repair()
        arrays = {"ids": mx.array(self.ids, dtype=mx.int32)}
        for i, layer in enumerate(self.layers):
            arrays |= _named(f"{i}", layer.snapshot(whole=True), layer)
        for k, checkpoint in enumerate(self.checkpoints):
            for i, snapshot in enumerate(checkpoint.layers):
                arrays |= _named(f"checkpoint {k}.{i}", snapshot, self.layers[i])
        mx.eval(arrays)
        about = {
            "format": FILE_FORMAT,
            "fingerprints": json.dumps(self._fingerprints()),
            "checkpoints": json.dumps([checkpoint.length for checkpoint in self.checkpoints]),
        }
        about["digest"] = _digest(arrays, about)
        with atomic_file(Path(path)) as stream:
            mx.save_safetensors(stream, arrays, about)  # type: ignore[arg-type]

    @classmethod
    def load(
        cls,
        path: str | Path,
        model: Exaone4ForCausalLM,
        tokenizer: Tokenizer,
        pool: CheckpointPool | None = None,
        kv: KVQuantization | int | None = None,
    ) -> PromptCache:
        """Reads a file that `save` wrote; damaged, it gives a warning and an empty prompt cache.

        Raises FileNotFoundError without the file, and ValueError for one that is no prompt cache, or, saying what
        differs, was written with another model, tokenizer, chat template or cache layout.
        """
        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(f"there is no prompt cache {path}")
        _check_ours(path)
        cache = cls(model, tokenizer, pool, kv)
        try:
            arrays, about = _read_file(path)
        except CheckpointError as error:
            warnings.warn(f"{error}; starting without it", stacklevel=2)
            return cache
        written, here = json.loads(about.get("fingerprints", "{}")), cache._fingerprints()
        if foreign := [name for name, digest in here.items() if dict(written).get(name) != digest]:
            if foreign == ["cache layout"]:
                raise ValueError(
                    f"the prompt cache {path} has another cache layout (other kv_bits, say): give those, "
                    "or another file"
                )
            raise ValueError(f"the prompt cache {path} belongs to another model: {', '.join(foreign)} differ")
        try:
            cache._take(arrays, json.loads(about["checkpoints"]))
        except (CheckpointError, KeyError, TypeError, AttributeError) as error:
            warnings.warn(f"the prompt cache {path} is damaged ({error}); starting without it", stacklevel=2)
            cache.clear()
        return cache

    def _take(self, arrays: dict[str, mx.array], lengths: list[int]) -> None:
        ids: Any = arrays["ids"].tolist()
        self.ids, self._fused = ids, self.model.fused()
        for i, layer in enumerate(self.layers):
            snapshot = self._checked(_from_names(arrays, f"{i}", len(self.ids), layer), layer)
            if isinstance(layer, KVCache) and snapshot.rows != len(self.ids):
                raise CheckpointError(f"layer {i} holds {snapshot.rows} rows of {len(self.ids)} tokens")
            layer.restore(snapshot)
        mx.eval(self._states)
        for k, length in enumerate(lengths):
            if not 0 < length <= len(self.ids):
                raise CheckpointError(f"a checkpoint after {length} of {len(self.ids)} tokens")
            named = [_from_names(arrays, f"checkpoint {k}.{i}", length, layer) for i, layer in enumerate(self.layers)]
            layers = [self._checked(*pair) for pair in zip(named, self.layers, strict=True)]
            self.checkpoints.append(CacheCheckpoint(length, tuple(layers), weakref.ref(self)))
            self._pool.use(self.checkpoints[-1])

    def _checked(self, snapshot: Snapshot, layer: Cache) -> Snapshot:
        """A snapshot from a file, once it has the shape that this layer needs."""
        config = self.model.config
        layout = layer.rows.layout(config.head_dim).values()
        shapes = [(1, config.num_key_value_heads, snapshot.rows, width) for width, _ in layout]
        found = [array.shape for array in snapshot.arrays]
        if found and found != shapes:
            raise CheckpointError(f"rows of shape {found}, not {shapes}")
        for array, (_, kind) in zip(snapshot.arrays, layout, strict=False):
            if not mx.issubdtype(array.dtype, kind):
                raise CheckpointError(f"rows of {array.dtype}")
        if isinstance(layer, RotatingKVCache):
            least = min(snapshot.offset, layer.window - 1)
            if not least <= snapshot.rows <= snapshot.offset:
                raise CheckpointError(f"a window of {snapshot.rows} rows after {snapshot.offset} tokens")
        return snapshot

    def _fingerprints(self) -> dict[str, str]:
        """What the numbers depend on. Every weight is read once, in about the time of a token."""
        layout = [
            "global" if isinstance(layer, KVCache) else f"window {layer.window} reserve {layer.rewind_capacity}"
            for layer in self.layers
        ]
        if self.kv is not None:
            layout.append(str(self.kv))
        return {
            "config": hashlib.sha256(json.dumps(self.model.config.to_dict()).encode()).hexdigest(),
            "weights": weights_digest(self.model),
            **self._tokenizer.fingerprints,
            "cache layout": ", ".join(layout),
        }


def common_prefix(a: Sequence[int], b: Sequence[int]) -> int:
    """How many ids two sequences share at their beginnings."""
    low, high = 0, min(len(a), len(b))
    while low < high:
        middle = (low + high + 1) // 2
        if a[low:middle] == b[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low


def weights_digest(model: Exaone4ForCausalLM) -> str:
    """A digest of all weights: of the sum of each column's bits, every row weighted by a number of its own.

    It takes reading the weights, and not hashing gigabytes. Only a change made for the purpose escapes it.
    """
    digest = hashlib.sha256()
    for name, array in sorted(tree_flatten(model.parameters())):
        digest.update(f"{name} {array.dtype} {array.shape}".encode())
        bits = array.view(mx.uint8 if array.dtype.size == 1 else mx.uint16).reshape(-1, array.shape[-1])
        for start in range(0, bits.shape[0], rows := max(1, DIGEST_BLOCK // bits.shape[1])):
            block = bits[start : start + rows].astype(mx.uint32)
            places = mx.arange(start + 1, start + 1 + block.shape[0]).astype(mx.uint32)
            sums = mx.sum(block * (places * 2654435761 | 1)[:, None], axis=0)  # odd numbers without a pattern
            digest.update(memoryview(sums.view(mx.uint8)))  # type: ignore[arg-type]
    return digest.hexdigest()


def _named(name: str, snapshot: Snapshot, layer: Cache) -> dict[str, mx.array]:
    return {f"{name} {kind}": array for kind, array in zip(layer.rows.layout(0), snapshot.arrays, strict=False)}


def _from_names(arrays: dict[str, mx.array], name: str, offset: int, layer: Cache) -> Snapshot:
    found = [arrays[f"{name} {kind}"] for kind in layer.rows.layout(0) if f"{name} {kind}" in arrays]
    return Snapshot(offset, tuple(found))


def _digest(arrays: dict[str, mx.array], about: dict[str, str]) -> str:
    digest = hashlib.sha256(json.dumps({key: about[key] for key in sorted(about) if key != "digest"}).encode())
    for name, array in sorted(arrays.items()):
        digest.update(f"{name} {array.dtype} {array.shape}".encode())
        digest.update(memoryview(mx.contiguous(array).view(mx.uint8)) if array.size else b"")  # type: ignore[arg-type]
    return digest.hexdigest()


def _check_ours(path: Path) -> None:
    """Raises ValueError for a file that is there and never was a prompt cache, so that it is not overwritten."""
    if path.is_file() and path.stat().st_size:
        with path.open("rb") as stream:
            if FILE_FORMAT.encode() not in stream.read(1 << 20):
                raise ValueError(f"{path} is there already and is no prompt cache; choose another name, or delete it")


def _read_file(path: Path) -> tuple[dict[str, mx.array], dict[str, str]]:
    """The arrays and notes of a prompt cache. Raises CheckpointError for any damage."""
    try:
        read_header(path)
        loaded: Any = mx.load(str(path), format="safetensors", return_metadata=True)
        arrays, about = loaded
        mx.eval(arrays)
        whole = about.get("format") == FILE_FORMAT and about.get("digest") == _digest(arrays, about)
    except (OSError, RuntimeError, ValueError) as error:
        raise CheckpointError(f"the prompt cache {path} is damaged ({error})") from error
    if not whole:
        raise CheckpointError(f"the prompt cache {path} is damaged or of another version")
    return arrays, about
