// What every script of the page uses: elements, buttons, keys, and the way from one script to another.

const find = (selector, within = element) => within.querySelector(selector);
const make = (tag, options = {}, ...children) => {
    const made = Object.assign(document.createElement(tag), options);
    made.append(...children);
    return made;
};
/**
 * A button whose action is `actions[name]`. It shows `text`; without one it shows the picture of its class, and `label` is its
 * name. `look` are more classes. What else is given becomes its data.
 */
function button(name, { text = "", label = text, look = "", ...data }) {
    const made = make("button", { type: "button", className: `${name} ${look}`, textContent: text });
    if (label !== text) {
        made.title = label;
        made.setAttribute("aria-label", label);
    }
    Object.assign(made.dataset, { do: name, ...data });
    return made;
}
/** Whether the key belongs to an input method: Enter ends a syllable or chooses a Hanja. Safari says it by the code alone. */
const isComposed = (event) => event.isComposing || event.keyCode === 229;

/** Why a request failed, in the language of the page. Each browser has its own words for a server that does not answer. */
const reason = (problem) => /fetch|^Connection|NetworkError|Load failed/.test(problem.message) ? words("no_connection") : (problem.message ?? problem);

/** Events between the scripts of this page: "frame" (`bus.frame` is the last one), "find", "search", "fold" (the list), "keys". */
const bus = (window.exaone4_mlx ??= new EventTarget());
const announce = (name, detail = null) => bus.dispatchEvent(new CustomEvent(name, { detail }));
