// State of the service: its health, categories and limits, the dialog for an API key, and the message while the service
// is unreachable.

import * as api from "./api.js";
import { byId, counted, number } from "./dom.js";

const HEALTH_MILLISECONDS = 30_000;
const NETWORK_BACK = "online";
const MODEL_NOTES = {
  tiny: "small demo model, not for production",
  starter: "starter model: common things and scenes, not for production",
};

export let kinds = []; // categories with counts
export let limits = { max_k: 1000 };
let about = null;
let told; // callbacks of the page

// `given`: changed() when categories or counts were updated, back() when the service is reachable again.
export function setUp(given) {
  told = given;
  setUpKey();
  api.presence.addEventListener("gone", () => {
    byId("gone-text").textContent = "The service does not respond. Trying again.";
    byId("gone").hidden = false;
    setHealth("bad", "Not reachable");
  });
  api.presence.addEventListener("back", () => {
    byId("gone").hidden = true;
    refresh();
    told.back();
  });
  byId("gone-retry").addEventListener("click", api.tryNow);
  addEventListener(NETWORK_BACK, api.tryNow);
  setInterval(() => document.hidden || !byId("gone").hidden || !byId("problem").hidden || refresh(), HEALTH_MILLISECONDS);
}

export const readyCount = () => about?.videos.ready ?? 0;

export async function refresh() {
  try {
    const [found, news] = await Promise.all([api.categories(), api.info()]);
    kinds = found.items;
    limits = news.limits;
    about = news;
    told.changed();
    await sayHealth();
  } catch (error) {
    setHealth("bad", error.message);
  }
}

async function sayHealth() {
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
  const { ready = 0, queued = 0, processing = 0, failed = 0 } = about.videos;
  const waiting = queued + processing;
  const parts = [
    counted(ready, "clip"),
    ...(waiting ? [`${number(waiting)} processing`] : []),
    ...(failed ? [`${number(failed)} failed`] : []),
    MODEL_NOTES[about.model] ?? about.model,
  ];
  setHealth(waiting ? "busy" : "ok", parts.join(" \u00b7 "), about.model);
}

function setHealth(kind, text, model = "") {
  byId("health").dataset.kind = kind;
  byId("health").title = model ? `Model: ${model}` : "";
  if (byId("health-text").textContent !== text) byId("health-text").textContent = text;
}

function setUpKey() {
  const dialog = byId("key");
  api.askForKeyWith(
    () =>
      new Promise((resolve) => {
        const value = byId("key-value");
        let given = null;
        byId("key-text").textContent = api.currentKey() ? "This API key is not valid. Check it and try again." : "Enter an API key that you received from the operator of the service.";
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
