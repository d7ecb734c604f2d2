"use strict";
// Search, filter and sort of the test answers. Everything else on the page works without this script.
(() => {
  const list = document.getElementById("items");
  if (!list) return;
  const controls = document.getElementById("controls");
  const search = document.getElementById("search");
  const filter = document.getElementById("filter");
  const sort = document.getElementById("sort");
  const shown = document.getElementById("shown");
  const nothing = document.getElementById("nothing");
  const items = Array.from(list.children);
  const texts = new Map(); // lower-cased text by item, read when the first search needs it

  const textOf = (item) => {
    if (!texts.has(item)) texts.set(item, item.textContent.toLowerCase());
    return texts.get(item);
  };

  const show = () => {
    const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
    const direction = filter ? filter.value : "";
    let count = 0;
    for (const item of items) {
      const fits =
        (!direction || item.dataset.direction === direction) && words.every((word) => textOf(item).includes(word));
      item.hidden = !fits;
      if (fits) count += 1;
    }
    shown.textContent = `${count.toLocaleString("en")} of ${items.length.toLocaleString("en")} shown`;
    nothing.hidden = count > 0;
  };

  const order = () => {
    const key = sort.value.replace("-", "");
    const sign = sort.value.startsWith("-") ? -1 : 1;
    const rank = (item) => (item.dataset[key] === undefined ? Infinity : sign * Number(item.dataset[key]));
    const place = (item) => Number(item.dataset.position);
    items.sort((a, b) => {
      const [one, two] = [rank(a), rank(b)];
      return one === two ? place(a) - place(b) : one < two ? -1 : 1;
    });
    list.append(...items);
  };

  let waiting = 0;
  search.addEventListener("input", () => {
    clearTimeout(waiting);
    waiting = setTimeout(show, 60);
  });
  controls.addEventListener("submit", (event) => event.preventDefault());
  if (filter) filter.addEventListener("change", show);
  if (sort) sort.addEventListener("change", order);
  for (const part of document.querySelectorAll(".with-script")) part.hidden = false;
  show();
})();
