// Deletion that can be undone: a clip is hidden at once and deleted some seconds later. When the page is closed,
// pending deletions are sent.

import * as api from "./api.js";
import { byId, element } from "./dom.js";
import * as shelf from "./shelf.js";

const UNDO_MILLISECONDS = 8000;

const pending = new Map(); // id -> {video, toast, timer}
const gone = new Set(); // ids hidden on this page, deleted by the service or not yet
let page; // changed(), done()

export const isGone = (id) => gone.has(id);

export function setUp(given) {
  page = given;
  addEventListener("pagehide", () => {
    for (const id of pending.keys()) api.removeInPassing(id).catch(() => {});
    for (const id of [...pending.keys()]) drop(id);
  });
  addEventListener("keydown", (event) => {
    const typing = event.target.closest?.("input, textarea, select");
    if (event.key.toLowerCase() !== "z" || !(event.ctrlKey || event.metaKey) || event.shiftKey || typing || !pending.size) return;
    event.preventDefault();
    undo([...pending.keys()].at(-1));
  });
}

// `byKeyboard`: the Undo button takes the focus, and the deletion waits while the button has the focus.
export function remove(video, { byKeyboard = false } = {}) {
  if (pending.has(video.id)) return;
  gone.add(video.id);
  const back = element("button", { type: "button", class: "button small", click: () => undo(video.id) }, "Undo");
  const toast = element("div", { class: "toast" }, element("p", {}, `Deleted \u201c${video.title}\u201d.`), back);
  const entry = { video, toast, timer: null };
  pending.set(video.id, entry);
  const wait = () => {
    clearTimeout(entry.timer);
    entry.timer = setTimeout(() => commit(video.id), UNDO_MILLISECONDS);
  };
  const hold = () => clearTimeout(entry.timer);
  toast.addEventListener("pointerenter", hold);
  toast.addEventListener("pointerleave", wait);
  back.addEventListener("focus", () => back.matches(":focus-visible") && hold());
  back.addEventListener("blur", () => pending.has(video.id) && wait());
  wait();
  byId("toasts").append(toast);
  byId("said").textContent = `Deleted ${video.title}. Undo it within ${UNDO_MILLISECONDS / 1000} seconds with the Undo button or Control+Z.`;
  if (byKeyboard) back.focus();
  page.changed();
}

function drop(id) {
  const entry = pending.get(id);
  clearTimeout(entry.timer);
  pending.delete(id);
  entry.toast.remove();
  return entry.video;
}

function undo(id) {
  const focused = pending.get(id).toast.contains(document.activeElement);
  const video = drop(id);
  gone.delete(id);
  byId("said").textContent = `Restored ${video.title}.`;
  page.changed();
  if (focused) page.focus(id);
}

async function commit(id) {
  const focused = pending.get(id).toast.contains(document.activeElement);
  const video = drop(id);
  if (focused) page.focus(null);
  try {
    await api.remove(id);
  } catch (error) {
    if (error.status !== 404) {
      failed(video, error.message);
      return;
    }
  }
  shelf.forget(id);
  page.done();
}

function failed(video, text) {
  gone.delete(video.id);
  const toast = element("div", { class: "toast", role: "alert" }, element("p", {}, `\u201c${video.title}\u201d was not deleted. ${text}`));
  const button = (label, click) => element("button", { type: "button", class: "button small", click }, label);
  toast.append(
    button("Delete again", () => {
      toast.remove();
      remove(video);
    }),
    button("Keep", () => toast.remove()),
  );
  byId("toasts").append(toast);
  page.changed();
}
