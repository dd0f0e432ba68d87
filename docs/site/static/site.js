// What scrolls in itself can be scrolled with the keyboard, too.
function markScrolling() {
  for (const each of document.querySelectorAll("pre, .table-wrapper, .cell_output, .diagram")) {
    if (each.scrollWidth > each.clientWidth) each.tabIndex = 0;
    else each.removeAttribute("tabindex");
  }
}

addEventListener("load", markScrolling);
addEventListener("resize", markScrolling);
