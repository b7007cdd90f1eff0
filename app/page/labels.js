// Texts of the page that do not change with the conversation. The last part of the script: it shows the first state.

function label() {
    box.placeholder = words("say");
    for (const [place, key] of [[box, "say"], [sendButton, "send"], [stopButton, "stop"], [find(".attach"), "attach"], [latest, "latest"], [scroller, "conversation"]])
        place.setAttribute("aria-label", words(key));
    for (const place of [sendButton, stopButton, find(".attach"), latest]) place.title = place.getAttribute("aria-label");
    find(".older").textContent = words("older");
    shown.revision = null; // the messages have texts in the language, too
    list.replaceChildren();
    drawOutbox();
    drawChips();
}

/** Gradio's own names for a screen reader, which are English in every language. */
function translateNames() {
    for (const place of document.querySelectorAll('[aria-label^="number input for "], [aria-label^="range slider for "]'))
        place.setAttribute("aria-label", place.getAttribute("aria-label").replace(/^(number input|range slider) for /, ""));
    const toggles = [...document.querySelectorAll('[aria-label="Toggle Sidebar"], [data-toggles]')];
    for (const [number, place] of toggles.entries()) {
        place.dataset.toggles = "";
        const name = frame.language === "en" ? "Toggle Sidebar" : words(number ? "toggle_settings" : "toggle_list");
        if (place.getAttribute("aria-label") !== name) place.setAttribute("aria-label", name);
    }
}
let translating = 0;
new MutationObserver(() => {
    translating ||= setTimeout(() => {
        translating = 0;
        translateNames();
    }, 500);
}).observe(document.body, { subtree: true, childList: true, attributes: true, attributeFilter: ["aria-label"] });
label();
grow();
box.focus();
