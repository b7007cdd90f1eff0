// Light or dark.

const darkSystem = window.matchMedia("(prefers-color-scheme: dark)");

function showTheme() {
    const theme = localStorage.getItem("exaone4_mlx theme") ?? "";
    document.body.classList.toggle("dark", theme ? theme === "dark" : darkSystem.matches);
    document.body.style.background = "var(--body-background-fill)"; // Gradio sets that of the first theme
    drawDiagrams();
}
window.addEventListener("storage", showTheme);
darkSystem.addEventListener("change", showTheme);
showTheme();
