// The plot of the map, drawn by the plotly.js of the installed Python package. Independent of clips and the service.

const SCRIPT = "/explore/plotly.js";
const MANY = 20_000; // number of dots; above it, squares in 3D: a disc has dozens of triangles, a square two
const DENSE = 5000;
const UNLIT = 0.3; // share of the usual opacity, for dots beside highlighted ones
const UNLIT_DENSE = 0.12;
const UNCHOSEN = 0.15;
const EYE = { x: 1.35, y: 1.35, z: 0.9 };

let loading = null;

// Loads plotly, which is large, so only when a map is about to be shown. Later calls return the same promise.
export function load() {
  loading ??= new Promise((resolve, reject) => {
    quietCanvas();
    const script = document.createElement("script");
    script.src = SCRIPT;
    script.addEventListener("load", () => resolve(window.Plotly));
    script.addEventListener("error", () => {
      loading = null;
      script.remove();
      reject(new Error("The script that draws the map could not be loaded."));
    });
    document.head.append(script);
  });
  return loading;
}

// plotly reads text back from a canvas; without `willReadFrequently` the browser is slow and logs a warning.
function quietCanvas() {
  const plain = HTMLCanvasElement.prototype.getContext;
  HTMLCanvasElement.prototype.getContext = function getContext(kind, options) {
    return plain.call(this, kind, kind === "2d" ? { willReadFrequently: true, ...options } : options);
  };
}

const usualSize = (count) => (count < 200 ? 11 : count < 2000 ? 8 : count < 20_000 ? 5 : 3.5);

// Returns a colour of the style sheet in the active theme.
const shade = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

export class Plot {
  // `heard`: over(index, event), out(), click(index), chosen(indices), cleared(), moved()
  constructor(root, heard) {
    this.root = root;
    this.heard = heard;
    this.groups = [];
    this.rows = []; // for each trace, the numbers of its points
    this.dimensions = 0;
    this.drag = "pan";
    this.size = 1;
    this.opacity = 0.85;
    this.lit = [];
    this.busy = Promise.resolve();
    this.late = null;
    new ResizeObserver(() => this.resize()).observe(root);
  }

  get drawn() {
    return this.dimensions !== 0;
  }

  // `groups`: {name, colour, shape, hidden, dim, rows, chosen}; `at(row)` gives coordinates. The same `key` keeps the view.
  draw({ groups, at, count, dimensions, key }) {
    return this.then(async () => {
      const Plotly = await load();
      if (this.drawn && this.dimensions !== dimensions) {
        Plotly.purge(this.root);
        this.dimensions = 0;
      }
      this.groups = groups;
      this.at = at;
      this.count = count;
      this.rows = groups.map(({ rows }) => rows);
      if (key !== this.key) this.lit = [];
      this.key = key;
      const fresh = !this.drawn;
      this.dimensions = dimensions;
      await Plotly.react(this.root, this.traces(), this.layout(), { displayModeBar: false, displaylogo: false, scrollZoom: true, doubleClick: "reset", showTips: false, responsive: false });
      this.width = this.root.clientWidth;
      this.height = this.root.clientHeight;
      if (fresh) this.listen();
    });
  }

  // Runs tasks one after another, because overlapping plotly calls would mix up the traces.
  then(work) {
    const done = this.busy.then(work);
    this.busy = done.catch(() => {});
    return done;
  }

  columns(rows) {
    const names = ["x", "y", "z"].slice(0, this.dimensions);
    const made = Object.fromEntries(names.map((name) => [name, new Float32Array(rows.length)]));
    rows.forEach((row, index) => {
      const place = this.at(row);
      names.forEach((name, axis) => {
        made[name][index] = place[axis];
      });
    });
    return made;
  }

  traces() {
    const type = this.dimensions === 3 ? "scatter3d" : "scattergl";
    const base = this.groups.map((group) => ({
      type,
      mode: "markers",
      ...this.columns(group.rows),
      visible: !group.hidden,
      hoverinfo: "none",
      marker: this.marker(group),
      ...(type === "scattergl" ? { selectedpoints: group.chosen ?? undefined, unselected: { marker: { opacity: UNCHOSEN } } } : {}),
    }));
    return [...base, this.litTrace(type)];
  }

  marker(group) {
    const many = this.count > MANY;
    const unlit = this.count > DENSE ? UNLIT_DENSE : UNLIT;
    return {
      color: group.colour,
      symbol: many && this.dimensions === 3 ? "square" : group.shape,
      size: usualSize(this.count) * this.size * (this.dimensions === 3 ? (many ? 0.45 : 0.6) : 1),
      opacity: this.opacity * (many ? 0.7 : 1) * (group.dim || this.lit.length ? unlit : 1),
      line: { width: 0 },
    };
  }

  litTrace(type = this.dimensions === 3 ? "scatter3d" : "scattergl") {
    const rows = this.lit.map(({ row }) => row);
    const flat = this.dimensions === 2;
    const size = this.lit.map(({ strength }) => (flat ? 7 : 5) + (flat ? 13 : 8) * strength ** 2);
    const width = flat ? this.lit.map(({ first }) => (first ? 2 : 0.5)) : 1; // in 3D plotly takes no list of widths
    return {
      type,
      mode: "markers",
      ...this.columns(rows),
      visible: rows.length > 0,
      hoverinfo: "none",
      marker: { color: this.lit.map(({ colour }) => colour), size, opacity: 1, line: { width, color: shade("--ink") } },
      ...(flat ? { unselected: { marker: { opacity: 1 } } } : {}),
    };
  }

  layout() {
    const bare = { visible: false, showspikes: false, title: { text: "" } };
    const common = {
      uirevision: this.key,
      autosize: true,
      showlegend: false,
      hovermode: "closest",
      clickmode: "event",
      margin: { l: 0, r: 0, t: 0, b: 0 },
      paper_bgcolor: "rgba(0,0,0,0)",
      plot_bgcolor: "rgba(0,0,0,0)",
    };
    if (this.dimensions === 3) {
      const line = shade("--strong-line");
      const frame = { ...bare, visible: true, showticklabels: false, ticks: "", nticks: 5, showgrid: true, gridcolor: shade("--line"), zeroline: false, showline: true, linecolor: line, showbackground: false };
      return { ...common, dragmode: "turntable", scene: { uirevision: this.key, xaxis: frame, yaxis: frame, zaxis: frame, aspectmode: "data", camera: { eye: EYE }, dragmode: "turntable", bgcolor: "rgba(0,0,0,0)" } };
    }
    return {
      ...common,
      dragmode: this.drag,
      selectionrevision: this.key,
      newselection: { line: { color: shade("--ink"), width: 1.5, dash: "dot" } },
      xaxis: bare,
      yaxis: { ...bare, scaleanchor: "x" },
    };
  }

  listen() {
    const row = ({ curveNumber, pointNumber }) => (curveNumber < this.rows.length ? this.rows[curveNumber][pointNumber] : this.lit[pointNumber]?.row);
    const { heard, root } = this;
    root.on("plotly_hover", ({ points, event }) => {
      const found = points.length ? row(points.at(-1)) : undefined;
      if (found !== undefined) heard.over(found, event);
    });
    root.on("plotly_unhover", () => heard.out());
    root.on("plotly_click", ({ points }) => {
      const found = points.length ? row(points.at(-1)) : undefined;
      if (found !== undefined) heard.click(found);
    });
    root.on("plotly_selected", (event) => {
      if (event?.points) heard.chosen([...new Set(event.points.map(row))].filter((found) => found !== undefined).sort((a, b) => a - b));
    });
    root.on("plotly_deselect", () => heard.cleared());
    root.on("plotly_relayouting", () => heard.moved());
    root.on("plotly_relayout", () => heard.moved());
  }

  // Highlights dots: {row, colour, strength from 0 to 1, first}. Of several quick calls only the last is drawn.
  light(dots) {
    const waiting = this.late !== null;
    if (!waiting && !dots.length && !this.lit.length) return this.busy;
    this.late = dots;
    if (waiting || !this.drawn) return this.busy;
    return this.then(async () => {
      const changed = this.late.length > 0 !== this.lit.length > 0;
      this.lit = this.late;
      this.late = null;
      if (!this.drawn) return;
      /** @type {any} what it has depends on the dimensions */
      const { x, y, z, visible, marker } = this.litTrace();
      const change = { x, y, ...(z ? { z } : { "marker.line.width": marker.line.width }), visible, "marker.color": marker.color, "marker.size": marker.size };
      // One call for all traces, because each call redraws; a value that is undefined leaves its trace unchanged.
      const others = changed ? this.groups.length : 0;
      const values = Object.fromEntries(Object.entries(change).map(([name, value]) => [name, [...Array(others), value]]));
      if (changed) values["marker.opacity"] = [...this.groups.map((group) => this.marker(group).opacity), 1];
      await window.Plotly.restyle(this.root, values, changed ? [...this.groups.keys(), others] : [this.groups.length]);
    });
  }

  restyle() {
    const markers = this.groups.map((group) => this.marker(group));
    const change = { "marker.size": markers.map(({ size }) => size), "marker.opacity": markers.map(({ opacity }) => opacity), visible: this.groups.map(({ hidden }) => !hidden) };
    return this.groups.length ? window.Plotly.restyle(this.root, change, this.groups.map((_, index) => index)) : null;
  }

  // Applies changed sizes, opacities and visibility.
  refresh() {
    if (!this.drawn || this.stale) return;
    this.stale = true;
    this.then(() => {
      this.stale = false;
      return this.restyle();
    });
  }

  // Sets what dragging does: "pan", "lasso" or "select". In 3D dragging always rotates.
  use(drag) {
    this.drag = drag;
    if (this.dimensions === 2) this.then(() => window.Plotly.relayout(this.root, { dragmode: drag }));
  }

  clearChosen() {
    if (this.dimensions !== 2) return;
    const all = [...this.groups.keys(), this.groups.length];
    this.then(() => window.Plotly.update(this.root, { selectedpoints: null }, { selections: [] }, all));
  }

  zoom(factor) {
    if (!this.drawn) return;
    if (this.dimensions === 3) {
      const { eye, ...camera } = this.root._fullLayout.scene.camera;
      const nearer = Object.fromEntries(Object.entries(eye).map(([axis, value]) => [axis, value * factor]));
      this.then(() => window.Plotly.relayout(this.root, { "scene.camera": { ...camera, eye: nearer } }));
      return;
    }
    const change = {};
    for (const axis of ["xaxis", "yaxis"]) {
      const [from, to] = this.root.layout[axis].range;
      const half = ((to - from) / 2) * factor;
      change[`${axis}.range`] = [(from + to) / 2 - half, (from + to) / 2 + half];
    }
    this.then(() => window.Plotly.relayout(this.root, change));
  }

  fit() {
    if (!this.drawn) return;
    const change = this.dimensions === 3 ? { "scene.camera": { eye: EYE } } : { "xaxis.autorange": true, "yaxis.autorange": true };
    this.then(() => window.Plotly.relayout(this.root, change));
  }

  // Returns the position of a dot in pixels from the upper left corner of the plot; null if it is not visible.
  place(row) {
    if (this.dimensions !== 2) return null;
    const { xaxis, yaxis } = this.root._fullLayout;
    const [x, y] = this.at(row);
    const left = xaxis._offset + xaxis.c2p(x);
    const top = yaxis._offset + yaxis.c2p(y);
    return left >= 0 && top >= 0 && left <= this.root.clientWidth && top <= this.root.clientHeight ? { left, top } : null;
  }

  resize() {
    const { clientWidth: width, clientHeight: height } = this.root;
    if (!this.drawn || this.resizing || !width || (width === this.width && height === this.height)) return;
    this.resizing = true;
    this.then(() => {
      this.resizing = false;
      this.width = this.root.clientWidth;
      this.height = this.root.clientHeight;
      return this.width && this.drawn ? window.Plotly.Plots.resize(this.root) : null;
    });
  }

  clear() {
    return this.then(() => {
      if (this.drawn) window.Plotly.purge(this.root);
      this.dimensions = 0;
      this.lit = [];
    });
  }
}
