// The questions whether tools may run. Each is part of the reply (render.py); this says them aloud, and moves the focus on.

let answered = false; // a question of which the focus goes to the next one

function answer(button) {
    const { word, call } = button.dataset;
    for (const one of button.parentElement.querySelectorAll("button")) one.disabled = true;
    answered = true;
    act("answer", { allowed: word !== "no", always: word === "always", call: Number(call) });
}

function askPanel() {
    const place = find(".says-question"), said = frame.asking.join();
    if (place.dataset.calls === said) return;
    place.dataset.calls = said;
    place.textContent = frame.asking.length ? words("waits_for_you") : "";
    if (answered && !element.contains(document.activeElement)) (find(".question button:enabled") ?? box).focus();
    answered = false;
}
