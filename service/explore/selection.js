// The selection on the map: lists its clips, saves them to a file, or uses them as positive or negative examples.

import { Card } from "./cards.js";
import { byId, counted, element, number } from "./dom.js";
import * as removal from "./removal.js";
import * as shelf from "./shelf.js";

const PAGE = 48;
const MOST_EXAMPLES = 100; // the limit of one query

let page; // like(ids), unlike(ids), cleared(), href(id), open(id), point(id)
let points = [];
let ids = []; // ids of their clips, without repetition
let map = null; // the projection on which the points were selected
let wanted = PAGE;
let shows = 0;

export const any = () => ids.length > 0;
export const count = () => ids.length;

export function setUp(given) {
  page = given;
  byId("selected-clear").addEventListener("click", () => page.cleared());
  byId("selected-like").addEventListener("click", () => page.like(ids.slice(0, MOST_EXAMPLES)));
  byId("selected-unlike").addEventListener("click", () => page.unlike(ids.slice(0, MOST_EXAMPLES)));
  byId("selected-json").addEventListener("click", () => save("json"));
  byId("selected-csv").addEventListener("click", () => save("csv"));
  byId("selected-more").addEventListener("click", () => {
    wanted += PAGE;
    show();
  });
}

export function choose(chosen, projection) {
  points = chosen;
  map = projection;
  wanted = PAGE;
  update();
}

// Also called after clips were deleted or restored.
export function update() {
  points = points.filter(({ video_id: id }) => !removal.isGone(id));
  ids = [...new Set(points.map(({ video_id: id }) => id))];
  if (ids.length) show();
  else byId("selected-grid").replaceChildren();
}

export function words() {
  const clips = counted(ids.length, "clip");
  return map?.embedding === "frame" ? `${counted(points.length, "frame")} of ${clips}` : clips;
}

async function show() {
  const mine = ++shows;
  byId("selected-title").textContent = `${words()} selected`;
  byId("selected-wrong").textContent = "";
  byId("selected-note").textContent = ids.length > MOST_EXAMPLES ? `A query takes at most ${MOST_EXAMPLES} clips, so it uses the first ${MOST_EXAMPLES} of these.` : "";
  const first = ids.slice(0, wanted);
  let videos;
  try {
    videos = await shelf.fetchAll(first);
  } catch (error) {
    if (mine === shows) byId("selected-wrong").textContent = error.message;
    return;
  }
  if (mine !== shows) return;
  byId("selected-grid").replaceChildren(...videos.map((video) => new Card(video, page).root));
  byId("selected-more").hidden = ids.length <= wanted;
  byId("selected-more").textContent = `Show more (${number(Math.max(0, ids.length - wanted))} left)`;
}

// --- saving to a file

const NAMES = ["x", "y", "z"];

async function save(format) {
  const button = byId(`selected-${format}`);
  button.disabled = true;
  try {
    const videos = new Map((await shelf.fetchAll(ids)).map((video) => [video.id, video]));
    const rows = points
      .filter(({ video_id: id }) => videos.has(id))
      .map(({ video_id: id, frame, time, coordinates }) => {
        const { title, category, caption } = videos.get(id);
        const place = Object.fromEntries(coordinates.map((value, axis) => [NAMES[axis], value]));
        return { id, title, category, caption, ...(frame === null ? {} : { frame, time }), ...place };
      });
    const { embedding, method, dimensions, seed } = map;
    const text = format === "csv" ? csv(rows) : `${JSON.stringify({ map: { embedding, method, dimensions, seed }, items: rows }, null, 2)}\n`;
    download(text, `reelsrs-selection.${format}`, format === "csv" ? "text/csv" : "application/json");
    byId("selected-note").textContent = `Saved ${words()}.`;
  } catch (error) {
    byId("selected-wrong").textContent = error.message;
  }
  button.disabled = false;
}

// RFC 4180: a field with a comma, a quote or a line break is quoted, and quotes in the field are doubled.
const field = (value) => {
  const text = value === null ? "" : String(value);
  return /[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
};

function csv(rows) {
  const names = Object.keys(rows[0] ?? {});
  return [names, ...rows.map((row) => names.map((name) => row[name]))].map((line) => `${line.map(field).join(",")}\r\n`).join("");
}

function download(text, name, type) {
  const url = URL.createObjectURL(new Blob([text], { type }));
  const link = element("a", { href: url, download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(url), 1000);
}
