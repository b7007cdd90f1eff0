// The conversation and the box below it. Gradio's gr.HTML runs this once, with `element`, `props`, `watch`, `trigger`,
// `server` and `upload`.
//
// The server sends frames: which conversation and revision a tab shows, and the reply in progress. Finished messages are
// fetched when the revision changes, and only those that the page does not have; older ones when the user scrolls up.
// A frame that is lost does no harm: the next one holds the whole reply.

const PAGE = 30; // older messages that are fetched at once
const find = (selector, within = element) => within.querySelector(selector);
const make = (tag, options = {}, ...children) => {
    const made = Object.assign(document.createElement(tag), options);
    made.append(...children);
    return made;
};
const scroller = find(".scroller"), list = find(".items"), liveList = find(".live"), welcome = find(".welcome");
const box = find("textarea"), sendButton = find(".send"), stopButton = find(".stop"), chips = find(".chips");
const outboxList = find(".outbox"), notice = find(".notice"), latest = find(".latest"), picker = find("input[type=file]");

let frame = { conversation: null, revision: null, running: false, asking: 0, live: [], language: "en" };
let shown = { conversation: null, revision: null, start: 0, total: 0 };
let fetching = false, follows = true, serial = 0;
let files = []; // of the next message: {name, path, tokens, error}
let outbox = []; // messages that wait for the end of a reply: {id, text, files, conversation, sent}
const WAITING = "exaone4_mlx waiting"; // the texts of the outbox, which come back into the box after a reload
let interrupted = JSON.parse(sessionStorage.getItem(WAITING) ?? "[]");

const words = (key, values = {}) =>
    (props.texts[frame.language]?.[key] ?? key).replace(/\{(\w+)\}/g, (whole, name) => values[name] ?? whole);

// --- the conversation ------------------------------------------------------------

watch("value", () => {
    if (!props.value) return;
    const before = frame;
    frame = props.value;
    if (frame.language !== before.language) label();
    if (frame.conversation !== before.conversation) changed(before);
    else if (before.fresh && !frame.fresh) {
        // its first message is there: what was typed meanwhile is no longer the draft of a new conversation
        localStorage.removeItem(draftKey(frame.conversation, frame.conversation));
        keepDraft(frame.conversation);
    }
    const names = (one) => `${one.conversation} ${one.title} ${one.running} ${one.revision}`;
    if (before.conversation !== null && names(frame) !== names(before)) trigger("changed", {});
    showAddress();
    if (frame.status !== before.status) find("#status").innerHTML = frame.status;
    if (before.running && !frame.running && frame.error) say(frame.error);
    draw(liveList, frame.live);
    askPanel();
    const running = frame.running;
    sendButton.hidden = running;
    stopButton.hidden = !running;
    scroller.setAttribute("aria-busy", running);
    welcome.hidden = frame.total > 0 || frame.live.length > 0;
    if (welcome.hidden === false) drawWelcome();
    keepBottom();
    if (frame.revision !== shown.revision || frame.conversation !== shown.conversation) refresh();
    if (!running) pump();
});

/** The address and the title of the page are those of the conversation; Back goes to the one before. */
function showAddress() {
    document.title = frame.title ? `${frame.title} · EXAONE` : "EXAONE";
    const id = frame.total ? frame.conversation : "";
    const address = new URL(window.location), old = address.searchParams.get("conversation") ?? "";
    if (id === old) return;
    id ? address.searchParams.set("conversation", id) : address.searchParams.delete("conversation");
    const moves = old && shown.conversation !== null && frame.conversation !== shown.conversation;
    window.history[moves ? "pushState" : "replaceState"](null, "", address);
}

window.addEventListener("popstate", () => {
    const id = new URL(window.location).searchParams.get("conversation") ?? "";
    if (id !== frame.conversation) trigger("opened", { id });
});

/** Another conversation: its draft comes into the box, after what waited there when the page was loaded again. */
function changed(before) {
    if (before.conversation !== null) keepDraft(before.conversation, before.fresh);
    const waited = interrupted.filter((one) => one.conversation === frame.conversation);
    interrupted = interrupted.filter((one) => !waited.includes(one));
    const draft = localStorage.getItem(draftKey(frame.conversation));
    box.value = [...waited.map((one) => one.text), ...(draft ? [draft] : [])].join("\n");
    keepDraft(frame.conversation);
    drawOutbox();
    follows = true;
    files = [];
    drawChips();
    grow();
}

/** Fetches the finished messages that the page does not have. The reply in progress is replaced at the same moment. */
async function refresh() {
    if (fetching) return;
    fetching = true;
    try {
        const same = frame.conversation === shown.conversation;
        await load(same ? shown.start : null, same);
    } catch {
        await new Promise((done) => setTimeout(done, 1000)); // no connection: the page tries again
    }
    fetching = false;
    if (frame.revision !== shown.revision || frame.conversation !== shown.conversation) refresh();
}

async function load(start, keepsPlace) {
    const wanted = { tab: frame.tab, conversation: frame.conversation, language: frame.language, start };
    wanted.known = keepsPlace ? [...list.children].map((item) => item.dataset.key) : [];
    const answer = await server.history(wanted);
    if (!answer) throw new Error("the server does not answer");
    if (answer.conversation !== frame.conversation) return; // the next frame says which one it is
    const old = new Map([...list.children].map((item) => [item.dataset.key, item]));
    const height = scroller.scrollHeight - scroller.scrollTop;
    const added = new Map(answer.items.map((item) => [item.key, item]));
    list.replaceChildren(...answer.keys.map((key) => (added.has(key) ? drawn(added.get(key)) : old.get(key))));
    if (answer.revision === frame.revision && !frame.running) liveList.replaceChildren();
    shown = { ...answer, items: null, keys: null };
    find(".older").hidden = answer.start === 0;
    markLast();
    welcome.hidden = answer.total > 0 || frame.live.length > 0;
    if (follows) keepBottom();
    else scroller.scrollTop = scroller.scrollHeight - height;
}

/** An item as an element. */
function drawn(item) {
    const made = make("article", { className: `item ${item.role}` });
    made.dataset.key = item.key;
    made.dataset.turn = item.turn;
    made.source = item.source;
    made.append(make("div", { className: "parts" }), make("div", { className: "actions" }));
    fill(made, item.parts);
    const actions = item.role === "user" ? ["copy", "edit"] : ["copy", "retry"];
    for (const name of actions) find(".actions", made).append(icon(name));
    return made;
}

function icon(name) {
    const button = make("button", { type: "button", className: `icon ${name}`, title: words(name) });
    button.dataset.do = name;
    button.setAttribute("aria-label", words(name));
    return button;
}

/** Shows `items` in `place`, and touches only what changed: a selection elsewhere stays. */
function draw(place, items) {
    items.forEach((item, number) => {
        let old = place.children[number];
        if (!old || !old.classList.contains(item.role)) {
            const made = drawn(item);
            old ? old.replaceWith(made) : place.append(made);
        } else if (old.dataset.key !== item.key) {
            old.dataset.key = item.key;
            old.source = item.source;
            fill(old, item.parts);
        }
    });
    if (!fetching && shown.revision === frame.revision)
        while (place.children.length > items.length) place.lastChild.remove();
}

function fill(item, parts) {
    const place = find(".parts", item);
    item.html ??= [];
    parts.forEach((part, number) => {
        if (item.html[number] === part) return;
        const made = make("div", { className: "part", innerHTML: part });
        const old = place.children[number];
        if (old) {
            const panel = find("details.panel", old), next = find("details.panel", made);
            if (panel && next && panel.dataset.touched) {
                next.open = panel.open;
                next.dataset.touched = "yes";
            }
            old.replaceWith(made);
        } else place.append(made);
    });
    while (place.children.length > parts.length) place.lastChild.remove();
    item.html = parts;
}

/** Undo belongs to the last turn. */
function markLast() {
    for (const old of list.querySelectorAll(".icon.undo")) old.remove();
    const last = [...list.querySelectorAll(".item.user")].pop();
    if (last) find(".actions", last).append(icon("undo"));
}

function askPanel() {
    const place = find(".asking");
    if (place.dataset.call === `${frame.asking}`) return;
    place.dataset.call = frame.asking;
    place.replaceChildren();
    if (!frame.asking) return;
    const button = (name, word) => {
        const made = make("button", { type: "button", className: name, textContent: words(name) });
        made.dataset.do = "answer";
        made.dataset.word = word;
        return made;
    };
    place.append(make("span", { textContent: words("waits_for_you") }), button("allow", "yes"), button("deny", "no"));
}

function drawWelcome() {
    const key = `${frame.language} ${frame.model}`;
    if (welcome.dataset.key === key) return;
    welcome.dataset.key = key;
    const examples = props.examples[frame.language].map((text) => {
        const made = make("button", { type: "button", className: "example", textContent: text });
        made.dataset.do = "example";
        return made;
    });
    welcome.replaceChildren(
        make("h2", { textContent: words("welcome") }),
        make("p", { textContent: words("welcome_local") }),
        make("p", { className: "quiet", textContent: frame.note }),
        make("div", { className: "examples" }, ...examples),
    );
}

// --- scrolling -------------------------------------------------------------------

function keepBottom() {
    if (follows) scroller.scrollTop = scroller.scrollHeight;
    latest.hidden = follows;
}

scroller.addEventListener("scroll", () => {
    follows = scroller.scrollHeight - scroller.scrollTop - scroller.clientHeight < 48;
    latest.hidden = follows;
    if (scroller.scrollTop < 400 && shown.start > 0 && !fetching && !follows) older();
});
latest.addEventListener("click", () => {
    follows = true;
    keepBottom();
});
new ResizeObserver(keepBottom).observe(list);

async function older() {
    fetching = true;
    try {
        await load(Math.max(0, shown.start - PAGE), true);
    } catch {} // no connection
    fetching = false;
}

// --- what the user does ----------------------------------------------------------

const act = (what, more = {}) =>
    trigger("act", { what, conversation: frame.conversation, revision: shown.revision, ...more });

const actions = {
    copy: (button, item) => copy(item.source, button),
    "copy-code": (button) => copy(find("code", button.closest(".code")).textContent.replace(/\n$/, ""), button),
    preview: (button) => preview(button.closest(".code")),
    edit: (button, item) => edit(item),
    retry: (button, item) => act("retry", { turn: Number(item.dataset.turn) }),
    undo: () => act("undo"),
    answer: (button) => act("answer", { allowed: button.dataset.word === "yes", call: frame.asking }),
    example: (button) => act("example", { text: button.textContent }),
    older: () => older(),
    stop: () => act("stop"),
    "drop-file": (button) => {
        files = files.filter((file) => file.name !== button.dataset.name);
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
};

element.addEventListener("click", (event) => {
    const button = event.target.closest("[data-do]");
    if (button) actions[button.dataset.do]?.(button, button.closest(".item"));
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
    const source = `<meta http-equiv="Content-Security-Policy" content="${policy}">${find("code", code).textContent}`;
    const made = make("iframe", { srcdoc: source, title: words("preview") });
    made.setAttribute("sandbox", "allow-scripts");
    code.append(made);
}

/** The text of a message in a box of its own. */
function edit(item) {
    if (find(".editing", item)) return;
    const area = make("textarea", { value: item.source });
    area.setAttribute("aria-label", words("edit"));
    const button = (name, done) => make("button", { type: "button", className: name, textContent: words(name), onclick: done });
    const close = () => {
        form.remove();
        find(".parts", item).hidden = false;
        box.focus();
    };
    const save = () => {
        if (!area.value.trim()) return area.focus();
        close();
        if (area.value !== item.source) act("edit", { turn: Number(item.dataset.turn), text: area.value });
    };
    const form = make("div", { className: "editing" }, area, button("save", save), button("cancel", close));
    area.onkeydown = (event) => {
        if (isComposed(event)) return;
        if (event.key === "Escape") {
            event.stopPropagation(); // a reply under way goes on
            close();
        }
        if (event.key === "Enter" && (event.metaKey || event.ctrlKey)) save();
    };
    find(".parts", item).hidden = true;
    item.insertBefore(form, find(".actions", item));
    area.style.height = `${Math.min(area.scrollHeight + 4, window.innerHeight / 2)}px`;
    area.focus();
}

// --- the box ---------------------------------------------------------------------

/** Whether the key belongs to an input method: Enter ends a syllable or chooses a Hanja. Safari says it by the code alone. */
const isComposed = (event) => event.isComposing || event.keyCode === 229;

const draftKey = (conversation, fresh = frame.fresh) => `exaone4_mlx draft ${conversation === fresh ? "" : conversation}`;
const keepDraft = (conversation, fresh) => {
    const key = draftKey(conversation, fresh);
    box.value ? localStorage.setItem(key, box.value) : localStorage.removeItem(key);
};

function grow() {
    box.style.height = "auto";
    box.style.height = `${Math.min(box.scrollHeight, window.innerHeight / 3)}px`;
    sendButton.disabled = !box.value.trim();
}

/** The box is empty from now on: what is typed next is the next message. A refused message comes back. */
function submit() {
    const bad = files.find((file) => file.error);
    if (bad) return say(bad.error);
    if (files.some((file) => file.tokens === undefined)) return say(words("file_is_read"));
    if (!box.value.trim()) return;
    outbox.push({ id: ++serial, text: box.value, files: files.map((file) => file.path), names: files, conversation: frame.conversation });
    box.value = "";
    files = [];
    keepDraft(frame.conversation);
    drawChips();
    drawOutbox();
    grow();
    say("");
    pump();
}

/** Sends the next message that waits. */
function pump() {
    if (frame.running || outbox.some((one) => one.sent)) return;
    const next = outbox.find((one) => one.conversation === frame.conversation);
    if (!next) return;
    next.sent = true;
    follows = true;
    act("send", { id: next.id, text: next.text, files: next.files });
    drawOutbox();
}

watch("answer", () => {
    const answer = props.answer;
    if (!answer) return;
    if (answer.text !== undefined) box.value = box.value ? `${answer.text}\n${box.value}` : answer.text;
    const sent = outbox.find((one) => one.id === answer.id);
    if (sent && answer.busy) {
        sent.sent = false; // it was sent before the frame of the reply under way came: it waits in its place
        setTimeout(pump, 200);
        return drawOutbox();
    }
    outbox = outbox.filter((one) => one !== sent);
    if (sent && answer.error) putBack(sent);
    say(answer.error ?? "");
    keepDraft(frame.conversation);
    drawOutbox();
    grow();
    pump(); // the frame of the end may have come before this answer
});

function putBack(message) {
    box.value = box.value ? `${message.text}\n${box.value}` : message.text;
    files = [...message.names, ...files];
    keepDraft(frame.conversation);
    drawChips();
    grow();
    box.focus();
}

function say(text) {
    notice.textContent = text;
    notice.hidden = !text;
}

function drawOutbox() {
    const texts = [...interrupted, ...outbox].map(({ text, conversation }) => ({ text, conversation }));
    sessionStorage.setItem(WAITING, JSON.stringify(texts));
    const waiting = outbox.filter((one) => !one.sent && one.conversation === frame.conversation);
    outboxList.replaceChildren(
        ...waiting.map((one) => {
            const button = make("button", { type: "button", textContent: "×", title: words("take_back") });
            button.setAttribute("aria-label", words("take_back"));
            Object.assign(button.dataset, { do: "take-back", id: one.id });
            return make("div", { className: "waiting" }, make("span", { textContent: one.text }), button);
        }),
    );
}

function drawChips() {
    chips.replaceChildren(
        ...files.map((file) => {
            const text = file.error ?? (file.tokens === undefined ? `${file.name} …` : words("attached", { name: file.name, tokens: file.tokens.toLocaleString("en") }));
            const button = make("button", { type: "button", textContent: "×", title: words("remove_file") });
            button.setAttribute("aria-label", words("remove_file"));
            Object.assign(button.dataset, { do: "drop-file", name: file.name });
            return make("div", { className: file.error ? "chip bad" : "chip" }, make("span", { textContent: text }), button);
        }),
    );
    const read = files.filter((file) => file.tokens !== undefined);
    const total = read.reduce((sum, file) => sum + file.tokens, read[0]?.used);
    const number = (count) => count.toLocaleString("en");
    find(".sum").textContent = read.length ? words("to_be_sent", { total: number(total), limit: number(read[0].limit) }) : "";
    grow();
}

async function attach(chosen) {
    for (const file of chosen) {
        const entry = { name: file.name };
        files = [...files.filter((one) => one.name !== file.name), entry];
        const known = props.suffixes.includes(file.name.slice(file.name.lastIndexOf(".")).toLowerCase());
        if (file.size > props.most_bytes) entry.error = words("file_too_large", { name: file.name, size: props.most_bytes / 1e6 });
        else if (!known && /^(image|audio|video)\//.test(file.type)) entry.error = words("file_no_text", { name: file.name });
        drawChips();
        if (entry.error) continue;
        try {
            const { path } = await upload(file);
            const read = await server.read({ path, tab: frame.tab });
            Object.assign(entry, { path }, read);
        } catch (problem) {
            entry.error = `${file.name}: ${problem.message ?? problem}`;
        }
        drawChips();
    }
}

picker.addEventListener("change", () => {
    attach([...picker.files]);
    picker.value = "";
});
for (const kind of ["dragover", "drop"])
    element.addEventListener(kind, (event) => {
        if (!event.dataTransfer?.types.includes("Files")) return;
        event.preventDefault();
        if (kind === "drop") attach([...event.dataTransfer.files]);
    });
box.addEventListener("paste", (event) => {
    if (event.clipboardData.files.length) {
        event.preventDefault();
        attach([...event.clipboardData.files]);
    }
});
box.addEventListener("input", () => {
    grow();
    keepDraft(frame.conversation);
});
box.addEventListener("keydown", (event) => {
    if (isComposed(event)) return;
    if (event.key === "Enter" && !event.shiftKey) {
        event.preventDefault();
        submit();
    } else if (event.key === "ArrowUp" && !box.value) {
        const last = [...list.querySelectorAll(".item.user")].pop();
        if (last) {
            event.preventDefault();
            edit(last);
        }
    }
});
sendButton.addEventListener("click", submit);
document.addEventListener("keydown", (event) => {
    if (isComposed(event)) return;
    const command = event.metaKey || event.ctrlKey;
    if (event.key === "Escape" && frame.running) act("stop");
    else if (command && event.key.toLowerCase() === "k") {
        trigger("search", {});
        setTimeout(() => document.querySelector("#search :is(input, textarea)")?.focus(), 300); // after the list has opened
    } else if (command && event.shiftKey && event.key.toLowerCase() === "o") document.querySelector("#new-chat")?.click();
    else return;
    event.preventDefault();
});

// --- light or dark ---------------------------------------------------------------

const darkSystem = window.matchMedia("(prefers-color-scheme: dark)");

function showTheme() {
    const theme = localStorage.getItem("exaone4_mlx theme") ?? "";
    document.body.classList.toggle("dark", theme ? theme === "dark" : darkSystem.matches);
    document.body.style.background = "var(--body-background-fill)"; // Gradio sets that of the first theme
}
window.addEventListener("storage", showTheme);
darkSystem.addEventListener("change", showTheme);
showTheme();

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
