// Every run of the folder, its report, and its test answers with search.

import { getJson } from "./api.js";
import { byId, element, showError, textOf } from "./dom.js";

let run = "";
let offset = 0;
let newest = 0;

export async function showRuns(name) {
  const found = await getJson("/page/api/runs");
  const known = found.runs.find(one => one.name === name);
  byId("runs-list").hidden = Boolean(known);
  byId("run").hidden = !known;
  if (known) return showRun(known);
  if (name) showError(byId("runs-error"), `${name}: no run of this name.`);
  byId("runs-where").textContent = found.runs.length ? `${found.runs.length} under ${found.folder}` : `There is no run under ${found.folder}: \`tuneful run\` makes one.`;
  byId("runs-rows").replaceChildren(...found.runs.map(row));
  byId("runs-list").querySelector("table").hidden = !found.runs.length;
}

export function prepareRuns() {
  byId("run-search").addEventListener("submit", event => { event.preventDefault(); search(false); });
  byId("run-query").addEventListener("input", () => search(false));
  byId("run-more").addEventListener("click", () => search(true));
}

function row(one) {
  const cell = (text, attributes = {}) => element("td", { role: "cell", ...attributes }, text);
  const link = element("a", { href: `#runs/${encodeURIComponent(one.name)}` }, one.name);
  const verdict = one.verdict || (one.finished ? "" : "not finished");
  return element(
    "tr", { role: "row" },
    element("th", { scope: "row", role: "rowheader" }, link),
    cell(one.started.slice(0, 16).replace("T", " "), { "data-label": "Begun" }),
    cell(one.model, { "data-label": "Model" }),
    cell(one.data, { "data-label": "Data" }),
    cell(verdict, { "data-label": "Result", class: ["better", "worse"].includes(verdict) ? verdict : null }),
    cell(one.num_ratings ? String(one.num_ratings) : "", { "data-label": "Ratings", class: "num" }),
  );
}

async function showRun(one) {
  if (run !== one.name) byId("run-query").value = "";
  run = one.name;
  byId("run-h").textContent = one.name;
  byId("run-sentence").textContent = one.sentence || "No comparison of answers yet.";
  byId("run-rate").hidden = one.answers.length < 2;
  byId("run-report").setAttribute("href", `/page/report/${one.name.split("/").map(encodeURIComponent).join("/")}`);
  byId("run-rate").setAttribute("href", `#rate/${encodeURIComponent(one.name)}`);
  byId("run-h").focus({ preventScroll: true });
  byId("run-search").hidden = one.answers.length === 0;
  if (one.answers.length) return search(false);
  byId("run-items").replaceChildren();
  byId("run-more").hidden = true;
  byId("run-found").textContent = "This run has no test answers yet.";
}

async function search(more) {
  const number = ++newest;
  try {
    showError(byId("runs-error"), null);
    const found = await getJson("/page/api/answers", { run, query: byId("run-query").value, offset: more ? offset : 0 });
    if (number !== newest) return; // what was typed since is on its way
    const items = found.items.map(one => view(one, found.names));
    if (more) byId("run-items").append(...items);
    else byId("run-items").replaceChildren(...items);
    offset = found.offset + found.items.length;
    byId("run-more").hidden = offset >= found.num_found;
    byId("run-found").textContent = `${found.num_found} of ${found.num_items} items, ${offset} shown`;
  } catch (error) {
    byId("run-items").replaceChildren();
    byId("run-more").hidden = true;
    byId("run-found").textContent = "";
    showError(byId("runs-error"), error);
  }
}

function view(one, names) {
  const part = (title, text) => element("div", { class: "answer" }, element("h3", {}, title), textOf(text));
  return element(
    "article", { class: "item panel" },
    element("p", { class: "where" }, one.source),
    element("p", { class: "text", dir: "auto" }, one.task),
    element("div", { class: "two" },
      one.reference ? part("reference", one.reference) : null,
      ...names.filter(name => name in one.answers).map(name => part(name + (one.finish_reasons[name] === "length" ? " (cut off)" : ""), one.answers[name]))),
  );
}
