// A colour and a shape for each category: the colours of Okabe and Ito first, then those of Tol, which colour-blind
// people can tell apart. Each colour has a version that is readable on the light page and one for the dark page.
// A category keeps its colour until the page is closed.

const LIGHT = [
  ...["#0072b2", "#d98200", "#009e73", "#d55e00", "#b8518c", "#3597d4", "#b09a00"],
  ...["#332288", "#882255", "#117733", "#999933", "#aa4499", "#cc6677", "#44aa99", "#7a5230"],
];
const DARK = [
  ...["#3f9fe0", "#e69f00", "#1fc496", "#f27a33", "#dd92bb", "#7cc8f2", "#f0e442"],
  ...["#8f84e8", "#d0699f", "#5bbd72", "#c2c25a", "#d487cd", "#e88c99", "#6cd0c0", "#c19a72"],
];
const SHAPES = ["circle", "diamond", "square", "cross"];
const NONE = { light: "#8a929a", dark: "#7d868e" };

const dark = matchMedia("(prefers-color-scheme: dark)");
const places = new Map();

export const onTheme = (changed) => dark.addEventListener("change", changed);
export const isDark = () => dark.matches;

// Assigns colours to new categories in this order, after the categories that have one already.
export function learn(names) {
  for (const name of names) if (name !== null && !places.has(name)) places.set(name, places.size);
}

export function look(name) {
  if (name === null) return { colour: dark.matches ? NONE.dark : NONE.light, shape: SHAPES[0] };
  learn([name]);
  const place = places.get(name);
  const colours = dark.matches ? DARK : LIGHT;
  return { colour: colours[place % colours.length], shape: SHAPES[Math.floor(place / colours.length) % SHAPES.length] };
}
