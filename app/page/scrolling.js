// The end of the conversation stays in view while the user is there.

const isAtEnd = () => scroller.scrollHeight - scroller.scrollTop - scroller.clientHeight < 48;

function keepBottom() {
    if (follows) scroller.scrollTop = scroller.scrollHeight;
    latest.hidden = follows || isAtEnd(); // a switch of versions does not follow, and all may be in view
}

scroller.addEventListener("scroll", () => {
    follows = isAtEnd();
    latest.hidden = follows;
    if (scroller.scrollTop < 400 && shown.start > 0 && !follows) refresh(Math.max(0, shown.start - PAGE));
});
latest.addEventListener("click", () => {
    follows = true;
    keepBottom();
});
new ResizeObserver(keepBottom).observe(list);
