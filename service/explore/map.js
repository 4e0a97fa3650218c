// The panel of the map: requests a projection, shows the progress of its fit, fetches its points when they change, and
// reports pointer events. The state of the page selects the projection.

import * as api from "./api.js";
import * as colours from "./colours.js";
import { byId, counted } from "./dom.js";
import * as hover from "./hover.js";
import * as legend from "./legend.js";
import { WORDS, busy, note, noteState, say, sayProgress, sentence } from "./notice.js";
import { pauses } from "./pause.js";
import { Plot, load } from "./plot.js";
import * as removal from "./removal.js";
import * as tools from "./tools.js";

const BUSY_MILLISECONDS = 1000;
const CALM_MILLISECONDS = 5000;
const MOST_LIT = 200;
const FIRST = 10; // hits drawn with an outline

const { pause, wake } = pauses();
let page; // go(change), chosen(points, map), cleared(), over(id), out(), opened(id)
let plot;
let state = null;
let visible = false;
let ready = null; // number of ready clips; null until it is known
let watching = null; // the projection that is polled: {want, controller}
let projection = null;
let points = []; // points of the drawn version
let where = new Map(); // video id -> numbers of its points
let drawnVersion = null;
let hits = [];
let chosen = new Set(); // names of the selected points

export function setUp(given) {
  page = given;
  plot = new Plot(byId("plot"), {
    over: (row, event) => {
      hover.show(points[row], event);
      page.over(points[row].video_id);
    },
    out: leave,
    click: (row) => {
      const { video_id: id, time } = points[row];
      leave();
      page.opened(id, time);
    },
    chosen: (rows) => {
      const found = rows.map((row) => points[row]);
      chosen = new Set(found.map(nameOf));
      page.chosen(found, projection);
    },
    cleared: () => page.cleared(),
    moved: () => {
      hover.hide();
      point(null);
    },
  });
  byId("map-place").addEventListener("pointerleave", leave);
  byId("map-kind").addEventListener("change", ({ target }) => page.go({ kind: target.value }));
  byId("map-method").addEventListener("change", ({ target }) => page.go({ method: target.value }));
  byId("map-dimensions").addEventListener("click", ({ target }) => {
    const dimensions = Number(target.dataset.dimensions);
    if (dimensions && dimensions !== state.dimensions) page.go({ dimensions });
  });
  tools.setUp(plot);
  colours.onTheme(() => drawnVersion && draw());
}

function leave() {
  hover.hide();
  page.out();
}

export const preload = () => load().catch(() => {}); // the error is shown when a map is drawn

// --- selecting the projection

export function render(next, isVisible) {
  const before = state;
  state = next;
  visible = isVisible;
  byId("map-kind").value = state.kind;
  byId("map-method").value = state.method;
  for (const button of byId("map-dimensions").children) {
    button.setAttribute("aria-pressed", String(Number(button.dataset.dimensions) === state.dimensions));
  }
  byId("map-drag").hidden = state.dimensions === 3;
  if (before && (String(before.hidden) !== String(state.hidden) || before.category !== state.category) && drawnVersion) showGroups();
  watch();
}

// Takes the number of ready clips, as last reported by the service.
export function know(count) {
  const first = ready === 0 && count > 0;
  ready = count;
  if (ready === 0 || first || !watching) watch();
}

function watch() {
  const want = visible && ready ? JSON.stringify([state.kind, state.method, state.dimensions]) : "";
  if (watching?.want === want) return;
  watching?.controller.abort();
  watching = null;
  if (!visible) {
    hover.hide();
    return;
  }
  if (ready === 0) {
    forget();
    say("Nothing to map yet", "The map shows a dot for each clip of the library.");
    return;
  }
  if (!want) return; // the number of clips is not known yet
  const controller = new AbortController();
  watching = { want, controller };
  follow(controller.signal);
}

function forget() {
  drawnVersion = null;
  projection = null;
  points = [];
  where = new Map();
  plot.clear();
  byId("map-tools").hidden = byId("dots").hidden = true;
  byId("plot").hidden = true;
  legend.render([], [], () => {});
  note("");
}

async function follow(signal) {
  const { kind, method, dimensions } = state;
  forget();
  say("Loading the map", "");
  preload();
  try {
    let current = await api.project({ embedding: kind, method, dimensions }, signal);
    while (!signal.aborted) {
      projection = current;
      await take(current, signal);
      if (signal.aborted) return;
      await pause(busy(current) ? BUSY_MILLISECONDS : CALM_MILLISECONDS, signal);
      if (document.hidden) continue;
      try {
        current = await api.projection(current.id, signal);
      } catch (error) {
        if (error.status !== 404) throw error;
        current = await api.project({ embedding: kind, method, dimensions }, signal); // deleted: request it again
      }
    }
  } catch (error) {
    if (signal.aborted) return;
    if (drawnVersion === null) say("The map could not be shown", sentence(error.message), ["Try again", again]);
    else note(sentence(error.message), ["Try again", again]);
  }
}

function again() {
  watching?.controller.abort();
  watching = null;
  watch();
}

// --- state of the projection

async function take(current, signal) {
  if (current.fitted_at === null) {
    sayProgress(current, change);
    return;
  }
  if (current.version !== drawnVersion) {
    if (drawnVersion === null) say("Drawing the map", "");
    const answer = await api.points(current.id, signal);
    if (signal.aborted) return;
    points = answer.items;
    index();
    if (points.length) await draw(current);
    if (signal.aborted) return;
    drawnVersion = current.version;
  }
  if (!points.length) say(`No ${WORDS[current.embedding][1]} to map`, current.embedding === "text" ? "None of the clips has a caption yet." : "");
  else say("");
  noteState(current, points.length, change);
}

// Fits the projection again, or cancels the fit, and polls its state at once.
async function change(how) {
  if (!projection) return;
  try {
    await how(projection.id);
    wake();
  } catch (error) {
    note(sentence(error.message));
  }
}

// --- points

const nameOf = ({ video_id: id, frame }) => `${id} ${frame}`;

function index() {
  where = new Map();
  points.forEach(({ video_id: id }, row) => {
    const rows = where.get(id);
    if (rows) rows.push(row);
    else where.set(id, [row]);
  });
}

// Groups the points by category, the largest group first, so that small groups are drawn on top.
function groups() {
  const rows = new Map();
  points.forEach(({ video_id: id, category }, row) => {
    if (removal.isGone(id)) return;
    if (!rows.has(category)) rows.set(category, []);
    rows.get(category).push(row);
  });
  colours.learn([...rows.keys()].filter((name) => name !== null).sort());
  return [...rows]
    .sort(([, one], [, other]) => other.length - one.length)
    .map(([name, own]) => {
      const { colour, shape } = colours.look(name);
      return { name, colour, shape, rows: own, chosen: chosenOf(own), ...shown(name) };
    });
}

// A selection is kept when points are added or removed, and on another projection of the same embeddings.
const chosenOf = (rows) => (chosen.size ? rows.flatMap((row, place) => (chosen.has(nameOf(points[row])) ? [place] : [])) : null);

const shown = (name) => ({
  hidden: state.hidden.includes(name ?? ""),
  dim: state.category !== "" && state.category !== name,
});

async function draw(current = projection) {
  const made = groups();
  byId("plot").hidden = false;
  byId("map-tools").hidden = byId("dots").hidden = false;
  sayLegend(made); // before the plot is drawn, because the legend takes some of its space
  await plot.draw({ groups: made, at: (row) => points[row].coordinates, count: points.length, dimensions: current.dimensions, key: `${current.id} ${current.fitted_at}` });
  const words = counted(points.length, ...WORDS[current.embedding]);
  byId("plot").setAttribute("role", "img");
  byId("plot").setAttribute("aria-label", `Map of ${words} in ${counted(made.length, "category", "categories")}; similar ones are close together. The list shows the same clips.`);
  light(hits);
}

function sayLegend(made = plot.groups) {
  const entries = made.map(({ name, rows }) => ({ name, count: rows.length }));
  entries.sort((one, other) => Number(one.name === null) - Number(other.name === null) || (one.name ?? "").localeCompare(other.name ?? ""));
  legend.render(entries, state.hidden, (hidden) => page.go({ hidden }));
}

function showGroups() {
  for (const group of plot.groups) Object.assign(group, shown(group.name));
  plot.refresh();
  sayLegend();
  light(hits);
}

// --- highlighting what the list shows

// Highlights the hits of a search, better ones more strongly; of the frames of a clip, the best matching one.
export function light(found) {
  hits = found;
  if (drawnVersion === null && !plot.drawn) return;
  const dots = [];
  hits.slice(0, MOST_LIT).forEach(({ video, moment }, place) => {
    const rows = where.get(video.id);
    if (!rows || removal.isGone(video.id)) return;
    const row = rows.find((one) => points[one].frame !== null && points[one].frame === moment?.frame) ?? rows[0];
    const { category } = points[row];
    if (state.hidden.includes(category ?? "")) return;
    dots.push({ row, colour: colours.look(category).colour, strength: 1 - place / Math.min(hits.length, MOST_LIT), first: place < FIRST });
  });
  plot.light(dots.reverse()); // the best is drawn on top
}

// Draws a ring around the dot of the clip that is hovered in the list.
export function point(id, frame = null) {
  const rows = id === null || !visible ? null : where.get(id);
  const row = rows?.find((one) => points[one].frame === frame) ?? rows?.[0];
  const place = row === undefined || !plot.drawn ? null : plot.place(row);
  const ring = byId("ring");
  ring.hidden = !place;
  if (!place) return;
  ring.style.left = `${place.left}px`;
  ring.style.top = `${place.top}px`;
}

export function clearChosen() {
  chosen = new Set();
  plot.clearChosen();
}

// Draws the map again after clips were deleted or restored.
export function redraw() {
  if (drawnVersion !== null && points.length) draw();
}
