// Cache of clips by id, so that the map, the examples and a selection can show them without a second request.

import * as api from "./api.js";

const AT_ONCE = 4;
const PAGE = 500;
const FEW = 40; // more missing clips than this are fetched page by page

const seen = new Map();
const coming = new Map();

export const known = (id) => seen.get(id) ?? null;

export function keep(video) {
  seen.set(video.id, video);
  return video;
}

export const forget = (id) => seen.delete(id);

export function fetchOne(id) {
  if (seen.has(id)) return Promise.resolve(seen.get(id));
  if (!coming.has(id)) {
    coming.set(
      id,
      api
        .video(id)
        .then(keep)
        .finally(() => coming.delete(id)),
    );
  }
  return coming.get(id);
}

// Returns the clips that exist, in the order of `ids`.
export async function fetchAll(ids) {
  let missing = ids.filter((id) => !seen.has(id));
  if (missing.length > FEW) {
    const wanted = new Set(missing);
    for (let cursor = ""; wanted.size && cursor !== null; ) {
      const page = await api.videos({ limit: PAGE, ...(cursor ? { cursor } : {}) });
      for (const video of page.items) wanted.delete(keep(video).id);
      cursor = page.next_cursor;
    }
  } else {
    while (missing.length) {
      await Promise.allSettled(missing.slice(0, AT_ONCE).map(fetchOne));
      missing = missing.slice(AT_ONCE);
    }
  }
  return ids.map(known).filter(Boolean);
}
