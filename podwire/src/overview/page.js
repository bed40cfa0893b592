// The state of the node, asked for while the page is seen.
const every = 2000;
const svgNamespace = "http://www.w3.org/2000/svg";
const tabs = ["graph", "pods", "findings", "metrics"];
const at = (id) => document.getElementById(id);
const within = (id, what) => at(id).querySelector(what);

const shown = { tab: "graph", view: "host", etag: "", readAt: 0, state: null };

function setStatus(state, text) {
  at("status").dataset.state = state;
  at("status").textContent = text;
}

function age(seconds) {
  const units = [[86400, "d"], [3600, "h"], [60, "min"], [1, "s"]];
  const [size, unit] = units.find(([size]) => seconds >= size) || [1, "s"];
  return `${Math.floor(seconds / size)} ${unit}`;
}

async function readState() {
  const view = shown.view;
  const answer = await fetch(`state?view=${view}`, {
    cache: "no-store",
    headers: shown.etag ? { "If-None-Match": shown.etag } : {},
  });
  if (answer.status !== 304 && answer.status !== 200) throw new Error((await answer.text()).trim());
  shown.readAt = Date.now() - 1000 * (answer.headers.get("Age") || 0);
  if (answer.status === 304 || view !== shown.view) return;
  shown.state = await answer.json();
  shown.etag = answer.headers.get("ETag") || "";
  render();
}

async function readMetrics() {
  const answer = await fetch("metrics", { cache: "no-store" });
  if (!answer.ok) throw new Error(`metrics: ${answer.status}`);
  showMetrics(await answer.text());
}

let timer = 0;
let reading = false;
let again = false;
async function poll() {
  clearTimeout(timer);
  again = reading;
  if (reading || document.hidden) return;
  reading = true;
  try {
    await readState();
    if (shown.tab === "metrics") await readMetrics();
    setStatus("live", `live, read ${age((Date.now() - shown.readAt) / 1000)} ago`);
  } catch (error) {
    setStatus("lost", error instanceof TypeError ? "the agent does not answer" : error.message);
  }
  reading = false;
  timer = setTimeout(poll, again ? 0 : every);
}
document.addEventListener("visibilitychange", poll);

// The drawing of the server is parsed as XML: what is not well-formed is not shown at all.
function draw({ width, height, inside }) {
  const parsed = new DOMParser().parseFromString(`<svg xmlns="${svgNamespace}">${inside}</svg>`, "image/svg+xml");
  if (parsed.documentElement.namespaceURI !== svgNamespace) throw new Error("the drawing cannot be read");
  drawing.dataset.width = width;
  drawing.dataset.height = height;
  drawing.replaceChildren(...parsed.documentElement.childNodes);
}

function render() {
  const { node, graph, drawing: picture, containers, doctor } = shown.state;
  document.title = `${node}: podwire`;
  at("node").textContent = node;
  draw(picture);
  load(graph);
  showPods(containers);
  showFindings(doctor);
  filter();
}

function cell(row, name, text, kind) {
  const data = made("td", text);
  data.dataset.name = name;
  if (kind) data.className = kind;
  row.append(data);
  return data;
}

function mark(state, text) {
  const element = made("span", text);
  element.className = "mark";
  element.dataset.state = state;
  return element;
}

const listed = (text) => text.split(",").map((it) => it.trim()).join("\n");

function showPods(pods) {
  at("pods-count").textContent = pods.length;
  within("pods", ".empty").hidden = pods.length > 0;
  within("pods", "table").hidden = pods.length === 0;
  const now = Date.now() / 1000;
  const sorted = [...pods].sort((a, b) => (a.Names || a.ID).localeCompare(b.Names || b.ID, "en", { numeric: true }));
  within("pods", "tbody").replaceChildren(...sorted.map((pod) => {
    const row = document.createElement("tr");
    const button = made("button", pod.Names || pod.ID.slice(0, 12));
    button.type = "button";
    button.title = pod.ID;
    button.addEventListener("click", () => showInGraph(pod.ID));
    cell(row, "Name", "").append(button);
    cell(row, "Networks", listed(pod.Networks));
    cell(row, "Interfaces", listed(pod.Interfaces), "code");
    cell(row, "Addresses", listed(pod.Addresses), "code");
    cell(row, "MAC addresses", listed(pod.MACs), "code");
    cell(row, "Ports", listed(pod.Ports), "code");
    cell(row, "Runtime", pod.Runtime);
    cell(row, "Age", pod.CreatedAt ? age(Math.max(0, now - pod.CreatedAt)) : "");
    cell(row, "Health", "").append(mark(pod.Health === "ok" ? "ok" : "error", pod.Health));
    return row;
  }));
}

function showInGraph(container) {
  const isIt = (node) => node.container === container || (node.containers || []).includes(container);
  const node = graph.nodes.find(isIt);
  select("graph");
  choose(node ? node.id : "");
}

function showFindings({ findings, unread }) {
  const all = findings.length + unread.length;
  const worst = findings.some((it) => it.severity === "error") ? "error" : "warning";
  at("findings-count").textContent = all;
  at("findings-count").dataset.state = all > 0 ? worst : "none";
  within("findings", ".empty").hidden = all > 0;
  const sorted = [...findings].sort((a, b) => a.severity.localeCompare(b.severity) || a.id.localeCompare(b.id));
  within("findings", ".cards").replaceChildren(...sorted.map(finding), ...unread.map(notExamined));
}

function card(state, title, words, facts) {
  const element = document.createElement("article");
  element.className = "card";
  element.dataset.state = state;
  const heading = made("h2", "");
  heading.append(mark(state, state), ...title.map((it) => made("span", it)));
  const list = document.createElement("dl");
  for (const [name, text, isCode] of facts) {
    const value = made("dd", isCode ? "" : text);
    if (isCode) value.append(made("code", text));
    list.append(made("dt", name), value);
  }
  element.append(heading, made("p", words), list);
  return element;
}

function finding(it) {
  const about = [it.network, it.container].filter(Boolean).join(" / ");
  return card(it.severity, [it.id, about || "node"], it.what, [
    ["Evidence", it.evidence.command, true],
    ["Output", it.evidence.shows],
    ["Why", it.why],
    ["Remedy", it.remedy, it.command],
  ]);
}

function notExamined(it) {
  return card("warning", ["not examined", it.what], it.why, []);
}

// The format of Prometheus: a help, then samples, each with labels and a value.
function showMetrics(text) {
  const rows = [];
  for (const line of text.split("\n")) {
    const help = line.match(/^# HELP (\S+) (.*)$/);
    const sample = line.match(/^([a-zA-Z_:][\w:]*)(?:\{(.*)\})? (\S+)$/);
    const row = document.createElement("tr");
    if (help) {
      row.className = "group";
      const data = cell(row, "", "");
      data.colSpan = 3;
      data.append(made("code", help[1]), made("span", ` ${help[2]}`));
    } else if (sample && !sample[1].endsWith("_bucket")) {
      cell(row, "Metric", sample[1], "code");
      cell(row, "Labels", (sample[2] || "").replaceAll('",', '"\n'), "code");
      cell(row, "Value", sample[3], "code number");
    } else {
      continue;
    }
    rows.push(row);
  }
  within("metrics", "tbody").replaceChildren(...rows);
  filter();
}

// The search hides rows and cards without the word; in the graph, it is the drawing's.
function filter() {
  find();
  if (shown.tab === "graph") return;
  const word = search.value.trim().toLowerCase();
  const all = [...at(shown.tab).querySelectorAll("tbody tr:not(.group), .card")];
  let hits = 0;
  for (const one of all) {
    one.hidden = word !== "" && !(one.textContent + (one.querySelector("[title]")?.title || "")).toLowerCase().includes(word);
    if (!one.hidden) hits += 1;
  }
  count.textContent = word === "" ? "" : `${hits} found`;
}
search.addEventListener("input", filter);

function select(tab) {
  shown.tab = tab;
  for (const it of tabs) {
    at(it).hidden = it !== tab;
    at(`tab-${it}`).setAttribute("aria-selected", String(it === tab));
  }
  filter();
  if (tab === "metrics") poll();
}
for (const it of tabs) at(`tab-${it}`).addEventListener("click", () => select(it));

for (const it of ["host", "user"]) {
  at(`view-${it}`).addEventListener("click", () => {
    shown.view = it;
    shown.etag = "";
    view = null;
    for (const other of ["host", "user"]) at(`view-${other}`).setAttribute("aria-pressed", String(other === it));
    poll();
  });
}

select("graph");
poll();
