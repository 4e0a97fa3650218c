// The list: the newest clips of the library, or the hits of a query. Its cards are reused when the order changes.

import * as api from "./api.js";
import { fileOf } from "./ask.js";
import { Card, scaleOf } from "./cards.js";
import { byId, categoryName, counted, number } from "./dom.js";
import { heading, showCategories } from "./headings.js";
import * as removal from "./removal.js";
import { reranked } from "./rerank.js";
import * as service from "./service.js";
import * as shelf from "./shelf.js";
import { asks } from "./state.js";

const PAGE = 48;
const MOST_LISTED = 500;
const UNSETTLED_MILLISECONDS = 2000;

let page; // state(), go(change, how), href(id), open(id), lit(hits), point(id, frame)
let cards = new Map(); // id -> Card, of the displayed list
let listed = null; // the query of the displayed list
let answered = null; // the displayed search results; null for the library
let cursor = null;
let wanted = PAGE; // number of hits to request
let loading = null;
let again = {};

const question = ({ q, like, unlike, file, category, w }) => JSON.stringify(asks({ q, like, unlike, file }) ? [q, like, unlike, file, category, w] : [category]);
const sameAsked = (one, other) => one !== null && JSON.stringify(JSON.parse(one).slice(0, 4)) === JSON.stringify(JSON.parse(other).slice(0, 4));

export const known = (id) => cards.get(id)?.video ?? null;
export const hitOf = (id) => cards.get(id)?.hit ?? null;
export const cardOf = (id) => cards.get(id) ?? null;
export const hits = () => answered?.items ?? [];

export function setUp(given) {
  page = given;
  byId("more").addEventListener("click", () => {
    if (asks(page.state())) {
      wanted = Math.min(wanted + PAGE, service.limits.max_k);
      load();
    } else load({ more: true });
  });
  byId("problem-retry").addEventListener("click", () => {
    load(again);
    service.refresh();
  });
  byId("category").addEventListener("change", ({ target }) => page.go({ category: target.value }));
}

export function render(state) {
  showCategories(page.state().category);
  if (question(state) !== listed) {
    wanted = PAGE;
    load();
  } else {
    for (const card of cards.values()) card.address();
  }
}

export async function load({ more = false, reload = false } = {}) {
  loading?.abort();
  const controller = (loading = new AbortController());
  const { signal } = controller;
  const asked = { ...page.state() };
  const grid = byId("grid");
  const sameKind = sameAsked(listed, question(asked));
  listed = question(asked);
  grid.setAttribute("aria-busy", "true");
  byId("problem").hidden = true;
  byId("more").disabled = true;
  if (!sameKind) {
    heading(asked);
    byId("results-note").textContent = asks(asked) ? "Searching" : "Loading";
  }
  try {
    const show = asks(asked) ? await answer(asked, signal) : await library(asked, signal, more, reload);
    if (signal.aborted) return;
    await show();
    if (signal.aborted) return;
  } catch (error) {
    if (signal.aborted) return;
    problem(error, sameKind, { more, reload });
  }
  grid.removeAttribute("aria-busy");
  byId("more").disabled = false;
}

// --- the library

async function library(asked, signal, more, reload) {
  const query = { limit: reload ? Math.min(MOST_LISTED, Math.max(PAGE, cards.size)) : PAGE };
  if (asked.category) query.category = asked.category;
  if (more && cursor) query.cursor = cursor;
  const found = await api.videos(query, signal);
  return () => {
    answered = null;
    heading(asked);
    cursor = found.next_cursor;
    const before = more ? [...cards.values()].map(({ video }) => ({ video })) : [];
    lay([...before, ...found.items.map((video) => ({ video }))]);
    byId("more").hidden = !cursor;
    noteLibrary();
    extra("");
    page.lit([]);
  };
}

export function noteLibrary() {
  const { category } = page.state();
  const count = category
    ? (service.kinds.find(({ name }) => name === category)?.count ?? cards.size)
    : service.kinds.reduce((sum, kind) => sum + kind.count, 0);
  const all = Math.max(count, cards.size);
  byId("results-note").textContent = cards.size < count && cursor ? `${number(cards.size)} of ${counted(all, "clip")}, newest first` : `${counted(cards.size, "clip")}, newest first`;
  const empty = cards.size === 0;
  byId("empty").hidden = !empty;
  byId("empty-upload").hidden = false;
  if (!empty) return;
  byId("results-note").textContent = "";
  byId("empty-title").textContent = category ? `No clips in ${categoryName(category)}` : "No clips yet";
  byId("empty-text").textContent = "Drop video files anywhere on this page, or choose them. A clip can be found as soon as it is processed.";
}

// Shows new categories and counts.
export function changed() {
  showCategories(page.state().category);
  if (!asks(page.state()) && byId("problem").hidden && listed && !byId("grid").hasAttribute("aria-busy")) noteLibrary();
}

// --- search results

const weights = ({ w }) => ({ video_weight: w, text_weight: Math.round((1 - w) * 1e6) / 1e6 });

async function answer(asked, signal) {
  const parameters = { k: wanted, ...weights(asked), ...(asked.category ? { category: [asked.category] } : {}) };
  if (asked.q) {
    const found = await api.searchText({ query: asked.q, ...parameters }, signal);
    return () => showAnswer(asked, found);
  }
  if (asked.file) {
    const { file, picture } = fileOf(asked) ?? {};
    if (!file) throw new api.Problem(0, "The page was reloaded and no longer has the file of this search. Choose it again.");
    const found = await api.searchFile(file, picture, parameters, signal);
    return () => showAnswer(asked, found, picture ? "" : "The query clip has no caption, so only visual similarity counts.");
  }
  const examples = [...asked.like, ...asked.unlike];
  const one = examples.length === 1;
  const named = one ? shelf.fetchOne(examples[0]).catch(() => null) : null; // the search reports a deleted example
  const body = { positive: asked.like.map((id) => ({ id })), negative: asked.unlike.map((id) => ({ id })), ...parameters };
  let found;
  try {
    [found] = await Promise.all([api.recommendations(body, signal), named]);
  } catch (error) {
    if (error.status !== 404 || one) throw error;
    return () => withoutGone(asked, error);
  }
  return () => showAnswer(asked, found, one ? "This clip has no caption, so only visual similarity counts." : "None of these clips has a caption, so only visual similarity counts.");
}

// Removes examples that were deleted, and searches with the others.
async function withoutGone(asked, error) {
  const there = [];
  for (const id of [...asked.like, ...asked.unlike]) {
    try {
      there.push((await api.video(id)).id);
    } catch (gone) {
      if (gone.status !== 404) throw gone;
    }
  }
  const keep = (ids) => ids.filter((id) => there.includes(id));
  if (!there.length) problem(error, false, {});
  else page.go({ like: keep(asked.like), unlike: keep(asked.unlike) }, { replace: true });
}

// What the service says of the best hit of a search by words.
const FITS = { none: "Nothing here seems to fit these words; these are the nearest. ", weak: "The best match is weak. " };

// `without`: message to show if the query has no text vector.
function showAnswer(asked, found, without = "") {
  heading(asked);
  const items = found.items.filter(({ video }) => !removal.isGone(video.id));
  answered = { ...found, items, w: asked.w };
  rank(items);
  const count = items.length;
  byId("results-note").textContent = `${FITS[found.match] ?? ""}${counted(count, "clip")}, best match first. Scores order the clips of one search; they are not probabilities.`;
  byId("more").hidden = found.items.length < wanted || wanted >= service.limits.max_k;
  extra(found.weights.text === 0 && asked.w < 1 ? without : "");
  byId("empty").hidden = count > 0;
  if (count) return;
  byId("results-note").textContent = "";
  byId("empty-upload").hidden = true;
  byId("empty-title").textContent = "No results";
  byId("empty-text").textContent = asked.category
    ? `There are no other clips in ${categoryName(asked.category)}. Choose another category, or all categories.`
    : "The library has no other clips that are ready.";
}

function rank(items) {
  const scale = scaleOf(items);
  lay(items.map((hit) => ({ video: hit.video, hit, scale })));
  page.lit(items);
}

// Reranks the displayed hits for the new weights, as far as possible, while the file is sent again.
export function weighing(w) {
  if (!page.state().file || !answered || answered.weights.text === 0) return;
  const items = reranked(answered, w);
  if (items) rank(items);
}

// Reuses the elements of cards that stay in the list, so that nothing flickers when the order changes.
function lay(entries) {
  const before = cards;
  cards = new Map();
  for (const { video, hit = null, scale = null } of entries) {
    shelf.keep(video);
    if (removal.isGone(video.id)) continue;
    const card = before.get(video.id) ?? new Card(video, page);
    card.show(video, hit, scale);
    cards.set(video.id, card);
  }
  for (const [id, card] of before) if (!cards.has(id)) card.stop();
  const grid = byId("grid");
  const roots = [...cards.values()].map(({ root }) => root);
  if (roots.length !== grid.children.length || roots.some((root, index) => root !== grid.children[index])) {
    const focused = document.activeElement;
    grid.replaceChildren(...roots);
    if (grid.contains(focused)) focused.focus({ preventScroll: true });
  }
  byId("problem").hidden = true;
  settle();
}

function problem(error, keep, how) {
  again = how;
  byId("problem-text").textContent = error.message;
  byId("empty").hidden = true;
  byId("results-note").textContent = "";
  byId("more").hidden = true;
  extra("");
  if (!keep) {
    answered = null;
    lay([]); // the list belongs to another query
    page.lit([]);
  }
  byId("problem").hidden = false;
}

function extra(text) {
  byId("results-extra").textContent = text;
  byId("results-extra").hidden = !text;
}

// --- changes during display

// Reloads the list until all its clips are embedded or failed.
let settling = null;
function settle() {
  clearTimeout(settling);
  const unsettled = [...cards.values()].some(({ video }) => video.status === "queued" || video.status === "processing");
  if (!unsettled || cards.size > MOST_LISTED) return;
  settling = setTimeout(async () => {
    if (!document.hidden && !asks(page.state()) && !byId("grid").hasAttribute("aria-busy")) {
      await load({ reload: true });
      service.refresh();
    } else settle();
  }, UNSETTLED_MILLISECONDS);
}

// Adds a clip that was just uploaded; displayed search results stay unchanged until the next search.
export function arrived(video) {
  const { category } = page.state();
  if (asks(page.state()) || (category && category !== video.category)) return;
  const others = [...cards.values()].filter((card) => card.video.id !== video.id).map((card) => ({ video: card.video }));
  const place = cards.has(video.id) ? [...cards.keys()].indexOf(video.id) : 0;
  others.splice(place, 0, { video });
  lay(others);
  noteLibrary();
}

// Updates the list after clips were hidden or restored. The service has the position of a restored clip.
export function removed() {
  const hidden = [...cards.keys()].filter((id) => removal.isGone(id));
  for (const id of hidden) {
    const card = cards.get(id);
    const focused = card.root.contains(document.activeElement);
    card.stop();
    cards.delete(id);
    const next = card.root.nextElementSibling ?? card.root.previousElementSibling;
    card.root.remove();
    if (focused) (next?.querySelector("a") ?? byId("clips")).focus({ preventScroll: true });
  }
  load({ reload: true });
}
