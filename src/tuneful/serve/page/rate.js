// Blind rating: one item at a time, by keyboard or pointer. A choice counts once the server has acknowledged it.

import { getJson, postJson } from "./api.js";
import { announce, byId, element, offer, showError } from "./dom.js";

const RATER = "tuneful-rater";
const KEYS = { 1: "first", 2: "second", 0: "tie", b: "both_bad" };
const NO_RUN = "No run here has two sets of test answers: `tuneful run` makes them.";
const SAID = { first: "First is better", second: "Second is better", tie: "As good", both_bad: "Both bad" };

let runs = [];
let chosen = null;
let item = null;
let isBusy = false;
let offered = Promise.resolve(); // the runs, once they are there: who begins before waits for them

export function showRate(run) {
  offered = offerRuns(run);
  return offered;
}

async function offerRuns(run) {
  runs = (await getJson("/page/api/runs")).runs.filter(one => one.answers.length > 1);
  offer(byId("rate-run"), runs.map(one => one.name), run);
  if (run && runs.some(one => one.name === run)) byId("rate-run").value = run;
  offerAnswers();
  if (!runs.length) showError(byId("rate-error"), NO_RUN);
}

export function prepareRate() {
  byId("rate-rater").value = localStorage.getItem(RATER) ?? "";
  byId("rate-run").addEventListener("change", offerAnswers);
  byId("rate-setup").addEventListener("submit", event => { event.preventDefault(); begin(); });
  byId("rate-show").addEventListener("click", () => guarded(async () => {
    await offered;
    await showResults(asked());
  }));
  byId("rate-leave").addEventListener("click", leave);
  byId("rate-undo").addEventListener("click", undo);
  for (const button of document.querySelectorAll("[data-choice]")) {
    button.addEventListener("click", () => rate(button.dataset.choice));
  }
  document.addEventListener("keydown", pressed);
  byId("rate-remark").addEventListener("keydown", event => {
    if (event.key === "Escape") byId("rate-task-h").focus();
  });
}

function offerAnswers() {
  const names = runs.find(one => one.name === byId("rate-run").value)?.answers ?? [];
  offer(byId("rate-a"), names, "base");
  offer(byId("rate-b"), names, "tuned");
}

function asked() {
  return { run: byId("rate-run").value, a: byId("rate-a").value, b: byId("rate-b").value, rater: byId("rate-rater").value };
}

async function begin() {
  try { await offered; } catch { return; } // who showed this part says why
  const wanted = asked();
  if (!runs.length) {
    showError(byId("rate-error"), NO_RUN);
    return;
  }
  if (wanted.a === wanted.b) {
    showError(byId("rate-error"), "Choose two different sets of answers.");
    return;
  }
  localStorage.setItem(RATER, wanted.rater);
  byId("rate-results").hidden = true;
  await guarded(async () => {
    const view = await postJson("/page/api/rating/next", wanted);
    chosen = wanted;
    byId("rate-setup").hidden = true;
    byId("rate-desk").hidden = false;
    show(view);
  });
}

function leave() {
  chosen = item = null;
  byId("rate-setup").hidden = false;
  byId("rate-desk").hidden = true;
  byId("rate-results").hidden = true;
  byId("rate-run").focus();
}

function show(view) {
  item = view.item;
  const equal = view.num_equal ? `; ${view.num_equal} more have two equal answers` : "";
  byId("rate-count").textContent = `${view.num_rated} of ${view.num_items} rated${equal}`;
  byId("rate-progress").max = Math.max(view.num_items, 1);
  byId("rate-progress").value = view.num_rated;
  byId("rate-undo").disabled = view.num_rated === 0 && !view.remark;
  byId("rate-item").hidden = item === null;
  byId("rate-done").hidden = item !== null;
  byId("rate-remark").value = view.remark;
  if (item === null) {
    byId("rate-done").textContent = view.num_items ? "You have rated every item. Thank you." : "All answers of these two are equal: there is nothing to rate.";
    byId("rate-done").focus();
    if (view.num_items) showResults(chosen).catch(error => showError(byId("rate-error"), error));
    return;
  }
  byId("rate-results").hidden = true;
  byId("rate-task").textContent = item.task;
  byId("rate-reference").textContent = item.reference || "(none)";
  fill("rate-one", item.texts[0]);
  fill("rate-two", item.texts[1]);
  byId("rate-task-h").focus({ preventScroll: true });
  scrollTo(0, 0);
}

function fill(id, text) {
  byId(id).textContent = text || "(empty answer)";
  byId(id).classList.toggle("none", !text);
}

function pressed(event) {
  const typing = ["INPUT", "TEXTAREA", "SELECT"].includes(event.target.tagName);
  if (byId("rate").hidden || chosen === null || typing || event.ctrlKey || event.metaKey || event.altKey || event.repeat) return;
  const key = event.key.toLowerCase();
  if (key in KEYS) rate(KEYS[key]);
  else if (key === "u") undo();
  else if (key === "r" && item) byId("rate-remark").focus();
  else return;
  event.preventDefault();
}

async function rate(choice) {
  if (item === null) return;
  const body = { ...chosen, digest: item.digest, choice, remark: byId("rate-remark").value };
  await guarded(async () => {
    show(await postJson("/page/api/rating", body));
    announce(`${SAID[choice]}, kept. ${byId("rate-count").textContent}`);
  });
}

async function undo() {
  if (byId("rate-undo").disabled) return;
  await guarded(async () => {
    show(await postJson("/page/api/rating/undo", chosen));
    announce(`Taken back. ${byId("rate-count").textContent}`);
  });
}

/** One request at a time; what goes wrong is said, and the item stays. */
async function guarded(work) {
  if (isBusy) return;
  isBusy = true;
  byId("rate-desk").setAttribute("aria-busy", "true");
  try {
    showError(byId("rate-error"), null);
    await work();
  } catch (error) {
    showError(byId("rate-error"), error);
    if (error.status === 409 && chosen) show(await postJson("/page/api/rating/next", chosen));
  } finally {
    isBusy = false;
    byId("rate-desk").removeAttribute("aria-busy");
  }
}

async function showResults({ run, a, b }) {
  const found = await getJson("/page/api/rating/results", { run, a, b });
  const place = byId("rate-results");
  place.replaceChildren(element("h2", {}, `Ratings of ${a} and ${b}`), ...results(found, a, b));
  place.hidden = false;
  if (chosen === null) place.focus();
}

function results({ summary, preference, raters }, a, b) {
  if (!summary) return [element("p", { class: "soft" }, "Nobody has rated these answers yet.")];
  const facts = [
    [`${a} preferred`, count(summary.base_preferred, summary.num_ratings)],
    [`${b} preferred`, count(summary.tuned_preferred, summary.num_ratings)],
    ["As good", count(summary.ties, summary.num_ratings)],
    ["Both bad", count(summary.both_bad, summary.num_ratings)],
    ["Ratings, people, items", `${summary.num_ratings}, ${summary.num_raters}, ${summary.num_items}`],
  ];
  if (preference) {
    const interval = `${signed(preference.low)} to ${signed(preference.high)}`;
    facts.push([`${b} over ${a}, by item`, `${signed(preference.difference)} (95 % interval ${interval}): ${preference.verdict}`]);
  }
  if (summary.agreement) facts.push([`Agreement of raters, ${summary.agreement.statistic}`, agreement(summary.agreement)]);
  if (summary.judge) facts.push([`Agreement of the judge with most of them, ${summary.judge.statistic}`, agreement(summary.judge)]);
  if (summary.num_left_out) facts.push(["Left out: the answers have changed since", String(summary.num_left_out)]);
  facts.push(["By rater", Object.entries(raters).map(([rater, number]) => `${rater} ${number}`).join(", ")]);
  const rows = facts.map(([name, value]) => element("div", {}, element("dt", {}, name), element("dd", {}, value)));
  return [element("dl", { class: "facts" }, ...rows)];
}

function agreement({ kappa, low, high, num_items: items }) {
  if (kappa === null) return `nothing to tell: too few items, or all rated alike (${items})`;
  const interval = low === null ? "no interval" : `95 % interval ${bound(low)} to ${bound(high)}`;
  return `${bound(kappa)} (${interval}, ${items === 1 ? "1 item" : `${items} items`})`;
}

const count = (number, all) => `${number}${all ? ` (${Math.round((100 * number) / all)} %)` : ""}`;
const signed = value => `${value < 0 ? "−" : "+"}${Math.abs(value).toFixed(2)}`;
const bound = value => value.toFixed(2).replace("-", "−");
