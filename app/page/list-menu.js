// What a user does with a conversation of the list: its menu, a new title in its place, deletion and its undoing.

const menu = find(".menu"), toast = find(".toast");
const NOTICE = 10_000; // milliseconds that a notice stays
let chosen = null; // the id of the conversation whose menu is open
let editing = null; // {id, input}
let deleted = []; // what Undo brings back: {id, shown}
let hides = 0;

const actions = {
    fresh: () => trigger("fresh", {}),
    file: () => picker.click(),
    keys: () => announce("keys"),
    more: (made) => openMenu(made.closest(".row").dataset.id, made.getBoundingClientRect()),
    rename: () => rename(chosen),
    pin: () => change("pin", { id: chosen, pinned: !rows.get(chosen).pinned }),
    markdown: () => exported(chosen, ".md"),
    json: () => exported(chosen, ".json"),
    delete: () => remove(chosen),
    restore: () => restore(),
};

panel.addEventListener("click", (event) => {
    const made = event.target.closest("[data-do]");
    if (made) {
        if (made.closest(".menu")) closeMenu();
        return actions[made.dataset.do](made);
    }
    const link = event.target.closest("a.line");
    if (!link || event.metaKey || event.ctrlKey || event.shiftKey) return; // a new tab or window
    event.preventDefault();
    open(link.closest(".row").dataset.id);
});
place.addEventListener("contextmenu", (event) => {
    const row = event.target.closest(".row");
    if (!row || editing) return;
    event.preventDefault();
    openMenu(row.dataset.id, new DOMRect(event.clientX, event.clientY, 0, 0));
});

/** Shows a conversation; a result of the search also at its place. */
function open(id) {
    const { message, snippet, hidden } = rows.get(id); // of a hidden branch, the message with its versions is shown
    if (has.query && message !== undefined)
        announce("find", { conversation: id, message, texts: hidden ? [] : snippet.filter((_, number) => number % 2) });
    trigger("chosen", { id });
}

async function change(what, more) {
    const answer = await ask(what, more);
    refresh();
    return answer;
}

async function exported(id, form) {
    const answer = await ask("export", { id, form });
    if (answer) save(answer);
}

// --- the menu --------------------------------------------------------------------

function openMenu(id, { left, right, top, bottom }) {
    chosen = id;
    const item = (name, text, look = "") => {
        const made = button(name, { text, look });
        made.setAttribute("role", "menuitem");
        made.tabIndex = -1;
        return made;
    };
    const pinned = rows.get(id).pinned;
    menu.replaceChildren(
        item("rename", words("rename")), item("pin", words(pinned ? "unpin" : "pin")),
        item("markdown", words("export_markdown")), item("json", words("export_json")), item("delete", words("delete"), "bad"),
    );
    menu.setAttribute("aria-label", rows.get(id).title.join("") || words("untitled"));
    menu.showPopover();
    const width = menu.offsetWidth, height = menu.offsetHeight;
    menu.style.left = `${Math.max(8, Math.min(left, window.innerWidth - width - 8))}px`;
    menu.style.top = `${bottom + height + 8 < window.innerHeight ? bottom + 2 : Math.max(8, top - height - 2)}px`;
    lines.get(id).element.classList.add("open");
    menu.firstElementChild.focus();
}

function closeMenu() {
    if (menu.matches(":popover-open")) menu.hidePopover();
}

menu.addEventListener("toggle", (event) => {
    if (event.newState === "open") return;
    for (const one of place.querySelectorAll(".row.open")) one.classList.remove("open");
    if (menu.contains(document.activeElement) || document.activeElement === document.body) lines.get(chosen)?.link.focus();
});
menu.addEventListener("keydown", (event) => {
    const items = [...menu.children], at = items.indexOf(document.activeElement);
    const next = { ArrowDown: at + 1, ArrowUp: at - 1, Home: 0, End: -1 }[event.key];
    if (next !== undefined) items.at(next % items.length).focus();
    else if (event.key === "Tab") closeMenu();
    else return;
    event.preventDefault();
});

// --- a title ---------------------------------------------------------------------

/** The title in a field in its place. Enter keeps it, Escape does not. */
function rename(id) {
    const { element, link, more } = lines.get(id);
    const before = rows.get(id).title.join("");
    const input = make("input", { className: "field", value: before, maxLength: 120 });
    input.setAttribute("aria-label", words("title"));
    const end = async (keeps) => {
        if (editing?.input !== input) return;
        const title = input.value.trim();
        const focused = document.activeElement === input;
        editing = null;
        input.remove();
        link.hidden = more.hidden = false;
        if (keeps && title && title !== before) await change("rename", { id, title });
        draw(); // a row that came meanwhile
        if (focused) lines.get(id)?.link.focus();
    };
    input.onkeydown = (event) => {
        event.stopPropagation(); // the keys of the list and of the page are letters here
        if (isComposed(event)) return;
        if (event.key === "Enter" || event.key === "Escape") {
            event.preventDefault();
            end(event.key === "Enter");
        }
    };
    input.onblur = () => end(true);
    editing = { id, input };
    link.hidden = more.hidden = true;
    element.prepend(input);
    input.focus();
    input.select();
}

// --- deletion --------------------------------------------------------------------

async function remove(id) {
    const links = [...place.querySelectorAll("a.line")], at = links.indexOf(lines.get(id).link);
    const title = rows.get(id).title.join("") || words("untitled");
    const answer = await ask("delete", { id });
    if (!answer) return;
    deleted.push({ id, title, shown: answer.shown });
    (links[at + 1] ?? links[at - 1])?.focus();
    refresh();
    notify(words("deleted", { title }), true);
}

async function restore() {
    const last = deleted.pop();
    if (!last) return;
    if (await change("restore", last)) {
        const before = deleted.at(-1);
        before ? notify(words("deleted", { title: before.title }), true) : hideNotice();
    }
}

/** A notice at the bottom of the panel, with Undo for a deletion. */
function notify(text, undo = false) {
    if (!undo) deleted = [];
    find("span", toast).textContent = text;
    find("button", toast).hidden = !undo;
    if (!toast.matches(":popover-open")) toast.showPopover();
    hideLater();
}

function hideNotice() {
    clearTimeout(hides);
    deleted = [];
    if (toast.matches(":popover-open")) toast.hidePopover();
}

function hideLater() {
    clearTimeout(hides);
    hides = setTimeout(() => (toast.matches(":hover, :focus-within") ? hideLater() : hideNotice()), NOTICE);
}
