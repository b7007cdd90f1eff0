"""`build`: the page of the desktop chat. It makes the widgets and connects each to its action in `actions`."""

from __future__ import annotations

from typing import Any

import gradio as gr

from exaone4_mlx.files.attachments import ACCEPTED, MAX_FILE_BYTES

from .actions import Actions
from .api import add_endpoints
from .i18n import EXAMPLES, Words, translations
from .model_actions import LICENCE, LICENCE_LINK
from .settings import MAX_TOKENS, recommended
from .state import AppState
from .theme import LIST_SCRIPT, MODELS_SCRIPT, diagram_engine, page_template, script
from .widgets import TEXTS, THEMES, Page, languages

#: The address of the page names its conversation, so that a reload shows it again.
OPENED = """(conversation, chosen, browser, width, theme, kept) => [
    new URLSearchParams(window.location.search).get("conversation") ?? "", chosen, document.documentElement.lang,
    window.innerWidth, localStorage.getItem("exaone4_mlx theme") ?? "", kept]"""
APPEARANCE = """(theme) => {
    localStorage.setItem("exaone4_mlx theme", theme);
    window.dispatchEvent(new Event("storage"));
}"""
WIDTH = "() => [window.innerWidth]"
LANGUAGE = "(chosen, browser) => [chosen, document.documentElement.lang]"
I18N = gr.I18n(**translations())


def build(state: AppState) -> gr.Blocks:
    """The page. `launch` it with `i18n=I18N` and what `server.launch_options` says."""
    with gr.Blocks(analytics_enabled=False, title="EXAONE", fill_height=True, delete_cache=(3600, 86400)) as page:
        do = Actions(state)
        widgets = {**_conversations(do), **_settings(state), **_chat(state, do), **_unseen()}
        do.page = Page(**widgets)
        _connect(page, do)
        add_endpoints(state)
    return page


def _text(name: str) -> dict[str, Any]:
    """The texts of a widget, in the language of the browser."""
    return {what: I18N(key) for what, key in TEXTS[name].items()}


def _conversations(do: Actions) -> dict[str, Any]:
    """The list at the left."""

    def conversations(wanted: dict[str, Any]) -> dict[str, Any]:  # a function, because Gradio marks it
        return do.conversations(wanted)

    made: dict[str, Any] = {}
    with gr.Sidebar(width=300, open=False) as made["left"]:
        made["listed"] = gr.HTML(
            None,
            texts=translations(),
            html_template=page_template("list"),
            js_on_load=script(LIST_SCRIPT),
            server_functions=[conversations],
            apply_default_css=False,
            elem_id="conversations",
            elem_classes="own",
        )
    return made


def _chat(state: AppState, do: Actions) -> dict[str, Any]:
    """The conversation in the middle."""

    def history(wanted: dict[str, Any]) -> dict[str, Any]:  # a function, because Gradio marks it
        return do.history(wanted)

    def read(wanted: dict[str, Any]) -> dict[str, Any]:
        return do.read(wanted)

    def diagrams(_: Any) -> str:
        return diagram_engine()

    def models(wanted: dict[str, Any]) -> dict[str, Any]:
        return do.models(wanted)

    made: dict[str, Any] = {}
    made["models"] = gr.HTML(
        None,
        texts=translations(),
        licence=[LICENCE, LICENCE_LINK],
        padding=False,
        html_template=page_template("models"),
        js_on_load=script(MODELS_SCRIPT),
        server_functions=[models],
        apply_default_css=False,
        elem_id="models",
        elem_classes="own",
    )
    made["chat"] = gr.HTML(
        None,
        answer=None,
        texts=translations(),
        examples={code: [text for text, _, _ in found] for code, found in EXAMPLES.items()},
        suffixes=sorted(ACCEPTED),
        most_bytes=MAX_FILE_BYTES,
        html_template=page_template(),
        js_on_load=script(),
        server_functions=[history, read, diagrams],
        apply_default_css=False,
        padding=False,
        elem_id="chat",
        elem_classes="own",
    )
    with gr.Row(elem_id="switches"):
        settings = state.settings
        small: dict[str, Any] = {"scale": 0, "min_width": 80}
        made["thinking"] = gr.Checkbox(
            settings.thinking, **_text("thinking"), container=False, elem_id="thinking", **small
        )
        made["use_tools"] = gr.Checkbox(
            settings.use_tools, **_text("use_tools"), container=False, elem_id="use-tools", **small
        )
        gr.HTML(
            elem_id="status", elem_classes="own", apply_default_css=False, padding=False
        )  # the script of the chat fills it
        made["open_settings"] = gr.Button(**_text("open_settings"), size="md", elem_id="open-settings", **small)
    return made


def _settings(state: AppState) -> dict[str, Any]:
    """The settings, folded at the right."""
    settings, names = state.settings, state.tool_names
    temperature, top_p = recommended(settings.thinking)
    made: dict[str, Any] = {}
    with gr.Sidebar(position="right", open=False, width=340) as made["right"]:
        made["heading"] = gr.Markdown(**_text("heading"), elem_id="settings-heading")
        made["system"] = gr.Textbox(settings.system, **_text("system"), lines=3, max_lines=8, elem_id="system")
        made["thinking_budget"] = _slider("thinking_budget", 0, 4096, settings.thinking_budget, 32)
        made["tools"] = gr.CheckboxGroup(names, value=names, **_text("tools"), elem_id="tools")
        servers = [(f"{name}: {server.config.text}", name) for name, server in state.servers.items()]
        made["servers"] = gr.CheckboxGroup(servers, visible=bool(servers), **_text("servers"), elem_id="servers")
        made["ask"] = gr.Checkbox(settings.ask, **_text("ask"), elem_id="ask")
        made["always"] = gr.CheckboxGroup([], visible=False, **_text("always"), elem_id="always")
        made["max_tokens"] = _slider("max_tokens", 16, 4 * MAX_TOKENS, settings.max_tokens, 16)
        made["titles"] = gr.Checkbox(settings.titles, **_text("titles"), elem_id="titles")
        with gr.Accordion(**_text("sampling"), open=False, elem_id="sampling") as made["sampling"]:
            made["sampling_hint"] = gr.Markdown(**_text("sampling_hint"))
            made["temperature"] = _slider("temperature", 0, 2, temperature, 0.05)
            made["top_p"] = _slider("top_p", 0.05, 1, top_p, 0.05)
            made["top_k"] = _slider("top_k", 0, 200, 0, 1)
            made["min_p"] = _slider("min_p", 0, 1, 0, 0.01)
            made["presence_penalty"] = _slider("presence_penalty", -2, 2, 0, 0.1)
            made["frequency_penalty"] = _slider("frequency_penalty", -2, 2, 0, 0.1)
            made["repetition_penalty"] = _slider("repetition_penalty", 0.5, 2, 1, 0.05)
            made["seed"] = gr.Number(None, precision=0, minimum=0, **_text("seed"), elem_id="seed")
            made["reset"] = gr.Button(**_text("reset"), size="sm", elem_id="reset")
        themes = [(I18N(key), value) for key, value in THEMES.items()]
        made["appearance"] = gr.Radio(themes, value="", **_text("appearance"), elem_id="appearance")
        made["language"] = gr.Dropdown(languages(Words("en")), value="", **_text("language"), elem_id="language")
        api = gr.Button("API", size="sm", elem_id="api")
        api.click(None, js="() => document.querySelector('footer button').click()", api_visibility="private")
    return made


def _slider(name: str, lowest: float, highest: float, value: float, step: float) -> gr.Slider:
    id = name.replace("_", "-")
    return gr.Slider(lowest, highest, value, step=step, **_text(name), buttons=[], elem_id=id)


def _unseen() -> dict[str, Any]:
    return {
        "conversation": gr.Textbox(visible=False),
        "browser_language": gr.Textbox(visible=False),
        "kept_language": gr.BrowserState("", storage_key="exaone4_mlx language", secret="exaone4_mlx"),
        "kept_settings": gr.BrowserState({}, storage_key="exaone4_mlx settings", secret="exaone4_mlx"),
        "width": gr.Number(visible=False),
    }


def _connect(blocks: gr.Blocks, do: Actions) -> None:
    """Which action belongs to which widget."""
    page = do.page
    values = [*page.settings, page.conversation]
    event: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden", "concurrency_limit": None}
    quick: dict[str, Any] = event | {"queue": False}

    unseen = [
        page.conversation,
        page.kept_language,
        page.browser_language,
        page.width,
        page.appearance,
        page.kept_settings,
    ]
    blocks.load(do.opened, unseen, page.all, js=OPENED, **event).then(do.followed, None, [page.chat], **event)
    page.chat.changed(do.changed, None, page.all, trigger_mode="always_last", **event)
    blocks.unload(do.left)

    page.chat.act(
        do.acted,
        values,
        [page.chat, page.thinking, page.use_tools, page.always, page.kept_settings],
        trigger_mode="multiple",
        **quick,
    )

    page.thinking.input(
        do.thinking_switched,
        [page.thinking, page.temperature, page.top_p],
        [page.temperature, page.top_p],
        **event,
    )
    page.reset.click(do.reset, [page.thinking], page.settings, **event)

    page.servers.input(do.servers_switched, [page.servers], [page.servers, page.use_tools], **event)
    page.chat.offered(do.tools_offered, [page.tools], [page.servers, page.tools], **event)
    page.always.input(do.always_changed, [page.always], [page.always], **event)
    page.chat.closed(lambda: gr.Sidebar(open=False), None, [page.right], **event)
    page.listed.folded(lambda: gr.Sidebar(open=False), None, [page.left], **event)
    panels: dict[str, Any] = {"inputs": [page.width], "outputs": [page.left, page.right], "js": WIDTH}
    for opens in (page.open_settings.click, page.right.expand):
        opens(do.right_opened, **panels, **event)
    for opens in (page.listed.wanted, page.left.expand):
        opens(do.left_opened, **panels, **event)
    page.listed.fresh(do.new_chat, values, page.all, **event)
    page.listed.chosen(do.chosen, None, page.all, **event)
    page.chat.opened(do.chosen, None, page.all, **event)

    page.appearance.input(None, [page.appearance], None, js=APPEARANCE, **event)
    page.language.input(do.language_chosen, [page.language, page.browser_language], page.all, js=LANGUAGE, **event)
