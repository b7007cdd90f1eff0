// Files of the next message.

function drawChips() {
    chips.replaceChildren(
        ...files.map((file) => {
            const text = file.error ?? (file.tokens === undefined ? `${file.name} …` : words("attached", { name: file.name, tokens: file.tokens.toLocaleString("en") }));
            const drop = button("drop-file", { text: "×", label: words("remove_file"), look: "close", id: file.id });
            return make("div", { className: file.error ? "chip bad" : "chip" }, make("span", { textContent: text }), drop);
        }),
    );
    const read = files.filter((file) => file.tokens !== undefined);
    const total = read.reduce((sum, file) => sum + file.tokens, read[0]?.used);
    const number = (count) => count.toLocaleString("en");
    find(".sum").textContent = read.length ? words("to_be_sent", { total: number(total), limit: number(read[0].limit) }) : "";
    grow();
}

/** Keeps some of the files. The server stops reading the others. */
function keepFiles(keeps) {
    for (const file of files.filter((one) => !keeps(one)))
        if (file.path && file.tokens === undefined && !file.error) server.read({ path: file.path, tab: frame.tab, drop: true });
    files = files.filter(keeps);
}

async function attach(chosen) {
    for (const file of chosen) {
        const entry = { name: file.name, id: ++serial };
        files.push(entry);
        const known = props.suffixes.includes(file.name.slice(file.name.lastIndexOf(".")).toLowerCase());
        if (file.size > props.most_bytes) entry.error = words("file_too_large", { name: file.name, size: props.most_bytes / 1e6 });
        else if (!known && /^(image|audio|video)\//.test(file.type)) entry.error = words("file_no_text", { name: file.name });
        drawChips();
        if (entry.error) continue;
        try {
            const { path } = await upload(file);
            if (!files.includes(entry)) continue; // it was removed meanwhile
            entry.path = path;
            const read = await server.read({ path, tab: frame.tab });
            if (!read) throw new Error(words("no_connection"));
            Object.assign(entry, read);
        } catch (problem) {
            entry.error = `${file.name}: ${reason(problem)}`;
        }
        drawChips();
    }
}

picker.addEventListener("change", () => {
    attach([...picker.files]);
    picker.value = "";
});
for (const kind of ["dragover", "drop"])
    element.addEventListener(kind, (event) => {
        if (!event.dataTransfer?.types.includes("Files")) return;
        event.preventDefault();
        if (kind === "drop") attach([...event.dataTransfer.files]);
    });
box.addEventListener("paste", (event) => {
    if (event.clipboardData.files.length) {
        event.preventDefault();
        attach([...event.clipboardData.files]);
    }
});
