// The title of the list, and the menu of categories.

import { fileOf } from "./ask.js";
import { byId, categoryName, counted, element, number } from "./dom.js";
import * as service from "./service.js";
import * as shelf from "./shelf.js";

export function heading(asked) {
  const { q, like, unlike } = asked;
  const quoted = (text) => `\u201c${text}\u201d`;
  const only = like.length === 1 && !unlike.length ? (shelf.known(like[0])?.title ?? null) : null;
  let title = "Library";
  if (asked.file) title = `Like ${quoted(fileOf(asked)?.file.name ?? "a file")}`;
  else if (only) title = `Like ${quoted(only)}`;
  else if (like.length || unlike.length) title = like.length ? `More like ${counted(like.length, "clip")}` : `Less like ${counted(unlike.length, "clip")}`;
  else if (q) title = quoted(q);
  else if (asked.category) title = categoryName(asked.category);
  byId("results-title").textContent = title;
  document.title = title === "Library" ? "ReelsRS" : `${title} \u00b7 ReelsRS`;
}

export function showCategories(category) {
  const select = byId("category");
  const named = service.kinds.filter(({ name }) => name !== null);
  if (category && !named.some(({ name }) => name === category)) named.push({ name: category, count: 0 });
  const key = JSON.stringify(named);
  if (select.dataset.key !== key) {
    select.dataset.key = key;
    select.replaceChildren(element("option", { value: "" }, "All categories"), ...named.map(({ name, count }) => element("option", { value: name }, `${categoryName(name)} (${number(count)})`)));
  }
  select.value = category;
  select.hidden = named.length === 0;
}
