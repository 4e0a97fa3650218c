// All requests to the service. Asks the user for an API key if the service requires one; waits while it is unreachable.

import { pauses } from "./pause.js";

const KEY = "reelsrs-api-key";
const id = encodeURIComponent;

export const paths = {
  alive: "/livez",
  ready: "/readyz",
  info: "/v1/info",
  categories: "/v1/categories",
  videos: "/v1/videos",
  searchText: "/v1/search/text",
  searchImage: "/v1/search/image",
  searchVideo: "/v1/search/video",
  recommendations: "/v1/recommendations",
  projections: "/v1/projections",
  generations: "/v1/generations",
  video: (video) => `/v1/videos/${id(video)}`,
  frames: (video) => `/v1/videos/${id(video)}/frames`,
  events: (video) => `/v1/videos/${id(video)}/events`,
  retry: (video) => `/v1/videos/${id(video)}/retry`,
  thumbnail: (video) => `/v1/videos/${id(video)}/thumbnail`,
  content: (video) => `/v1/videos/${id(video)}/content`,
  frame: (video, n) => `/v1/videos/${id(video)}/frames/${n}`,
  evaluation: (which) => `/v1/generations/${id(which)}/evaluation`,
  projection: (which) => `/v1/projections/${id(which)}`,
  points: (which) => `/v1/projections/${id(which)}/points`,
  fit: (which) => `/v1/projections/${id(which)}/fit`,
};

// Error with the message that the service has sent.
export class Problem extends Error {
  constructor(status, detail) {
    super(detail);
    this.status = status;
  }
}

const WORDS = {
  404: "Not found.",
  413: "The file is larger than this service accepts.",
  429: "Too many requests at once. Try again in a moment.",
  502: "The service cannot be reached right now. Try again in a moment.",
  503: "The service is not ready. Try again in a moment.",
  504: "The service took too long to respond. Try again in a moment.",
};

export function problemFrom(status, text) {
  let detail = null;
  try {
    detail = JSON.parse(text).detail;
  } catch {
    // not problem+json: sent by a proxy in front of the service
  }
  if (typeof detail !== "string" || !detail) {
    detail = WORDS[status] ?? `The service responded with status ${status}.`;
  }
  return new Problem(status, detail.charAt(0).toUpperCase() + detail.slice(1));
}

// --- the API key

let ask = async () => null; // set by the page: resolves to the API key, or null if the user has none
let asking = null;

export function askForKeyWith(question) {
  ask = question;
}

export const currentKey = () => sessionStorage.getItem(KEY);
export const keyHeaders = () => (currentKey() ? { "X-API-Key": currentKey() } : {});

// Resolves to whether there is another API key than the refused one. All waiting requests share one dialog.
export async function newKey(refused) {
  if (currentKey() !== refused) return true;
  asking ??= ask().finally(() => {
    asking = null;
  });
  const given = await asking;
  if (given === null) return false;
  sessionStorage.setItem(KEY, given);
  return true;
}

// --- an unreachable service

export const presence = new EventTarget(); // events: "gone" and "back"
let returning = null;
const { pause, wake: hurry } = pauses();

async function untilAlive() {
  presence.dispatchEvent(new Event("gone"));
  for (let wait = 1000; ; wait = Math.min(wait * 2, 10_000)) {
    await pause(wait);
    try {
      if ((await fetch(paths.alive, { cache: "no-store" })).ok) break;
    } catch {
      // still unreachable
    }
  }
  returning = null;
  presence.dispatchEvent(new Event("back"));
}

export function whenBack() {
  returning ??= untilAlive();
  return returning;
}

export const tryNow = () => hurry();

const stopped = (signal) =>
  new Promise((_, reject) => signal?.addEventListener("abort", () => reject(signal.reason), { once: true }));

// --- requests

// A query is sent again once the service is reachable. A change fails, because it may have been applied already.
/**
 * @param {string} path
 * @param {{method?: string, question?: boolean, query?: any, body?: any, signal?: AbortSignal, headers?: any, read?: any}} how
 */
async function send(path, { method = "GET", question = method === "GET", query, body, signal, headers = {}, read = null } = {}) {
  const form = body instanceof FormData;
  const url = query ? `${path}?${new URLSearchParams(query)}` : path;
  for (;;) {
    const key = currentKey();
    let response;
    try {
      response = await fetch(url, {
        method,
        signal,
        headers: { ...keyHeaders(), ...headers, ...(body && !form ? { "Content-Type": "application/json" } : {}) },
        body: body && !form ? JSON.stringify(body) : body,
      });
      if (response.ok) return read ? await read(response) : response;
    } catch (error) {
      if (signal?.aborted) throw error;
      if (!question) {
        whenBack();
        throw new Problem(0, "The service did not respond, so the change may not be saved. Try again when it is reachable.");
      }
      await Promise.race([whenBack(), stopped(signal)]);
      continue;
    }
    const problem = problemFrom(response.status, await response.text());
    if ((problem.status === 401 || problem.status === 403) && (await newKey(key))) continue;
    throw problem;
  }
}

const json = (path, options) => send(path, { ...options, read: (response) => response.json() });

export const info = () => json(paths.info);
export const categories = () => json(paths.categories);
export const videos = (query, signal) => json(paths.videos, { query, signal });
export const video = (which, signal) => json(paths.video(which), { signal });
export const frames = (which, signal) => json(paths.frames(which), { signal });
export const edit = (which, changes) => json(paths.video(which), { method: "PATCH", body: changes });
export const remove = (which) => send(paths.video(which), { method: "DELETE" });
export const retry = (which) => json(paths.retry(which), { method: "POST" });

// For a page that is being closed: `keepalive` lets the request outlive the page; the response is ignored.
export const removeInPassing = (which) => fetch(paths.video(which), { method: "DELETE", headers: keyHeaders(), keepalive: true });

// --- generations

export const generations = (signal) => json(paths.generations, { signal });
export const evaluation = (which, signal) => json(paths.evaluation(which), { signal });

// --- queries

const posed = { method: "POST", question: true };
export const searchText = (body, signal) => json(paths.searchText, { ...posed, body, signal });
export const recommendations = (body, signal) => json(paths.recommendations, { ...posed, body, signal });

// Searches with an image or a clip, sent as a form; a list parameter becomes one field for each value.
export function searchFile(file, picture, parameters, signal) {
  const body = new FormData();
  body.append("file", file, file.name);
  for (const [name, value] of Object.entries(parameters)) for (const one of [value].flat()) body.append(name, String(one));
  return json(picture ? paths.searchImage : paths.searchVideo, { ...posed, body, signal });
}

// --- projections

export const project = (body, signal) => json(paths.projections, { ...posed, body, signal });
export const projection = (which, signal) => json(paths.projection(which), { signal });
export const points = (which, signal) => json(paths.points(which), { signal });
export const fit = (which) => json(paths.fit(which), { method: "POST" });
export const cancelFit = (which) => json(paths.fit(which), { method: "DELETE" });

// Health of the service's parts; the body is the same if a part is missing and the status is 503.
export async function health() {
  const response = await fetch(paths.ready, { cache: "no-store" });
  return response.json();
}

// Server-sent events by fetch, because EventSource cannot send an API key. Calls `heard(event, data)` for each event.
export async function listen(which, heard, signal) {
  const response = await send(paths.events(which), { signal, headers: { Accept: "text/event-stream" } });
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  for (let text = ""; ; ) {
    const { done, value } = await reader.read();
    if (done) return;
    const blocks = (text + value).split(/\r?\n\r?\n/);
    text = blocks.pop();
    for (const block of blocks) {
      const fields = { event: "message", data: "" };
      for (const line of block.split(/\r?\n/)) {
        const [, name, content] = /^(event|data): ?(.*)$/.exec(line) ?? [];
        if (name === "event") fields.event = content;
        if (name === "data") fields.data += content;
      }
      if (fields.data) heard(fields.event, JSON.parse(fields.data));
    }
  }
}

// --- images and clips

const soon = new IntersectionObserver(
  (entries) => {
    for (const { isIntersecting, target } of entries) {
      if (!isIntersecting) continue;
      soon.unobserve(target);
      blobUrl(target.getAttribute("data-source")).then(
        (url) => {
          target.addEventListener("load", () => URL.revokeObjectURL(url), { once: true });
          target.src = url;
        },
        () => target.dispatchEvent(new Event("error")),
      );
    }
  },
  { rootMargin: "300px" },
);

const blobUrl = async (path, signal) => URL.createObjectURL(await send(path, { signal, read: (response) => response.blob() }));

// Loads an image when it is about to become visible. With an API key it is fetched, because an <img> cannot send one.
export function showPicture(image, path) {
  if (currentKey()) {
    image.dataset.source = path;
    soon.observe(image);
  } else {
    image.loading = "lazy";
    image.src = path;
  }
}

// Starts to load a clip into the player. The returned function releases the clip and its connection.
export function playFrom(player, path, failed) {
  const controller = new AbortController();
  let url = null;
  if (currentKey()) {
    blobUrl(path, controller.signal).then(
      (made) => {
        url = made;
        if (controller.signal.aborted) URL.revokeObjectURL(made);
        else player.src = made;
      },
      (error) => controller.signal.aborted || failed?.(error),
    );
  } else {
    player.src = path;
  }
  return () => {
    controller.abort();
    player.pause();
    player.removeAttribute("src");
    player.load();
    if (url) URL.revokeObjectURL(url);
  };
}
