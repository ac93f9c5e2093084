"use strict";

const find = (id) => document.getElementById(id);

function make(name, attributes = {}, ...children) {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  element.append(...children);
  return element;
}

// Requests ------------------------------------------------------------------------------------

let models = [];
let key = sessionStorage.getItem("key") ?? "";
const chosen = () => models[find("model").selectedIndex];

function ask(path, body) {
  const headers = key ? { Authorization: `Bearer ${key}` } : {};
  const method = body ? "POST" : "GET";
  return fetch(path, { method, headers, body: body && JSON.stringify(body) });
}

const lines = (text) => text.split("\n").map((line) => line.trim()).filter(Boolean);

// What is asked for each kind of model: fields of the form, the request, and how it is shown.
const KINDS = {
  labels: {
    title: "Classify a text", first: "Text", example: ["I like you."],
    request: (text) => ["predict", { inputs: [[text]], truncate: true }],
    show: (answer) => bars(answer[0].map((one) => [one.label, one.score])),
  },
  pairs: {
    title: "Classify a pair of texts", first: "Text", second: "Its pair",
    example: ["A man is asleep.", "Somebody sleeps."],
    request: (text, pair) => ["predict", { inputs: [[text, pair]], truncate: true }],
    show: (answer) => bars(answer[0].map((one) => [one.label, one.score])),
  },
  ranking: {
    title: "Order texts by a query", first: "Query", second: "Texts, one a line",
    example: ["What is a server?", "A program that answers requests.\nA person at a restaurant."],
    request: (query, texts) => ["rerank", { query, texts: lines(texts), return_text: true, truncate: true }],
    show: (answer) => bars(answer.map((one) => [one.text, one.score])),
  },
  vectors: {
    title: "Compare texts", first: "Texts, one a line",
    example: ["The team won.\nWe lost the match.\nShares fell on Monday."],
    request: (texts) => ["embed", { inputs: lines(texts), normalize: true, truncate: true }],
    show: (answer, texts) => matrix(lines(texts), answer),
  },
  entities: {
    title: "Find entities in a text", first: "Text", example: ["Ada met Charles in London."],
    request: (text) => ["", { inputs: text }],
    show: (answer, text) => marked(text, answer),
  },
  other: {
    title: "Try a text", first: "Text", example: ["I like you."],
    request: (text) => ["", { inputs: text }],
    show: (answer) => make("pre", {}, JSON.stringify(answer, null, 2)),
  },
};

// Answers -------------------------------------------------------------------------------------

function bars(rows) {
  const within = rows.every(([, score]) => score >= 0 && score <= 1);
  const most = within ? 1 : Math.max(...rows.map(([, score]) => Math.abs(score)), 1e-9);
  return make("div", {}, ...rows.map(([label, score]) => {
    const share = make("i", { style: `width: ${(100 * Math.max(score, 0)) / most}%` });
    const value = within ? `${(100 * score).toFixed(1)} %` : score.toPrecision(3);
    return make("div", { class: "bar" }, make("span", {}, label),
      make("div", { class: "track" }, share), make("span", {}, value));
  }));
}

function matrix(texts, vectors) {
  const head = make("tr", {}, make("th"), ...texts.map((_, place) => make("th", {}, String(place + 1))));
  const rows = texts.map((text, row) => make("tr", {}, make("th", { title: text }, `${row + 1} ${text}`),
    ...vectors.map((other) => {
      const cosine = vectors[row].reduce((sum, value, place) => sum + value * other[place], 0);
      const share = Math.round(100 * Math.min(Math.max(cosine, 0), 1));
      return make("td", { style: `background: color-mix(in srgb, var(--soft) ${share}%, transparent)` },
        cosine.toFixed(2));
    })));
  return make("div", { class: "wide" }, make("table", {}, make("thead", {}, head), make("tbody", {}, ...rows)));
}

function marked(text, entities) {
  // Python counts characters, JavaScript halves of the rarer ones.
  const characters = [...text];
  const box = make("div", { class: "marked" });
  let place = 0;
  for (const one of [...entities].sort((a, b) => a.start - b.start)) {
    box.append(characters.slice(place, one.start).join(""));
    const label = one.entity_group ?? one.entity ?? one.label ?? "";
    box.append(make("mark", { title: `${(100 * one.score).toFixed(1)} %` },
      characters.slice(one.start, one.end).join(""), make("b", {}, label)));
    place = one.end;
  }
  box.append(characters.slice(place).join(""));
  return entities.length ? box : make("div", { class: "quiet" }, "No entities.");
}

const PARTS = [["tokenize", "tokenizing"], ["queue", "waiting"], ["inference", "inference"]];

function timing(header) {
  const found = {};
  for (const part of (header ?? "").split(",")) {
    const [name, ...values] = part.split(";").map((piece) => piece.trim());
    for (const value of values) {
      const [what, content] = value.split("=");
      found[name] = what === "dur" ? Number(content) : content.replaceAll('"', "");
    }
  }
  return found;
}

function showTiming(parts) {
  const whole = PARTS.reduce((sum, [name]) => sum + (parts[name] ?? 0), 0) || 1;
  find("split").replaceChildren(...PARTS.map(([name]) =>
    make("i", { class: name, style: `flex: ${(parts[name] ?? 0) / whole}` })));
  find("legend").replaceChildren(...PARTS.map(([name, words]) =>
    make("span", {}, make("i", { class: name }), `${words} ${(parts[name] ?? 0).toFixed(2)} ms`)));
  const stages = chosen().stages;
  const last = Number(parts.stage ?? 1);
  find("stage").hidden = stages.length < 2;
  find("stage").textContent = last === 1
    ? `Answered by stage 1 of ${stages.length} (${stages[0]}): it was sure.`
    : `Answered by stage ${last} of ${stages.length} (${stages[last - 1]}): the stage before was not sure.`;
}

async function send(event) {
  event.preventDefault();
  const kind = KINDS[chosen().kind];
  const given = [find("first").value, find("second").value];
  const [path, body] = kind.request(...given);
  const said = find("said");
  said.className = "quiet";
  said.textContent = "…";
  try {
    const came = await ask(`models/${encodeURIComponent(chosen().name)}${path && `/${path}`}`, body);
    const answer = await came.json();
    if (came.status === 401) return unlock();
    if (!came.ok) throw new Error(answer.error?.message ?? answer.error ?? came.statusText);
    find("shown").replaceChildren(kind.show(answer, ...given));
    showTiming(timing(came.headers.get("Server-Timing")));
    find("answer").hidden = false;
    said.textContent = "";
  } catch (error) {
    said.className = "bad";
    said.textContent = error.message;
  }
}

// Load: /metrics once a second --------------------------------------------------------------------

const KEPT = 120;
const CHARTS = [
  { name: "texts a second", show: (value) => value.toFixed(value < 10 ? 1 : 0),
    of: (now, then, seconds) => (now.texts - then.texts) / seconds },
  { name: "texts a batch", show: (value) => value.toFixed(1),
    of: (now, then) => ratio(now.texts - then.texts, now.batches - then.batches) },
  { name: "padding", show: (value) => `${(100 * value).toFixed(0)} %`,
    of: (now, then) => ratio(now.padding - then.padding, now.batches - then.batches) },
  { name: "work that waits", show: (value) => `${value.toFixed(2)} s`, of: (now) => now.waiting },
].map((chart) => ({ ...chart, values: [] }));

const ratio = (part, whole) => (whole > 0 ? part / whole : 0);

function sums(text, model) {
  const label = `model="${model.replaceAll("\\", "\\\\").replaceAll('"', '\\"')}"`;
  const total = (name) => text.split("\n")
    .filter((line) => line.startsWith(`${name}{`) && line.includes(label))
    .reduce((sum, line) => sum + Number(line.slice(line.lastIndexOf(" "))), 0);
  return {
    at: performance.now(),
    texts: total("hasten_batch_size_sum"),
    batches: total("hasten_batch_size_count"),
    padding: total("hasten_batch_padding_ratio_sum"),
    waiting: total("hasten_queue_cost_seconds"),
  };
}

function draw(chart) {
  const most = Math.max(...chart.values, 1e-9);
  const points = chart.values.map((value, place) =>
    `${place + KEPT - chart.values.length},${(40 - (38 * value) / most).toFixed(2)}`);
  const first = KEPT - chart.values.length;
  chart.figure.textContent = chart.values.length ? chart.show(chart.values.at(-1)) : "–";
  chart.line.setAttribute("points", points.join(" "));
  chart.area.setAttribute("points", points.length ? `${first},40 ${points.join(" ")} ${KEPT - 1},40` : "");
  chart.most.textContent = chart.values.length ? `at most ${chart.show(Math.max(...chart.values))}` : "";
}

function buildCharts() {
  const svg = (name, attributes) => {
    const element = document.createElementNS("http://www.w3.org/2000/svg", name);
    for (const [attribute, value] of Object.entries(attributes)) element.setAttribute(attribute, value);
    return element;
  };
  for (const chart of CHARTS) {
    chart.figure = make("div", { class: "figure" }, "–");
    chart.most = make("div", { class: "quiet" });
    chart.line = svg("polyline", {});
    chart.area = svg("polygon", {});
    const picture = svg("svg", { viewBox: `0 0 ${KEPT - 1} 40`, preserveAspectRatio: "none", "aria-hidden": "true" });
    picture.append(chart.area, svg("line", { x1: 0, x2: KEPT - 1, y1: 40, y2: 40 }), chart.line);
    find("charts").append(make("div", {}, make("div", { class: "quiet" }, chart.name),
      chart.figure, picture, chart.most));
  }
}

let before = null;

async function watch() {
  if (!document.hidden && chosen()) {
    try {
      const now = sums(await (await fetch("metrics")).text(), chosen().name);
      if (before) {
        for (const chart of CHARTS) {
          chart.values = [...chart.values, chart.of(now, before, (now.at - before.at) / 1000)].slice(-KEPT);
          draw(chart);
        }
      }
      before = now;
    } catch { /* the server is away; the next look may find it again */ }
  }
  setTimeout(watch, 1000);
}

// The form ----------------------------------------------------------------------------------------

function choose() {
  const model = chosen();
  const kind = KINDS[model.kind];
  find("about").textContent = `${model.task} · ${model.stages.join(", then ")}`;
  find("question").textContent = kind.title;
  find("first-label").textContent = kind.first;
  find("second-label").textContent = kind.second ?? "";
  find("more").hidden = !kind.second;
  [find("first").value, find("second").value] = [kind.example[0], kind.example[1] ?? ""];
  find("answer").hidden = true;
  find("said").textContent = "";
  before = null;
  for (const chart of CHARTS) {
    chart.values = [];
    draw(chart);
  }
}

function unlock() {
  find("locked").hidden = false;
  find("said").textContent = "";
  find("key").focus();
}

async function load() {
  const came = await ask("ui/models");
  if (came.status === 401) return unlock();
  find("locked").hidden = true;
  models = await came.json();
  find("model").replaceChildren(...models.map((model) => new Option(model.name)));
  find("model").hidden = models.length < 2;
  choose();
}

find("locked").querySelector("form").onsubmit = (event) => {
  event.preventDefault();
  key = find("key").value;
  sessionStorage.setItem("key", key);
  load();
};
find("try").querySelector("form").onsubmit = send;
find("model").onchange = choose;
buildCharts();
load().then(watch);
