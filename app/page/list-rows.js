// The rows of the list: groups by date, and one element for each conversation. What did not change is not touched.

const DAY = 86400_000;
let lines = new Map(); // the conversation's id -> {row, element, link}
let sections = new Map(); // the key of a group -> {element, heading, lines}

/** The group of a row: pinned, or by the days since its last change, in the user's time zone. */
function groupOf(row, today) {
    if (row.pinned) return "pinned";
    const when = new Date(row.updated);
    const days = Math.round((today - new Date(when.getFullYear(), when.getMonth(), when.getDate())) / DAY); // days of 23 and 25 hours
    if (days < 1) return "today";
    if (days === 1) return "yesterday";
    return days <= 7 ? "last_week" : days <= 30 ? "last_month" : `${when.getFullYear()}-${when.getMonth() + 1}`;
}

function groupName(key) {
    if (!key.includes("-")) return words(key);
    const [year, month] = key.split("-");
    const name = new Intl.DateTimeFormat(frame.language, { year: "numeric", month: "long" }).format(new Date(year, month - 1, 1));
    return name[0].toUpperCase() + name.slice(1);
}

function draw() {
    const focused = lines.get(document.activeElement?.closest?.(".row")?.dataset.id);
    const now = new Date(), today = new Date(now.getFullYear(), now.getMonth(), now.getDate());
    const order = [...rows.values()].sort((a, b) => b.pinned - a.pinned || b.updated - a.updated || (a.id < b.id ? 1 : -1));
    const groups = new Map();
    for (const row of order) {
        const key = groupOf(row, today);
        groups.has(key) ? groups.get(key).push(row) : groups.set(key, [row]);
    }
    for (const id of [...lines.keys()]) if (!rows.has(id)) lines.delete(id);
    for (const key of [...sections.keys()]) if (!groups.has(key)) sections.delete(key);
    arrange(place, [...groups].map(([key, found]) => {
        if (!sections.has(key)) sections.set(key, section(key));
        arrange(sections.get(key).list, found.map(line));
        return sections.get(key).element;
    }));
    hint.textContent = [order.length ? "" : words(has.query ? "none_found" : "none_yet"), has.damaged].filter(Boolean).join("\n");
    mark();
    if (focused && document.activeElement !== focused.link && !editing) (lines.get(focused.row.id) ?? focused).link.focus();
    clearTimeout(draw.midnight);
    draw.midnight = setTimeout(draw, new Date(now.getFullYear(), now.getMonth(), now.getDate() + 1) - now + 1000);
}

/** Makes `wanted` the children of `parent`. Only those that are elsewhere move. */
function arrange(parent, wanted) {
    let next = parent.firstElementChild;
    for (const child of wanted) {
        if (child === next) next = next.nextElementSibling;
        else parent.insertBefore(child, next);
    }
    while (next) {
        const gone = next;
        next = next.nextElementSibling;
        gone.remove();
    }
}

function section(key) {
    const heading = make("h3", { id: `group-${key}`, textContent: groupName(key) });
    const list = make("ul");
    const element = make("section", {}, heading, list);
    list.setAttribute("aria-labelledby", heading.id);
    return { element, list };
}

/** The element of a row; a new one where the row has changed. The one whose title is being edited stays. */
function line(row) {
    const known = lines.get(row.id);
    if (known && (known.row === row || editing?.id === row.id)) return known.element;
    const link = make("a", { className: "line", draggable: false });
    const address = new URL(window.location);
    address.searchParams.set("conversation", row.id);
    link.href = address;
    const title = row.title.some(Boolean) ? parts(row.title) : [words("untitled")];
    link.append(make("span", { className: "title", dir: "auto" }, ...title));
    const other = row.hidden ? `${words("other_version")} · ` : "";
    if (row.snippet) link.append(make("span", { className: "snippet quiet", dir: "auto" }, other, ...parts(row.snippet)));
    link.title = row.title.join("");
    if (row.running) link.append(make("span", { className: "dot", title: words("in_progress") }, make("span", { className: "unseen", textContent: words("in_progress") })));
    const more = button("more", { label: words("more"), look: "icon" });
    more.setAttribute("aria-haspopup", "menu");
    const element = make("li", { className: "row" }, link, more);
    element.dataset.id = row.id;
    if (known?.element.parentElement) known.element.replaceWith(element);
    lines.set(row.id, { row, element, link, more });
    return element;
}

/** Unmarked and found text in turn. */
const parts = (texts) => texts.map((text, number) => (number % 2 ? make("mark", { textContent: text }) : text)).filter(Boolean);

/** Marks the conversation that the tab shows. Tab reaches one row; the arrow keys reach the others. */
function mark(reached = null) {
    const current = lines.get(frame.conversation);
    const stop = reached ?? lines.get(document.activeElement?.closest?.(".row")?.dataset.id) ?? current ?? lines.get(find(".row", place)?.dataset.id);
    for (const one of lines.values()) {
        one === current ? one.link.setAttribute("aria-current", "page") : one.link.removeAttribute("aria-current");
        one.link.tabIndex = one.more.tabIndex = one === stop ? 0 : -1;
    }
}

/** Texts that do not change with the rows. */
function label() {
    find(".fresh").textContent = words("new_chat");
    find(".take-back").textContent = words("undo");
    find(".foot .keys").textContent = words("keys");
    for (const [one, key] of [[searchBox, "search"], [find(".file"), "import"], [place, "conversations"]])
        one.setAttribute("aria-label", words(key));
    find(".file").title = words("import");
    searchBox.placeholder = words("search");
    lines.clear();
    sections.clear();
    draw();
}
