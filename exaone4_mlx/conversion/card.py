"""The report of a conversion -> the model card, README.md of the converted folder.

Notes:
- The card is public: it names a local source only by the name of its folder.
- Names, paths and the source's card are untrusted text. They are JSON strings in the YAML, HTML entities in tables
  and sentences, and quoted in commands.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from .licence import EXAONE_NOTICE, REPO_ID, is_exaone, licence_fields, one_line, public_origin
from .plot import PLOT_NAME, TENSOR_KINDS, TensorKind, is_finite, kind_of, measured_tensors

LANGUAGES = ("ko", "en", "es")
UNNAMED = "a model that is not named"
LARGEST_ERRORS = 5  # tensors in the table of errors


def model_card(
    *,
    name: str,
    origin: str,
    report: Mapping[str, Any],
    licence_files: Sequence[str],
    source_card: str | None,
    has_plot: bool = False,
) -> str:
    """The README.md of a converted folder: YAML header for the hub, usage, quantization, quality, licence.

    `name` is what a reader loads (a folder's name or a hub id). `report` is the content of report.json; only its
    "conversion" is required. `licence_files` are the names of the licence files in the folder. `has_plot` says that
    the folder has the picture of the errors.
    """
    conversion = report["conversion"]
    tensors = conversion.get("tensors") or []
    name = one_line(name) or "model"
    parts = [
        _yaml_header(origin, conversion, licence_files, source_card),
        _introduction(name, origin, conversion),
        _usage(name),
        _quantization(conversion, tensors),
        _quality(report.get("evaluation") or {}, tensors, has_plot),
        _licence(origin, licence_files, source_card),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def adapter_card(
    name: str,
    origin: str | None,
    adapter: Mapping[str, Any],
    layout: str,
    licence_files: Sequence[str] = (),
    source_card: str | None = None,
    training: Sequence[str] = (),
) -> str:
    """The README.md of an adapter of the model `origin`. `adapter` has its type, rank and scale.

    `training` are paragraphs about how it was trained.
    """
    name, origin, model = one_line(name), origin or UNNAMED, public_origin(origin) if origin else "MODEL"
    source, named = public_origin(origin), f"--model {shlex.quote(model)} --adapter-path {shlex.quote(name)}"
    fields: dict[str, str | list[str]] = {"library_name": "peft" if layout == "peft" else "mlx"}
    fields |= {"tags": [str(adapter["type"]), "exaone4"], **_base_model(source, "adapter")}
    facts = [(key, _text(value)) for key, value in adapter.items() if key != "name"]
    parts = [
        _yaml(fields | licence_fields(source, licence_files, source_card)),
        f"# {_text(name)}\n\nAn adapter of {_source(source)}, in the format of {layout}.",
        _table(("", ""), facts),
        f"```bash\nexaone4-mlx generate {named} --prompt Hello\n```",
        *training,
        _licence(origin, licence_files, source_card),
    ]
    return "\n\n".join(parts) + "\n"


def _yaml_header(origin: str, conversion: Mapping[str, Any], files: Sequence[str], source_card: str | None) -> str:
    source, tensors = public_origin(origin), conversion.get("tensors") or []
    bits = {tensor["bits"] for tensor in tensors if tensor.get("group_size")}
    fields: dict[str, str | list[str]] = {"library_name": "mlx", "pipeline_tag": "text-generation"}
    fields["tags"] = ["mlx", "exaone4", *(f"{width}-bit" for width in sorted(bits))]
    fields["language"] = list(LANGUAGES)
    relation = "finetune" if conversion.get("adapters") else "quantized" if bits else ""
    return _yaml(fields | _base_model(source, relation) | licence_fields(source, files, source_card))


def _base_model(source: str, relation: str) -> dict[str, str]:
    """The fields of the hub about the base, if it is on the hub."""
    if not REPO_ID.fullmatch(source) or source.startswith("./"):
        return {}
    return {"base_model": source} | ({"base_model_relation": relation} if relation else {})


def _yaml(fields: Mapping[str, str | list[str]]) -> str:
    lines = []
    for key, value in fields.items():
        if isinstance(value, list):
            lines += [f"{key}:", *(f"- {json.dumps(item)}" for item in value)]
        else:
            lines.append(f"{key}: {json.dumps(value)}")
    return "\n".join(["---", *lines, "---"])


def _introduction(name: str, origin: str, conversion: Mapping[str, Any]) -> str:
    from .. import __version__

    source = _source(public_origin(origin))
    form = f" ({_text(conversion['format'])})" if conversion.get("format") else ""
    return (
        f"# {_text(name.rpartition('/')[2] or name)}\n\n"
        f"Converted from {source}{form} with exaone4_mlx {__version__}, for MLX on Apple silicon."
        f"{_adapters(conversion.get('adapters') or [])}"
    )


def _source(public: str) -> str:
    """The base of a model, as a part of a sentence."""
    if public == "demo":
        return "the demo model of exaone4_mlx, which is **not EXAONE**"
    if REPO_ID.fullmatch(public) and not public.startswith("./"):
        return f"[{_text(public)}](https://huggingface.co/{public})"
    return _text(public)


def _adapters(adapters: Sequence[Mapping[str, Any]]) -> str:
    """The sentence about the adapters that are fused into the weights."""
    named = [
        f"{_text(one.get('name'))} ({_text(one.get('type'))}, scale {_number(one.get('scale'), 'g')})"
        for one in adapters
    ]
    return f" The weights have adapters fused into them: {', '.join(named)}." if named else ""


def _usage(name: str) -> str:
    quoted, literal = shlex.quote(name), json.dumps(name, ensure_ascii=False)
    question = '"Tell me about the Miracle on the Han river."'
    return (
        "## Use\n\n"
        f"```bash\nexaone4-mlx generate --model {quoted} --prompt {question}\n"
        f"exaone4-mlx chat --model {quoted}\n```\n\n"
        "```python\nfrom exaone4_mlx import generate, load\n\n"
        f"model, tokenizer = load({literal})\nprint(generate(model, tokenizer, {question}).text)\n```\n\n"
        "The folder has mlx-lm's layout, so mlx-lm reads it too:\n\n"
        f"```bash\nmlx_lm.generate --model {quoted} --prompt {question}\n```"
    )


def _quantization(conversion: Mapping[str, Any], tensors: Sequence[Mapping[str, Any]]) -> str:
    facts = [
        ("recipe", _text(conversion.get("recipe"))),
        (
            "calibration",
            _text(conversion.get("calibrate"))
            + (f", on {samples} of the texts" if (samples := _number(conversion.get("num_samples"), "d")) else "")
            + ", also on the model's own chats" * bool(conversion.get("chats"))
            + ", on other texts than the package's" * bool(conversion.get("given_texts")),
        ),
        ("bits per weight", _number(conversion.get("bits_per_weight"), ".3f")),
        ("parameters", _number(conversion.get("parameters"), ",")),
        ("bytes", _number(conversion.get("bytes"), ",")),
        ("bytes of the source", _number(conversion.get("source_bytes"), ",")),
    ]
    text = "## Quantization\n\n" + _table(("", ""), [fact for fact in facts if fact[1]])
    groups: dict[tuple[TensorKind, str, str], list[int]] = {}
    for tensor in sorted(tensors, key=lambda tensor: TENSOR_KINDS.index(kind_of(tensor["name"]))):
        form = "not quantized"
        if tensor.get("group_size"):
            form = f"{_text(tensor.get('mode'))}, groups of {_text(tensor['group_size'])}"
        group = (kind_of(tensor["name"]), _text(tensor.get("bits")), form)
        groups.setdefault(group, []).append(tensor.get("bytes") or 0)
    rows = [
        (kind.label, bits, form, str(len(sizes)), f"{sum(sizes):,}") for (kind, bits, form), sizes in groups.items()
    ]
    if rows:
        text += "\n\n" + _table(("kind of tensor", "bits", "format", "tensors", "bytes"), rows, right=(1, 3, 4))
    return text


def _quality(evaluation: Mapping[str, Any], tensors: Sequence[Mapping[str, Any]], has_plot: bool) -> str:
    """The tables of the evaluation and of the largest errors, and the picture, as far as they exist."""
    parts = []
    if rows := evaluation.get("rows"):
        parts.append(
            f"{_number(evaluation.get('documents'), ',')} texts"
            f" ({_text(public_origin(str(evaluation.get('data') or 'built in')))}), "
            f"compared with {_text(public_origin(str(evaluation.get('reference') or 'the source')))} at every token, "
            "over the whole vocabulary. KL is in nats. A perplexity ratio of 1 means no loss."
        )
        heads = ("text", "tokens", "mean KL", "99th percentile", "top-1 agreement", "perplexity", "reference")
        parts.append(_table((*heads, "ratio (95 %)"), [_evaluation_row(row) for row in rows], right=range(1, 8)))
    if measured := measured_tensors(tensors):
        worst = sorted(measured, key=lambda tensor: -tensor["relative_error"])[:LARGEST_ERRORS]
        if has_plot:
            parts.append(f"![Relative error of every tensor]({PLOT_NAME})")
        parts.append(
            "The weights with the largest relative error (norm of the difference / norm of the source), and their "
            "signal-to-quantization-noise ratio (SQNR) in decibels:"
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
    return "\n\n".join(["## Quality", *parts]) if parts else ""


def _evaluation_row(row: Mapping[str, Any]) -> tuple[str, ...]:
    low, high = (_number(row.get(f"perplexity_ratio_{end}"), ".4f") for end in ("low", "high"))
    agreement: Any = row.get("top1_agreement")
    return (
        _text(row.get("kind")),
        _number(row.get("tokens"), ","),
        _number(row.get("mean_kl"), ".4f"),
        _number(row.get("p99_kl"), ".3f"),
        f"{100 * agreement:.2f} %" if is_finite(agreement) else "",
        _number(row.get("perplexity"), ".3f"),
        _number(row.get("reference_perplexity"), ".3f"),
        _number(row.get("perplexity_ratio"), ".4f") + (f" ({low} to {high})" if low and high else " (–)"),
    )


def _licence(origin: str, files: Sequence[str], source_card: str | None) -> str:
    if public_origin(origin) == "demo":
        return "## Licence\n\nMIT. This is not EXAONE and contains nothing from LG AI Research."
    text = "The licence of the original weights applies to these too."
    if is_exaone(origin, source_card):
        text += f" {EXAONE_NOTICE}"
    if files:
        text += " The text is in " + ", ".join(_text(file) for file in files) + "."
    return f"## Licence\n\n{text}"


# --- untrusted text -----------------------------------------------------------


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]], right: Iterable[int] = ()) -> str:
    rule = ["---:" if column in set(right) else "---" for column in range(len(heads))]
    return "\n".join("| " + " | ".join(row) + " |" for row in (heads, rule, *rows))


def _text(value: object) -> str:
    """A table cell or a part of a sentence: one line without markup. None becomes ""."""
    line = "" if value is None else one_line(str(value))
    return re.sub(r"[\\`*\[\]<>|&#~$]", lambda mark: f"&#{ord(mark[0])};", line)


def _number(value: object, form: str) -> str:
    return format(value, form) if is_finite(value) else ""
