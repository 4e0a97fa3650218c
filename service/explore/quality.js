// Dialog that shows how good search is on this library: the active generation, and the newest other one beside it.

import * as api from "./api.js";
import { byId, categoryName, counted, element, number } from "./dom.js";

// The figures of the table: measure, ranking, name, and what they say.
const SHOWN = [
  ["captions", "visual", "recall@5", "Captions that find their own clip among the first five"],
  ["captions", "visual", "mrr", "The same as mean reciprocal rank"],
  ["categories", "fused", "precision@5", "Neighbours of the same category, of five"],
];

let current = null; // controller of the running request

export function setUp() {
  const dialog = byId("quality");
  byId("quality-open").addEventListener("click", () => {
    dialog.showModal();
    load();
  });
  byId("quality-close").addEventListener("click", () => dialog.close());
  dialog.addEventListener("close", () => current?.abort());
}

async function load() {
  current?.abort();
  const controller = new AbortController();
  current = controller;
  say("Evaluating");
  byId("quality-body").replaceChildren();
  try {
    const { items } = await api.generations(controller.signal);
    const active = items.find(({ status }) => status === "active");
    const other = items.find(({ status, embedded }) => status !== "active" && embedded > 0);
    const found = await api.evaluation((other ?? active).id, controller.signal);
    if (controller.signal.aborted) return;
    byId("quality-body").replaceChildren(...table(found));
    const waiting = other && other.embedded < other.total ? ` ${other.model} is being embedded: ${number(other.embedded)} of ${number(other.total)} clips.` : "";
    say(`${counted(found.videos, "clip")} of ${number(found.ready_videos)} compared.${waiting}`);
  } catch (error) {
    if (!controller.signal.aborted) say(error.message);
  }
}

const say = (text) => {
  byId("quality-said").textContent = text;
};

function table(found) {
  const [difference] = found.differences;
  const head = element(
    "tr",
    {},
    element("th", { scope: "col" }, "Figure"),
    ...found.generations.map((one, place) => element("th", { scope: "col" }, nameOf(one, found), element("span", { class: "muted fine" }, place ? "" : " active"))),
    difference ? element("th", { scope: "col" }, "Difference") : null,
  );
  const rows = SHOWN.map(([measure, ranking, name, words]) => {
    const pick = ({ figures }) => figures.find((one) => one.measure === measure && one.ranking === ranking && one.name === name);
    if (!pick(found.generations[0])) return null;
    return element(
      "tr",
      {},
      element("th", { scope: "row" }, words),
      ...found.generations.map((one) => element("td", {}, interval(pick(one)))),
      difference ? element("td", {}, `${categoryName(pick(difference).verdict)}: ${interval(pick(difference))}`) : null,
    );
  }).filter(Boolean);
  if (!rows.length) return [element("p", {}, "There are no captions and no categories to measure with.")];
  return [element("table", { class: "figures" }, element("thead", {}, head), element("tbody", {}, ...rows))];
}

// The model, with the precision if both generations have the same model.
function nameOf(one, found) {
  const same = found.generations.filter(({ model }) => model === one.model).length > 1;
  return same ? `${one.model} ${one.precision}` : one.model;
}

const interval = ({ value, low, high }) => `${digits(value)} [${digits(low)}, ${digits(high)}]`;
const digits = (value) => value.toFixed(2).replace("-", "\u2212");
