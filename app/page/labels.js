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
label();
grow();
box.focus();
