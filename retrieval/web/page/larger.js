// The larger view of an image: what is known of it, the images beside it, and questions that begin with it. Opening it
// adds one entry to the history, whose state has the image: so Back closes it, and whatever closes it goes back.
import { selecting, tiles } from "./tiles.js";

const at = (id) => document.getElementById(id);
const answer = at("answer");
export const larger = at("larger");
const SWIPE = 50; // pixels
let shown = null; // a tile
let ask = null;
let leave = null, left = Promise.resolve(); // resolved once no view is open, and the history has gone back from it

// ask: called with the address of a question
export function connect(callback) {
  ask = callback;
}

// To be awaited before an answer takes the place of the one whose image is looked at.
export const closed = () => left;

async function open(tile) {
  await left;
  history.pushState({ larger: tile.getAttribute("href") }, "");
  show(tile);
}

// To be called when another entry of the history is reached, and at the start: opens or closes what it says.
export function follow() {
  const tile = tiles().find((other) => other.getAttribute("href") === history.state?.larger);
  if (tile) show(tile);
  else if (larger.open) larger.close();
}

function show(tile) {
  shown = tile;
  const small = tile.querySelector("img"), large = new Image();
  at("large").src = small ? small.src : "/icon.svg";
  at("large").alt = small ? small.alt : tile.title;
  large.onload = () => shown === tile && (at("large").src = large.src);
  large.src = tile.href;
  at("name").textContent = tile.title;
  at("caption").textContent = small && small.alt !== tile.title ? small.alt : "";
  const [likely, detail] = ["likely", "detail"].map((name) => tile.parentElement.querySelector(`.${name}`)?.textContent);
  at("figures").replaceChildren(element("span", likely ? `${likely} likely` : ""), element("span", detail ?? "", "detail"));
  at("full").href = tile.getAttribute("href").replace("image", "full");
  at("facts").replaceChildren();
  at("copy").hidden = at("original").hidden = true;
  if (!larger.open) {
    left = new Promise((done) => (leave = done));
    at("refine").reset();
    larger.showModal();
    at("next").focus();
  }
  return tellOf(tile);
}

async function tellOf(tile) {
  const reply = await fetch(tile.getAttribute("href").replace("image", "about")).catch(() => null);
  const about = reply?.ok ? await reply.json() : {};
  if (shown !== tile) return;
  const facts = {
    Size: about.width && `${about.width.toLocaleString("en")} × ${about.height.toLocaleString("en")}, ${amount(about.bytes)}`,
    [about.taken ? "Taken" : "Saved"]: about.date,
    Path: about.path,
  };
  const lines = Object.entries(facts).filter(([, value]) => value);
  at("facts").replaceChildren(...lines.flatMap(([name, value]) => [element("dt", name), element("dd", value)]));
  at("copy").hidden = !about.path || !navigator.clipboard; // browsers have none where the connection is not secure
  at("copy").textContent = "Copy path";
  at("copy").dataset.path = about.path;
  at("original").hidden = !about.original;
  at("original").href = about.original ?? "";
}

const amount = (bytes) => (bytes < 1e6 ? `${Math.ceil(bytes / 1e3)} kB` : `${(bytes / 1e6).toFixed(1)} MB`);

function element(name, textContent, className = "") {
  const made = Object.assign(document.createElement(name), { textContent, className });
  return made;
}

function step(by) {
  const all = tiles();
  show(all[(all.indexOf(shown) + by + all.length) % all.length]); // behind the last comes the first
  history.replaceState({ larger: shown.getAttribute("href") }, "");
}

answer.addEventListener("click", (event) => {
  const tile = event.target.closest(".tile");
  if (!tile || event.button || event.metaKey || event.ctrlKey || event.shiftKey || event.altKey) return;
  event.preventDefault();
  const box = tile.parentElement.querySelector(".pick input");
  if (selecting() && box) box.click();
  else open(tile);
});
at("refine").addEventListener("submit", (event) => {
  event.preventDefault();
  const words = new URLSearchParams();
  for (const name of ["plus", "minus"]) if (at(name).value.trim()) words.append(at(name).name, at(name).value);
  larger.close();
  ask(shown.dataset.similar + (words.size ? `&${words}` : "")); // as it stands: an id may be no Unicode
  answer.querySelector("h2")?.focus();
});
at("copy").addEventListener("click", async () => {
  await navigator.clipboard.writeText(at("copy").dataset.path);
  at("copy").textContent = "Copied";
});
at("previous").addEventListener("click", () => step(-1));
at("next").addEventListener("click", () => step(1));
at("close").addEventListener("click", () => larger.close());
larger.addEventListener("click", (event) => event.target === larger && larger.close()); // beside its content
larger.addEventListener("close", () => {
  if (history.state?.larger) {
    addEventListener("popstate", leave, { once: true });
    history.back();
  } else leave();
  if (shown?.isConnected) shown.focus();
});
larger.addEventListener("keydown", (event) => {
  const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
  if (!by || event.target.matches("input")) return;
  event.preventDefault();
  step(by);
});

// Swiping
let start = null;
larger.addEventListener("touchstart", ({ touches }) => (start = touches.length === 1 ? touches[0] : null), { passive: true });
larger.addEventListener("touchend", ({ changedTouches: [end] }) => {
  const [x, y] = start ? [end.clientX - start.clientX, end.clientY - start.clientY] : [0, 0];
  if (Math.abs(x) > SWIPE && Math.abs(x) > 2 * Math.abs(y)) step(x < 0 ? 1 : -1);
  start = null;
});
