// Theme, sorting, filtering, copying and thresholds. The pages are readable without JavaScript.
"use strict";

const root = document.documentElement;
const dark = matchMedia("(prefers-color-scheme: dark)");

// A page opened from disk may have no local storage.
function remembered() {
  try { return localStorage.getItem("theme"); } catch { return null; }
}

function remember(theme) {
  try { localStorage.setItem("theme", theme); } catch { /* the choice is lost */ }
}

// Before anything is drawn, so that a dark page does not flash white.
if (remembered()) root.dataset.theme = remembered();

function theme() {
  return root.dataset.theme || (dark.matches ? "dark" : "light");
}

function prepareTheme() {
  const button = document.getElementById("theme");
  const label = () => { button.textContent = theme() === "dark" ? "Light" : "Dark"; };
  button.addEventListener("click", () => {
    root.dataset.theme = theme() === "dark" ? "light" : "dark";
    remember(root.dataset.theme);
    label();
  });
  dark.addEventListener("change", label);
  button.hidden = false;
  label();
}

// The cell in a column; a wide cell is in all the columns that it spans.
function cellAt(row, column) {
  let position = 0;
  for (const cell of row.cells) {
    position += cell.colSpan;
    if (column < position) return cell;
  }
  return null;
}

function valueOf(row, column, number) {
  const cell = cellAt(row, column);
  const text = cell.dataset.value || cell.textContent.trim();
  if (!number) return text;
  const value = Number.parseFloat(text.replace("−", "-").replace("<", ""));
  return cell.classList.contains("bad") || Number.isNaN(value) ? null : value;
}

// Rows without a number come last in both directions; equal rows keep their order.
function sort(table, header, column) {
  const number = header.classList.contains("number");
  const first = number && !header.matches(":first-child") ? "descending" : "ascending";
  const other = first === "ascending" ? "descending" : "ascending";
  const order = header.getAttribute("aria-sort") === first ? other : first;
  for (const th of table.querySelectorAll("th[aria-sort]")) th.setAttribute("aria-sort", "none");
  header.setAttribute("aria-sort", order);
  const sign = order === "ascending" ? 1 : -1;
  const rows = [...table.tBodies[0].rows].map((row) => [valueOf(row, column, number), row]);
  rows.sort(([a], [b]) => {
    if (a === null || b === null) return (a === null) - (b === null);
    return sign * (number ? a - b : a.localeCompare(b));
  });
  table.tBodies[0].append(...rows.map(([, row]) => row));
}

function prepareSorting(table) {
  const heads = table.tHead.rows[table.tHead.rows.length - 1].cells;
  [...heads].forEach((header, column) => {
    if (header.classList.contains("plain")) return;
    const button = document.createElement("button");
    button.type = "button";
    button.append(...header.childNodes);
    header.append(button);
    header.setAttribute("aria-sort", "none");
    button.addEventListener("click", () => sort(table, header, column));
  });
}

function prepareFilters(form) {
  const tables = form.parentElement.querySelectorAll("table.rows");
  const { text, method, refiner, settings, ranked } = form.elements;
  const apply = () => {
    const words = text.value.toLowerCase().split(/\s+/).filter(Boolean);
    const wanted = (row) =>
      [[method, "method"], [refiner, "refiner"], [settings, "settings"]].every(
        ([select, name]) => !select.value || row.dataset[name] === select.value ||
          // A row may have the default settings and the best.
          (name === "settings" && row.dataset.settings.split(" = ").includes(select.value))) &&
      (!ranked.checked || row.dataset.ranked === "yes") &&
      words.every((word) => row.textContent.toLowerCase().includes(word));
    for (const table of tables) for (const row of table.tBodies[0].rows) row.hidden = !wanted(row);
    const rows = [...tables[0].tBodies[0].rows];
    form.querySelector("output").textContent = `${rows.filter((row) => !row.hidden).length} of ${rows.length} rows`;
  };
  form.addEventListener("input", apply);
  form.addEventListener("submit", (event) => event.preventDefault());
  form.hidden = false;
  apply();
}

function prepareCopying(button) {
  const code = button.parentElement.querySelector("code");
  button.addEventListener("click", async () => {
    try {
      await navigator.clipboard.writeText(code.textContent);
      button.textContent = "Copied";
    } catch {
      getSelection().selectAllChildren(code);
      button.textContent = "Selected";
    }
  });
  button.hidden = false;
}

// Paints the class's colour where the map is greater than the threshold, over the photograph.
async function prepareThreshold(card) {
  const stack = card.querySelector(".stack");
  const slider = card.querySelector("input[type=range]");
  if (!stack || !slider) return;
  const map = new Image();
  map.src = stack.dataset.map;
  await map.decode();
  const canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = [map.naturalWidth, map.naturalHeight];
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.drawImage(map, 0, 0);
  const scores = context.getImageData(0, 0, canvas.width, canvas.height).data.slice();
  const colour = [1, 3, 5].map((start) => Number.parseInt(stack.dataset.colour.slice(start, start + 2), 16));
  const still = stack.querySelector(".still");
  const paint = () => {
    const picture = context.createImageData(canvas.width, canvas.height);
    const threshold = 255 * Number(slider.value);
    for (let i = 0; i < scores.length; i += 4) {
      if (scores[i] > threshold) picture.data.set([...colour, 255], i);
    }
    context.putImageData(picture, 0, 0);
    canvas.setAttribute("aria-label", still.alt.replace(/[\d.]+$/, Number(slider.value).toFixed(2)));
    card.querySelector("output").textContent = Number(slider.value).toFixed(2);
  };
  canvas.setAttribute("role", "img");
  const photograph = new Image();
  photograph.src = stack.dataset.photo;
  photograph.alt = "";
  slider.addEventListener("input", paint);
  paint();
  stack.replaceChildren(photograph, canvas);
  slider.hidden = false;
}

document.addEventListener("DOMContentLoaded", () => {
  prepareTheme();
  document.querySelectorAll("table.rows").forEach(prepareSorting);
  document.querySelectorAll(".filters").forEach(prepareFilters);
  document.querySelectorAll(".copy").forEach(prepareCopying);
  document.querySelectorAll(".card").forEach(prepareThreshold);
});
