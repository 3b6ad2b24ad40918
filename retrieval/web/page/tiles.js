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

// What slider and switch say stands behind the # of the address: there it outlives a reload, and goes along in a link.
export function kept() {
  const pairs = new URLSearchParams();
  if (at("least").value !== "0") pairs.set("least", at("least").value);
  if (at("details").checked) pairs.set("details", "1");
  return pairs.size ? `#${pairs}` : "";
}

export function recall() {
  const pairs = new URLSearchParams(location.hash.slice(1));
  at("least").value = Number(pairs.get("least")) || 0;
  at("details").checked = pairs.has("details");
  detail();
  leaveOut();
}

function keep() {
  history.replaceState(history.state, "", location.pathname + location.search + kept());
}

function detail() {
  document.body.classList.toggle("detailed", at("details").checked);
}

// What is less likely than the slider says is hidden, in this answer and in those to come.
export function leaveOut() {
  const least = Number(at("least").value), judged = rows().filter((row) => row.dataset.probability);
  at("likely").hidden = !judged.length;
  at("least").ariaValueText = at("least-text").textContent = `${least} % likely`;
  for (const row of judged) row.hidden = 100 * row.dataset.probability < least;
  at("none").hidden = !judged.length || judged.some((row) => !row.hidden);
  // among images in order of their probability, none follows that is likelier than the last
  const best = judged.filter((row) => !row.previousElementSibling?.matches(".gap"));
  const ordered = best.every((row, n) => !n || Number(row.dataset.probability) <= Number(best[n - 1].dataset.probability));
  if (at("more")) at("more").hidden = Boolean(ordered && best.at(-1)?.hidden);
  const count = at("count"), shown = best.filter((row) => !row.hidden).length;
  if (best.length) count.textContent = count.textContent.replace(/^[\d,]+/, shown.toLocaleString("en"));
  exportWhat();
  fillLast();
}

// Images of the last row are as high as those of the row above.
function fillLast() {
  for (const row of rows()) row.style.flex = row.style.maxWidth = "";
  const seen = rows().filter((row) => row.offsetParent), top = seen.at(-1)?.offsetTop;
  const last = seen.filter((row) => row.offsetTop === top), above = seen.at(-1 - last.length);
  if (!above) return;
  const ratio = (row) => Number(row.style.getPropertyValue("--ratio") || 1), sum = last.reduce((all, row) => all + ratio(row), 0);
  const list = above.parentElement, gaps = parseFloat(getComputedStyle(list).columnGap) * (last.length - 1);
  const height = Math.min(above.getBoundingClientRect().width / ratio(above), (list.clientWidth - gaps) / sum - 0.01);
  for (const row of last) Object.assign(row.style, { flex: `0 1 ${height * ratio(row)}px`, maxWidth: "none" });
}

// What is exported: the selected images, or else all that are not hidden.
function exportWhat() {
  const link = at("export"), [base] = link.getAttribute("href").split("&ranks=");
  const selected = rows().filter((row) => row.querySelector(".pick input")?.checked);
  const kept = selected.length ? selected : rows().filter((row) => !row.hidden);
  const ranks = kept.map((row) => row.dataset.rank).join(",") || "0";
  link.firstChild.data = selected.length ? `Export ${selected.length}` : "Export";
  link.lastChild.textContent = selected.length ? " as CSV" : " CSV";
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
  fillLast();
});
answer.addEventListener("change", (event) => {
  if (event.target.matches(".pick input")) exportWhat();
});
at("select").addEventListener("change", () => {
  document.body.classList.toggle("selecting", selecting());
  if (!selecting()) for (const box of answer.querySelectorAll(".pick input")) box.checked = false;
  exportWhat();
});
at("details").addEventListener("change", () => {
  detail();
  keep();
});
at("least").addEventListener("input", leaveOut);
at("least").addEventListener("change", keep);
at("show-all").addEventListener("click", () => {
  at("least").value = 0;
  leaveOut();
  keep();
});
new ResizeObserver(() => requestAnimationFrame(fillLast)).observe(answer);
