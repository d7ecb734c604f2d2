// The parts of the page, by the fragment of its address: #chat, #compare, #rate/RUN, #runs/RUN.

import { byId, showError } from "./dom.js";
import { prepareRate, showRate } from "./rate.js";
import { prepareRuns, showRuns } from "./runs.js";
import { prepareTalk, showTalk } from "./talk.js";

const PARTS = { chat: () => showTalk("chat"), compare: () => showTalk("compare"), rate: showRate, runs: showRuns };

async function show() {
  const [name, ...rest] = location.hash.slice(1).split("/");
  const part = Object.hasOwn(PARTS, name) ? name : "chat";
  for (const view of document.querySelectorAll(".view")) view.hidden = view.id !== part;
  for (const link of document.querySelectorAll("nav a")) {
    if (link.hash === `#${part}`) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  document.title = `${byId(`${part}-h`).textContent} · Tuneful`;
  showError(byId(`${part}-error`), null);
  try {
    await PARTS[part](decoded(rest.join("/")));
  } catch (error) {
    showError(byId(`${part}-error`), error);
  }
}

function decoded(text) {
  try { return decodeURIComponent(text); } catch { return text; }
}

document.querySelector(".skip").addEventListener("click", event => {
  event.preventDefault();
  byId("main").focus();
});
prepareTalk();
prepareRate();
prepareRuns();
addEventListener("hashchange", show);
show();
