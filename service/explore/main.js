// The page: reads what to show from the address, shows it, and puts what the user does back into the address.

import * as api from "./api.js";
import { Card, scaleOf } from "./cards.js";
import * as detail from "./detail.js";
import { byId, categoryName, counted, element, number } from "./dom.js";
import { address, read } from "./state.js";
import * as upload from "./upload.js";

const PAGE = 48;
const RERANK_MILLISECONDS = 120;
const HEALTH_MILLISECONDS = 30_000;
const UNSETTLED_MILLISECONDS = 2000;

let state = read();
let kinds = []; // categories with counts
let limits = { max_k: 1000 };
let cards = new Map(); // id -> Card, of the answer on show
let listed = null; // the question whose answer is on show
let cursor = null;
let wanted = PAGE; // hits to ask for
let loading = null;
let timer = null;

const known = (id) => cards.get(id)?.video ?? null;

// --- the address

function go(change, { replace = false } = {}) {
  const next = { ...state, ...change };
  if (replace) history.replaceState(history.state, "", address(next));
  else history.pushState({ here: true }, "", address(next));
  state = next;
  render();
}

addEventListener("popstate", () => {
  state = read();
  render();
});

const question = ({ q, like, category, w }) => JSON.stringify(q || like ? [like ? "" : q, like, category, w] : ["", "", category]);

function render() {
  const query = byId("query");
  if (document.activeElement !== query || state.q) query.value = state.q;
  byId("weight").value = String(Math.round((1 - state.w) * 100));
  sayWeight(state.w);
  renderChips();
  byId("back").hidden = !state.q && !state.like;
  if (question(state) !== listed) {
    wanted = PAGE;
    load();
  } else {
    for (const card of cards.values()) card.address();
  }
  if (state.video) detail.show(state.video, { known: known(state.video), hit: cards.get(state.video)?.hit, actions });
  else detail.hide();
}

function sayWeight(w) {
  const seen = Math.round(w * 100);
  const text = `${seen} % seen, ${100 - seen} % written`;
  byId("weight-said").textContent = text;
  byId("weight").setAttribute("aria-valuetext", text);
}

// --- the list

async function load({ more = false, afresh = false } = {}) {
  loading?.abort();
  const controller = (loading = new AbortController());
  const { signal } = controller;
  const asked = { ...state };
  const grid = byId("grid");
  const sameKind = listed !== null && JSON.parse(listed).slice(0, 2).join("\n") === JSON.parse(question(asked)).slice(0, 2).join("\n");
  listed = question(asked);
  grid.setAttribute("aria-busy", "true");
  byId("problem").hidden = true;
  byId("more").disabled = true;
  if (!sameKind) {
    heading(asked);
    byId("results-note").textContent = "Loading";
  }
  try {
    const shown = asked.like ? await alike(asked, signal) : asked.q ? await found(asked, signal) : await library(asked, signal, more, afresh);
    if (signal.aborted) return;
    shown();
  } catch (error) {
    if (signal.aborted) return;
    problem(error, sameKind, { more, afresh });
  }
  grid.removeAttribute("aria-busy");
  byId("more").disabled = false;
}

function heading(asked) {
  const title = asked.like
    ? `Like \u201c${known(asked.like)?.title ?? "this clip"}\u201d`
    : asked.q
      ? `\u201c${asked.q}\u201d`
      : asked.category
        ? categoryName(asked.category)
        : "Library";
  byId("results-title").textContent = title;
  document.title = title === "Library" ? "ReelsRS" : `${title} \u00b7 ReelsRS`;
}

async function library(asked, signal, more, afresh) {
  const query = { limit: afresh ? Math.min(500, Math.max(PAGE, cards.size)) : PAGE };
  if (asked.category) query.category = asked.category;
  if (more && cursor) query.cursor = cursor;
  const page = await api.videos(query, signal);
  return () => {
    heading(asked);
    cursor = page.next_cursor;
    if (!more) lay(page.items.map((video) => ({ video })));
    else lay([...[...cards.values()].map(({ video }) => ({ video })), ...page.items.map((video) => ({ video }))]);
    byId("more").hidden = !cursor;
    noteLibrary();
    extra("");
  };
}

function noteLibrary() {
  const count = state.category
    ? (kinds.find(({ name }) => name === state.category)?.count ?? cards.size)
    : kinds.reduce((sum, kind) => sum + kind.count, 0);
  const all = Math.max(count, cards.size);
  byId("results-note").textContent = all > cards.size ? `${number(cards.size)} of ${counted(all, "clip")}, the newest first` : `${counted(all, "clip")}, the newest first`;
  const empty = cards.size === 0;
  byId("empty").hidden = !empty;
  if (!empty) return;
  byId("results-note").textContent = "";
  byId("empty-title").textContent = state.category ? `No clips in ${categoryName(state.category)}` : "No clips yet";
  byId("empty-text").textContent = "Drop video files anywhere on this page, or choose them. Each can be searched as soon as it has been read.";
}

const weights = ({ w }) => ({ video_weight: w, text_weight: Math.round((1 - w) * 1e6) / 1e6 });

async function found(asked, signal) {
  const body = { query: asked.q, k: wanted, ...weights(asked), ...(asked.category ? { category: [asked.category] } : {}) };
  const answer = await api.searchText(body, signal);
  return () => showAnswer(asked, answer);
}

async function alike(asked, signal) {
  const query = { k: wanted, ...weights(asked), ...(asked.category ? { category: asked.category } : {}) };
  const [video, answer] = await Promise.all([
    known(asked.like) ?? api.video(asked.like, signal),
    api.recommendations(asked.like, query, signal),
  ]);
  return () => {
    showAnswer(asked, answer);
    byId("results-title").textContent = `Like \u201c${video.title}\u201d`;
    document.title = `Like \u201c${video.title}\u201d \u00b7 ReelsRS`;
    if (answer.weights.text === 0 && asked.w < 1) extra("This clip has no caption, so only what is seen counts.");
  };
}

function showAnswer(asked, answer) {
  heading(asked);
  const scale = scaleOf(answer.items);
  lay(answer.items.map((hit) => ({ video: hit.video, hit, scale })));
  const count = answer.items.length;
  byId("results-note").textContent = `${counted(count, "clip")}, the best match first. A score orders the clips of one answer; it is no probability.`;
  byId("more").hidden = count < wanted || wanted >= limits.max_k;
  extra("");
  byId("empty").hidden = count > 0;
  if (count) return;
  byId("results-note").textContent = "";
  byId("empty-title").textContent = "Nothing to rank";
  byId("empty-text").textContent = asked.category
    ? `There are no other clips in ${categoryName(asked.category)}. Choose another category, or all of them.`
    : "The library has no other clips that are ready.";
}

// Cards stay the same elements while they stay on show, so that nothing flickers as the order changes.
function lay(entries) {
  const before = cards;
  cards = new Map();
  for (const { video, hit = null, scale = null } of entries) {
    const card = before.get(video.id) ?? new Card(video, { href: (id) => address({ ...state, video: id }), open: (id) => go({ video: id }) });
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

let again = {};
function problem(error, keep, how) {
  again = how;
  byId("problem-text").textContent = error.message;
  byId("empty").hidden = true;
  byId("results-note").textContent = "";
  byId("more").hidden = true;
  extra("");
  if (!keep) lay([]); // the answer to another question
  byId("problem").hidden = false;
}

function extra(text) {
  byId("results-extra").textContent = text;
  byId("results-extra").hidden = !text;
}

// Clips that are still being read are looked at again until they are ready.
let settling = null;
function settle() {
  clearTimeout(settling);
  const unsettled = [...cards.values()].some(({ video }) => video.status === "queued" || video.status === "processing");
  if (!unsettled || cards.size > 500) return;
  settling = setTimeout(async () => {
    if (!document.hidden && !state.q && !state.like && !byId("grid").hasAttribute("aria-busy")) {
      await load({ afresh: true });
      refresh();
    } else settle();
  }, UNSETTLED_MILLISECONDS);
}

// --- categories and health

function renderChips() {
  const chips = byId("chips");
  const named = kinds.filter(({ name }) => name !== null);
  const names = named.map(({ name }) => name);
  if (state.category && !names.includes(state.category)) named.push({ name: state.category, count: 0 });
  chips.hidden = named.length === 0;
  const total = kinds.reduce((sum, { count }) => sum + count, 0);
  const wantedChips = [{ name: "", count: total }, ...named];
  const had = chips.contains(document.activeElement) ? document.activeElement.dataset.name : null;
  chips.replaceChildren(
    ...wantedChips.map(({ name, count }) =>
      element(
        "button",
        { type: "button", class: "chip", "data-name": name, "aria-pressed": String(state.category === name), click: () => go({ category: state.category === name ? "" : name }) },
        name ? categoryName(name) : "All",
        element("span", { class: "count" }, number(count)),
      ),
    ),
  );
  if (had !== null) [...chips.children].find(({ dataset }) => dataset.name === had)?.focus();
}

async function refresh() {
  try {
    const [found, about] = await Promise.all([api.categories(), api.info()]);
    kinds = found.items;
    limits = about.limits;
    renderChips();
    if (!state.q && !state.like && byId("problem").hidden && listed && !byId("grid").hasAttribute("aria-busy")) noteLibrary();
    await sayHealth(about);
  } catch (error) {
    setHealth("bad", error.message);
  }
}

let about = null;
async function sayHealth(told = about) {
  about = told;
  let health;
  try {
    health = await api.health();
  } catch {
    api.whenBack();
    return;
  }
  if (health.status !== "ok") {
    const bad = Object.entries(health.checks ?? {}).filter(([, text]) => text !== "ok" && text !== "not started here");
    setHealth("bad", bad.map(([part, text]) => `${part}: ${text}`).join("; ") || "not ready");
    return;
  }
  if (!about) return;
  const { ready = 0, queued = 0, processing = 0 } = about.videos;
  const waiting = queued + processing;
  const parts = [counted(ready, "clip"), ...(waiting ? [`${number(waiting)} being read`] : []), about.model === "tiny" ? "small demo model, not for production" : about.model];
  setHealth(waiting ? "busy" : "ok", parts.join(" \u00b7 "), about.model);
}

function setHealth(kind, text, model = "") {
  byId("health").dataset.kind = kind;
  byId("health").title = model ? `Model: ${model}` : "";
  if (byId("health-text").textContent !== text) byId("health-text").textContent = text;
}

// --- what the dialog and the uploads report

const actions = {
  like: (video) => {
    go({ like: video.id, q: "", video: "" });
    scrollTo({ top: 0 });
  },
  categories: () => kinds.map(({ name }) => name).filter((name) => name !== null),
  changed: (video) => {
    const card = cards.get(video.id);
    if (card && !card.hit) card.show(video);
    refresh();
    load({ afresh: true }); // another caption, another order
  },
  deleted: (video) => {
    cards.get(video.id)?.stop();
    cards.get(video.id)?.root.remove();
    cards.delete(video.id);
    go({ video: "", like: state.like === video.id ? "" : state.like }, { replace: true });
    byId("results").focus({ preventScroll: true });
    load({ afresh: true });
    refresh();
  },
};

// Closing the dialog is a step back where opening it was a step forward.
function closed() {
  if (!state.video) return;
  if (history.state?.here) history.back();
  else go({ video: "" }, { replace: true });
}

function arrived(video) {
  refresh();
  if (state.q || state.like) return; // the answer on show stays as it is until it is asked for again
  if (state.category && state.category !== video.category) return;
  const others = [...cards.values()].filter((card) => card.video.id !== video.id).map((card) => ({ video: card.video }));
  const place = cards.has(video.id) ? [...cards.keys()].indexOf(video.id) : 0;
  others.splice(place, 0, { video });
  lay(others);
  noteLibrary();
}

// --- setting up

function setUpKey() {
  const dialog = byId("key");
  api.askForKeyWith(
    () =>
      new Promise((resolve) => {
        const value = byId("key-value");
        let given = null;
        byId("key-text").textContent = api.currentKey() ? "The key that was given is not known here. Check it and try again." : "Give one of the keys that its operator has handed out.";
        const submit = (event) => {
          event.preventDefault();
          given = value.value.trim();
          if (given) dialog.close();
        };
        byId("key-form").addEventListener("submit", submit);
        dialog.addEventListener(
          "close",
          () => {
            byId("key-form").removeEventListener("submit", submit);
            value.value = "";
            resolve(given);
          },
          { once: true },
        );
        dialog.showModal();
        value.focus();
      }),
  );
  byId("key-cancel").addEventListener("click", () => dialog.close());
}

function setUpPresence() {
  api.presence.addEventListener("gone", () => {
    byId("gone-text").textContent = "The service does not answer. Trying again until it does.";
    byId("gone").hidden = false;
    setHealth("bad", "Not reachable");
  });
  api.presence.addEventListener("back", () => {
    byId("gone").hidden = true;
    refresh();
  });
  byId("gone-retry").addEventListener("click", api.tryNow);
  setInterval(() => document.hidden || !byId("gone").hidden || !byId("problem").hidden || refresh(), HEALTH_MILLISECONDS);
}

byId("search").addEventListener("submit", (event) => {
  event.preventDefault();
  const q = byId("query").value.trim();
  if (q !== state.q || state.like) go({ q, like: "" });
  else load();
});
byId("query").addEventListener("input", ({ target }) => {
  if (!target.value && state.q) go({ q: "" });
});
byId("weight").addEventListener("input", ({ target }) => {
  const w = Math.round(100 - Number(target.value)) / 100;
  sayWeight(w);
  clearTimeout(timer);
  timer = setTimeout(() => go({ w }, { replace: true }), RERANK_MILLISECONDS);
});
byId("back").addEventListener("click", () => {
  byId("query").value = "";
  go({ q: "", like: "" });
});
byId("more").addEventListener("click", () => {
  if (state.q || state.like) {
    wanted = Math.min(wanted + PAGE, limits.max_k);
    load();
  } else load({ more: true });
});
byId("problem-retry").addEventListener("click", () => {
  load(again);
  refresh();
});
for (const name of ["upload", "empty-upload"]) byId(name).addEventListener("click", () => byId("files").click());
byId("files").addEventListener("change", ({ target }) => {
  upload.add([...target.files]);
  target.value = "";
});

setUpKey();
setUpPresence();
detail.setUp({ closed });
upload.setUp({ ready: arrived, open: (id) => go({ video: id }), limit: () => limits.max_upload_bytes ?? Infinity });
render();
refresh();
