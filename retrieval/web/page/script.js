// Answers come as the same page that the server writes without this script; here they are put into the one that is open.
"use strict";

const at = (id) => document.getElementById(id);
const answer = at("answer"), larger = at("larger"), field = at("q");
const sent = []; // images that were searched with: they cannot stand in an address, but back and forward find them
let asking = new AbortController();
let tiles = [], shown = 0;

// One question at a time: a later one takes the place of an earlier one.
async function ask(address, body) {
  asking.abort();
  const mine = (asking = new AbortController());
  say("", "Searching…");
  answer.setAttribute("aria-busy", "true");
  try {
    const reply = await fetch(address, { method: body ? "POST" : "GET", body, signal: mine.signal });
    const text = await reply.text();
    if (mine === asking) show(new DOMParser().parseFromString(text, "text/html"));
  } catch (error) {
    if (error.name !== "AbortError") fail("the server does not answer; see whether app.py still runs");
  } finally {
    if (mine === asking) answer.removeAttribute("aria-busy");
  }
}

function show(page) {
  const fresh = page.getElementById("answer");
  if (!fresh) return fail("the server has sent no answer; see what app.py says");
  answer.replaceChildren(...fresh.childNodes);
  say(page.getElementById("error").textContent, page.getElementById("status").textContent);
  document.title = page.title;
  field.value = page.getElementById("q").value;
  const k = page.getElementById("k").value;
  at("k").replaceChildren(...page.getElementById("k").children);
  at("k").value = k; // an option that moves forgets that it was chosen
  leaveOut();
}

function say(error, status) {
  at("error").textContent = error;
  at("status").textContent = status;
}

function fail(sentence) {
  asking.abort();
  answer.removeAttribute("aria-busy");
  answer.replaceChildren();
  leaveOut();
  say(sentence, "");
}

function go(address) {
  history.pushState({}, "", address);
  return ask(address);
}

function askSentence() {
  const most = Number(document.body.dataset.maxQueryChars);
  if (!field.value.trim()) return fail("the query is empty; describe the image you look for in a sentence");
  if (field.value.length > most) {
    const [has, may] = [field.value.length, most].map((number) => number.toLocaleString("en"));
    return fail(`the query has ${has} characters; say it in ${may} at most`);
  }
  return go(`/?${new URLSearchParams({ q: field.value, k: at("k").value })}`);
}

function askImage(file) {
  const most = Number(document.body.dataset.maxUpload);
  if (!file) return fail("no file came along; drop one that holds an image");
  if (file.size > most * 1e6 - 1000) return fail(`the file is too large; choose one of ${most} MB at most`);
  history.pushState({ sent: sent.push(file) - 1, k: at("k").value }, "", "/");
  return sendImage(file, at("k").value);
}

async function sendImage(file, k) {
  const body = new FormData();
  body.append("image", file);
  field.value = "";
  await ask(`/?k=${k}`, body);
}

at("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  askSentence();
});
at("k").addEventListener("change", () => {
  if (history.state?.sent !== undefined && sent[history.state.sent]) {
    askImage(sent[history.state.sent]);
  } else if (/[?&](q|similar)=/.test(location.search)) {
    go(`/${location.search.replace(/&?\bk=[^&]*/, "")}&k=${at("k").value}`); // as it stands: an id may be no Unicode
  }
});
at("file").addEventListener("change", (event) => {
  const [file] = event.target.files;
  if (file) askImage(file);
  event.target.value = ""; // the same one may be chosen again
});
addEventListener("paste", (event) => {
  const [file] = event.clipboardData.files;
  if (!file) return; // text: the field takes it
  event.preventDefault();
  askImage(file);
});
addEventListener("popstate", () => {
  if (larger.open) larger.close();
  const file = sent[history.state?.sent];
  if (file) sendImage(file, history.state.k);
  else ask(location.pathname + location.search);
});

// Dropping: the whole page takes it.
let depth = 0; // a step from one element into another is an enter, then a leave
const hold = (change) => document.body.classList.toggle("over", (depth = Math.max(0, depth + change)) > 0);
const bringsFiles = (event) => event.dataTransfer.types.includes("Files");
addEventListener("dragenter", (event) => bringsFiles(event) && hold(1));
addEventListener("dragleave", (event) => bringsFiles(event) && hold(-1));
addEventListener("dragover", (event) => bringsFiles(event) && event.preventDefault());
addEventListener("drop", (event) => {
  hold(-depth);
  if (!bringsFiles(event)) return;
  event.preventDefault();
  if (larger.open) larger.close();
  askImage(event.dataTransfer.files[0]);
});

// What is less likely than the slider says is hidden, in this answer and in those to come.
function leaveOut() {
  const rows = [...answer.querySelectorAll("[data-probability]")];
  at("likely").hidden = !rows.length;
  at("least").ariaValueText = at("least-text").textContent = `${at("least").value} %`;
  for (const row of rows) row.hidden = 100 * row.dataset.probability < Number(at("least").value);
  at("none").hidden = !rows.length || rows.some((row) => !row.hidden);
  tiles = [...answer.querySelectorAll("li:not([hidden]) > .tile")];
}
at("least").addEventListener("input", leaveOut);

// The larger view.

function open(index) {
  shown = (index + tiles.length) % tiles.length; // behind the last comes the first
  index = shown;
  const tile = tiles[index], small = tile.querySelector("img"), large = new Image();
  at("large").src = small ? small.src : "/icon.svg";
  at("large").alt = tile.title;
  large.onload = () => shown === index && (at("large").src = large.src);
  large.src = tile.href;
  const [rank, score] = ["rank", "score"].map((name) => tile.parentElement.querySelector(`.${name}`).textContent);
  at("large-text").textContent = `${rank} · ${score} · ${tile.title}`;
  at("similar").href = tile.dataset.similar;
  if (!larger.open) larger.showModal();
}

const plainClick = (event) => event.button === 0 && !(event.metaKey || event.ctrlKey || event.shiftKey || event.altKey);
answer.addEventListener("click", (event) => {
  const link = event.target.closest("a");
  if (!link || !plainClick(event)) return;
  event.preventDefault();
  if (link.matches(".tile")) open(tiles.indexOf(link));
  else go(link.getAttribute("href"));
});
at("similar").addEventListener("click", async (event) => {
  if (!plainClick(event)) return;
  event.preventDefault();
  larger.close();
  await go(at("similar").getAttribute("href"));
  scrollTo(0, 0);
  answer.querySelector("h2")?.focus();
});
at("previous").addEventListener("click", () => open(shown - 1));
at("next").addEventListener("click", () => open(shown + 1));
at("close").addEventListener("click", () => larger.close());
larger.addEventListener("click", (event) => event.target === larger && larger.close()); // beside its content
larger.addEventListener("close", () => tiles[shown]?.focus());
addEventListener("keydown", (event) => {
  const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
  if (!step || !larger.open) return;
  event.preventDefault();
  open(shown + step);
});

leaveOut();
