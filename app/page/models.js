// The picker of models: the model in use at the top of the page, and a dialog with the models at hand, those to get, and the
// downloads and conversions. The server is asked for the state while something happens or the dialog is open, else now and
// then, so that every tab shows the same. A row is drawn anew only when its data change: what is open in it stays.

const QUICK = 600, SLOW = 4000; // ms between two questions
const dialog = find("dialog"), notice = find(".notice"), opener = find(".open"), found = find(".found");
let state = null, language = "en", results = null, failure = "", timer = 0, asking = 0, before;

const words = (key, values = {}) =>
    (props.texts[language]?.[key] ?? key).replace(/\{(\w+)\}/g, (whole, name) => values[name] ?? whole);
const number = (count) => count.toLocaleString("en-US");

watch("value", () => {
    if (!props.value || props.value.language === language && state) return;
    language = props.value.language;
    label();
    ask();
});

/** Asks the server to do something, or for its state. The last answer counts. */
async function ask(what = "", more = {}) {
    const mine = ++asking;
    clearTimeout(timer);
    if (what && what !== "needs") say(failure = "");
    let answer = {};
    try {
        answer = (await server.models({ what, language, looks: dialog.open, ...more })) ?? {};
    } catch {
        if (what) answer = { error: words("no_connection") };
    }
    if (answer.state && mine === asking) {
        state = answer.state;
        draw();
    }
    if (answer.error) say(answer.error);
    else if (answer.notice) say(answer.notice, true);
    if (mine === asking) timer = setTimeout(ask, isBusy() || dialog.open ? QUICK : SLOW);
    return answer;
}
const isBusy = () => Boolean(state && (state.coming || state.jobs.some((job) => ["running", "waiting"].includes(job.state))));
bus.addEventListener("frame", () => {
    if (bus.frame.model === before) return;
    before = bus.frame.model; // another tab may have changed it
    ask();
});
document.addEventListener("visibilitychange", () => document.hidden ? clearTimeout(timer) : ask());

function say(text, good = false) {
    notice.hidden = !text;
    notice.textContent = text;
    notice.classList.toggle("good", good);
    if (text) notice.scrollIntoView({ block: "nearest" });
}

function label() {
    find("h2").textContent = words("models_title");
    dialog.setAttribute("aria-label", words("models_title"));
    find(".here-title").textContent = words("models_here");
    find(".get-title").textContent = words("get_model");
    for (const [place, key] of [[find(".search .field"), "search_models"], [find(".close"), "close"]]) place.setAttribute("aria-label", words(key));
    find(".search .field").placeholder = words("search_models");
    find(".search button").textContent = words("search_go");
    find(".other span").textContent = words("use_folder");
    find(".other .field").placeholder = words("model_hint");
    find(".other button").textContent = words("use_model");
    for (const list of dialog.querySelectorAll("ul")) list.replaceChildren();
}

function draw() {
    const name = state.here.find((one) => one.path === state.path)?.name ?? state.label;
    find(".name", opener).textContent = name || words("no_model");
    opener.setAttribute("aria-label", name ? words("choose_model", { name }) : words("no_model"));
    const badge = find(".badge", opener), [done, total] = state.progress;
    const job = state.jobs.find((one) => one.state === "running");
    const part = state.coming ? [done, total] : job ? [job.done, job.total] : null;
    badge.hidden = !part;
    badge.textContent = !part ? "" : part[1] ? `${Math.floor((100 * part[0]) / part[1])} %` : "…";
    if (state.failure !== failure) say((failure = state.failure));
    rows(find(".jobs"), state.jobs, (job) => job.id, jobRow, moveJob);
    const here = state.here.map((one) => ({
        ...one, used: one.path === state.path, context: one.path === state.path ? state.context : 0,
        coming: one.path === state.coming, notes: one.path === state.path ? state.notes : [],
    }));
    rows(find(".here"), here, (one) => one.path, hereRow, moveHere);
    const jobs = state.jobs.map((job) => job.id), mine = here.map((one) => one.path);
    const listed = (results ?? state.known).filter((one) => !mine.includes(one.path) && !jobs.includes(`download ${one.path}`));
    rows(find(".known"), listed, (one) => one.path, hubRow);
}

/** The rows of a list. A row whose data are as before stays; `move` shows what changes all the time. */
function rows(list, items, key, draw, move = () => {}) {
    const before = new Map([...list.children].map((row) => [row.dataset.key, row]));
    const now = items.map((item) => {
        const { done, total, progress, ...lasting } = item;
        const old = before.get(key(item)), data = JSON.stringify(lasting);
        let row = old;
        if (old?.dataset.data !== data) {
            row = make("li", {}, ...draw(item));
            Object.assign(row.dataset, { key: key(item), data });
            if (old && find("details", old)?.open && find("details", row)) find("details", row).open = true;
        }
        move(row, item);
        return row;
    });
    if (now.length !== list.children.length || now.some((row, i) => row !== list.children[i])) list.replaceChildren(...now);
}

// --- downloads and conversions ---

function jobRow(job) {
    const wait = job.state === "running" || job.state === "waiting";
    const buttons = wait ? [button("pause", { text: words("pause_job"), look: "secondary", id: job.id })]
        : [button("resume", { text: words("resume_job"), look: "primary", id: job.id }), button("discard", { text: words("discard_job"), look: "secondary", id: job.id })];
    const bar = make("progress", { max: 1 });
    bar.setAttribute("aria-label", job.text);
    return [make("div", { className: "line" }, make("span", { className: `what ${job.state}`, textContent: job.text }), ...buttons),
        bar, make("span", { className: "quiet amount" })];
}

function moveJob(row, job) {
    const bar = find("progress", row);
    bar.hidden = !job.total && job.state !== "running";
    job.total ? (bar.value = job.done / job.total) : bar.removeAttribute("value");
    find(".amount", row).textContent = job.progress;
}

// --- models ---

const facts = (one) => [one.parameters, one.size, one.bits ? words("bits", { count: one.bits }) : ""].filter(Boolean).join(" · ");

function summary(one, name, mark = "") {
    const fits = one.fits ? make("span", { className: `fits ${one.fits}`, textContent: words(one.fits) }) : "";
    return make("summary", {}, make("span", { className: "title" }, make("span", { className: "name", textContent: name }), mark),
        make("span", { className: "quiet facts" }, facts(one) || words("size_unknown"), fits));
}

function hereRow(one) {
    const mark = one.coming ? make("span", { className: "badge", textContent: words("model_loads") })
        : one.used ? make("span", { className: "badge used", textContent: words("in_use") }) : "";
    const steps = [2048, 4096, 8192, 16384, 32768, 65536, 131072].filter((step) => step < one.longest);
    const chosen = one.context || Math.min(one.longest, one.largest || one.longest);
    const sizes = [...new Set([...steps, chosen, one.longest])].filter(Boolean).sort((a, b) => a - b);
    const choice = make("select", { className: "field" }, ...sizes.map((count) =>
        make("option", { value: count, textContent: words("tokens_many", { count: number(count) }), selected: count === chosen })));
    const needs = make("p", { className: "quiet needs", textContent: "" });
    const tell = async () => (needs.textContent = (await ask("needs", { path: one.path, context: Number(choice.value) })).needs ?? "");
    choice.onchange = tell;
    const data = { path: one.path };
    const use = button("use", { text: words(one.used ? "use_context" : "use_model"), look: "primary", ...data });
    use.disabled = Boolean(one.coming);
    const buttons = make("div", { className: "buttons" }, use,
        ...one.convertible.map((bits) => button("convert", { text: words("convert_to", { count: bits }), look: "secondary", ...data, bits })),
        one.removable && !one.used ? button("remove", { text: words("remove_model"), look: "secondary", ...data, size: one.size }) : "");
    const more = make("details", {}, summary(one, one.name, mark),
        make("div", { className: "more" },
            one.longest ? make("label", {}, make("span", { className: "quiet", textContent: words("context_tokens") }), choice) : "", needs,
            ...one.notes.map((text) => make("p", { className: "quiet", textContent: text })), buttons));
    more.name = "models-here";
    more.ontoggle = () => more.open && !needs.textContent && tell();
    const bar = make("progress", { max: 1 });
    bar.setAttribute("aria-label", words("model_loads"));
    return [more, make("div", { className: "coming", hidden: !one.coming }, bar, make("span", { className: "quiet amount" }))];
}

function moveHere(row, one) {
    if (!one.coming) return;
    const [done, total, text] = state.progress, bar = find(".coming progress", row);
    total ? (bar.value = done / total) : bar.removeAttribute("value");
    find(".coming .amount", row).textContent = total ? text : words("model_loads");
}

function hubRow(one) {
    const needs = make("p", { className: "quiet needs" }), data = { path: one.path };
    const tell = async () => {
        needs.textContent = words("needs_wait");
        const answer = await ask("needs", data);
        needs.textContent = answer.needs ?? answer.error ?? "";
        if (!answer.needs) say("");
    };
    const check = make("input", { type: "checkbox", checked: one.accepted });
    const link = make("a", { href: props.licence[1], target: "_blank", rel: "noopener noreferrer", textContent: words("licence_read") });
    const licence = make("div", { className: "licence", hidden: one.accepted },
        make("p", {}, `${words("licence", { licence: props.licence[0] })} `, link),
        make("label", {}, check, ` ${words("licence_accept")}`));
    const download = button("download", { text: words("download_model"), look: "primary", ...data });
    download.disabled = !check.checked;
    check.onchange = () => (download.disabled = !check.checked);
    const more = make("details", {}, summary(one, one.path),
        make("div", { className: "more" }, needs, licence,
            make("div", { className: "buttons" }, download)));
    more.name = "models-known";
    more.ontoggle = () => more.open && !needs.textContent && tell();
    return [more];
}

// --- what the buttons do ---

const actions = {
    open: () => {
        say("");
        dialog.showModal();
        ask();
    },
    close: () => dialog.close(),
    pause: (button) => ask("pause", { id: button.dataset.id }),
    resume: (button) => ask("resume", { id: button.dataset.id }),
    discard: (button) => ask("discard", { id: button.dataset.id }),
    use: (button, row) => ask("use", { path: button.dataset.path, context: Number(find("select", row)?.value ?? 0) }),
    download: (button, row) => ask("download", { path: button.dataset.path, accepted: find("input", row).checked }),
    convert: (button) => ask("convert", { path: button.dataset.path, bits: Number(button.dataset.bits) }),
    remove: (pressed, row) => {
        const { path, size } = pressed.dataset, name = find(".name", row).textContent;
        const question = make("div", { className: "question" }, make("p", { textContent: words("remove_sure", { name, size }) }),
            button("remove-yes", { text: words("remove_yes"), look: "danger", path }), button("remove-no", { text: words("cancel"), look: "secondary", path }));
        find(".buttons", row).hidden = true;
        find(".more", row).append(question);
        find("button:last-child", question).focus();
    },
    "remove-no": (button, row) => {
        find(".question", row).remove();
        find(".buttons", row).hidden = false;
        find(".buttons button", row).focus();
    },
    "remove-yes": (button) => ask("remove", { path: button.dataset.path }),
};

element.addEventListener("click", (event) => {
    const button = event.target.closest("[data-do]");
    if (button) actions[button.dataset.do](button, button.closest("li"));
    else if (event.target === dialog) dialog.close(); // beside it
});
dialog.addEventListener("keydown", (event) => event.stopPropagation()); // the keys of the page are for the chat
dialog.addEventListener("close", () => opener.focus());

find(".search").addEventListener("submit", async (event) => {
    event.preventDefault();
    found.hidden = false;
    found.textContent = words("search_waits");
    const answer = await ask("search", { text: find(".search .field").value.trim() });
    if (answer.found) results = answer.found;
    found.hidden = !answer.found || answer.found.length > 0;
    found.textContent = words("search_none");
    if (state) draw();
});
find(".search .field").addEventListener("input", (event) => {
    if (event.target.value || !results) return;
    results = null;
    found.hidden = true;
    draw();
});
find(".other").addEventListener("submit", (event) => {
    event.preventDefault();
    const path = find(".other .field").value.trim();
    if (path) ask("use", { path });
});
label();
ask();
