"""Trains the demo model on dialogues made as it goes. About 100 minutes on two CPU cores.

- Muon for the projections, AdamW for embeddings and norms
- the learning rate warms up, stays, and falls over the last part (`--decay`) of `--minutes`; the
  state before the fall is kept (`stable.pt`), so that a longer run can start from it
- loss only on what the assistant writes; more than half of the samples end with a reply that
  thinks, which weighs more than the plain replies before it: the format has one a dialogue only
- `--resume` goes on from `state.pt`, which holds everything; it is written every few minutes
- samples are made from (seed, pool number), so a resumed run sees what it would have seen

Example: python train.py --out ~/demo --tokenizer .. --minutes 99.5 --decay 0.5
"""

import argparse
import json
import time
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random

import dialogues
import facts
import network
import render
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer

THOUGHT_SHARE = 0.6
THOUGHT_WEIGHT = 3  # of a token in a reply that thinks; 1 in others
LONGEST = 1700  # tokens; longer samples are left out
POOL = 3000  # samples made at once and sorted into batches by length
WARM_UP = 30  # steps
FLOOR = 0.02  # of the learning rate, at the end
MUON_RATE, ADAM_RATE = 0.02, 3e-3
BATCH_TOKENS = 4096


@dataclass
class Sample:
    """One rendered dialogue: token ids, and how much each weighs in the loss (0: not the model's)."""

    ids: list
    weights: list
    task: str
    lang: str
    think: bool


def sample(tokenizer, rng, split="train", **wanted):
    """A dialogue, mostly cut after its last reply, which thinks or does not."""
    example = dialogues.dialogue(rng, split, **wanted)
    replies = [index for index, turn in enumerate(example.turns) if turn["role"] == "assistant"]
    think = rng.random() < THOUGHT_SHARE
    last = rng.choice(replies + replies[-1:] * 2) if think and split == "train" else replies[-1]
    return encode(tokenizer, render.pieces(example, last, think), example.task, example.lang, think)


def encode(tokenizer, parts, task, lang, think):
    """The sample of these pieces."""
    ids, weights, thinks = [], [], False
    for (part, ours), encoding in zip(
        parts, tokenizer.encode_batch([part for part, _ in parts], add_special_tokens=False), strict=False
    ):
        ids += encoding.ids
        weights += [ours * (THOUGHT_WEIGHT if thinks else 1)] * len(encoding.ids)
        thinks = part == render.OPEN_THOUGHT
    return Sample(ids, weights, task, lang, think)


def make_batches(tokenizer, seed, pool):
    """Pool number `pool` of samples, in batches of alike lengths."""
    rng = Random(f"{seed} {pool}")
    samples = [made for made in (sample(tokenizer, rng) for _ in range(POOL)) if len(made.ids) <= LONGEST]
    samples.sort(key=lambda made: len(made.ids) + 3 * rng.random())
    batches, current = [], []
    for made in samples:
        if current and padded(len(made.ids)) * (len(current) + 1) > 1.1 * BATCH_TOKENS:
            batches.append(current)
            current = []
        current.append(made)
    batches.append(current)
    rng.shuffle(batches)
    return batches


def padded(length):
    """The length rounded up to a multiple of 8."""
    return -(-length // 8) * 8


def tensors(batch):
    """(tokens, targets, weights), all (B, L): targets are the next tokens, weights what they count for."""
    length = padded(max(len(made.ids) for made in batch))
    tokens = torch.zeros(len(batch), length, dtype=torch.long)
    weights = torch.zeros(len(batch), length)
    for row, made in enumerate(batch):
        tokens[row, : len(made.ids)] = torch.tensor(made.ids)
        weights[row, : len(made.ids) - 1] = torch.tensor(made.weights[1:])
    return tokens, tokens.roll(-1, 1), weights


def token_losses(model, hidden, targets):
    """(cross-entropy, whether the likeliest token is right) for hidden states (n, hidden) and targets (n,)."""
    logits = F.linear(hidden, model.lm_head.weight.to(hidden.dtype)).float()
    return F.cross_entropy(logits, targets, reduction="none"), logits.argmax(-1) == targets


class HeldOut:
    """Held-out samples of every task, language and mode, and how well the model would write their last replies."""

    def __init__(self, tokenizer, count, seed=99):
        rng = Random(seed)
        self.samples = []
        for task in [*dialogues.TASK_SHARES, "no_tool"]:
            for lang in facts.LANGUAGES:
                self.samples += [
                    last_reply_only(sample(tokenizer, rng, "test", task=task, lang=lang)) for _ in range(count)
                ]
        self.samples.sort(key=lambda made: len(made.ids))

    @torch.no_grad()
    def measure(self, model):
        """{key: (loss per token, share written without any error)} by task and mode, and by language."""
        totals = {}
        for start in range(0, len(self.samples), 16):
            batch = self.samples[start : start + 16]
            tokens, targets, weights = tensors(batch)
            hidden = network.hidden_states(model, tokens)
            for row, made in enumerate(batch):
                counts = weights[row] > 0
                losses, right = token_losses(model, hidden[row][counts], targets[row][counts])
                for key in (f"{made.task}{'+' if made.think else ''}", made.lang, "all"):
                    total = totals.setdefault(key, [0.0, 0, 0, 0])
                    for place, value in enumerate((losses.sum().item(), len(losses), bool(right.all()), 1)):
                        total[place] += value
        return {
            key: (round(loss / count, 4), round(right / items, 3))
            for key, (loss, count, right, items) in sorted(totals.items())
        }


def last_reply_only(made):
    """The sample with only its last reply to be written; in tool talk without a thought, its last two."""
    end = len(made.weights)
    learned = [weight > 0 for weight in made.weights]
    for _ in range(2 if made.task == "tool" and not made.think else 1):
        end -= learned[:end][::-1].index(True)  # behind the last learned token before `end`
        end -= learned[:end][::-1].index(False)  # and on to the first one of that reply
    return replace(made, weights=[weight * (place >= end) for place, weight in enumerate(made.weights)])


class Trainer:
    """The model, its optimizers, and how far they have come."""

    def __init__(self, options):
        self.options = options
        self.tokenizer = Tokenizer.from_file(str(options.tokenizer / "tokenizer.json"))
        self.config = {"demo": network.CONFIG, "draft": network.DRAFT, "all-global": network.ALL_GLOBAL}[options.model]
        self.model = network.build(options.seed, self.config)
        projections = [weight for name, weight in self.model.named_parameters() if "proj" in name]
        self.others = [weight for name, weight in self.model.named_parameters() if "proj" not in name]
        self.muon = torch.optim.Muon(projections, lr=MUON_RATE, momentum=0.95, weight_decay=0.01, ns_steps=5)
        self.adam = torch.optim.AdamW(self.others, lr=ADAM_RATE, betas=(0.9, 0.97), weight_decay=0.0)
        self.progress = {"step": 0, "tokens": 0, "learned_tokens": 0, "seconds": 0.0, "pool": 0, "batch": 0}
        self.batches = []

    def save(self, path):
        """Write the whole state, in one step."""
        state = {
            "model": self.model.state_dict(),
            "muon": self.muon.state_dict(),
            "adam": self.adam.state_dict(),
            "progress": self.progress,
            "torch_rng": torch.get_rng_state(),
            "seed": self.options.seed,
        }
        torch.save(state, path.with_suffix(".new"))
        path.with_suffix(".new").rename(path)

    def load(self, path):
        """Go on from a saved state."""
        state = torch.load(path)
        if state["seed"] != self.options.seed:
            raise ValueError(f"{path} was made with --seed {state['seed']}, not {self.options.seed}")
        self.model.load_state_dict(state["model"])
        self.muon.load_state_dict(state["muon"])
        self.adam.load_state_dict(state["adam"])
        self.progress = state["progress"]
        torch.set_rng_state(state["torch_rng"])
        if self.progress["batch"]:
            self.batches = make_batches(self.tokenizer, self.options.seed, self.progress["pool"])

    def next_batch(self):
        """The batch after the last one; pools follow each other."""
        if self.progress["batch"] >= len(self.batches):
            self.progress["pool"] += bool(self.batches)
            self.batches = make_batches(self.tokenizer, self.options.seed, self.progress["pool"])
            self.progress["batch"] = 0
        self.progress["batch"] += 1
        return self.batches[self.progress["batch"] - 1]

    def done(self):
        """The part of the run that lies behind, 0 to 1."""
        return self.progress["seconds"] / (60 * self.options.minutes)

    def rate(self):
        """The learning rate as a part of its height: warm-up, stable, linear fall."""
        warm = min(1.0, (self.progress["step"] + 1) / WARM_UP)
        return warm * min(1.0, max(FLOOR, (1 - self.done()) / self.options.decay))

    def step(self):
        """One batch: forward, backward, update. Returns its loss."""
        begin = time.monotonic()
        for optimizer, height in ((self.muon, MUON_RATE), (self.adam, ADAM_RATE)):
            for group in optimizer.param_groups:
                group["lr"] = height * self.rate()
        tokens, targets, weights = tensors(self.next_batch())
        counts = weights > 0
        losses, _ = token_losses(self.model, network.hidden_states(self.model, tokens)[counts], targets[counts])
        loss = (losses * weights[counts]).sum() / weights.sum()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.others, 1.0)
        for optimizer in (self.muon, self.adam):
            optimizer.step()
            optimizer.zero_grad()
        self.progress["step"] += 1
        self.progress["tokens"] += tokens.numel()
        self.progress["learned_tokens"] += int(counts.sum())
        self.progress["seconds"] += time.monotonic() - begin
        return loss.item()


def report(out, line):
    """One line of JSON, to the log and to the terminal."""
    with (out / "log.jsonl").open("a") as log:
        log.write(json.dumps(line) + "\n")
    print(json.dumps(line), flush=True)


def train(trainer, out, every_minutes=5):
    """Run to the end of the plan, with a state and a measurement every few minutes."""
    held_out = HeldOut(trainer.tokenizer, 10)
    kept_stable = trainer.done() > 1 - trainer.options.decay
    losses, next_save = [], time.monotonic() + 60 * every_minutes
    while trainer.done() < 1:
        if trainer.done() > 1 - trainer.options.decay and not kept_stable:
            trainer.save(out / "stable.pt")
            kept_stable = True
        losses.append(trainer.step())
        if trainer.progress["step"] % 50 == 0:
            report(
                out, {**trainer.progress, "rate": round(trainer.rate(), 3), "loss": round(sum(losses) / len(losses), 4)}
            )
            losses = []
        if time.monotonic() > next_save:
            trainer.save(out / "state.pt")
            network.export(trainer.model, out, trainer.config)
            report(out, {"step": trainer.progress["step"], "held_out": held_out.measure(trainer.model)})
            next_save = time.monotonic() + 60 * every_minutes
    trainer.save(out / "state.pt")
    network.export(trainer.model, out, trainer.config)
    report(out, {**trainer.progress, "held_out": held_out.measure(trainer.model)})


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for states, log and checkpoint")
    parser.add_argument(
        "--tokenizer", type=Path, default=Path(__file__).parent.parent, help="folder with tokenizer.json"
    )
    parser.add_argument("--minutes", type=float, default=99.5, help="training time in all, resumed parts included")
    parser.add_argument(
        "--decay", type=float, default=0.5, help="the last part of it, in which the learning rate falls"
    )
    parser.add_argument(
        "--share", action="append", default=[], metavar="TASK=NUMBER", help="change a task's share of the samples"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--model",
        choices=["demo", "draft", "all-global"],
        default="demo",
        help="the demo, the model that drafts for it, or one of the demo's size with the layout of the 1.2B",
    )
    parser.add_argument("--resume", action="store_true", help="go on from OUT/state.pt")
    options = parser.parse_args()
    for change in options.share:
        task, number = change.split("=")
        if task not in dialogues.TASK_SHARES:
            raise ValueError(f"--share {change}: the tasks are {', '.join(dialogues.TASK_SHARES)}")
        dialogues.TASK_SHARES[task] = float(number)
    torch.set_num_threads(options.threads)
    options.out.mkdir(parents=True, exist_ok=True)
    trainer = Trainer(options)
    if options.resume:
        trainer.load(options.out / "state.pt")
    train(trainer, options.out)


if __name__ == "__main__":
    main()
