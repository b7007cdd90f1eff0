// The list of conversations in the left panel. Gradio's gr.HTML runs the files of `LIST_SCRIPT` in theme.py as one.
//
// A frame says that the list has changed. The server then sends the rows that this page does not have. Only the rows in view
// and those above them are fetched; more come when the user scrolls down.

const STEP = 100; // rows that are fetched at once
const place = find(".rows"), searchBox = find(".search"), hint = find(".hint"), picker = find("input[type=file]");

let frame = { language: "en", conversation: null, listed: null };
let wanted = { query: "", count: STEP };
let has = { query: "", count: 0, number: null, total: 0, damaged: "", listed: null };
let rows = new Map(); // the conversation's id -> its row, as the server sent it
let asking = false;

const words = (key, values = {}) =>
    (props.texts[frame.language]?.[key] ?? key).replace(/\{(\w+)\}/g, (whole, name) => values[name] ?? whole);

/** Asks the server; a refusal is shown. Returns null where nothing was done. */
async function ask(what, more = {}) {
    let answer = null;
    try {
        answer = await server.conversations({ do: what, tab: frame.tab, ...more });
    } catch {} // no connection: as without an answer
    if (!answer || answer.closed) notify(words("no_connection"));
    else if (answer.error) notify(answer.error);
    else return answer;
    return null;
}

/** Fetches the rows that the page does not have. */
async function refresh() {
    if (asking || !frame.tab) return;
    asking = true;
    while (wanted.query !== has.query || wanted.count !== has.count || frame.listed !== has.listed) {
        const { query, count } = wanted, { listed } = frame;
        const after = query === has.query ? has.number : null;
        let answer = null;
        try {
            answer = await server.conversations({ do: "rows", tab: frame.tab, query, count, after });
        } catch {} // no connection
        if (!answer || answer.closed) {
            await new Promise((done) => setTimeout(done, 1000)); // the page tries again
            continue;
        }
        if (answer.error) answer = { number: null, whole: true, rows: [], gone: [], total: 0, damaged: answer.error };
        if (answer.whole) rows.clear();
        for (const id of answer.gone) rows.delete(id);
        for (const row of answer.rows) rows.set(row.id, row);
        if (query !== has.query) place.scrollTop = 0;
        has = { query, count, listed, number: answer.number, total: answer.total, damaged: answer.damaged };
        draw();
    }
    asking = false;
}

function update() {
    if (!bus.frame) return;
    const before = frame;
    frame = bus.frame;
    if (frame.language !== before.language || before.conversation === null) label();
    else if (frame.conversation !== before.conversation) mark();
    refresh();
}
bus.addEventListener("frame", update);

place.addEventListener("scroll", () => {
    const near = place.scrollHeight - place.scrollTop - place.clientHeight < 600;
    if (near && rows.size < has.total && wanted.count === has.count) {
        wanted.count += STEP;
        refresh();
    }
});

// --- the search ------------------------------------------------------------------

let pause = 0;
searchBox.addEventListener("input", () => {
    clearTimeout(pause);
    pause = setTimeout(() => {
        wanted = { query: searchBox.value.trim(), count: searchBox.value.trim() ? STEP / 2 : STEP };
        refresh();
    }, 150);
});
bus.addEventListener("search", () => {
    trigger("wanted", {}); // the panel may be folded
    searchBox.focus({ preventScroll: true });
    searchBox.select();
});

bus.addEventListener("fold", () => trigger("folded", {}));

// --- files -----------------------------------------------------------------------

async function bring(files) {
    for (const file of files) {
        let path = null;
        try {
            path = (await upload(file)).path;
        } catch (problem) {
            notify(words("not_imported", { error: `${file.name}: ${reason(problem)}` }));
        }
        const answer = path && (await ask("import", { path, name: file.name }));
        if (answer) notify(words("imported", { title: answer.title || words("untitled") }));
    }
}
picker.addEventListener("change", () => {
    bring([...picker.files]);
    picker.value = "";
});
const panel = find(".left");
for (const kind of ["dragover", "dragleave", "drop"])
    panel.addEventListener(kind, (event) => {
        if (!event.dataTransfer?.types.includes("Files")) return;
        event.preventDefault();
        panel.classList.toggle("drop", kind === "dragover");
        if (kind === "drop") bring([...event.dataTransfer.files]);
    });

/** Hands a text to the browser as a file. */
function save({ name, text }) {
    const link = make("a", { href: URL.createObjectURL(new Blob([text])), download: name });
    link.click();
    URL.revokeObjectURL(link.href);
}
