// Diagrams. Mermaid runs in a sandboxed frame, which reaches neither the page nor a network. The page shows its result as
// a picture, in which scripts do not run. Code that is no diagram stays code.

const DRAW_SECONDS = 10;
let engine = null; // the frame, or a promise of it
const DRAW = `
    let count = 0;
    window.onmessage = async ({ data, ports: [port] }) => {
        try {
            mermaid.initialize({ startOnLoad: false, securityLevel: "strict", theme: data.theme, htmlLabels: false,
                flowchart: { htmlLabels: false }, fontFamily: "system-ui, sans-serif" });
            const place = document.createElement("div");
            place.innerHTML = (await mermaid.render("diagram" + ++count, data.source)).svg;
            const picture = place.querySelector("svg"), [, , width, height] = picture.getAttribute("viewBox").split(" ");
            picture.setAttribute("width", width);
            picture.setAttribute("height", height);
            port.postMessage({ svg: new XMLSerializer().serializeToString(picture) });
        } catch (problem) {
            port.postMessage({ error: String(problem.message ?? problem) });
        }
    };`;

async function startEngine() {
    const policy = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'";
    const code = (await server.diagrams({})).replaceAll("</script", "<\\/script");
    const made = make("iframe", {
        className: "engine", tabIndex: -1, title: "Mermaid", ariaHidden: "true",
        srcdoc: `<!doctype html><meta http-equiv="Content-Security-Policy" content="${policy}"><script>${code}</script><script>${DRAW}</script>`,
    });
    made.setAttribute("sandbox", "allow-scripts");
    await new Promise((done) => {
        made.onload = done;
        element.append(made);
    });
    return made;
}

/** A picture of a diagram, as the text of an SVG file. An engine that does not answer is removed. */
async function picture(source, theme) {
    const frame = await (engine ??= startEngine());
    const channel = new MessageChannel();
    const answer = await new Promise((done) => {
        channel.port1.onmessage = (event) => done(event.data);
        setTimeout(() => done({ error: "timeout", late: true }), DRAW_SECONDS * 1000);
        frame.contentWindow.postMessage({ source, theme }, "*", [channel.port2]);
    });
    channel.port1.close();
    if (answer.late) {
        frame.remove();
        engine = null;
    }
    if (answer.error) throw new Error(answer.error);
    return answer.svg;
}

/** Draws the diagrams of finished messages that are not drawn yet, or are drawn for the other theme. */
async function drawDiagrams() {
    const theme = document.body.classList.contains("dark") ? "dark" : "default";
    for (const code of list.querySelectorAll(".code.mermaid")) {
        if (code.dataset.theme === theme) continue;
        code.dataset.theme = theme;
        try {
            const svg = await picture(find("code", code).textContent, theme);
            const made = make("img", { alt: words("diagram"), src: `data:image/svg+xml,${encodeURIComponent(svg)}` });
            find(".diagram", code)?.remove();
            code.append(make("div", { className: "diagram", tabIndex: 0 }, made));
            code.classList.add("drawn");
        } catch {} // what it is not able to draw is shown as code
    }
}
