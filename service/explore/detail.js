// The dialog of one clip: player, data, frames, and buttons to edit it, to search for similar clips and to delete it.

import * as api from "./api.js";
import { byId, bytes, categoryName, clock, element, moment, number, statusText } from "./dom.js";

const dialog = byId("detail");
const still = matchMedia("(prefers-reduced-motion: reduce)");
let shown = null; // id of the displayed clip
let letGo = null;
let controller = null;
let draft = null; // the open edit form
let closed; // called when the dialog was closed

export function setUp(page) {
  closed = page.closed;
  dialog.addEventListener("close", () => dialog.open || left()); // Escape; another clip may be open by then
  dialog.addEventListener("cancel", (event) => {
    if (draft?.changed() && event.cancelable) {
      event.preventDefault(); // Escape must not discard unsaved input
      draft.warn();
    }
  });
  dialog.addEventListener("click", (event) => {
    if (event.target === dialog) leave(); // the backdrop
  });
}

function leave() {
  if (draft?.changed()) draft.warn();
  else hide();
}

function left() {
  clean();
  shown = null;
  closed();
}

export const current = () => shown;

export function hide() {
  if (!dialog.open) return;
  dialog.close();
  left();
}

// `actions`: like(video), changed(video), remove(video, how), retried(video), categories(). Playback starts at `at`
// (seconds) or, if it is null, at the best moment of `hit`.
export async function show(id, { known = null, hit = null, at = null, actions }) {
  if (shown === id) return;
  clean();
  shown = id;
  controller = new AbortController();
  const { signal } = controller;
  const body = element("div", { class: "detail-body" });
  const title = element("h2", { id: "detail-title", tabindex: "-1" }, known?.title ?? "Clip");
  const close = element("button", { type: "button", class: "button quiet", click: leave }, "Close");
  dialog.replaceChildren(element("header", { class: "detail-head" }, title, close), body);
  if (!dialog.open) dialog.showModal();
  title.focus({ preventScroll: true });
  body.replaceChildren(element("p", { class: "muted loading" }, "Loading"));
  try {
    const video = await api.video(id, signal);
    if (signal.aborted) return;
    fill(body, title, video, hit, at, actions);
    if (video.status === "ready") await strip(body, video, hit, signal);
  } catch (error) {
    if (signal.aborted) return;
    const line = element("div", { class: "problem", role: "alert" }, element("p", {}, error.message));
    if (error.status !== 404) {
      const again = () => {
        shown = null;
        show(id, { known, hit, at, actions });
      };
      line.append(element("button", { type: "button", class: "button", click: again }, "Try again"));
    }
    body.querySelector(".loading")?.remove();
    body.append(line);
  }
}

function clean() {
  controller?.abort();
  letGo?.();
  letGo = null;
  draft = null;
}

function fill(body, title, video, hit, at, actions) {
  title.textContent = video.title;
  const stage = element("div", { class: "stage" });
  const side = element("div", { class: "side" });
  body.replaceChildren(element("div", { class: "split" }, stage, side), element("div", { class: "strip-place" }));
  stage.append(player(video, at ?? hit?.moment.time ?? 0));
  describe(side, title, video, hit, actions);
}

function player(video, start) {
  const made = element("video", { class: "player", controls: true, playsinline: true, "aria-label": video.title });
  made.muted = true;
  made.loop = true;
  made.autoplay = !still.matches;
  const failed = () => {
    const where = element(
      "div",
      { class: "no-player" },
      element("p", {}, `This browser cannot play this clip (${[video.media_type, video.codec].filter(Boolean).join(", ")}).`),
    );
    if (!api.currentKey()) {
      where.append(element("a", { href: video.content_url, download: video.filename }, "Download the file"));
    }
    made.replaceWith(where);
  };
  made.addEventListener("error", () => made.hasAttribute("src") && failed());
  made.addEventListener(
    "loadedmetadata",
    () => {
      if (start > 0 && start < made.duration) made.currentTime = start;
    },
    { once: true },
  );
  letGo = api.playFrom(made, video.content_url, failed);
  return made;
}

const row = (name, value) => (value ? [element("dt", {}, name), element("dd", {}, value)] : []);

function describe(side, title, video, hit, actions) {
  draft = null;
  title.textContent = video.title;
  const said = element("p", { class: "muted", role: "status" });
  const ready = video.status === "ready";
  side.replaceChildren(
    element("p", { class: "category" }, video.category ? categoryName(video.category) : "No category"),
    element("p", { class: video.caption ? "caption" : "caption none" }, video.caption ?? "No caption"),
    element(
      "div",
      { class: "actions" },
      ready
        ? element("button", { type: "button", class: "button primary", click: () => actions.like(video) }, "More like this")
        : null,
      element("button", { type: "button", class: "button", click: () => edit(side, title, video, hit, actions) }, "Edit"),
      video.status === "failed" ? element("button", { type: "button", class: "button", click: () => retry(video, said, actions) }, "Try again") : null,
      element("button", { type: "button", class: "button danger", click: ({ detail }) => actions.remove(video, { byKeyboard: detail === 0 }) }, "Delete"),
    ),
    said,
    element(
      "dl",
      { class: "data" },
      ...row("Status", ready ? "" : statusText(video)),
      ...row("Duration", video.duration === null ? "" : clock(video.duration)),
      ...row("Resolution", `${video.width} \u00d7 ${video.height}`),
      ...row("Frame rate", video.frame_rate ? `${number(Math.round(video.frame_rate * 100) / 100)} per second` : ""),
      ...row("Codec", video.codec),
      ...row("File", video.filename),
      ...row("Size", bytes(video.size)),
      ...row("Added", new Date(video.created_at).toLocaleString("en", { dateStyle: "medium", timeStyle: "short" })),
      ...row("ID", video.id),
    ),
  );
  return said;
}

function edit(side, title, video, hit, actions) {
  const field = (name, label, tag, value, more = {}) => {
    const input = element(tag, { id: `edit-${name}`, name, autocomplete: "off", ...more });
    input.value = value ?? "";
    return { name, input, before: value ?? "", line: element("div", { class: "field" }, element("label", { for: input.id }, label), input) };
  };
  const fields = [
    field("title", "Title", "input", video.title, { required: true }),
    field("category", "Category", "input", video.category, { list: "edit-categories" }),
    field("caption", "Caption", "textarea", video.caption, { rows: "5" }),
  ];
  const names = element("datalist", { id: "edit-categories" }, ...actions.categories().map((name) => element("option", { value: name })));
  const wrong = element("p", { class: "wrong", role: "alert" });
  const save = element("button", { type: "submit", class: "button primary" }, "Save");
  const changes = () =>
    Object.fromEntries(
      fields
        .filter(({ input, before }) => input.value !== before)
        .map(({ name, input }) => [name, input.value.trim() || (name === "title" ? "" : null)]),
    );
  const stop = () => {
    describe(side, title, video, hit, actions);
    side.querySelector("button")?.focus();
  };
  const submit = async (event) => {
    event.preventDefault();
    const wanted = changes();
    if (!Object.keys(wanted).length) {
      stop();
      return;
    }
    save.disabled = true;
    save.textContent = "Saving";
    wrong.textContent = "";
    try {
      const saved = await api.edit(video.id, wanted);
      actions.changed(saved);
      if (shown === saved.id && side.isConnected) {
        describe(side, title, saved, hit, actions).textContent = "Saved.";
        side.querySelector("button")?.focus();
      }
    } catch (error) {
      wrong.textContent = error.message;
      save.disabled = false;
      save.textContent = "Save";
    }
  };
  side.replaceChildren(
    element(
      "form",
      { class: "edit", submit, "aria-label": "Edit this clip" },
      ...fields.map(({ line }) => line),
      names,
      wrong,
      element("div", { class: "actions" }, save, element("button", { type: "button", class: "button quiet", click: stop }, "Cancel")),
    ),
  );
  draft = {
    changed: () => Object.keys(changes()).length > 0,
    warn: () => {
      wrong.textContent = "There are unsaved changes: save or cancel first.";
      save.focus();
    },
  };
  fields[0].input.focus();
}

async function retry(video, said, actions) {
  try {
    await actions.retried(video);
    said.textContent = "Queued again.";
  } catch (error) {
    said.textContent = error.message;
  }
}

async function strip(body, video, hit, signal) {
  const { items } = await api.frames(video.id, signal);
  if (signal.aborted) return;
  const list = element("ol", { class: "strip" });
  for (const { n, time, url } of items) {
    const best = hit?.moment.frame === n;
    const image = element("img", { alt: "", decoding: "async" });
    const jump = () => {
      const playing = body.querySelector("video");
      if (playing) playing.currentTime = time;
    };
    list.append(
      element(
        "li",
        {},
        element(
          "button",
          { type: "button", class: best ? "frame best" : "frame", click: jump, "aria-label": `Go to ${moment(time)}${best ? ", the best match" : ""}` },
          image,
          element("span", { class: "frame-time" }, best ? `${moment(time)} best` : moment(time)),
        ),
      ),
    );
    api.showPicture(image, url);
  }
  body
    .querySelector(".strip-place")
    .replaceChildren(element("h3", {}, `${number(items.length)} sampled ${items.length === 1 ? "frame" : "frames"}`), list);
}
