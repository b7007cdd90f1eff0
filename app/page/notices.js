// Gradio's notices, which are English in every language: their words are replaced. A lost connection is said above the box.

const TITLES = { Error: "title_error", Warning: "title_warning", Info: "title_info" };
let isLost = false; // the connection, until the next frame

function translateNotices() {
    for (const shown of document.querySelectorAll('[data-testid="toast-body"]:not([hidden])')) {
        shown.hidden = [...shown.querySelectorAll('[data-testid="toast-text"]')].some((text) => /^(Connection|Server) /.test(text.textContent));
        if (shown.hidden) lose();
        const walker = document.createTreeWalker(shown, NodeFilter.SHOW_TEXT);
        while (walker.nextNode()) {
            const key = TITLES[walker.currentNode.data.trim()];
            if (key && frame.language !== "en") walker.currentNode.data = `${words(key)} `;
        }
        find("[aria-label=Close]", shown)?.setAttribute("aria-label", words("close"));
    }
}

/** Nothing is sent until the server answers again. What was sent without an answer is shown with what waits. */
function lose() {
    isLost = true;
    say(words("no_connection"));
    drawOutbox();
}

/** The server answers again: what it did not get comes back into the box. */
function regain() {
    isLost = false;
    say("");
    const sent = outbox.filter((one) => one.sent);
    outbox = outbox.filter((one) => !one.sent);
    sent.forEach(putBack);
    drawOutbox();
}

new MutationObserver(translateNotices).observe(document.body, { subtree: true, childList: true });
