// What is on show, as it stands in the address: words, weight, category, the video that is open, the one to be like.

export const USUAL_WEIGHT = 0.7;

export function read(search = location.search) {
  const given = new URLSearchParams(search);
  const weight = given.has("w") ? Number(given.get("w")) : USUAL_WEIGHT;
  return {
    q: given.get("q") ?? "",
    w: weight >= 0 && weight <= 1 ? weight : USUAL_WEIGHT,
    category: given.get("category") ?? "",
    like: given.get("like") ?? "",
    video: given.get("video") ?? "",
  };
}

export function address(state) {
  const said = new URLSearchParams();
  if (state.q) said.set("q", state.q);
  if (state.like) said.set("like", state.like);
  if (state.w !== USUAL_WEIGHT) said.set("w", String(state.w));
  if (state.category) said.set("category", state.category);
  if (state.video) said.set("video", state.video);
  const text = said.toString();
  return text ? `${location.pathname}?${text}` : location.pathname;
}
