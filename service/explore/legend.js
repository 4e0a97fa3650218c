// The categories of the map as buttons with colour, name and count; a pressed button means that they are visible.

import { isDark, look } from "./colours.js";
import { byId, categoryName, element, number } from "./dom.js";

const legend = byId("legend");
let shown = "";

// `groups`: {name, count}, the name null for clips without a category. `hidden`: names, with "" in place of null.
export function render(groups, hidden, change) {
  const key = JSON.stringify([groups, hidden, isDark()]);
  if (key === shown) return;
  shown = key;
  const focused = legend.contains(document.activeElement) ? document.activeElement.getAttribute("data-name") ?? undefined : undefined;
  const names = groups.map(({ name }) => name ?? "");
  const button = ({ name, count }) => {
    const own = name ?? "";
    const on = !hidden.includes(own);
    const { colour, shape } = look(name);
    const dot = element("span", { class: `legend-dot ${shape}`, "aria-hidden": "true" });
    dot.style.background = colour;
    return element(
      "button",
      { type: "button", "data-name": own, "aria-pressed": String(on), click: () => change(on ? [...hidden, own] : hidden.filter((one) => one !== own)) },
      dot,
      name === null ? "No category" : categoryName(name),
      element("span", { class: "count" }, number(count)),
    );
  };
  const some = names.some((name) => hidden.includes(name));
  const all = element("button", { type: "button", class: "legend-all", "data-name": "\n", click: () => change(some ? [] : names) }, some ? "Show all" : "Hide all");
  legend.replaceChildren(...groups.map(button), ...(groups.length > 1 ? [all] : []));
  legend.hidden = groups.length === 0;
  if (focused !== undefined) [...legend.children].find(({ dataset }) => dataset.name === focused)?.focus();
}
