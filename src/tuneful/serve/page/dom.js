// Elements are made here and nowhere else, and texts become text nodes: what a model wrote is never markup.

export const byId = id => document.getElementById(id);

/** An element with attributes, and children that are elements or texts. */
export function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === "function") made.addEventListener(name, value);
    else if (value === true) made.setAttribute(name, "");
    else if (value !== false && value !== null && value !== undefined) made.setAttribute(name, String(value));
  }
  made.append(...children.filter(child => child !== null && child !== undefined));
  return made;
}

/** A text for a screen reader, once what it says now has been taken back. */
export function announce(text) {
  const status = byId("status");
  status.textContent = "";
  setTimeout(() => { status.textContent = text; }, 50);
}

/** Say what went wrong at `place`, or nothing. */
export function showError(place, error) {
  place.hidden = !error;
  place.textContent = error ? (error.message || String(error)) : "";
}

/** Offer `values` in a select, keeping what is chosen where it is still there, else `preferred`. */
export function offer(select, values, preferred) {
  const before = select.value;
  select.replaceChildren(...values.map(value => element("option", { value }, value)));
  select.value = values.includes(before) ? before : values.includes(preferred) ? preferred : values[0] ?? "";
}

/** An answer's text, or that there is none. */
export function textOf(text) {
  return text ? element("p", { class: "text", dir: "auto" }, text) : element("p", { class: "text none" }, "(empty answer)");
}

/** A button that copies what `text` returns. */
export function copyButton(text) {
  const button = element("button", { type: "button", class: "small", click: copy }, "Copy");
  async function copy() {
    const done = await copied(text());
    button.textContent = done ? "Copied" : "Not copied";
    announce(button.textContent);
    setTimeout(() => { button.textContent = "Copy"; }, 1500);
  }
  return button;
}

async function copied(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    // A page that came by plain http from another machine has no clipboard of its own.
    const before = document.activeElement;
    const area = element("textarea", { class: "unseen", "aria-hidden": "true", tabindex: "-1" });
    document.body.append(area);
    area.value = text;
    area.select();
    const done = document.execCommand("copy");
    area.remove();
    before?.focus();
    return done;
  }
}
