// The conversation and the box below it. Gradio's gr.HTML runs the files of the script as one, in the order of `SCRIPT` in
// theme.py, with `element`, `props`, `watch`, `trigger`, `server` and `upload`. They share one scope.
//
// The server sends frames: which conversation and revision a tab shows, and the reply in progress. Finished messages are
// fetched when the revision changes, and only those that the page does not have; older ones when the user scrolls up.
// A frame that is lost does no harm: the next one holds the whole reply.

const PAGE = 30; // older messages that are fetched at once
const scroller = find(".scroller"), list = find(".items"), liveList = find(".live"), welcome = find(".welcome");
const box = find("textarea"), sendButton = find(".send"), stopButton = find(".stop"), chips = find(".chips");
const outboxList = find(".outbox"), notice = find(".notice"), latest = find(".latest"), picker = find("input[type=file]");

let frame = { conversation: null, revision: null, running: false, asking: [], live: [], language: "en" };
let shown = { conversation: null, revision: null, start: 0, total: 0 };
let fetching = false, follows = true, serial = 0;
let files = []; // of the next message: {id, name, path, tokens, error}
let outbox = []; // messages that wait for the end of a reply: {id, text, names (their files), conversation, sent}
const WAITING = "exaone4_mlx waiting"; // the outbox, which comes back into the box after a reload
let interrupted = JSON.parse(sessionStorage.getItem(WAITING) ?? "[]");

const words = (key, values = {}) =>
    (props.texts[frame.language]?.[key] ?? key).replace(/\{(\w+)\}/g, (whole, name) => values[name] ?? whole);
