// Files dragged over the page: one drop area searches with them, another adds them to the library.

import { byId } from "./dom.js";

const sign = byId("drop");
const isPicture = ({ type }) => type.startsWith("image/") && type !== "image/gif";

// Callbacks: `search(file)`, `add(files)`, `folder(file)`
export function setUp({ search, add, folder }) {
  let depth = 0;
  const hasFiles = (event) => event.dataTransfer?.types.includes("Files");
  const end = () => {
    depth = 0;
    sign.hidden = true;
  };
  addEventListener("dragenter", (event) => {
    if (!hasFiles(event)) return;
    event.preventDefault();
    depth += 1;
    const items = [...event.dataTransfer.items].filter(({ kind }) => kind === "file");
    // Images cannot be added, and a search takes one file: hide a drop area that would refuse the files.
    byId("drop-add").hidden = items.length > 0 && items.every(isPicture);
    byId("drop-search").hidden = items.length > 1 && !items.every(isPicture);
    sign.hidden = false;
  });
  addEventListener("dragover", (event) => {
    if (!hasFiles(event)) return;
    event.preventDefault();
    for (const place of sign.children) place.classList.toggle("over", place.contains(event.target));
  });
  addEventListener("dragleave", (event) => {
    if (!hasFiles(event)) return;
    depth -= 1;
    if (depth <= 0) end();
  });
  addEventListener("drop", (event) => {
    if (!hasFiles(event)) return;
    event.preventDefault();
    const asked = byId("drop-search").contains(event.target) || byId("search").contains(event.target);
    end();
    const files = [];
    for (const item of event.dataTransfer.items) {
      const file = item.kind === "file" ? item.getAsFile() : null;
      if (!file) continue;
      if (item.webkitGetAsEntry?.()?.isDirectory) folder(file);
      else files.push(file);
    }
    const pictures = files.filter(isPicture);
    if (asked && files.length) search(files[0]);
    else {
      if (files.length > pictures.length) add(files.filter((file) => !isPicture(file)));
      if (pictures.length) search(pictures[0]);
    }
  });
}
