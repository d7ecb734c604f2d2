// Chat, and one prompt to two models.

import { modelNames, streamAnswer } from "./api.js";
import { announce, byId, copyButton, element, offer, showError } from "./dom.js";

let turns = [];
const running = { chat: null, compare: null };

export async function showTalk(part) {
  const names = await modelNames();
  if (part === "chat") offer(byId("chat-model"), names, names.includes("tuned") ? "tuned" : names[0]);
  else {
    offer(byId("compare-a"), names, names.includes("base") ? "base" : names[0]);
    offer(byId("compare-b"), names, names.includes("tuned") ? "tuned" : names[1] ?? names[0]);
  }
}

export function prepareTalk() {
  const wide = matchMedia("(min-width: 761px)");
  for (const settings of document.querySelectorAll("details.settings")) settings.open = wide.matches;
  byId("chat-form").addEventListener("submit", event => { event.preventDefault(); chat(); });
  byId("chat-text").addEventListener("keydown", event => {
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) { event.preventDefault(); chat(); }
  });
  byId("chat-stop").addEventListener("click", () => running.chat?.abort());
  byId("chat-new").addEventListener("click", begin);
  byId("compare-form").addEventListener("submit", event => { event.preventDefault(); compare(); });
  byId("compare-text").addEventListener("keydown", event => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) { event.preventDefault(); compare(); }
  });
  byId("compare-stop").addEventListener("click", () => running.compare?.abort());
}

function begin() {
  running.chat?.abort();
  turns = [];
  byId("chat-log").replaceChildren();
  byId("chat-empty").hidden = false;
  showError(byId("chat-error"), null);
  byId("chat-text").focus();
  announce("A new conversation");
}

async function chat() {
  const field = byId("chat-text");
  const text = field.value;
  if (running.chat || !text.trim()) return;
  const own = turns;
  own.push({ role: "user", content: text });
  const asked = message("You", "user");
  asked.text.textContent = text;
  const answer = message(byId("chat-model").value, "assistant");
  byId("chat-log").append(asked.place, answer.place);
  byId("chat-empty").hidden = true;
  field.value = "";
  const stop = start("chat");
  const said = await answered(answer, byId("chat-model").value, own, "chat", stop.signal);
  finish("chat", stop);
  if (said === null && own === turns) {
    // Nothing was answered: the message goes back into its field, so that it can be sent again.
    own.pop();
    asked.place.remove();
    answer.place.remove();
    byId("chat-empty").hidden = own.length > 0;
    if (!field.value) field.value = text;
  } else own.push({ role: "assistant", content: said });
}

async function compare() {
  const text = byId("compare-text").value;
  if (running.compare || !text.trim()) return;
  const stop = start("compare");
  const sides = ["a", "b"].map(side => {
    const model = byId(`compare-${side}`).value;
    return { model, answer: message(model, "assistant", "div") };
  });
  byId("compare-answers").replaceChildren(...sides.map(side => side.answer.place));
  const asked = [{ role: "user", content: text }];
  await Promise.all(sides.map(side => answered(side.answer, side.model, asked, "compare", stop.signal)));
  finish("compare", stop);
}

function start(part) {
  const stop = new AbortController();
  running[part] = stop;
  showError(byId(`${part}-error`), null);
  byId(`${part}-stop`).hidden = false;
  byId(`${part}-send`).disabled = true;
  return stop;
}

function finish(part, stop) {
  if (running[part] !== stop) return;
  running[part] = null;
  const button = byId(`${part}-stop`);
  const wasFocused = document.activeElement === button;
  button.hidden = true;
  byId(`${part}-send`).disabled = false;
  if (wasFocused) byId(`${part}-text`).focus();
}

/** A message without its text yet. */
function message(name, role, tag = "li") {
  const text = element("p", { class: "text", dir: "auto" });
  const foot = element("p", { class: "foot" });
  const place = element(tag, { class: `message ${role}` }, element("h3", {}, name), text, foot);
  return { place, text, foot };
}

/** Stream an answer into its place; the whole text, or null where nothing came because something went wrong. */
async function answered(answer, model, messages, part, signal) {
  const began = performance.now();
  const near = () => innerHeight + scrollY > document.documentElement.scrollHeight - 120;
  let said = "";
  let ended = "";
  answer.place.classList.add("busy");
  answer.place.setAttribute("aria-busy", "true");
  try {
    const result = await streamAnswer(model, withSystem(part, messages), settings(part), piece => {
      const follow = part === "chat" && near();
      said += piece;
      answer.text.textContent = said;
      if (follow) scrollTo(0, document.documentElement.scrollHeight);
    }, signal);
    const seconds = (performance.now() - began) / 1000;
    const tokens = result.numTokens === null ? "" : `${result.numTokens} tokens, `;
    ended = `${tokens}${seconds.toFixed(1)} s`;
    if (result.finishReason === "length") answer.foot.append(element("span", { class: "cut" }, "cut off: the limit of new tokens"));
  } catch (error) {
    ended = error.name === "AbortError" ? "stopped" : "broke off";
    if (error.name !== "AbortError") showError(byId(`${part}-error`), error);
    if (!said && part === "chat") return null;
  } finally {
    answer.place.classList.remove("busy");
    answer.place.removeAttribute("aria-busy");
  }
  if (!said) {
    answer.text.textContent = "(empty answer)";
    answer.text.classList.add("none");
  }
  answer.foot.append(element("span", {}, ended), copyButton(() => said));
  announce(`${model} has answered: ${said.slice(0, 300)}`);
  return said;
}

function withSystem(part, messages) {
  const system = byId(`${part}-system`).value;
  return system.trim() ? [{ role: "system", content: system }, ...messages] : [...messages];
}

function settings(part) {
  const number = name => { const value = byId(`${part}-${name}`).valueAsNumber; return Number.isNaN(value) ? undefined : value; };
  return { temperature: number("temperature"), seed: number("seed"), max_tokens: number("max") };
}
