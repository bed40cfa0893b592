"use strict";
// A drawing of a graph: search, zoom, and details on a click.
// Text is only ever set as text: names in the graph may be anything.
const drawing = document.getElementById("drawing");
const details = document.getElementById("details");
const search = document.getElementById("search");
const count = document.getElementById("count");

let graph = { nodes: [], edges: [] };
let nodes = new Map();
// What is shown in the box of a pod: itself and what is inside it.
let inside = new Map();
let attached = new Map();
let boxes = [];
let lines = [];
let found = [];
let chosen = "";

function grouped(pairs) {
  const groups = new Map();
  for (const [key, value] of pairs) {
    if (!groups.has(key)) groups.set(key, []);
    groups.get(key).push(value);
  }
  return groups;
}

// Shows the graph of the drawing that is on the page. What was zoomed, searched and chosen stays.
function load(next) {
  graph = next;
  nodes = new Map(graph.nodes.map((node) => [node.id, node]));
  inside = grouped(graph.nodes.filter((node) => node.within).map((node) => [node.within, node]));
  attached = grouped(graph.edges.flatMap((edge) => [[edge.from, edge], [edge.to, edge]]));
  boxes = [...drawing.querySelectorAll(".box")];
  lines = [...drawing.querySelectorAll("path.line")];
  found = boxes.map((box) => ({ box, text: searchable(box) }));
  resize();
  find();
  choose(nodes.has(chosen) ? chosen : "");
}

let whole = null;
let view = null;

function resize() {
  const now = { x: 0, y: 0, width: +drawing.dataset.width, height: +drawing.dataset.height };
  const fits = view === null || ["x", "y", "width", "height"].every((it) => view[it] === whole[it]);
  whole = now;
  if (fits) fit();
}

function fit() {
  view = { ...whole };
  look();
}

function look() {
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
  look();
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
  look();
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
document.getElementById("whole").addEventListener("click", fit);

function searchable(box) {
  const text = (it) => JSON.stringify(it).toLowerCase();
  const id = box.dataset.node || "";
  const node = nodes.get(id);
  let all = box.textContent.toLowerCase() + id.toLowerCase();
  if (node && !node.host) {
    all += text(node) + (inside.get(id) || []).map(text).join();
    all += (attached.get(id) || []).filter((edge) => edge.interface).map(text).join();
  }
  return all;
}

const frames = ["host", "group"];
function find() {
  const word = search.value.trim().toLowerCase();
  drawing.classList.toggle("searched", word !== "");
  let hits = 0;
  for (const { box, text } of found) {
    const frame = frames.some((name) => box.classList.contains(name));
    const hit = word !== "" && !frame && text.includes(word);
    if (hit) hits += 1;
    box.classList.toggle("frame", frame);
    box.classList.toggle("other", !hit);
  }
  count.textContent = word === "" ? "" : `${hits} found`;
}
search.addEventListener("input", find);

function made(name, text) {
  const element = document.createElement(name);
  element.textContent = text;
  return element;
}

function choose(id) {
  const node = nodes.get(id);
  chosen = node ? id : "";
  for (const box of boxes) box.classList.toggle("chosen", node !== undefined && box.dataset.node === id);
  for (const line of lines) line.classList.toggle("chosen", node !== undefined && [line.dataset.from, line.dataset.to].includes(id));
  details.hidden = node === undefined;
  if (!node) return;
  details.querySelector("h2").textContent = node.name || node.id;
  const plain = (it) => (typeof it === "object" && it !== null ? JSON.stringify(it) : String(it));
  const facts = Object.entries(node).filter(([key]) => key !== "name" && key !== "id");
  details.querySelector("dl").replaceChildren(...facts.flatMap(([key, value]) => {
    const text = Array.isArray(value) ? value.map(plain).join("\n") : plain(value);
    return [made("dt", key), made("dd", text)];
  }));
  const links = (attached.get(id) || []).map((edge) => [edge.kind, edge.from === id ? edge.to : edge.from]);
  const all = [...links, ...(inside.get(id) || []).map((it) => ["inside", it.id])];
  details.querySelector("ul").replaceChildren(...all.map(([kind, other]) => {
    const target = nodes.get(other);
    const where = target && target.within && nodes.get(target.within);
    const name = target ? target.name || target.id : other;
    const button = made("button", `${kind}: ${name}${where ? ` in ${where.name}` : ""}`);
    button.type = "button";
    button.addEventListener("click", () => choose(other));
    const item = made("li", "");
    item.append(button);
    return item;
  }));
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
