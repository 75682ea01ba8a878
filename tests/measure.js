// What cannot be read on this page, as a list of sentences: text or pictures beyond the edge of the screen or of a
// box that hides them, chart text below 9 CSS pixels, text without contrast (WCAG 2.2: 4.5 to 1).
(() => {
  const faults = new Map();
  const name = (el) => {
    const text = (el.textContent || "").trim().replace(/\s+/g, " ").slice(0, 40);
    const kind = el.getAttribute("class");
    return `<${el.tagName.toLowerCase()}${kind ? ` class="${kind}"` : ""}> ${JSON.stringify(text)}`;
  };
  const tell = (kind, el, what) => {
    if (!faults.has(kind)) faults.set(kind, []);
    faults.get(kind).push(`${kind}: ${name(el)} ${what}`);
  };
  const width = document.documentElement.clientWidth;
  const root = document.scrollingElement;
  if (root.scrollWidth > width) tell("page", root, `is ${root.scrollWidth} wide on a screen of ${width}`);

  const ink = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  const known = new Map();
  const rgba = (colour) => {
    if (!known.has(colour)) known.set(colour, painted(colour));
    return known.get(colour);
  };
  const painted = (colour) => {
    ink.clearRect(0, 0, 1, 1);
    ink.fillStyle = colour;
    ink.fillRect(0, 0, 1, 1);
    const [r, g, b, a] = ink.getImageData(0, 0, 1, 1).data;
    return [r, g, b, a / 255];
  };
  const over = (top, under) => [0, 1, 2].map((i) => top[i] * top[3] + under[i] * (1 - top[3])).concat(1);
  const grounds = new Map([[null, [255, 255, 255, 1]]]);
  const ground = (el) => {
    if (!grounds.has(el)) grounds.set(el, over(rgba(getComputedStyle(el).backgroundColor), ground(el.parentElement)));
    return grounds.get(el);
  };
  const light = ([r, g, b]) => {
    const [x, y, z] = [r, g, b].map((c) => c / 255).map((c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4));
    return 0.2126 * x + 0.7152 * y + 0.0722 * z;
  };
  const contrast = (a, b) => {
    const [x, y] = [light(a), light(b)].sort((p, q) => q - p);
    return (x + 0.05) / (y + 0.05);
  };
  const shown = (el) => el.checkVisibility({ opacityProperty: true, visibilityProperty: true });
  // A box that scrolls sideways is fine where a shade at its edge, which the content covers, shows that there is more.
  const shaded = new Map([[null, false]]);
  const scrolls = (el) => {
    if (!shaded.has(el)) {
      const style = getComputedStyle(el);
      const own = style.overflowX === "auto" && /local/.test(style.backgroundAttachment) && /gradient/.test(style.backgroundImage);
      shaded.set(el, own || scrolls(el.parentElement));
    }
    return shaded.get(el);
  };
  // The theme of the documentation keeps its navigation in a drawer beside the screen until it is asked for, a line
  // that only screen readers read in a box of one pixel, and the names of its buttons in hidden labels.
  const away = (el) => {
    const drawer = el.closest(".md-sidebar, .md-search__output, .md-skip");
    return drawer !== null && (drawer.getBoundingClientRect().right <= 0 || !drawer.matches(".md-sidebar"));
  };

  for (const el of document.body.querySelectorAll("*")) {
    if (!shown(el) || away(el) || el.closest("defs, clipPath, .katex-mathml")) continue;
    const box = el.getBoundingClientRect();
    if (!box.width || !box.height) continue;
    const style = getComputedStyle(el);
    const inside = el.closest("svg");
    if (!inside && !scrolls(el) && (box.right > width + 1 || box.left < -1))
      tell("edge", el, `reaches from ${Math.round(box.left)} to ${Math.round(box.right)} of ${width}`);
    if (!inside && !scrolls(el) && style.overflowX !== "visible" && el.scrollWidth > el.clientWidth + 1)
      tell("hidden", el, `shows ${el.clientWidth} of its ${el.scrollWidth} pixels`);
    // A picture file has text of 10 points, 13 pixels, where it is shown in its own size.
    if (el.tagName === "IMG" && /\.svg$/.test(el.currentSrc) && box.width < 0.68 * el.naturalWidth)
      tell("small", el, `is shown at ${Math.round((100 * box.width) / el.naturalWidth)} % of its size`);
    const own = [...el.childNodes].some((node) => node.nodeType === 3 && node.data.trim());
    if (!own) continue;
    if (inside) {
      const size = parseFloat(style.fontSize) * Math.hypot(el.getScreenCTM().a, el.getScreenCTM().b);
      const frame = inside.getBoundingClientRect();
      if (size < 9) tell("small", el, `is ${size.toFixed(1)} pixels high`);
      if (box.left < frame.left - 1 || box.right > frame.right + 1 || box.top < frame.top - 1 || box.bottom > frame.bottom + 1)
        tell("cut", el, "reaches beyond its picture");
    }
    const under = ground(el);
    const text = over(rgba(inside ? style.fill : style.color), under);
    const seen = contrast(text, under);
    if (seen < 4.5) tell("pale", el, `has a contrast of ${seen.toFixed(2)}`);
  }
  return [...faults.values()].flatMap((list) => (list.length > 4 ? [...list.slice(0, 4), `and ${list.length - 4} more`] : list));
})()
