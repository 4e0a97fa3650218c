// The tools of the map: dragging, zooming, and the look of the dots.

import { byId } from "./dom.js";

let plot;

export function setUp(given) {
  plot = given;
  byId("map-drag").addEventListener("click", ({ target }) => {
    const button = target.closest("button");
    if (button) useTool(button.dataset.drag);
  });
  byId("zoom-in").addEventListener("click", () => plot.zoom(0.7));
  byId("zoom-out").addEventListener("click", () => plot.zoom(1 / 0.7));
  byId("zoom-fit").addEventListener("click", () => plot.fit());
  byId("dot-size").addEventListener("input", ({ target }) => {
    plot.size = 2 ** ((Number(target.value) - 50) / 25);
    plot.refresh();
  });
  byId("dot-opacity").addEventListener("input", ({ target }) => {
    plot.opacity = Number(target.value) / 100;
    plot.refresh();
  });
  addEventListener("pointerdown", ({ target }) => {
    if (!byId("dots").contains(target)) byId("dots").open = false;
  });
  byId("dots").addEventListener("keydown", ({ key }) => {
    if (key !== "Escape" || !byId("dots").open) return;
    byId("dots").open = false;
    byId("dots").querySelector("summary").focus();
  });
  useTool("pan");
}

export function useTool(name) {
  for (const button of byId("map-drag").children) button.setAttribute("aria-pressed", String(button.dataset.drag === name));
  plot.use(name);
}
