// Other versions of a message, Undo and Redo, and how a reply was made.

let anchor = null; // the switch that the user has used: its place in view and the focus stay

/** Puts the switches ‹2/3› under the messages that have them. `forks` is key of an item -> {at, place, count}. */
function drawForks(forks) {
    for (const item of list.children) {
        const old = find(".versions", item), fork = forks[item.dataset.key];
        const name = fork && `${fork.at} ${fork.place} ${fork.count} ${frame.language}`;
        if (old?.dataset.name === name) continue;
        old?.remove();
        if (!fork) continue;
        const made = make("div", { className: "versions" });
        made.setAttribute("role", "group");
        made.setAttribute("aria-label", words("version_of", { place: fork.place + 1, count: fork.count }));
        Object.assign(made.dataset, { ...fork, name });
        const step = (way, to) => {
            const one = button(way, { label: words(way), look: "icon" });
            if (to < 0 || to >= fork.count) one.setAttribute("aria-disabled", "true"); // keeps the focus
            return one;
        };
        const text = make("span", { textContent: `${fork.place + 1}/${fork.count}` });
        made.append(step("version-before", fork.place - 1), text, step("version-after", fork.place + 1));
        find(".actions", item).prepend(made);
    }
}

/** Shows the version before or after. */
function turnOver(group, way) {
    const { at, place, count } = group.dataset, to = Number(place) + way;
    if (to < 0 || to >= Number(count)) return;
    anchor = { at, top: group.getBoundingClientRect().top, focus: document.activeElement?.dataset?.do };
    follows = false;
    act("switch", { at: Number(at), place: to });
}

/** After a switch: its place on the screen is that of before, and the keyboard can go on. */
function keepAnchor() {
    const group = anchor && find(`.versions[data-at="${anchor.at}"]`);
    if (!group) return;
    scroller.scrollTop += group.getBoundingClientRect().top - anchor.top;
    if (anchor.focus) find(`[data-do="${anchor.focus}"]`, group)?.focus({ preventScroll: true });
    anchor = null;
}

/** Undo and Redo belong to the last message, or to the empty conversation, and Continue to a last reply that was cut. */
function markLast() {
    for (const old of element.querySelectorAll(".items .continue, .icon:is(.undo, .redo)")) old.remove();
    const end = list.lastElementChild;
    if (end?.dataset.ending === "cut") find(".actions", end).prepend(button("continue", { text: words("continue"), look: "secondary" }));
    const place = list.lastElementChild ? find(".actions", list.lastElementChild) : find(".bare");
    for (const name of ["undo", "redo"]) if (frame[name]) place.append(button(name, { label: frame[name], look: "icon" }));
}

/** How a reply was made, below it. */
function showDetails(pressed, item) {
    const there = find(".made", item);
    pressed.setAttribute("aria-expanded", !there);
    if (there) return there.remove();
    const lines = item.details.flatMap(([name, value]) => [make("dt", { textContent: name }), make("dd", { textContent: value })]);
    item.append(make("dl", { className: "made" }, ...lines));
}

list.addEventListener("keydown", (event) => {
    const group = event.target.closest(".versions");
    if (!group || !["ArrowLeft", "ArrowRight"].includes(event.key)) return;
    event.preventDefault();
    turnOver(group, event.key === "ArrowLeft" ? -1 : 1);
});
