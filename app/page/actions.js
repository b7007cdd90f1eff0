// What the buttons in the conversation do. A button names its action in `data-do`.

const act = (what, more = {}) =>
    trigger("act", { what, conversation: frame.conversation, revision: shown.revision, ...more });

const actions = {
    copy: (button, item) => copy(item.source, button),
    "copy-code": (button) => copy(find("code", button.closest(".code")).textContent.replace(/\n$/, ""), button),
    "show-code": (button) => button.closest(".code").classList.toggle("drawn"),
    preview: (button) => preview(button.closest(".code")),
    edit: (button, item) => edit(item),
    retry: (button, item) => act("retry", { turn: Number(item.dataset.turn) }),
    continue: (button, item) => act("continue", { turn: Number(item.dataset.turn) }),
    undo: () => act("undo"),
    redo: () => act("redo"),
    "version-before": (button) => turnOver(button.parentElement, -1),
    "version-after": (button) => turnOver(button.parentElement, 1),
    details: (button, item) => showDetails(button, item),
    answer: (button) => answer(button),
    example: (button) => {
        act("example", { text: button.textContent });
        backToBox();
    },
    older: () => refresh(Math.max(0, shown.start - PAGE)),
    stop: () => {
        act("stop");
        backToBox();
    },
    "drop-file": (button) => {
        keepFiles((file) => `${file.id}` !== button.dataset.id);
        say("");
        drawChips();
    },
    "take-back": (button) => {
        const taken = outbox.find((one) => `${one.id}` === button.dataset.id);
        outbox = outbox.filter((one) => one !== taken);
        if (taken) putBack(taken);
        drawOutbox();
    },
    attach: () => picker.click(),
    save: (button, item) => find(".editing", item).save("edit"),
    "save-reply": (button, item) => find(".editing", item).save("save-reply"),
    "save-continue": (button, item) => find(".editing", item).save("continue"),
    cancel: (button, item) => find(".editing", item).close(),
};

element.addEventListener("click", (event) => {
    const button = event.target.closest("[data-do]");
    if (button) actions[button.dataset.do]?.(button, button.closest(".item"));
    const note = event.target.closest('a[href^="#"]'); // a footnote: the address of the page stays
    if (note) {
        event.preventDefault();
        find(`[id="${CSS.escape(note.hash.slice(1))}"]`)?.scrollIntoView({ block: "center" });
    }
    const summary = event.target.closest("summary");
    if (summary) summary.parentElement.dataset.touched = "yes";
});

async function copy(text, button) {
    try {
        await navigator.clipboard.writeText(text);
    } catch {
        const area = make("textarea", { value: text });
        document.body.append(area);
        area.select();
        document.execCommand("copy");
        area.remove();
    }
    button.classList.add("done");
    setTimeout(() => button.classList.remove("done"), 1200);
}

/** The document of a code block in a frame without network, scripts' origin or access to this page. */
function preview(code) {
    const there = find("iframe", code);
    if (there) return there.remove();
    const policy = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:";
    const source = `<!doctype html><meta http-equiv="Content-Security-Policy" content="${policy}">${find("code", code).textContent}`;
    const made = make("iframe", { srcdoc: source, title: words("preview") });
    made.setAttribute("sandbox", "allow-scripts");
    code.append(made);
}

/** The text of a message in a box of its own. A message of the user is sent; a reply is kept, or the model goes on from it. */
function edit(item) {
    if (find(".editing", item)) return;
    const area = make("textarea", { className: "field", value: item.source });
    const close = () => {
        form.remove();
        find(".parts", item).hidden = false;
        box.focus();
    };
    const isReply = item.classList.contains("assistant");
    area.setAttribute("aria-label", words(isReply ? "edit_reply" : "edit"));
    const save = (what) => {
        if (!area.value.trim()) return area.focus();
        close();
        if (what === "continue" || area.value !== item.source) act(what, { turn: Number(item.dataset.turn), text: area.value });
    };
    const buttons = isReply
        ? [button("save-reply", { text: words("save_reply"), look: "primary" }), button("save-continue", { text: words("save_continue"), look: "secondary" })]
        : [button("save", { text: words("save"), look: "primary" })];
    const form = make("div", { className: "editing" }, area, ...buttons, button("cancel", { text: words("cancel"), look: "secondary" }));
    Object.assign(form, { save, close });
    area.onkeydown = (event) => {
        if (isComposed(event)) return;
        if (event.key === "Escape") {
            event.stopPropagation(); // a reply under way goes on
            close();
        }
        if (event.key === "Enter" && (event.metaKey || event.ctrlKey)) save(isReply ? "save-reply" : "edit");
    };
    find(".parts", item).hidden = true;
    item.insertBefore(form, find(".actions", item));
    area.style.height = `${Math.min(area.scrollHeight + 4, window.innerHeight / 2)}px`;
    area.focus();
}
