// Finished messages are fetched and drawn; the reply in progress is drawn from the frames.

/** Fetches the finished messages that the page does not have. The reply in progress is replaced at the same moment. */
async function refresh(start = shown.start) {
    if (fetching) return;
    fetching = true;
    try {
        const same = frame.conversation === shown.conversation;
        await load(same ? start : null, same);
    } catch {
        await new Promise((done) => setTimeout(done, 1000)); // no connection: the page tries again
    }
    fetching = false;
    if (frame.revision !== shown.revision || frame.conversation !== shown.conversation) refresh();
    else seek();
}

/** Shows the messages from `start` on, or the last ones. With `same` the page has some of them. */
async function load(start, same) {
    const wanted = { tab: frame.tab, conversation: frame.conversation, language: frame.language, start };
    wanted.known = same ? [...list.children].map((item) => item.dataset.key) : [];
    const answer = await server.history(wanted);
    if (!answer) throw new Error("the server does not answer");
    if (answer.conversation !== frame.conversation) return; // the next frame says which one it is
    const old = new Map([...list.children].map((item) => [item.dataset.key, item]));
    const height = scroller.scrollHeight - scroller.scrollTop;
    const added = new Map(answer.items.map((item) => [item.key, item]));
    arrange(answer.keys.map((key) => (added.has(key) ? drawn(added.get(key)) : old.get(key))));
    if (answer.revision === frame.revision && !frame.running) liveList.replaceChildren();
    shown = { ...answer, items: null, keys: null, forks: null };
    find(".older").hidden = answer.start === 0;
    drawForks(answer.forks);
    markLast();
    drawDiagrams();
    welcome.hidden = answer.total > 0 || frame.live.length > 0;
    if (follows) keepBottom();
    else if (anchor) keepAnchor();
    else scroller.scrollTop = scroller.scrollHeight - height;
}

/** Shows `items` and no others. Those that stay in their place keep the focus and the selection. */
function arrange(items) {
    let next = list.firstElementChild;
    for (const item of items) {
        if (item === next) next = next.nextElementSibling;
        else list.insertBefore(item, next);
    }
    while (next) {
        const gone = next;
        next = next.nextElementSibling;
        gone.remove();
    }
}

/** An item as an element. */
function drawn(item) {
    const made = make("article", { className: `item ${item.role}` });
    made.dataset.key = item.key;
    made.dataset.turn = item.turn;
    made.source = item.source;
    made.append(make("div", { className: "parts" }), make("div", { className: "actions" }));
    fill(made, item.parts);
    Object.assign(made, { details: item.details ?? [] });
    made.dataset.ending = item.ending;
    const isReply = item.role === "assistant";
    const names = isReply && item.ending === "calls" ? ["copy", "retry"] : isReply ? ["copy", "edit", "retry"] : ["copy", "edit"];
    if (made.details.length) names.push("details");
    for (const name of names) find(".actions", made).append(icon(name, { edit: isReply ? "edit_reply" : "edit", details: "reply_details" }[name]));
    find(".details", made)?.setAttribute("aria-expanded", "false");
    return made;
}

const icon = (name, text = name) => button(name, { label: words(text), look: "icon" });

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
