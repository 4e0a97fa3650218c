// The card beside a dot of the map: first the thumbnail, then the text once it is loaded, then the playing clip.

import * as api from "./api.js";
import { byId, categoryName, element, moment } from "./dom.js";
import { look } from "./colours.js";
import * as shelf from "./shelf.js";

const PLAY_MILLISECONDS = 350;
const GAP = 18;
const still = matchMedia("(prefers-reduced-motion: reduce)");

const card = byId("hover");
let shown = null;
let timer = null;
let release = null;

export function show(point, event) {
  const key = `${point.video_id} ${point.frame}`;
  if (shown !== key) {
    hide();
    shown = key;
    fill(point, key);
  }
  if (event) move(event);
}

function fill(point, key) {
  const { video_id: id, frame, time } = point;
  const picture = element("div", { class: "picture" });
  const image = element("img", { alt: "" });
  image.addEventListener("error", () => image.replaceWith(element("span", { class: "no-picture" }, "No image")));
  api.showPicture(image, frame === null ? api.paths.thumbnail(id) : api.paths.frame(id, frame));
  image.loading = "eager";
  picture.append(image);
  if (time !== null) picture.append(element("span", { class: "badge at" }, moment(time)));
  const title = element("p", { class: "hover-title" });
  const dot = element("span", { class: "legend-dot", "aria-hidden": "true" });
  dot.style.background = look(point.category).colour;
  const caption = element("p", { class: "caption" });
  card.replaceChildren(
    picture,
    title,
    element("p", { class: "category" }, dot, point.category === null ? "No category" : categoryName(point.category)),
    caption,
  );
  card.hidden = false;
  shelf.fetchOne(id).then(
    (video) => {
      if (shown !== key) return;
      title.textContent = video.title;
      caption.textContent = video.caption ?? "";
    },
    () => {},
  );
  if (!still.matches) timer = setTimeout(() => play(picture, id, time ?? 0), PLAY_MILLISECONDS);
}

function play(picture, id, start) {
  const player = element("video", { playsinline: true, "aria-hidden": "true", tabindex: "-1" });
  player.muted = true;
  player.loop = true;
  player.addEventListener("loadedmetadata", () => {
    if (start > 0 && start < player.duration) player.currentTime = start;
    player.play().catch(() => {}); // the clip was released meanwhile
  });
  player.addEventListener("playing", () => player.classList.add("on"));
  release = api.playFrom(player, api.paths.content(id));
  picture.append(player);
}

function move({ clientX, clientY }) {
  const { width, height } = card.getBoundingClientRect();
  const right = clientX + GAP + width < innerWidth;
  card.style.left = `${Math.max(8, right ? clientX + GAP : clientX - GAP - width)}px`;
  card.style.top = `${Math.max(8, Math.min(clientY - height / 2, innerHeight - height - 8))}px`;
}

export function hide() {
  if (shown === null) return;
  shown = null;
  clearTimeout(timer);
  release?.();
  release = null;
  card.hidden = true;
  card.replaceChildren();
}
