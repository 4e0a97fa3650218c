// Helpers to create elements without HTML markup, so that user text is never parsed as HTML, and to format numbers.

/** @returns {any} whatever kind of element the page has under that id */
export const byId = (id) => document.getElementById(id);

// Example: element("p", { class: "muted", hidden: true }, "text", child). A function becomes a listener: { click: go }.
export function element(tag, properties = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (value === null || value === undefined || value === false) continue;
    if (typeof value === "function") made.addEventListener(name, value);
    else if (name === "class") made.className = value;
    else made.setAttribute(name, value === true ? "" : value);
  }
  made.append(...children.filter((child) => child !== null && child !== undefined));
  return made;
}

export function clock(seconds) {
  if (seconds === null || seconds === undefined) return "";
  const whole = Math.round(seconds);
  const pad = (number) => String(number).padStart(2, "0");
  const hours = Math.floor(whole / 3600);
  const minutes = Math.floor(whole / 60) % 60;
  return hours ? `${hours}:${pad(minutes)}:${pad(whole % 60)}` : `${minutes}:${pad(whole % 60)}`;
}

// Time to a tenth of a second, as needed for frames: 0:01.4
export function moment(seconds) {
  const tenths = Math.round(seconds * 10);
  return `${Math.floor(tenths / 600)}:${((tenths % 600) / 10).toFixed(1).padStart(4, "0")}`;
}

export function bytes(count) {
  const units = ["bytes", "kB", "MB", "GB", "TB"];
  let step = 0;
  while (count >= 1000 && step < units.length - 1) {
    count /= 1000;
    step += 1;
  }
  return `${step && count < 10 ? count.toFixed(1) : Math.round(count)} ${units[step]}`;
}

export const number = (value) => value.toLocaleString("en");

export const counted = (count, one, many = `${one}s`) => `${number(count)} ${count === 1 ? one : many}`;

export const signed = (value) => (Math.abs(value) < 0.005 ? 0 : value).toFixed(2).replace("-", "\u2212");

// Converts a folder name to a readable label: city_street becomes City street.
export const categoryName = (name) => name.charAt(0).toUpperCase() + name.slice(1).replaceAll("_", " ");

export const statusText = (video) =>
  ({
    queued: "Queued",
    processing: `Processing, ${Math.round(video.progress * 100)} %`,
    failed: video.error ? `Failed: ${video.error}` : "Failed",
    ready: "Ready",
  })[video.status] ?? "";
