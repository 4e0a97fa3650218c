// What the scripts of the explorer take for granted beyond the DOM's own types.

interface Window {
  Plotly: any; // out of its own package, loaded when a map is drawn
}

interface Navigator {
  connection?: { saveData: boolean }; // not every browser has it
}

// Listeners are put on elements that are known to be inputs, buttons or links.
interface EventTarget {
  value: any;
  files: any;
  closest(selector: string): any;
}

interface Element {
  src: any;
  focus(options?: FocusOptions): void;
}
