// The images of an answer: justified rows, near-duplicates folded, what is unlikely hidden, some selected for export.
const at = (id) => document.getElementById(id);
const answer = at("answer");

const rows = () => [...answer.querySelectorAll(".item")];
export const tiles = () => [...answer.querySelectorAll(".item:not([hidden], .folded) > .tile")];

// To be called when other images have come.
export function arrange() {
  for (const row of rows()) {
    const image = row.querySelector("img");
    if (image) row.style.setProperty("--ratio", image.getAttribute("width") / image.getAttribute("height"));
    row.classList.toggle("folded", "copyOf" in row.dataset);
  }
  leaveOut();
}

// What is less likely than the slider says is hidden, in this answer and in those to come.
export function leaveOut() {
  const least = Number(at("least").value), judged = rows().filter((row) => row.dataset.probability);
  at("likely").hidden = !judged.length;
  at("least").ariaValueText = at("least-text").textContent = `${least} % likely`;
  for (const row of judged) row.hidden = 100 * row.dataset.probability < least;
  at("none").hidden = !judged.length || judged.some((row) => !row.hidden);
  exportWhat();
}

// What is exported: the selected images, or else all that are not hidden.
function exportWhat() {
  const link = at("export"), [base] = link.getAttribute("href").split("&ranks=");
  const selected = rows().filter((row) => row.querySelector(".pick input")?.checked);
  const kept = selected.length ? selected : rows().filter((row) => !row.hidden);
  const ranks = kept.map((row) => row.dataset.rank).join(",") || "0";
  link.textContent = selected.length ? `Export ${selected.length} as CSV` : "Export CSV";
  link.href = kept.length === rows().length || at("tools").hidden ? base : `${base}&ranks=${ranks}`;
}

// The focus goes to the image beside, above or below; returns whether there is one. from: an element, null for the first.
export function move(key, from) {
  const all = tiles(), tile = from?.closest(".item")?.querySelector(".tile"), index = all.indexOf(tile);
  if (!from) return focus(all[0]);
  if (index < 0) return false;
  if (key === "ArrowLeft" || key === "ArrowRight") return focus(all[index + (key === "ArrowLeft" ? -1 : 1)]);
  if (key === "Home" || key === "End") return focus(all.at(key === "Home" ? 0 : -1));
  const down = { ArrowDown: 1, ArrowUp: -1 }[key];
  if (!down) return false;
  const box = (other) => other.getBoundingClientRect(), here = box(tile), middle = (b) => (b.left + b.right) / 2;
  const beyond = all.filter((other) => down * (box(other).top - here.top) > 4);
  const nearest = Math.min(...beyond.map((other) => down * (box(other).top - here.top)));
  const row = beyond.filter((other) => down * (box(other).top - here.top) < nearest + 4);
  return focus(row.sort((a, b) => Math.abs(middle(box(a)) - middle(here)) - Math.abs(middle(box(b)) - middle(here)))[0]);
}

function focus(tile) {
  tile?.focus();
  return Boolean(tile);
}

export const selecting = () => at("select").checked;

answer.addEventListener("click", (event) => {
  const button = event.target.closest(".copies");
  if (!button) return;
  const folded = button.ariaExpanded === "true";
  button.ariaExpanded = String(!folded);
  for (const row of rows()) if (row.dataset.copyOf === button.dataset.rank) row.classList.toggle("folded", folded);
});
answer.addEventListener("change", (event) => {
  if (event.target.matches(".pick input")) exportWhat();
});
at("select").addEventListener("change", () => {
  document.body.classList.toggle("selecting", selecting());
  if (!selecting()) for (const box of answer.querySelectorAll(".pick input")) box.checked = false;
  exportWhat();
});
at("details").addEventListener("change", () => document.body.classList.toggle("detailed", at("details").checked));
at("show-all").addEventListener("click", () => {
  at("least").value = 0;
  leaveOut();
});
