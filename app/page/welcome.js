// The page of an empty conversation.

function drawWelcome() {
    const key = `${frame.language} ${frame.model}`;
    if (welcome.dataset.key === key) return;
    welcome.dataset.key = key;
    const examples = props.examples[frame.language].map((text) => button("example", { text, look: "secondary" }));
    welcome.replaceChildren(
        make("h2", { textContent: words("welcome") }),
        make("p", { textContent: words("welcome_local") }),
        make("p", { className: "quiet", textContent: frame.note }),
        make("div", { className: "examples" }, ...examples),
    );
}
