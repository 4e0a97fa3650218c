// A clip in the grid: thumbnail, text and score. The clip plays while it is hovered or focused.

import { playFrom, showPicture } from "./api.js";
import { categoryName, clock, element, moment, signed, statusText } from "./dom.js";

const still = matchMedia("(prefers-reduced-motion: reduce)");
const HOVER_MILLISECONDS = 140;

// Returns the position of zero and the length of one unit, so that the bars of one list of hits can be compared.
export function scaleOf(hits) {
  let below = 0;
  let above = 0;
  for (const { breakdown } of hits) {
    const parts = [breakdown.video.contribution, breakdown.text.contribution];
    below = Math.max(below, -parts.reduce((sum, part) => sum + Math.min(part, 0), 0));
    above = Math.max(
      above,
      parts.reduce((sum, part) => sum + Math.max(part, 0), 0),
    );
  }
  const span = below + above || 1;
  return { zero: below / span, unit: 1 / span };
}

function bar(breakdown, scale) {
  const track = element("div", { class: "score-bar", "aria-hidden": "true" });
  let left = scale.zero;
  let right = scale.zero;
  for (const [kind, part] of [
    ["seen", breakdown.video],
    ["written", breakdown.text],
  ]) {
    const length = Math.abs(part.contribution) * scale.unit;
    const piece = element("span", { class: `piece ${kind}` });
    if (part.contribution < 0) left -= length;
    piece.style.left = `${(part.contribution < 0 ? left : right) * 100}%`;
    piece.style.width = `${length * 100}%`;
    if (part.contribution > 0) right += length;
    track.append(piece);
  }
  if (scale.zero > 0.001) {
    const zero = element("span", { class: "zero" });
    zero.style.left = `${scale.zero * 100}%`;
    track.append(zero);
  }
  return track;
}

function score(hit, scale) {
  const { video, text } = hit.breakdown;
  return element(
    "div",
    { class: "score" },
    element(
      "p",
      { class: "score-line" },
      element("span", { class: "score-value" }, element("span", { class: "visually-hidden" }, "Score "), signed(hit.score)),
      element("span", { class: "score-parts" }, `visual ${signed(video.contribution)}, text ${signed(text.contribution)}`),
    ),
    bar(hit.breakdown, scale),
    text.imputed && text.weight > 0 ? element("p", { class: "imputed" }, "No caption: average text similarity") : null,
  );
}

export class Card {
  // `page`: href(id), open(id), point(id, frame), retried(video)
  constructor(video, page) {
    this.page = page;
    this.video = null;
    this.hit = null;
    this.picture = element("div", { class: "picture" });
    this.link = element("a", {
      click: (event) => {
        if (event.metaKey || event.ctrlKey || event.shiftKey || event.altKey) return; // for a new tab
        event.preventDefault();
        page.open(this.video.id);
      },
    });
    this.category = element("p", { class: "category" });
    this.caption = element("p", { class: "caption" });
    this.foot = element("div");
    this.root = element(
      "li",
      {
        class: "card",
        pointerenter: (event) => event.pointerType === "mouse" && this.play(),
        pointerleave: () => this.stop(),
        focusin: () => this.link.matches(":focus-visible") && this.play(),
        focusout: () => this.stop(),
      },
      this.picture,
      element("div", { class: "words" }, this.category, element("h2", {}, this.link), this.caption, this.foot),
    );
    this.show(video);
  }

  // Shows new data of the same clip; the thumbnail is replaced only if it changed.
  show(video, hit = null, scale = null) {
    const before = this.video;
    this.video = video;
    this.hit = hit;
    this.link.textContent = video.title;
    this.link.title = video.title;
    this.address();
    this.category.textContent = video.category ? categoryName(video.category) : "";
    this.caption.textContent = video.caption ?? "No caption";
    this.caption.classList.toggle("none", !video.caption);
    if (!before || before.thumbnail_url !== video.thumbnail_url || (!video.thumbnail_url && before !== video)) this.still();
    this.length.textContent = clock(video.duration);
    this.at.hidden = !hit;
    this.at.textContent = hit ? `best at ${moment(hit.moment.time)}` : "";
    this.foot.replaceChildren(...(hit ? [score(hit, scale)] : video.status === "failed" ? [this.retry()] : []));
  }

  // Returns a button that queues a failed clip again; its bytes are stored already.
  retry() {
    const button = element(
      "button",
      {
        type: "button",
        class: "button small retry",
        "aria-label": `Try again: ${this.video.title}`,
        click: async () => {
          button.disabled = true;
          try {
            await this.page.retried(this.video);
          } catch (error) {
            button.disabled = false;
            button.after(element("p", { class: "wrong", role: "alert" }, error.message));
          }
        },
      },
      "Try again",
    );
    return button;
  }

  address() {
    this.link.href = this.page.href(this.video.id);
  }

  still() {
    this.length = element("span", { class: "badge length" });
    this.at = element("span", { class: "badge at" });
    this.picture.replaceChildren(this.length, this.at);
    const { thumbnail_url: source } = this.video;
    if (source) {
      const image = element("img", { alt: "", decoding: "async" });
      image.addEventListener("error", () => image.replaceWith(element("span", { class: "no-picture" }, "No image")));
      showPicture(image, source);
      this.picture.prepend(image);
    } else {
      this.picture.prepend(element("span", { class: "no-picture" }, statusText(this.video)));
    }
  }

  play() {
    this.page.point(this.video.id, this.hit?.moment.frame);
    if (this.wait || this.release || still.matches || this.video.duration === null || !this.video.thumbnail_url) return;
    this.wait = setTimeout(() => {
      this.wait = null;
      const player = element("video", { playsinline: true, tabindex: "-1", "aria-hidden": "true" });
      player.muted = true;
      player.loop = true;
      player.disablePictureInPicture = true;
      const start = this.hit?.moment.time ?? 0;
      player.addEventListener("loadedmetadata", () => {
        if (start > 0 && start < player.duration) player.currentTime = start;
        player.play().catch(() => {}); // the clip was released meanwhile
      });
      player.addEventListener("playing", () => player.classList.add("on"));
      player.addEventListener("error", () => this.stop()); // the browser does not support the format: keep the thumbnail
      const letGo = playFrom(player, this.video.content_url);
      this.release = () => {
        letGo();
        player.remove();
      };
      this.picture.append(player);
    }, HOVER_MILLISECONDS);
  }

  stop() {
    this.page.point(null);
    clearTimeout(this.wait);
    this.wait = null;
    const release = this.release;
    this.release = null;
    release?.();
  }
}
