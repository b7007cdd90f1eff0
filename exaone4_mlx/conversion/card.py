"""What a conversion found out -> the README.md of the converted folder, and a picture of its errors.

What is peculiar here:
- Everything in the card is for strangers: of a local origin only the folder's name is told.
- Names, paths and the source's own card are other people's text. In the YAML they stand as JSON strings, in tables
  and sentences as entities, in commands quoted.
- Weights of this architecture are EXAONE's unless their card says otherwise (`is_exaone`).
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from .plot import PLOT_NAME, finite, kind_of, measured_ones, one_line, rank

REPO_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+", re.ASCII)
LANGUAGES = ("ko", "en", "es")
MAX_FRONT_MATTER = 50_000  # characters
WORST = 5  # tensors in the table of the largest errors

EXAONE_NOTICE = (
    "The EXAONE AI Model License Agreement 1.2 - NC applies: research and education only. No commercial use of the "
    'model, of what is derived from it, or of its output. A derivative\'s name begins with "EXAONE", and the text of '
    "the licence goes with it."
)


def public_origin(origin: str) -> str:
    """What may be told of an origin: "demo", a hub id, and of a folder its name only (its path names the user).

    A snapshot in the hub's cache is told as its hub id, and a folder that happens to be called demo as "./demo".
    """
    if origin == "demo":
        return origin
    path = Path(origin).expanduser()
    if not _exists(path) and REPO_ID.fullmatch(origin):
        return origin
    if path.name in ("", ".."):
        path = path.resolve()
    if path.parent.name == "snapshots" and path.parent.parent.name.startswith("models--"):
        return path.parent.parent.name.removeprefix("models--").replace("--", "/", 1)
    if not path.name or path == Path.home():
        return "a local folder"
    return "./demo" if path.name == "demo" else path.name


def is_exaone(origin: str, card: str | None) -> bool:
    """Whether the EXAONE licence governs weights from `origin`, whose model card is `card`.

    It does for everything of this architecture, except the demo and what a card puts under another licence without
    being derived from LG's weights (by its `base_model`) or being called EXAONE.
    """
    told = public_origin(origin)
    if told == "demo":
        return False
    fields = front_matter(card or "")
    bases = [told, *_as_list(fields.get("base_model"))]
    if any(base.startswith("LGAI-EXAONE/") for base in bases) or told.rpartition("/")[2].startswith("EXAONE"):
        return True
    licences = [name for name in _as_list(fields.get("license")) if name not in ("", "other", "unknown")]
    names = licences + _as_list(fields.get("license_name"))
    return not names or any("exaone" in name.casefold() for name in names)


def front_matter(text: str) -> dict[str, str | list[str]]:
    """The scalars and lists of scalars in a card's YAML top, all as text. Whatever else stands there is left out."""
    opened = re.match(r"\ufeff?\s*---[ \t]*\r?\n(.*?)\r?\n---[ \t]*(\r?\n|$)", text[:MAX_FRONT_MATTER], re.DOTALL)
    if not opened:
        return {}
    import yaml  # type: ignore[import-untyped]  # comes with huggingface_hub

    try:
        values = yaml.load(opened[1], Loader=yaml.BaseLoader)  # BaseLoader: text, lists, mappings, nothing else
    except (yaml.YAMLError, RecursionError, ValueError):
        return {}
    found: dict[str, str | list[str]] = {}
    for key, value in values.items() if isinstance(values, dict) else ():
        scalars = value if isinstance(value, list) else [value]
        if isinstance(key, str) and all(isinstance(item, str) for item in scalars):
            found[key] = value
    return found


def model_card(
    *, name: str, origin: str, report: Mapping[str, Any], licence_files: Sequence[str], source_card: str | None
) -> str:
    """The README.md of a converted folder: YAML for the hub, then how to run it, what was done and what it cost.

    `name` is what a reader would load (a folder's name or a hub id), `report` what report.json will hold; of its
    parts only "conversion" must be there. `licence_files` are the names of the licence files in the folder.
    """
    conversion = report["conversion"]
    tensors = conversion.get("tensors") or []
    name = one_line(name) or "model"
    parts = [
        _yaml_top(origin, tensors, licence_files, source_card),
        _introduction(name, origin, conversion),
        _usage(name),
        _quantization(conversion, tensors),
        _cost(report.get("evaluation") or {}, tensors),
        _licence(origin, licence_files, source_card),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _yaml_top(origin: str, tensors: Sequence[Mapping[str, Any]], files: Sequence[str], source_card: str | None) -> str:
    told = public_origin(origin)
    bits = {tensor["bits"] for tensor in tensors if tensor.get("group_size")}
    fields: dict[str, str | list[str]] = {"library_name": "mlx", "pipeline_tag": "text-generation"}
    fields["tags"] = ["mlx", "exaone4", *(f"{width}-bit" for width in sorted(bits))]
    fields["language"] = list(LANGUAGES)
    if REPO_ID.fullmatch(told) and not told.startswith("./"):
        fields["base_model"] = told
        if bits:
            fields["base_model_relation"] = "quantized"
    fields |= _licence_fields(told, files, source_card)
    lines = []
    for key, value in fields.items():
        if isinstance(value, list):
            lines += [f"{key}:", *(f"- {json.dumps(item)}" for item in value)]
        else:
            lines.append(f"{key}: {json.dumps(value)}")
    return "\n".join(["---", *lines, "---"])


def _licence_fields(told: str, files: Sequence[str], source_card: str | None) -> dict[str, str | list[str]]:
    """The source card's own, as far as the hub would take them; LG's where LG's repository came without a card."""
    if told == "demo":
        return {"license": "mit"}
    source = front_matter(source_card or "")
    fields: dict[str, str | list[str]] = {}
    licences = [item for item in _as_list(source.get("license")) if re.fullmatch(r"[\w.+-]{1,64}", item)]
    if licences:
        fields["license"] = licences[0] if len(licences) == 1 else licences
        if name := one_line(str(source.get("license_name") or "")):
            fields["license_name"] = name[:100]
        link = one_line(str(source.get("license_link") or ""))
    elif told.startswith("LGAI-EXAONE/"):
        fields, link = {"license": "other", "license_name": "exaone"}, "LICENSE"
    else:
        return {}
    if re.fullmatch(r"https?://[^\s<>\"]+", link) or link in files:
        fields["license_link"] = link
    elif re.fullmatch(r"[\w.-]+", link) and REPO_ID.fullmatch(told):  # a file of the source that is not here
        fields["license_link"] = f"https://huggingface.co/{told}/blob/main/{link}"
    return fields


def _introduction(name: str, origin: str, conversion: Mapping[str, Any]) -> str:
    from .. import __version__

    told = public_origin(origin)
    source = _text(told)
    if told == "demo":
        source = "the demo model of exaone4_mlx, which is **not EXAONE**"
    elif REPO_ID.fullmatch(told) and not told.startswith("./"):
        source = f"[{source}](https://huggingface.co/{told})"
    form = f" ({_text(conversion['format'])})" if conversion.get("format") else ""
    return (
        f"# {_text(name.rpartition('/')[2] or name)}\n\n"
        f"Made from {source}{form} with exaone4_mlx {__version__}, for MLX on Apple silicon."
    )


def _usage(name: str) -> str:
    quoted, literal = shlex.quote(name), json.dumps(name)
    question = '"Tell me about the Miracle on the Han river."'
    return (
        "## Use\n\n"
        f"```bash\nexaone4-mlx generate --model {quoted} --prompt {question}\n"
        f"exaone4-mlx chat --model {quoted}\n```\n\n"
        "```python\nfrom exaone4_mlx import generate, load\n\n"
        f"model, tokenizer = load({literal})\nprint(generate(model, tokenizer, {question}).text)\n```\n\n"
        "The folder is laid out as mlx-lm's, which reads it too:\n\n"
        f"```bash\nmlx_lm.generate --model {quoted} --prompt {question}\n```"
    )


def _quantization(conversion: Mapping[str, Any], tensors: Sequence[Mapping[str, Any]]) -> str:
    facts = [
        ("recipe", _text(conversion.get("recipe"))),
        ("calibration", _text(conversion.get("calibrate"))),
        ("bits per weight", _number(conversion.get("bits_per_weight"), ".3f")),
        ("parameters", _number(conversion.get("parameters"), ",")),
        ("bytes", _number(conversion.get("bytes"), ",")),
        ("bytes of the source", _number(conversion.get("source_bytes"), ",")),
    ]
    text = "## Quantization\n\n" + _table(("", ""), [fact for fact in facts if fact[1]])
    groups: dict[tuple[str, str, str], list[Mapping[str, Any]]] = {}
    for tensor in sorted(tensors, key=lambda tensor: rank(kind_of(tensor["name"]))):
        groups.setdefault((kind_of(tensor["name"]).label, _text(tensor.get("bits")), _format(tensor)), []).append(
            tensor
        )
    rows = [
        (kind, bits, form, str(len(group)), f"{sum(tensor.get('bytes') or 0 for tensor in group):,}")
        for (kind, bits, form), group in groups.items()
    ]
    if rows:
        text += "\n\n" + _table(("kind of tensor", "bits", "format", "tensors", "bytes"), rows, right=(1, 3, 4))
    return text


def _format(tensor: Mapping[str, Any]) -> str:
    if not tensor.get("group_size"):
        return "not quantized"
    return f"{_text(tensor.get('mode'))}, groups of {_text(tensor['group_size'])}"


def _cost(evaluation: Mapping[str, Any], tensors: Sequence[Mapping[str, Any]]) -> str:
    """Two tables and a picture, as far as they were measured."""
    parts = []
    if rows := evaluation.get("rows"):
        parts.append(
            f"{_number(evaluation.get('documents'), ',')} texts"
            f" ({_text(public_origin(str(evaluation.get('data') or 'built in')))}), "
            f"compared with {_text(public_origin(str(evaluation.get('reference') or 'the source')))}, "
            "token by token over the whole vocabulary. KL is in nats; a perplexity ratio of 1 is no loss."
        )
        heads = ("text", "tokens", "mean KL", "99th percentile", "top-1 agreement", "perplexity", "of the reference")
        parts.append(_table((*heads, "ratio (95 %)"), [_evaluation_row(row) for row in rows], right=range(1, 8)))
    if measured := measured_ones(tensors):
        worst = sorted(measured, key=lambda tensor: -tensor["relative_error"])[:WORST]
        parts.append(
            f"![Relative error of every tensor]({PLOT_NAME})\n\n"
            "The largest errors, of the weights themselves against the source "
            "(root of the sum of squares, relative; signal to noise in decibels):"
        )
        cells = [
            (
                _text(tensor["name"]),
                _text(tensor.get("bits")),
                f"{100 * tensor['relative_error']:.2f} %",
                _number(tensor.get("sqnr_db"), ".1f") or "–",
            )
            for tensor in worst
        ]
        parts.append(_table(("tensor", "bits", "relative error", "SQNR, dB"), cells, right=(1, 2, 3)))
    return "\n\n".join(["## What it cost", *parts]) if parts else ""


def _evaluation_row(row: Mapping[str, Any]) -> tuple[str, ...]:
    low, high = (_number(row.get(f"perplexity_ratio_{end}"), ".4f") for end in ("low", "high"))
    agreement: Any = row.get("top1_agreement")
    return (
        _text(row.get("kind")),
        _number(row.get("tokens"), ","),
        _number(row.get("mean_kl"), ".4f"),
        _number(row.get("p99_kl"), ".3f"),
        f"{100 * agreement:.2f} %" if finite(agreement) else "",
        _number(row.get("perplexity"), ".3f"),
        _number(row.get("reference_perplexity"), ".3f"),
        _number(row.get("perplexity_ratio"), ".4f") + (f" ({low} to {high})" if low and high else ""),
    )


def _licence(origin: str, files: Sequence[str], source_card: str | None) -> str:
    told = public_origin(origin)
    if told == "demo":
        return "## Licence\n\nMIT. This is not EXAONE and has nothing of LG AI Research's in it."
    text = "The licence of the original weights applies to these too."
    if is_exaone(origin, source_card):
        text += f" {EXAONE_NOTICE}"
    if files:
        text += " The text is in " + ", ".join(_text(file) for file in files) + "."
    return f"## Licence\n\n{text}"


# --- other people's text --------------------------------------------------------


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]], right: Iterable[int] = ()) -> str:
    rule = ["---:" if column in set(right) else "---" for column in range(len(heads))]
    return "\n".join("| " + " | ".join(row) + " |" for row in (heads, rule, *rows))


def _text(value: object) -> str:
    """As a cell or in a sentence: one line in which nothing is markup. None is nothing."""
    line = "" if value is None else one_line(str(value))
    return re.sub(r"[\\`*\[\]<>|&#~$]", lambda mark: f"&#{ord(mark[0])};", line)


def _number(value: object, form: str) -> str:
    return format(value, form) if finite(value) else ""


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):  # too long, or with a null byte
        return False


def _as_list(value: str | list[str] | None) -> list[str]:
    return [] if value is None else [value] if isinstance(value, str) else value
