// A result of the search: the conversation scrolls to the message, and the found words are marked for a while.

const MARKED = 8000; // milliseconds
let sought = null; // {conversation, message, texts}, until the message is there
let unmark = 0;

bus.addEventListener("find", ({ detail }) => {
    sought = detail;
    seek();
});

/** Fetches the message if it is older than those on the page, and shows it. */
async function seek() {
    if (!sought || fetching || shown.conversation !== sought.conversation || frame.conversation !== sought.conversation) return;
    if (sought.message < shown.start) {
        fetching = true;
        follows = false;
        try {
            await load(sought.message, true);
        } catch {} // no connection
        fetching = false;
    }
    const item = [...list.children].find((one) => one.dataset.key.startsWith(`${sought.message}-`));
    const { texts } = sought;
    sought = null;
    if (!item) return;
    follows = false;
    item.style.contentVisibility = "visible";
    showFound(item, texts);
}

function showFound(item, texts) {
    const ranges = rangesOf(item, texts);
    clearTimeout(unmark);
    find(".item.found", list)?.classList.remove("found");
    item.classList.add("found");
    if (window.Highlight && CSS.highlights) CSS.highlights.set("found", new Highlight(...ranges));
    unmark = setTimeout(() => {
        item.classList.remove("found");
        CSS.highlights?.delete("found");
    }, MARKED);
    const folded = ranges[0]?.startContainer.parentElement.closest("details:not([open])");
    if (folded) folded.open = true;
    const box = (ranges[0] ?? item).getBoundingClientRect(), view = scroller.getBoundingClientRect();
    scroller.scrollTop += box.top - view.top - view.height / 3;
    scroller.dispatchEvent(new Event("scroll")); // it says whether this is the end
}

/** Where the texts are in an element. Those of a file may be in decomposed Korean. */
function rangesOf(item, texts) {
    const wanted = [...new Set(texts.flatMap((text) => [text.toLowerCase(), text.normalize("NFD").toLowerCase()]))];
    const ranges = [];
    const walker = document.createTreeWalker(find(".parts", item), NodeFilter.SHOW_TEXT);
    while (walker.nextNode()) {
        const text = walker.currentNode.data.toLowerCase();
        if (text.length !== walker.currentNode.data.length) continue;
        for (const word of wanted)
            for (let at = text.indexOf(word); at >= 0; at = text.indexOf(word, at + word.length)) {
                const range = document.createRange();
                range.setStart(walker.currentNode, at);
                range.setEnd(walker.currentNode, at + word.length);
                ranges.push(range);
            }
    }
    return ranges.sort((a, b) => a.compareBoundaryPoints(Range.START_TO_START, b));
}
