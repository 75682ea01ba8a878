// pymdownx.arithmatex leaves \(...\) in spans and \[...\] in divs; KaTeX, vendored beside this file, draws them.
document$.subscribe(() => {
  for (const box of document.querySelectorAll(".arithmatex:not([data-drawn])")) {
    const tex = box.textContent.trim().slice(2, -2);
    katex.render(tex, box, { displayMode: box.tagName === "DIV", throwOnError: false });
    box.dataset.drawn = "";
  }
});
