// Keys that hold on the whole page.

document.addEventListener("keydown", (event) => {
    if (isComposed(event)) return;
    const command = event.metaKey || event.ctrlKey;
    if (event.key === "Escape" && frame.running) act("stop");
    else if (command && event.key.toLowerCase() === "k") {
        trigger("search", {});
        setTimeout(() => document.querySelector("#search :is(input, textarea)")?.focus(), 300); // after the list has opened
    } else if (command && event.shiftKey && event.key.toLowerCase() === "o") document.querySelector("#new-chat")?.click();
    else return;
    event.preventDefault();
});
