"use strict";
// Text is only ever set as text: names in the graph may be anything.
const graph = JSON.parse(document.getElementById("graph").textContent);
const nodes = new Map(graph.nodes.map((node) => [node.id, node]));
const drawing = document.getElementById("drawing");
const boxes = [...drawing.querySelectorAll(".box")];
const lines = [...drawing.querySelectorAll("path.line")];
const whole = { x: 0, y: 0, width: +drawing.dataset.width, height: +drawing.dataset.height };
let view = { ...whole };

function show() {
  drawing.setAttribute("viewBox", `${view.x} ${view.y} ${view.width} ${view.height}`);
}

// The point of the drawing that stays where it is, in its own units.
function zoom(factor, point) {
  const at = point || { x: view.x + view.width / 2, y: view.y + view.height / 2 };
  const width = Math.min(Math.max(view.width * factor, 100), whole.width * 4);
  const real = width / view.width;
  view = {
    x: at.x - (at.x - view.x) * real,
    y: at.y - (at.y - view.y) * real,
    width,
    height: view.height * real,
  };
  show();
}

function point(event) {
  const matrix = drawing.getScreenCTM().inverse();
  return new DOMPoint(event.clientX, event.clientY).matrixTransform(matrix);
}

drawing.addEventListener("wheel", (event) => {
  event.preventDefault();
  zoom(Math.exp(event.deltaY * 0.0015), point(event));
}, { passive: false });

let drag = null;
drawing.addEventListener("pointerdown", (event) => {
  drag = { from: point(event), x: event.clientX, y: event.clientY, moved: false };
});
drawing.addEventListener("pointermove", (event) => {
  if (!drag) return;
  if (!drag.moved && Math.hypot(event.clientX - drag.x, event.clientY - drag.y) < 4) return;
  if (!drag.moved) drawing.setPointerCapture(event.pointerId);
  drag.moved = true;
  drawing.classList.add("dragged");
  const now = point(event);
  view.x += drag.from.x - now.x;
  view.y += drag.from.y - now.y;
  show();
});
for (const end of ["pointerup", "pointercancel"]) {
  drawing.addEventListener(end, () => {
    const moved = drag && drag.moved;
    drag = null;
    drawing.classList.remove("dragged");
    if (moved) drawing.addEventListener("click", (event) => event.stopPropagation(), { capture: true, once: true });
  });
}
document.getElementById("closer").addEventListener("click", () => zoom(0.7));
document.getElementById("farther").addEventListener("click", () => zoom(1 / 0.7));
document.getElementById("whole").addEventListener("click", () => { view = { ...whole }; show(); });

function text(node) {
  return JSON.stringify(node).toLowerCase();
}

// What is shown in the box of a pod: itself and what is inside it.
const inside = new Map();
for (const node of graph.nodes) {
  if (node.within) inside.set(node.within, [...(inside.get(node.within) || []), node]);
}
const attached = new Map();
for (const edge of graph.edges) {
  for (const id of [edge.from, edge.to]) attached.set(id, [...(attached.get(id) || []), edge]);
}

function searchable(box) {
  const id = box.dataset.node || "";
  const node = nodes.get(id);
  let all = box.textContent.toLowerCase() + id.toLowerCase();
  if (node && !node.host) {
    all += text(node) + (inside.get(id) || []).map(text).join();
    all += (attached.get(id) || []).filter((edge) => edge.interface).map(text).join();
  }
  return all;
}

const found = boxes.map((box) => ({ box, text: searchable(box) }));
const frames = ["host", "group"];
const search = document.getElementById("search");
search.addEventListener("input", () => {
  const word = search.value.trim().toLowerCase();
  drawing.classList.toggle("searched", word !== "");
  let count = 0;
  for (const { box, text } of found) {
    const frame = frames.some((name) => box.classList.contains(name));
    const hit = word !== "" && !frame && text.includes(word);
    if (hit) count += 1;
    box.classList.toggle("frame", frame);
    box.classList.toggle("other", !hit);
  }
  document.getElementById("count").textContent = word === "" ? "" : `${count} found`;
});

const details = document.getElementById("details");
function choose(id) {
  const node = nodes.get(id);
  for (const box of boxes) box.classList.toggle("chosen", node !== undefined && box.dataset.node === id);
  for (const line of lines) line.classList.toggle("chosen", node !== undefined && [line.dataset.from, line.dataset.to].includes(id));
  details.hidden = node === undefined;
  if (!node) return;
  details.querySelector("h2").textContent = node.name || node.id;
  const facts = details.querySelector("dl");
  facts.replaceChildren();
  for (const [key, value] of Object.entries(node)) {
    if (key === "name" || key === "id") continue;
    const term = document.createElement("dt");
    const fact = document.createElement("dd");
    term.textContent = key;
    const plain = (it) => (typeof it === "object" && it !== null ? JSON.stringify(it) : String(it));
    fact.textContent = Array.isArray(value) ? value.map(plain).join("\n") : plain(value);
    facts.append(term, fact);
  }
  const list = details.querySelector("ul");
  list.replaceChildren();
  const links = (attached.get(id) || []).map((edge) => [edge.kind, edge.from === id ? edge.to : edge.from]);
  for (const [kind, other] of [...links, ...(inside.get(id) || []).map((it) => ["inside", it.id])]) {
    const item = document.createElement("li");
    const button = document.createElement("button");
    const target = nodes.get(other);
    const where = target && target.within && nodes.get(target.within);
    button.textContent = `${kind}: ${target ? target.name || target.id : other}${where ? ` in ${where.name}` : ""}`;
    button.addEventListener("click", () => choose(other));
    item.append(button);
    list.append(item);
  }
}
drawing.addEventListener("click", (event) => {
  const box = event.target.closest(".box[data-node]");
  choose(box ? box.dataset.node.replace(/#\d+$/, "") : "");
});
document.getElementById("close").addEventListener("click", () => choose(""));
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape") choose("");
  if (event.key === "/" && document.activeElement !== search) { event.preventDefault(); search.focus(); }
});
