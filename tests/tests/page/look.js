// What tests ask about a page.
"use strict";
window.box = (it) => it.getBoundingClientRect();
window.seen = (it) => { const b = box(it); return b.width > 0 && b.height > 0; };
window.visible = (what) => [...document.querySelectorAll(what)].filter(seen);
// Pairs of elements that share some area, but for one inside the other.
window.overlaps = (what) => {
  const all = visible(what), pairs = [];
  for (const [index, a] of all.entries()) for (const b of all.slice(index + 1)) {
    if (a.contains(b) || b.contains(a)) continue;
    const [p, q] = [box(a), box(b)];
    const wide = Math.min(p.right, q.right) - Math.max(p.left, q.left);
    const high = Math.min(p.bottom, q.bottom) - Math.max(p.top, q.top);
    if (wide > 1 && high > 1) pairs.push(`${a.outerHTML.slice(0, 120)} and ${b.outerHTML.slice(0, 120)}`);
  }
  return pairs;
};
window.outside = (what) => visible(what).filter((it) => {
  const b = box(it);
  return b.left < -1 || b.right > innerWidth + 1;
}).map((it) => it.outerHTML.slice(0, 120));
// Texts of the drawing that leave their box.
window.cut = () => [...document.querySelectorAll("#drawing .box")].flatMap((it) => {
  const frame = box(it.querySelector("rect"));
  return [...it.querySelectorAll("text")].filter((text) => {
    const b = box(text);
    return b.left < frame.left - 1 || b.right > frame.right + 1 || b.bottom > frame.bottom + 1;
  }).map((text) => text.textContent);
});
