// Keys in the list and in its search. The last part of the script: it shows the first state.

place.addEventListener("keydown", async (event) => {
    const row = event.target.closest(".row");
    if (!row || isComposed(event)) return;
    const id = row.dataset.id, command = event.metaKey || event.ctrlKey;
    const links = [...place.querySelectorAll("a.line")], at = links.indexOf(lines.get(id).link);
    const { key } = event;
    if (key === "ArrowDown") links[at + 1]?.focus();
    else if (key === "ArrowUp") at ? links[at - 1].focus() : searchBox.focus();
    else if (key === "Home") links[0].focus();
    else if (key === "End") toEnd();
    else if (key === "F2") rename(id);
    else if (key === "Delete" || (key === "Backspace" && command)) remove(id);
    else if (key === "z" && command && deleted.length) restore();
    else if (key === "ContextMenu" || (key === "F10" && event.shiftKey)) openMenu(id, row.getBoundingClientRect());
    else return;
    event.preventDefault();
});
place.addEventListener("focusin", (event) => {
    const row = event.target.closest(".row");
    if (row) mark(lines.get(row.dataset.id));
});

/** Fetches all rows and goes to the last. */
async function toEnd() {
    wanted.count = Math.max(wanted.count, has.total);
    await refresh();
    [...place.querySelectorAll("a.line")].at(-1)?.focus();
}

searchBox.addEventListener("keydown", (event) => {
    if (isComposed(event)) return;
    const first = find("a.line", place);
    if (event.key === "Escape" && searchBox.value) {
        event.stopPropagation(); // a reply in progress goes on
        searchBox.value = "";
        searchBox.dispatchEvent(new Event("input"));
    } else if (event.key === "ArrowDown" && first) first.focus();
    else if (event.key === "Enter" && first && has.query === searchBox.value.trim()) first.click();
    else return;
    event.preventDefault();
});

label();
update();
