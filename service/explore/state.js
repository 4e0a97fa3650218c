// The state of the page as written to its URL, so that a view can be shared: query, weights, category, open clip, and
// the settings of the map. A query image or clip is a file and is not part of the URL.

export const USUAL_WEIGHT = 0.7;
export const KINDS = ["aggregated", "frame", "text"];
export const METHODS = ["umap", "tsne", "pca"];
const VIEWS = ["clips", "both", "map"];

const oneOf = (value, choices, usual) => (choices.includes(value) ? value : usual);

export function read(search = location.search) {
  const given = new URLSearchParams(search);
  const weight = given.has("w") ? Number(given.get("w")) : USUAL_WEIGHT;
  return {
    q: given.get("q") ?? "",
    like: given.getAll("like").filter(Boolean),
    unlike: given.getAll("unlike").filter(Boolean),
    file: 0,
    w: weight >= 0 && weight <= 1 ? weight : USUAL_WEIGHT,
    category: given.get("category") ?? "",
    video: given.get("video") ?? "",
    view: oneOf(given.get("view"), VIEWS, ""),
    kind: oneOf(given.get("map"), KINDS, KINDS[0]),
    method: oneOf(given.get("method"), METHODS, METHODS[0]),
    dimensions: given.get("d") === "3" ? 3 : 2,
    hidden: given.getAll("hide"), // categories; the empty name means clips without a category
  };
}

export function address(state) {
  const said = new URLSearchParams();
  if (state.q) said.set("q", state.q);
  for (const id of state.like) said.append("like", id);
  for (const id of state.unlike) said.append("unlike", id);
  if (state.w !== USUAL_WEIGHT) said.set("w", String(state.w));
  if (state.category) said.set("category", state.category);
  if (state.view) said.set("view", state.view);
  if (state.kind !== KINDS[0]) said.set("map", state.kind);
  if (state.method !== METHODS[0]) said.set("method", state.method);
  if (state.dimensions === 3) said.set("d", "3");
  for (const name of state.hidden) said.append("hide", name);
  if (state.video) said.set("video", state.video);
  const text = said.toString();
  return text ? `${location.pathname}?${text}` : location.pathname;
}

// Only one kind of query is set at a time; without a query the page shows the library.
export const NOTHING_ASKED = { q: "", like: [], unlike: [], file: 0 };

export const asks = ({ q, like, unlike, file }) => Boolean(q || like.length || unlike.length || file);
