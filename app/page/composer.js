// The box: drafts, the messages that wait for the end of a reply, and answers of the server to them.

const draftKey = (conversation, fresh = frame.fresh) => `exaone4_mlx draft ${conversation === fresh ? "" : conversation}`;
const keepDraft = (conversation, fresh) => {
    if (conversation === null) return; // no frame has come yet: the first one says whose draft it is
    const key = draftKey(conversation, fresh);
    box.value ? localStorage.setItem(key, box.value) : localStorage.removeItem(key);
};

function grow() {
    box.style.height = "auto";
    box.style.height = `${Math.min(box.scrollHeight, window.innerHeight / 3)}px`;
    sendButton.disabled = !box.value.trim();
}

/** After a click on a button that goes away. On a touch screen the keyboard of the screen would come up. */
const backToBox = () => window.matchMedia("(hover: hover)").matches && box.focus();

/** The box is empty from now on: what is typed next is the next message. A refused message comes back. */
function submit() {
    const bad = files.find((file) => file.error);
    if (bad) return say(bad.error);
    if (files.some((file) => file.tokens === undefined)) return say(words("file_is_read"));
    if (!box.value.trim()) return;
    outbox.push({ id: ++serial, text: box.value, names: files, conversation: frame.conversation });
    box.value = "";
    files = [];
    keepDraft(frame.conversation);
    drawChips();
    drawOutbox();
    grow();
    say("");
    pump();
}

/** Sends the next message that waits. */
function pump() {
    if (isLost || frame.conversation === null || frame.running || outbox.some((one) => one.sent)) return;
    const next = outbox.find((one) => one.conversation === frame.conversation);
    if (!next) return;
    next.sent = true;
    follows = true;
    act("send", { id: next.id, text: next.text, files: next.names.map((file) => file.path) });
    drawOutbox();
}

watch("answer", () => {
    const answer = props.answer;
    if (!answer) return;
    if (answer.text) box.value = box.value ? `${answer.text}\n${box.value}` : answer.text;
    const sent = outbox.find((one) => one.id === answer.id);
    if (sent && answer.busy) {
        sent.sent = false; // it was sent before the frame of the reply under way came: it waits in its place
        setTimeout(pump, 200);
        return drawOutbox();
    }
    outbox = outbox.filter((one) => one !== sent);
    if (sent && answer.error) putBack(sent);
    say(answer.error ?? "");
    keepDraft(frame.conversation);
    drawOutbox();
    grow();
    pump(); // the frame of the end may have come before this answer
});

function putBack(message) {
    box.value = box.value ? `${message.text}\n${box.value}` : message.text;
    files = [...message.names, ...files];
    keepDraft(frame.conversation);
    drawChips();
    grow();
    box.focus();
}

function say(text) {
    text ||= isLost ? words("no_connection") : "";
    notice.textContent = text;
    notice.hidden = !text;
}

function drawOutbox() {
    sessionStorage.setItem(WAITING, JSON.stringify([...interrupted, ...outbox]));
    const waiting = outbox.filter((one) => (isLost || !one.sent) && one.conversation === frame.conversation);
    outboxList.replaceChildren(
        ...waiting.map((one) => {
            const back = button("take-back", { text: "×", label: words("take_back"), look: "close", id: one.id });
            return make("div", { className: "waiting" }, make("span", { textContent: one.text }), back);
        }),
    );
}

box.addEventListener("input", () => {
    grow();
    keepDraft(frame.conversation);
});
box.addEventListener("keydown", (event) => {
    if (isComposed(event)) return;
    if (event.key === "Enter" && !event.shiftKey) {
        event.preventDefault();
        submit();
    } else if (event.key === "ArrowUp" && !box.value) {
        const last = [...list.querySelectorAll(".item.user")].pop();
        if (last) {
            event.preventDefault();
            edit(last);
        }
    }
});
sendButton.addEventListener("click", () => {
    submit();
    backToBox();
});
