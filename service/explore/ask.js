// The query of the user: text, an image or a clip from this machine, or examples to be like and unlike; and the weights
// of visual and text similarity.

import * as api from "./api.js";
import { byId, element } from "./dom.js";
import * as shelf from "./shelf.js";
import { NOTHING_ASKED, asks } from "./state.js";

const RERANK_MILLISECONDS = { words: 120, file: 400 }; // every search sends the file again

const files = new Map(); // number -> File, until the page is closed
const isPicture = ({ type, name }) => (type ? type.startsWith("image/") : /\.(jpe?g|png|webp|gif|bmp)$/i.test(name));
let page; // state(), go(change, how), reload(), weighing(w)
let timer = null;
let preview = null;

// Returns {file, picture} of a state's query; null if there is no file, or the page was reloaded and has lost the file.
export function fileOf({ file }) {
  const found = files.get(file);
  return found ? { file: found, picture: isPicture(found) } : null;
}

export function withFile(file) {
  const number = files.size + 1;
  files.set(number, file);
  page.go({ ...NOTHING_ASKED, file: number, video: "" });
}

export function setUp(given) {
  page = given;
  byId("search").addEventListener("submit", (event) => {
    event.preventDefault();
    const q = byId("query").value.trim();
    const state = page.state();
    if (!q && !state.q && asks(state)) return; // nothing was typed, and the current query is not text: keep it
    if (q !== state.q || state.like.length || state.unlike.length || state.file) page.go({ ...NOTHING_ASKED, q });
    else page.reload();
  });
  byId("query").addEventListener("input", ({ target }) => {
    if (!target.value && page.state().q) page.go(NOTHING_ASKED);
  });
  byId("query-choose").addEventListener("click", () => byId("query-file").click());
  byId("query-file").addEventListener("change", ({ target }) => {
    const [file] = target.files;
    if (file) withFile(file);
    target.value = "";
  });
  byId("weight").addEventListener("input", ({ target }) => {
    const w = Math.round(100 - Number(target.value)) / 100;
    sayWeight(w);
    page.weighing(w);
    clearTimeout(timer);
    timer = setTimeout(() => page.go({ w }, { replace: true }), RERANK_MILLISECONDS[page.state().file ? "file" : "words"]);
  });
  byId("back").addEventListener("click", () => {
    byId("query").value = "";
    page.go(NOTHING_ASKED);
  });
}

export function render(state) {
  const query = byId("query");
  if (document.activeElement !== query || state.q) query.value = state.q;
  byId("weight").value = String(Math.round((1 - state.w) * 100));
  sayWeight(state.w);
  byId("balance").hidden = !asks(state);
  byId("back").hidden = !asks(state);
  showFile(state);
  showExamples(state);
}

function sayWeight(w) {
  const seen = Math.round(w * 100);
  const text = `${seen} % visual, ${100 - seen} % text`;
  byId("weight-said").textContent = text;
  byId("weight").setAttribute("aria-valuetext", text);
}

// Shows the query image before the title. A query clip is shown by its name only.
let pictured = 0;
function showFile(state) {
  if (pictured === state.file) return;
  pictured = state.file;
  if (preview) URL.revokeObjectURL(preview);
  preview = null;
  const image = byId("asked-picture");
  const asked = fileOf(state);
  image.hidden = !asked?.picture;
  if (!asked?.picture) {
    image.removeAttribute("src");
    return;
  }
  preview = URL.createObjectURL(asked.file);
  image.src = preview;
}

let exampled = "";
function showExamples({ like, unlike }) {
  const key = JSON.stringify([like, unlike]);
  if (key === exampled) return;
  exampled = key;
  const row = (label, kind, ids) =>
    ids.length
      ? element("div", { class: "example-row" }, element("span", { class: "example-label" }, label), element("ul", { class: "example-list" }, ...ids.map((id) => example(id, kind))))
      : null;
  byId("examples").replaceChildren(...[row("More like", "like", like), row("Less like", "unlike", unlike)].filter(Boolean));
  byId("examples").hidden = !like.length && !unlike.length;
}

function example(id, kind) {
  const image = element("img", { alt: "" });
  image.addEventListener("error", () => image.remove());
  api.showPicture(image, api.paths.thumbnail(id));
  const away = element("button", { type: "button", class: "example", click: () => page.go({ [kind]: page.state()[kind].filter((one) => one !== id) }) }, image, element("span", { class: "example-away", "aria-hidden": "true" }, "\u00d7"));
  const name = (text) => {
    away.setAttribute("aria-label", `Remove ${text}`);
    away.title = `Remove \u201c${text}\u201d`;
  };
  name("this clip");
  shelf.fetchOne(id).then(
    ({ title }) => name(title),
    () => {},
  );
  return element("li", {}, away);
}
