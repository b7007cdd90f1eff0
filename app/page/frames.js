// What a frame changes: the reply in progress, the status, the address and the title of the page.

watch("value", () => {
    if (!props.value) return;
    const before = frame;
    frame = props.value;
    if (isLost) regain();
    if (frame.language !== before.language) label();
    if (frame.conversation !== before.conversation) changed(before);
    else if (before.fresh && !frame.fresh) {
        // its first message is there: what was typed meanwhile is no longer the draft of a new conversation
        localStorage.removeItem(draftKey(frame.conversation, frame.conversation));
        keepDraft(frame.conversation);
    }
    if (before.conversation !== null && frame.conversation !== before.conversation) trigger("changed", {});
    if (before.offered && JSON.stringify(frame.offered) !== JSON.stringify(before.offered)) trigger("offered", { before: before.offered[0] });
    showAddress();
    if (frame.status !== before.status) showStatus();
    if (before.running && !frame.running && frame.error) say(frame.error);
    drawLive();
    const running = frame.running;
    sendButton.hidden = running;
    stopButton.hidden = !running;
    scroller.setAttribute("aria-busy", running);
    welcome.hidden = frame.total > 0 || frame.live.length > 0;
    if (welcome.hidden === false) drawWelcome();
    if (frame.undo !== before.undo || frame.redo !== before.redo) markLast();
    if (frame.revision !== shown.revision || frame.conversation !== shown.conversation) refresh();
    if (!running) pump();
    bus.frame = frame;
    announce("frame");
});

let drawing = false, undrawn = false; // the reply in progress; whether a frame came meanwhile

/** Draws the reply in progress, and then pauses for as long as that took, so that the page answers to keys also when it is slow. */
function drawLive() {
    undrawn = drawing;
    if (drawing) return;
    drawing = true;
    const began = performance.now();
    draw(liveList, frame.live);
    askPanel();
    keepBottom();
    requestAnimationFrame(() => setTimeout(() => setTimeout(() => {
        drawing = false;
        if (undrawn) drawLive();
    }, performance.now() - began)));
}

/** The line below the box, a gr.HTML of its own. Its details stay open. */
function showStatus() {
    const place = document.querySelector("#status");
    const isOpen = find("details", place)?.open;
    place.innerHTML = frame.status;
    if (isOpen) find("details", place).open = true;
}

/** The address and the title of the page are those of the conversation; Back goes to the one before. */
function showAddress() {
    document.title = frame.title ? `${frame.title} · EXAONE` : "EXAONE";
    const id = frame.total ? frame.conversation : "";
    const address = new URL(window.location), old = address.searchParams.get("conversation") ?? "";
    if (id === old) return;
    id ? address.searchParams.set("conversation", id) : address.searchParams.delete("conversation");
    const moves = old && !wentBack && shown.conversation !== null && frame.conversation !== shown.conversation;
    wentBack = false;
    window.history[moves ? "pushState" : "replaceState"](null, "", address);
}

let wentBack = false; // to a conversation that may be gone: a new one then takes its place in the history
window.addEventListener("popstate", () => {
    const id = new URL(window.location).searchParams.get("conversation") ?? "";
    wentBack = id !== frame.conversation && (id !== "" || frame.total > 0);
    if (wentBack) trigger("opened", { id });
});

/**
 * Another conversation: its draft comes into the box, after what waited there when the page was loaded again. What was typed,
 * attached and sent before the first frame belongs to the conversation of that frame.
 */
function changed(before) {
    if (before.conversation !== null) keepDraft(before.conversation, before.fresh);
    const isFirst = before.conversation === null;
    const early = isFirst ? { text: box.value, files } : { text: "", files: [] };
    for (const one of [...interrupted, ...outbox]) one.conversation ??= frame.conversation;
    const waited = interrupted.filter((one) => one.conversation === frame.conversation);
    interrupted = interrupted.filter((one) => !waited.includes(one));
    const draft = localStorage.getItem(draftKey(frame.conversation));
    box.value = [...waited.map((one) => one.text), draft, early.text].filter(Boolean).join("\n");
    keepDraft(frame.conversation);
    drawOutbox();
    follows = true;
    keepFiles(() => isFirst);
    files = [...waited.flatMap((one) => one.names), ...early.files];
    drawChips();
    grow();
}
