// Numbers out of range are refused at their field, in the language of the page. Gradio, and so the chat, gets valid ones.

const refusal = make("div", { className: "refusal card", hidden: true });
refusal.setAttribute("role", "alert");
element.append(refusal);

const isNumber = (field) => field instanceof HTMLInputElement && field.type === "number";

/** Why the number of a field cannot be taken; "" for one that can. A field without an upper limit may be empty. */
function fault(field) {
    const { min, value, validity } = field, max = field.max || (value && `${Number.MAX_SAFE_INTEGER}`);
    const number = Number(value), whole = Number(field.step) >= 1;
    const isEmpty = value === "" && !validity.badInput;
    const isWrong = isEmpty ? field.max !== "" : validity.badInput || number < Number(min) || number > Number(max) || (whole && !Number.isInteger(number));
    if (!isWrong) return "";
    return field.max || number > Number(max) ? words(whole ? "whole_between" : "number_between", { min, max }) : words("number_least", { min });
}

/** Takes the number of a field, or puts the one before back and says why, below the field. */
function commit(field) {
    const text = fault(field);
    if (!text && field.value === field.good) return;
    if (text) showRefusal(field, text);
    field.value = field.good = text ? field.good : field.value && `${Number(field.value)}`;
    field.dispatchEvent(new Event("input", { bubbles: true })); // Gradio gets whole numbers, not each digit that is typed
}

function showRefusal(field, text) {
    const place = field.getBoundingClientRect();
    refusal.textContent = text;
    refusal.style.top = `${place.bottom + 4}px`;
    refusal.style.right = `${Math.max(8, document.documentElement.clientWidth - place.right)}px`;
    refusal.hidden = false;
    clearTimeout(refusal.timer);
    refusal.timer = setTimeout(() => (refusal.hidden = true), 5000);
}

for (const kind of ["focusin", "input", "change", "focusout", "keydown"])
    document.addEventListener(
        kind,
        (event) => {
            const field = event.target;
            if (!isNumber(field) || !document.querySelector("gradio-app, .gradio-container")?.contains(field)) return;
            if (kind === "focusin") field.good = field.value;
            else if (kind === "input") event.isTrusted && event.stopImmediatePropagation();
            else if (kind !== "keydown" || event.key === "Enter") commit(field);
        },
        true,
    );
