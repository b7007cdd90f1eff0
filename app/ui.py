"""`build`: the page of the desktop chat. Widgets, and which action belongs to which; what they do is in `actions`."""

from __future__ import annotations

from typing import Any

import gradio as gr

from .actions import Actions
from .api import add_endpoints
from .desk import Desk
from .files import ACCEPTED
from .settings import MAX_TOKENS, recommended
from .widgets import TEXTS, THEMES, Page
from .words import LANGUAGES, WORDS, translations

#: Where the address of the page says which conversation it shows, so that it comes back when the page is loaded again.
OPENED = """(conversation, chosen, browser, width) => [
    new URLSearchParams(window.location.search).get("conversation") ?? "", chosen, document.documentElement.lang,
    window.innerWidth]"""
SHOW_ADDRESS = """(conversation) => {
    const address = new URL(window.location);
    if (conversation) address.searchParams.set("conversation", conversation);
    else address.searchParams.delete("conversation");
    window.history.replaceState(null, "", address);
}"""
APPEARANCE = """(theme) => {
    const address = new URL(window.location);
    if (theme) address.searchParams.set("__theme", theme);
    else address.searchParams.delete("__theme");
    window.location = address;
}"""
LANGUAGE = "(chosen, browser) => [chosen, document.documentElement.lang]"
FILE_NAMES = "(box) => (box?.files ?? []).map((file) => file.path).join('\\n')"
DOWNLOAD = """(file) => {
    if (!file) return;
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([file.text]));
    link.download = file.name;
    link.click();
    URL.revokeObjectURL(link.href);
}"""

LATEX: list[dict[str, str | bool]] = [
    {"left": "$$", "right": "$$", "display": True},
    {"left": r"\[", "right": r"\]", "display": True},
    {"left": r"\(", "right": r"\)", "display": False},
]
I18N = gr.I18n(**translations())


def build(desk: Desk) -> gr.Blocks:
    """The page. `launch` it with `i18n=I18N` and what `__main__.launch_options` says."""
    with gr.Blocks(analytics_enabled=False, title="EXAONE", fill_height=True) as page:
        widgets = {**_conversations(), **_settings(desk), **_chat(desk), **_unseen()}
        _connect(page, Page(**widgets), desk)
        add_endpoints(desk)
    return page


def _text(name: str) -> dict[str, Any]:
    """The texts of a widget, in the language of the browser."""
    return {what: I18N(key) for what, key in TEXTS[name].items()}


def _conversations() -> dict[str, Any]:
    """The list at the left."""
    made: dict[str, Any] = {}
    with gr.Sidebar(width=300, open=False) as made["left"]:
        made["new_chat"] = gr.Button(**_text("new_chat"), variant="primary", size="md", elem_id="new-chat")
        made["search"] = gr.Textbox(**_text("search"), show_label=False, container=False, elem_id="search")
        made["listed"] = gr.Radio([], show_label=False, container=False, visible=False, elem_id="conversations")
        made["list_hint"] = gr.Markdown(visible=False, elem_id="list-hint")
        with gr.Accordion(**_text("manage"), open=False, elem_id="manage") as made["manage"]:
            made["title"] = gr.Textbox(**_text("title"), max_lines=1, elem_id="conversation-title")
            made["rename"] = gr.Button(**_text("rename"), size="sm", elem_id="rename")
            made["export_markdown"] = gr.Button(**_text("export_markdown"), size="sm", elem_id="export-markdown")
            made["export_json"] = gr.Button(**_text("export_json"), size="sm", elem_id="export-json")
            made["delete"] = gr.Button(**_text("delete"), size="sm", elem_id="delete")
            with gr.Row(visible=False) as made["delete_row"]:
                made["delete_sure"] = gr.Button(
                    **_text("delete_sure"), variant="stop", size="sm", min_width=80, elem_id="delete-sure"
                )
                made["delete_keep"] = gr.Button(**_text("delete_keep"), size="sm", min_width=80, elem_id="delete-keep")
        made["import_"] = gr.UploadButton(
            **_text("import_"), file_types=[".json", ".md"], type="filepath", size="sm", elem_id="import"
        )
    return made


def _chat(desk: Desk) -> dict[str, Any]:
    """The conversation in the middle."""
    made: dict[str, Any] = {}
    made["chat"] = gr.Chatbot(
        show_label=False,
        container=False,
        scale=1,
        height="65vh",
        layout="bubble",
        editable="user",
        latex_delimiters=LATEX,
        allow_tags=False,
        buttons=["copy", "copy_all"],
        feedback_options=None,
        elem_id="chat",
    )
    made["status"] = gr.HTML(elem_id="status")
    made["attached"] = gr.Markdown(visible=False, elem_id="attached")
    made["box"] = gr.MultimodalTextbox(
        **_text("box"),
        show_label=False,
        container=False,
        autofocus=True,
        file_count="multiple",
        file_types=list(ACCEPTED),
        max_plain_text_length=10_000_000,  # what is pasted stays text
        max_lines=12,
        elem_id="box",
    )
    with gr.Row(elem_id="switches"):
        settings = desk.settings
        made["thinking"] = gr.Checkbox(
            settings.thinking, **_text("thinking"), container=False, min_width=100, elem_id="thinking"
        )
        made["use_tools"] = gr.Checkbox(
            settings.use_tools, **_text("use_tools"), container=False, min_width=100, elem_id="use-tools"
        )
        made["open_settings"] = gr.Button(**_text("open_settings"), size="md", min_width=100, elem_id="open-settings")
    return made


def _settings(desk: Desk) -> dict[str, Any]:
    """The settings, folded at the right."""
    settings, names = desk.settings, desk.tool_names
    temperature, top_p = recommended(settings.thinking)
    made: dict[str, Any] = {}
    with gr.Sidebar(position="right", open=False, width=340) as made["right"]:
        made["heading"] = gr.Markdown(**_text("heading"))
        made["system"] = gr.Textbox(settings.system, **_text("system"), lines=3, max_lines=8, elem_id="system")
        made["thinking_budget"] = gr.Slider(0, 4096, settings.thinking_budget, step=32, **_text("thinking_budget"))
        made["tools"] = gr.CheckboxGroup(names, value=names, **_text("tools"), elem_id="tools")
        made["ask"] = gr.Checkbox(settings.ask, **_text("ask"), elem_id="ask")
        made["max_tokens"] = gr.Slider(16, 4 * MAX_TOKENS, settings.max_tokens, step=16, **_text("max_tokens"))
        with gr.Accordion(**_text("sampling"), open=False) as made["sampling"]:
            made["sampling_hint"] = gr.Markdown(**_text("sampling_hint"))
            made["temperature"] = gr.Slider(0, 2, temperature, step=0.05, **_text("temperature"), elem_id="temperature")
            made["top_p"] = gr.Slider(0.05, 1, top_p, step=0.05, **_text("top_p"))
            made["top_k"] = gr.Slider(0, 200, 0, step=1, **_text("top_k"))
            made["min_p"] = gr.Slider(0, 1, 0, step=0.01, **_text("min_p"))
            made["presence_penalty"] = gr.Slider(-2, 2, 0, step=0.1, **_text("presence_penalty"))
            made["frequency_penalty"] = gr.Slider(-2, 2, 0, step=0.1, **_text("frequency_penalty"))
            made["repetition_penalty"] = gr.Slider(0.5, 2, 1, step=0.05, **_text("repetition_penalty"))
            made["seed"] = gr.Number(None, precision=0, minimum=0, **_text("seed"), elem_id="seed")
            made["reset"] = gr.Button(**_text("reset"), size="sm", elem_id="reset")
        made["model"] = gr.Dropdown([], allow_custom_value=True, **_text("model"), elem_id="model")
        made["context"] = gr.Number(None, precision=0, minimum=2, **_text("context"), elem_id="context")
        made["needs"] = gr.Markdown(elem_id="needs")
        made["load"] = gr.Button(**_text("load"), size="sm", elem_id="load")
        themes = [(I18N(key), value) for key, value in THEMES.items()]
        made["appearance"] = gr.Radio(themes, value="", **_text("appearance"), elem_id="appearance")
        languages = [(WORDS["automatic"][0], ""), *((name, code) for code, name in LANGUAGES.items())]
        made["language"] = gr.Dropdown(languages, value="", **_text("language"), elem_id="language")
    return made


def _unseen() -> dict[str, Any]:
    return {
        "conversation": gr.Textbox(visible=False),
        "browser_language": gr.Textbox(visible=False),
        "kept_language": gr.BrowserState("", storage_key="exaone4_mlx language", secret="exaone4_mlx"),
        "width": gr.Number(visible=False),
        "file_names": gr.Textbox(visible=False),
        "download": gr.JSON(visible=False),
    }


def _connect(blocks: gr.Blocks, page: Page, desk: Desk) -> None:
    """Which action belongs to which widget."""
    do = Actions(desk, page)
    values = page.settings
    event: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden", "concurrency_limit": None}
    quick: dict[str, Any] = event | {"queue": False}

    unseen = [page.conversation, page.kept_language, page.browser_language, page.width]
    blocks.load(do.opened, unseen, page.all, js=OPENED, **event)
    blocks.unload(do.left)
    page.conversation.change(None, [page.conversation], None, js=SHOW_ADDRESS, **event)

    page.box.submit(do.sent, [page.box, *values], page.all, **event)
    page.box.stop(do.stopped, None, None, **quick)
    page.box.change(None, [page.box], [page.file_names], js=FILE_NAMES, **event)
    page.file_names.change(do.files_changed, [page.box], [page.attached], **event)
    page.chat.example_select(do.example_chosen, values, page.all, **event)
    page.chat.option_select(do.answered, None, None, **quick)
    page.chat.retry(do.retried, values, page.all, **event)
    page.chat.edit(do.edited, values, page.all, **event)
    page.chat.undo(do.undone, None, page.all, **event)
    page.chat.clear(do.new_chat, values, page.all, **event)

    page.thinking.input(
        do.thinking_switched,
        [page.thinking, page.temperature, page.top_p],
        [page.temperature, page.top_p],
        **event,
    )
    page.reset.click(do.reset, [page.thinking], values, **event)

    page.open_settings.click(do.settings_opened, None, [page.right], **event)
    page.new_chat.click(do.new_chat, values, page.all, **event)
    page.listed.input(do.chosen, [page.listed], page.all, **event)
    page.search.input(do.searched, [page.search], page.all, trigger_mode="always_last", **event)
    gr.on([page.rename.click, page.title.submit], do.renamed, [page.title, page.search], page.all, **event)
    page.delete.click(do.delete_asked, None, page.all, **event)
    page.delete_keep.click(do.delete_kept, None, page.all, **event)
    page.delete_sure.click(do.deleted, [page.search], page.all, **event)
    for button, action in ((page.export_markdown, do.exported_markdown), (page.export_json, do.exported_json)):
        button.click(action, None, [page.download], **event).then(None, [page.download], None, js=DOWNLOAD, **event)
    page.import_.upload(do.imported, [page.import_], page.all, **event)

    gr.on(
        [page.model.change, page.context.submit, page.context.blur],
        do.model_asked,
        [page.model, page.context],
        [page.needs],
        **event,
    )
    page.load.click(do.model_chosen, [page.model, page.context], page.all, **event)
    page.appearance.input(None, [page.appearance], None, js=APPEARANCE, **event)
    page.language.input(do.language_chosen, [page.language, page.browser_language], page.all, js=LANGUAGE, **event)


CSS = """
#conversations label { width: 100% }
#status .context { display: block; opacity: 0.8 }
#status meter { width: 10em; vertical-align: middle }
#status .warning { font-weight: 600 }
"""


def theme() -> gr.Theme:
    """Quiet colours, and Gradio's own fonts, which come with it."""
    return gr.themes.Default(primary_hue="rose", neutral_hue="slate")
