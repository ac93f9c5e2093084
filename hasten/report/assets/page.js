"use strict";

// Series that are switched off. Formats are switched for the whole page, anything else (orders,
// batch sizes) within its figure.
const off = new Map();
const drawn = [];

const scopeOf = (figure) => (figure.dataset.scope === "page" ? "page" : figure.id);

function hidden(scope) {
  if (!off.has(scope)) off.set(scope, new Set());
  return off.get(scope);
}

async function draw(chart) {
  const spec = JSON.parse(chart.nextElementSibling.textContent);
  const { view } = await vegaEmbed(chart, spec, {
    renderer: "svg",
    actions: { export: true, source: false, compiled: false, editor: false },
    tooltip: { disableDefaultStyle: true },
  });
  drawn.push({ view, scope: scopeOf(chart.closest("figure")) });
}

function toggle(button) {
  const scope = scopeOf(button.closest("figure"));
  const series = button.dataset.series;
  const set = hidden(scope);
  if (!set.delete(series)) set.add(series);
  for (const other of document.querySelectorAll(".legend button")) {
    const same = other.dataset.series === series && scopeOf(other.closest("figure")) === scope;
    if (same) other.setAttribute("aria-pressed", String(!set.has(series)));
  }
  for (const panel of document.querySelectorAll(".panel[data-about]")) {
    panel.hidden = hidden("page").has(panel.dataset.about);
  }
  for (const chart of drawn) {
    if (chart.scope === scope) chart.view.signal("hidden", [...set]).runAsync();
  }
}

function sort(header) {
  const row = header.parentElement;
  const column = [...row.children].indexOf(header);
  const up = header.getAttribute("aria-sort") !== "ascending";
  for (const other of row.children) other.removeAttribute("aria-sort");
  header.setAttribute("aria-sort", up ? "ascending" : "descending");
  const body = header.closest("table").tBodies[0];
  const key = (line) => {
    const cell = line.cells[column];
    return cell.dataset.sort === undefined ? cell.textContent.trim() : Number(cell.dataset.sort);
  };
  const compare = (one, other) => {
    const [a, b] = [key(one), key(other)];
    // What has no value stays at the end, whichever way the others go.
    if (a === "" || b === "") return (a === "") - (b === "");
    const number = typeof a === "number" && typeof b === "number";
    return (up ? 1 : -1) * (number ? a - b : String(a).localeCompare(String(b)));
  };
  body.append(...[...body.rows].sort(compare));
}

document.addEventListener("click", (event) => {
  const button = event.target.closest("button");
  if (!button) return;
  if (button.closest(".legend")) toggle(button);
  else if (button.closest("th")) sort(button.closest("th"));
});

Promise.all([...document.querySelectorAll(".chart")].map(draw)).then(() => {
  document.documentElement.dataset.drawn = String(drawn.length);
});
