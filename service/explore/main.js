// The page: reads its state from the URL, renders the state, and writes changes made by the user to the URL.

import * as api from "./api.js";
import * as ask from "./ask.js";
import * as colours from "./colours.js";
import * as detail from "./detail.js";
import { byId, counted } from "./dom.js";
import * as drop from "./drop.js";
import * as map from "./map.js";
import * as quality from "./quality.js";
import * as removal from "./removal.js";
import * as results from "./results.js";
import * as selection from "./selection.js";
import * as service from "./service.js";
import * as shelf from "./shelf.js";
import { NOTHING_ASKED, address, read } from "./state.js";
import * as upload from "./upload.js";

const wide = matchMedia("(min-width: 64rem)"); // the same breakpoint as in map.css
const fromHistory = () => ({ ...read(), file: history.state?.file ?? 0 });

let state = fromHistory();
let openedAt = null; // start time in seconds of a clip opened from a frame on the map
let returning = null; // changes that wait for history.back(), which browsers complete later

// --- the URL

function go(change, { replace = false } = {}) {
  if (returning) {
    returning.push([change, { replace }]);
    return;
  }
  const next = { ...state, ...change };
  if (address(next) === address(state) && next.file === state.file) return;
  const kept = { ...(replace ? history.state : { here: true }), file: next.file };
  if (replace) history.replaceState(kept, "", address(next));
  else history.pushState(kept, "", address(next));
  state = next;
  render();
}

addEventListener("popstate", () => {
  const waiting = returning ?? [];
  returning = null;
  state = fromHistory();
  render();
  for (const [change, how] of waiting) go(change, how);
});

// List and map side by side if there is room, otherwise one of them.
function view() {
  if (wide.matches) return state.view || "both";
  return state.view === "map" ? "map" : "clips";
}

function render() {
  const shown = view();
  byId("panes").dataset.view = shown;
  for (const button of byId("views").children) button.setAttribute("aria-pressed", String(button.dataset.view === shown));
  ask.render(state);
  results.render(state);
  map.render(state, shown !== "clips");
  showSelection();
  if (state.video) detail.show(state.video, { known: shelf.known(state.video), hit: results.hitOf(state.video), at: openedAt, actions });
  else {
    openedAt = null;
    detail.hide();
  }
}

function showSelection() {
  byId("selected").hidden = !selection.any();
  byId("results").hidden = selection.any();
  byId("map-selected").hidden = !selection.any() || view() === "both";
  byId("map-selected-text").textContent = `${selection.words()} selected`;
}

const page = {
  state: () => state,
  go,
  href: (id) => address({ ...state, video: id }),
  open: (id) => go({ video: id }),
  reload: () => results.load(),
  weighing: results.weighing,
  lit: map.light,
  point: map.point,
  removed: (video, how) => removal.remove(video, how),
  retried,
};

// --- callbacks of the parts

function examples(change) {
  map.clearChosen();
  selection.choose([], null);
  go({ ...NOTHING_ASKED, like: state.like, unlike: state.unlike, ...change, video: "", view: state.view === "map" ? (wide.matches ? "" : "clips") : state.view });
  showSelection();
  byId("clips").focus({ preventScroll: true });
  toTop();
}

// Depending on the screen size, the page or the list scrolls; see map.css.
function toTop() {
  scrollTo({ top: 0 });
  byId("clips").scrollTo({ top: 0 });
}

const without = (ids, others) => ids.filter((id) => !others.includes(id));
const together = (ids, others) => [...without(ids, others), ...others].slice(-100); // the API limits the number of examples

const actions = {
  like: (video) => examples({ like: [video.id], unlike: [] }),
  categories: () => service.kinds.map(({ name }) => name).filter((name) => name !== null),
  changed: (video) => {
    shelf.keep(video);
    const card = results.cardOf(video.id);
    if (card && !card.hit) card.show(video);
    service.refresh();
    results.load({ reload: true }); // a new caption may change the order
  },
  remove: (video, how) => {
    detail.hide();
    removal.remove(video, how);
  },
  retried,
};

async function retried(video) {
  const queued = await api.retry(video.id);
  shelf.keep(queued);
  results.load({ reload: true });
  service.refresh();
  return queued;
}

// Closing the dialog goes back in the history if opening it added an entry.
function closed() {
  if (!state.video) return;
  if (history.state?.here) {
    state = { ...state, video: "" }; // at once; the URL changes later
    returning = [];
    history.back();
  } else go({ video: "" }, { replace: true });
}

function cleared() {
  if (!selection.any()) return;
  map.clearChosen();
  selection.choose([], null);
  showSelection();
  byId("clips").focus({ preventScroll: true });
}

// --- set-up

api.presence.addEventListener("back", () => byId("problem").hidden || results.load());
service.setUp({
  changed: () => {
    colours.learn(actions.categories());
    results.changed();
    map.know(service.readyCount());
  },
  back: () => {},
});
ask.setUp(page);
results.setUp(page);
removal.setUp({
  changed: () => {
    results.removed();
    selection.update();
    showSelection();
    map.redraw();
    const like = state.like.filter((id) => !removal.isGone(id));
    const unlike = state.unlike.filter((id) => !removal.isGone(id));
    if (like.length + unlike.length < state.like.length + state.unlike.length) go({ like, unlike }, { replace: true });
  },
  done: service.refresh,
  focus: (id) => (results.cardOf(id)?.link ?? byId("clips")).focus({ preventScroll: true }),
});
selection.setUp({
  ...page,
  cleared,
  like: (ids) => examples({ like: together(state.like, ids), unlike: without(state.unlike, ids) }),
  unlike: (ids) => examples({ unlike: together(state.unlike, ids), like: without(state.like, ids) }),
});
map.setUp({
  go,
  chosen: (points, projection) => {
    selection.choose(points, projection);
    showSelection();
    if (selection.any()) byId("said").textContent = `${counted(selection.count(), "clip")} selected.`;
    if (view() === "both") toTop();
  },
  cleared,
  over: (id) => mark(id),
  out: () => mark(null),
  opened: (id, at) => {
    openedAt = at;
    go({ video: id });
  },
});
detail.setUp({ closed });
quality.setUp();
upload.setUp({
  ready: (video) => {
    shelf.keep(video);
    service.refresh();
    results.arrived(video);
  },
  open: (id) => go({ video: id }),
  limit: () => service.limits.max_upload_bytes ?? Infinity,
});
drop.setUp({ search: ask.withFile, add: upload.add, folder: upload.refuseFolder });

let marked = null;
function mark(id) {
  marked?.classList.remove("pointed");
  marked = id === null ? null : (results.cardOf(id)?.root ?? null);
  marked?.classList.add("pointed");
}

byId("views").addEventListener("click", ({ target }) => {
  if (target.dataset.view) go({ view: target.dataset.view === "both" ? "" : target.dataset.view });
});
for (const hint of ["pointerover", "focusin"]) byId("views").addEventListener(hint, map.preload, { once: true });
// On a wide screen the map can be opened at any time, so its script is loaded while the browser is idle.
if (wide.matches && !navigator.connection?.saveData) (window.requestIdleCallback ?? setTimeout)(() => map.preload());
wide.addEventListener("change", render);
byId("map-selected-see").addEventListener("click", () => {
  go({ view: wide.matches ? "" : "clips" });
  byId("selected-title").focus({ preventScroll: true });
});
byId("map-selected-clear").addEventListener("click", cleared);
for (const name of ["upload", "empty-upload"]) byId(name).addEventListener("click", () => byId("files").click());
byId("files").addEventListener("change", ({ target }) => {
  upload.add([...target.files]);
  target.value = "";
});

render();
service.refresh();
