// Messages about the map: in its place while there is none, or below the map.

import * as api from "./api.js";
import { byId, counted, number } from "./dom.js";

export const WORDS = { aggregated: ["clip", "clips"], frame: ["frame", "frames"], text: ["caption", "captions"] };

export const busy = ({ status }) => status === "queued" || status === "running";

export const sentence = (text) => (text ? `${text.charAt(0).toUpperCase()}${text.slice(1)}${/[.!?]$/.test(text) ? "" : "."}` : "");

// Shows a message in place of the map, with at most one action; an empty title hides the message.
export function say(title, text = "", act = null) {
  byId("map-state").hidden = !title;
  byId("map-meter").hidden = true;
  if (byId("map-state-title").textContent !== title) byId("map-state-title").textContent = title;
  byId("map-state-text").textContent = text;
  button(byId("map-state-act"), act);
}

function meter(percent) {
  byId("map-meter").hidden = false;
  byId("map-meter").setAttribute("aria-valuenow", String(percent));
  byId("map-meter-fill").style.width = `${percent}%`;
}

// Shows a note below the map, with at most one action.
export function note(text, act = null) {
  if (byId("map-note").textContent !== text) byId("map-note").textContent = text;
  button(byId("map-act"), act);
}

function button(made, act) {
  made.hidden = !act;
  if (!act) return;
  if (made.textContent !== act[0]) made.textContent = act[0];
  made.onclick = act[1];
}

// Shows the progress of a fit, or why there is no map; `change` starts or cancels the fit.
export function sayProgress(current, change) {
  const [, many] = WORDS[current.embedding];
  if (busy(current)) {
    const expected = current.points + current.missing;
    const what = expected ? counted(expected, ...WORDS[current.embedding]) : `the ${many}`;
    const percent = Math.round(current.progress * 100);
    say(`Fitting a map of ${what}`, current.status === "queued" ? "Queued." : `${percent} % done. You can use the rest of the page meanwhile.`, ["Cancel", () => change(api.cancelFit)]);
    meter(percent);
  } else if (current.error === "cancelled") {
    say("The fit was cancelled", "There is no map.", ["Fit the map", () => change(api.fit)]);
  } else {
    say("The map could not be fitted", sentence(current.error ?? ""), ["Try again", () => change(api.fit)]);
  }
}

// Shows the state of a drawn map that has `count` points.
export function noteState(current, count, change) {
  const words = WORDS[current.embedding];
  const said = [counted(count, ...words)];
  if (busy(current)) {
    note(`${said[0]}. Fitting again, ${Math.round(current.progress * 100)} %`, ["Cancel", () => change(api.cancelFit)]);
    return;
  }
  if (current.quality) said.push(`${Math.round(current.quality.neighbourhood_overlap * 100)} % of nearest neighbours preserved`);
  if (current.placed) said.push(`${number(current.placed)} placed since the fit`);
  if (current.missing) said.push(`${number(current.missing)} not on the map yet`);
  if (current.status === "failed") said.push(sentence(current.error ?? "The last fit failed."));
  note(said.join(" \u00b7 "), current.placed || current.missing || current.status === "failed" ? ["Fit again", () => change(api.fit)] : null);
}
