// Numbers out of range are refused at their field, in the language of the page. Gradio, and so the chat, gets valid ones.

const refusal = make("div", { className: "refusal card", hidden: true });
refusal.setAttribute("role", "alert");
element.append(refusal);

const isNumber = (field) => field instanceof HTMLInputElement && field.type === "number";

/** Why the number of a field cannot be taken; "" for one that can. A field without an upper limit may be empty. */
function fault(field) {
    const { min, max, value, validity } = field;
    const number = Number(value), whole = Number(field.step) >= 1;
    const isEmpty = value === "" && !validity.badInput;
    const isWrong = isEmpty ? max !== "" : validity.badInput || number < Number(min) || (max !== "" && number > Number(max)) || (whole && !Number.isInteger(number));
    return !isWrong ? "" : max === "" ? words("number_least", { min }) : words("number_between", { min, max });
}

/** Puts the last good number back, and says why, below the field. */
function refuse(field) {
    const text = fault(field);
    if (!text) return;
    const place = field.getBoundingClientRect();
    field.value = field.good ?? field.defaultValue;
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
            if (kind === "keydown" ? event.key === "Enter" : ["change", "focusout"].includes(kind)) refuse(field);
            else if (kind !== "keydown" && !fault(field)) field.good = field.value;
            else if (kind === "input") event.stopImmediatePropagation();
        },
        true,
    );
