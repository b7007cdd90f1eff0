// Keys that hold on the whole page, and the list of them. None of them works while an input method composes.

const keysDialog = find("dialog.keys");
const MAC = /Mac|iP/.test(navigator.platform);
const COMMAND = MAC ? "⌘" : "Ctrl";
/** Keys and what they do, as the list shows them. */
const KEYS = [
    ["Enter", "key_send"], ["Shift Enter", "key_line"], ["↑", "key_edit"], ["Esc", "key_stop"], [`${COMMAND} K`, "search"],
    [`${COMMAND} Shift O`, "new_chat"], ["↑ ↓ Home End", "key_list"], ["F2", "rename"], [MAC ? "⌘ ⌫" : "Delete", "delete"],
    [MAC ? "⇧ F10" : "Shift F10", "key_menu"], ["?", "keys"],
];

function showKeys() {
    const line = ([keys, text]) =>
        make("div", {}, make("dt", {}, ...keys.split(" ").map((key) => make("kbd", { textContent: key }))), make("dd", { textContent: words(text) }));
    keysDialog.setAttribute("aria-label", words("keys"));
    keysDialog.replaceChildren(
        make("div", { className: "keys-head" }, make("h2", { textContent: words("keys") }), button("close-keys", { text: "×", label: words("close"), look: "close" })),
        make("dl", {}, ...KEYS.map(line)),
    );
    keysDialog.showModal();
}
actions["close-keys"] = () => keysDialog.close();
keysDialog.addEventListener("click", (event) => event.target === keysDialog && keysDialog.close()); // beside it
bus.addEventListener("keys", showKeys);

/** Whether the key is a letter of a text. */
const isTyped = (event) => event.target.closest?.("input:not([type=checkbox], [type=radio], [type=range]), textarea, select, [contenteditable]");
/** The settings, if they are open. */
const openPanel = () => {
    const place = document.querySelector("#settings-heading")?.getBoundingClientRect();
    return place && place.width > 0 && place.left < window.innerWidth && place.right > 0;
};
/** Whether the list lies over the conversation, as on a phone. */
const listCovers = () => {
    const panel = document.querySelector("#conversations")?.getBoundingClientRect();
    return panel && panel.right > 0 && panel.width > window.innerWidth / 2;
};
/** Whether something lies over the page that Escape closes first. */
const isCovered = () => document.querySelector("dialog[open], :popover-open:not([popover=manual])") !== null;

document.addEventListener("keydown", (event) => {
    if (isComposed(event)) return;
    const command = event.metaKey || event.ctrlKey, key = event.key.toLowerCase();
    if (key === "escape" && !isCovered() && openPanel()) trigger("closed", {});
    else if (key === "escape" && !isCovered() && listCovers()) announce("fold");
    else if (key === "escape" && !isCovered() && frame.running) act("stop");
    else if (command && !event.shiftKey && key === "k") announce("search");
    else if (command && event.shiftKey && key === "o") document.querySelector("#new-chat")?.click();
    else if (event.key === "?" && !isTyped(event) && !isCovered()) showKeys();
    else return;
    event.preventDefault();
});
