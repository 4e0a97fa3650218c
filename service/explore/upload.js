// Uploads: one row for each file, from the first byte sent until the clip can be searched.

import * as api from "./api.js";
import { byId, bytes, counted, element } from "./dom.js";

// A browser opens at most six connections to a host; leave some for the page itself.
const SENDING_AT_ONCE = 2;
const WATCHED_AT_ONCE = 2;
const SENT_AGAIN_AT_MOST = 3;
const EMBEDDING_FROM = 0.5; // progress of a clip once its frames are decoded

const tray = byId("tray");
const list = byId("tray-list");
const rows = new Set();

// Returns a queue that runs at most `width` tasks at a time, in the order of arrival.
function lane(width) {
  const waiting = [];
  let running = 0;
  const next = () => {
    while (running < width && waiting.length) {
      running += 1;
      waiting
        .shift()()
        .finally(() => {
          running -= 1;
          next();
        });
    }
  };
  return (work) => {
    waiting.push(work);
    next();
  };
}

const sending = lane(SENDING_AT_ONCE);
const watching = lane(WATCHED_AT_ONCE);

/** @type {any} what the page does with uploads */
let actions = { ready: () => {}, open: () => {}, limit: () => Infinity };

export function setUp(given) {
  actions = given;
  byId("tray-clear").addEventListener("click", () => {
    for (const row of [...rows]) if (row.settled) row.drop();
  });
  addEventListener("beforeunload", (event) => {
    if ([...rows].some((row) => row.stage === "waiting" || row.stage === "sending")) event.preventDefault();
  });
}

export function add(files) {
  for (const file of files) new Row(file).start();
  list.scrollTop = list.scrollHeight;
}

export function refuseFolder(file) {
  new Row(file).fail("This is a folder. Drop the video files in it instead.");
}

function summary() {
  const all = [...rows];
  const open = all.filter((row) => !row.settled).length;
  const failed = all.filter((row) => row.stage === "failed").length;
  tray.hidden = all.length === 0;
  byId("tray-title").textContent = open ? `Uploading ${counted(open, "file")}` : failed ? `${counted(failed, "upload")} failed` : "Uploads done";
  byId("tray-clear").hidden = all.length > 0 && all.every((row) => !row.settled);
  byId("tray-clear").textContent = open ? "Clear finished" : "Close";
}

class Broken extends Error {}

const phase = ({ status, progress }) => (status === "queued" ? "Stored, queued" : progress < EMBEDDING_FROM ? "Decoding" : "Embedding");

class Row {
  constructor(file) {
    this.file = file;
    this.sentAgain = 0;
    this.stage = "waiting";
    this.bar = element("div", { class: "meter", role: "progressbar", "aria-label": file.name, "aria-valuemin": "0", "aria-valuemax": "100" });
    this.fill = element("span");
    this.bar.append(this.fill);
    this.said = element("p", { class: "upload-said" });
    this.buttons = element("div", { class: "upload-buttons" });
    this.root = element(
      "li",
      { class: "upload" },
      element("div", { class: "upload-line" }, element("span", { class: "upload-name", title: file.name }, file.name), this.buttons),
      this.bar,
      this.said,
    );
    rows.add(this);
    list.append(this.root);
  }

  get settled() {
    return this.stage === "ready" || this.stage === "failed";
  }

  set(stage, text, progress = null, ...buttons) {
    const settledBefore = this.settled;
    this.stage = stage;
    this.root.dataset.stage = stage;
    this.said.textContent = text;
    if (progress !== null) {
      this.fill.style.width = `${progress * 100}%`;
      this.bar.setAttribute("aria-valuenow", String(Math.round(progress * 100)));
    }
    this.bar.hidden = this.settled;
    this.buttons.replaceChildren(
      ...buttons.map(([label, click]) => element("button", { type: "button", class: "button quiet small", "aria-label": `${label}: ${this.file.name}`, click }, label)),
    );
    if (this.settled && !settledBefore) byId("tray-said").textContent = `${this.file.name}: ${text}`;
    summary();
  }

  drop() {
    rows.delete(this);
    this.root.remove();
    summary();
  }

  fail(text) {
    this.set("failed", text, null, ["Retry", () => this.retry()], ["Remove", () => this.drop()]);
  }

  retry() {
    this.sentAgain = 0;
    this.start();
  }

  start() {
    if (this.file.size > actions.limit()) {
      this.fail(`The file has ${bytes(this.file.size)}; this service accepts at most ${bytes(actions.limit())}.`);
      return;
    }
    const cancel = ["Cancel", () => this.drop()];
    this.set("waiting", `Waiting, ${bytes(this.file.size)}`, 0, cancel);
    sending(async () => {
      if (!rows.has(this)) return;
      try {
        const { video, known } = await this.send();
        this.follow(video, known);
      } catch (error) {
        if (rows.has(this)) await this.broken(error);
      }
    });
  }

  // After a restart of the service the file is sent again. If it had arrived already, it still is only one clip.
  async broken(error) {
    if (!(error instanceof Broken) || this.sentAgain >= SENT_AGAIN_AT_MOST) {
      this.fail(error.message);
      return;
    }
    this.sentAgain += 1;
    this.set("waiting", "The service does not respond. The file is sent again when it does.", 0, ["Cancel", () => this.drop()]);
    await api.whenBack();
    if (rows.has(this)) this.start();
  }

  // XMLHttpRequest, because fetch does not report the upload progress.
  async send() {
    for (;;) {
      const key = api.currentKey();
      const { status, text } = await new Promise((resolve, reject) => {
        const request = new XMLHttpRequest();
        request.open("POST", api.paths.videos);
        for (const [name, value] of Object.entries(api.keyHeaders())) request.setRequestHeader(name, value);
        const cancel = [
          "Cancel",
          () => {
            this.drop();
            request.abort();
          },
        ];
        this.set("sending", `Sending, ${bytes(this.file.size)}`, 0, cancel);
        request.upload.addEventListener("progress", ({ lengthComputable, loaded, total }) => {
          if (!lengthComputable) return;
          this.fill.style.width = `${(loaded / total) * 100}%`;
          this.bar.setAttribute("aria-valuenow", String(Math.round((loaded / total) * 100)));
          this.said.textContent = loaded < total ? `Sending, ${bytes(loaded)} of ${bytes(total)}` : "Checking";
        });
        request.addEventListener("load", () => resolve({ status: request.status, text: request.responseText }));
        request.addEventListener("abort", () => reject(new api.Problem(0, "Cancelled.")));
        request.addEventListener("error", () => {
          reject(new Broken("The connection was lost before the service responded."));
        });
        const form = new FormData();
        form.append("file", this.file, this.file.name);
        request.send(form);
      });
      if (status >= 200 && status < 300) return { video: JSON.parse(text), known: status === 200 };
      const problem = api.problemFrom(status, text);
      if ((status === 401 || status === 403) && (await api.newKey(key))) continue;
      throw problem;
    }
  }

  follow(video, known) {
    if (this.finish("ready" === video.status ? "ready" : "", video, known)) return;
    this.set("reading", phase(video), video.progress);
    watching(async () => {
      while (!this.settled) {
        try {
          await api.listen(video.id, (event, data) => {
            if (!this.finish(event, data, false)) {
              this.set("reading", phase(data), data.progress);
            }
          });
        } catch (error) {
          if (error instanceof api.Problem) this.fail(error.message);
        }
        if (!this.settled) await new Promise((resolve) => setTimeout(resolve, 1000)); // stream broke: reconnect
      }
    });
  }

  finish(event, video, known) {
    if (event === "ready") {
      this.set("ready", known ? "Already in the library" : "Ready", 1, ["Open", () => actions.open(video.id)]);
      actions.ready(video);
    } else if (event === "failed") {
      this.fail(video.error ?? "The clip could not be processed.");
    } else if (event === "deleted") {
      this.fail("The clip was deleted before it was processed.");
    } else {
      return false;
    }
    return true;
  }
}
