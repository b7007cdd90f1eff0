// The question whether a tool may run.

function askPanel() {
    const place = find(".asking");
    if (place.dataset.call === `${frame.asking}`) return;
    place.dataset.call = frame.asking;
    place.replaceChildren();
    if (!frame.asking) return;
    place.append(
        make("span", { textContent: words("waits_for_you") }),
        button("answer", { text: words("allow"), look: "primary", word: "yes" }),
        button("answer", { text: words("deny"), look: "secondary", word: "no" }),
    );
}
