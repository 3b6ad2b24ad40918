// Asking. Answers come as the same page that the server writes without scripts; here they are put into the one that is
// open: a later question takes the place of an earlier one, and the old answer stays until a new one has come.
import { closed, connect, follow, larger } from "./larger.js";
import { arrange, kept, leaveOut, move, recall, tiles } from "./tiles.js";

const at = (id) => document.getElementById(id);
const answer = at("answer"), field = at("q"), less = at("less"), chips = at("chips");
const PAUSE = 200; // milliseconds without a key, after which what stands in the field is asked
let asking = new AbortController();
let pause = 0;
const here = () => location.pathname + location.search;
let answered = here(); // the address of the answer that is shown

// typing: nobody has asked yet, so what is wrong is not said aloud, and one address stands for all that was typed
async function ask(address, { body, typing = false, record = true, more = false } = {}) {
  asking.abort();
  clearTimeout(pause);
  const mine = (asking = new AbortController());
  answer.setAttribute("aria-busy", "true");
  try {
    const reply = await fetch(address, { method: body ? "POST" : "GET", body, signal: mine.signal });
    const page = new DOMParser().parseFromString(await reply.text(), "text/html");
    if (record) await closed();
    if (mine !== asking) return;
    if (!page.getElementById("answer")) return fail("the server has sent no answer; see what app.py says");
    if (!reply.ok) return typing || fail(page.getElementById("error").textContent);
    const { pathname, search } = new URL(reply.url);
    answered = pathname + search;
    if (record) history[typing && history.state?.typing ? "replaceState" : "pushState"]({ typing }, "", answered + kept());
    show(page, typing, more);
  } catch (error) {
    if (error.name !== "AbortError") fail("the server does not answer; see whether app.py still runs");
  } finally {
    if (mine === asking) answer.removeAttribute("aria-busy");
  }
}

function show(page, typing, more) {
  const fresh = document.importNode(page.getElementById("answer"), true);
  const known = new Map([...answer.querySelectorAll("img")].map((image) => [image.getAttribute("src"), image]));
  for (const image of fresh.querySelectorAll("img")) {
    const same = known.get(image.getAttribute("src")); // it is loaded already, and does not flicker
    if (same) {
      same.alt = image.alt;
      image.replaceWith(same);
    }
  }
  const shown = tiles().length;
  answer.replaceChildren(...fresh.childNodes);
  chips.replaceChildren(...document.importNode(page.getElementById("chips"), true).childNodes);
  field.placeholder = page.getElementById("q").placeholder;
  if (!typing) field.value = page.getElementById("q").value;
  less.value = "";
  at("tools").hidden = page.getElementById("tools").hidden;
  at("export").href = page.getElementById("export").getAttribute("href");
  at("status").replaceChildren(...document.importNode(page.getElementById("status"), true).childNodes);
  at("error").textContent = "";
  document.title = page.title;
  arrange();
  if (more) tiles()[shown]?.focus();
  else scrollTo(0, 0);
}

// What cannot be answered is said; the last answer stays.
function fail(sentence) {
  asking.abort();
  clearTimeout(pause);
  answer.removeAttribute("aria-busy");
  at("error").textContent = sentence;
}

const pair = (name, value) => new URLSearchParams({ [name]: value }).toString();

// The address of what stands in the bar: words, an image, and what is to be taken away.
function asked() {
  const pairs = field.value.trim() ? [pair("q", field.value)] : [];
  for (const { dataset, name, value } of chips.querySelectorAll("input")) pairs.push(dataset.pair ?? pair(name, value));
  if (less.value.trim()) pairs.push(pair("minus", less.value));
  return pairs.length ? `/?${pairs.join("&")}` : null;
}

const tooLong = () => field.value.length > Number(document.body.dataset.maxQueryChars);

function askBar() {
  const address = asked();
  if (!address) return fail("the query is empty; describe the image you look for in a sentence");
  if (tooLong()) {
    const [has, may] = [field.value.length, Number(document.body.dataset.maxQueryChars)].map((n) => n.toLocaleString("en"));
    return fail(`the query has ${has} characters; say it in ${may} at most`);
  }
  return ask(address, { typing: false, record: address !== here() });
}

function askTyped() {
  const address = asked();
  if (address && !tooLong() && address !== here()) ask(address, { typing: true });
}

function askImage(file) {
  const most = Number(document.body.dataset.maxUpload);
  if (!file) return fail("no file came along; drop one that holds an image");
  if (file.size > most * 1e6 - 1000) return fail(`the file is too large; choose one of ${most} MB at most`);
  const body = new FormData();
  body.append("image", file);
  return ask("/", { body });
}

const plainClick = (event) => event.button === 0 && !(event.metaKey || event.ctrlKey || event.shiftKey || event.altKey);
for (const place of [answer, chips]) {
  place.addEventListener("click", (event) => {
    const link = event.target.closest("a:not(.tile)");
    if (!link || !plainClick(event)) return;
    event.preventDefault();
    ask(link.getAttribute("href"), { more: link.id === "more" });
    if (place === chips) field.focus();
  });
}
at("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  askBar();
});
field.addEventListener("input", () => {
  clearTimeout(pause);
  pause = setTimeout(askTyped, PAUSE);
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
addEventListener("popstate", async () => {
  if (!history.state?.larger) larger.close();
  recall();
  if (here() !== answered) await ask(here(), { record: false });
  follow();
});

// Keys: "/" leads to the field, arrows from image to image, Escape back to the field.
addEventListener("keydown", (event) => {
  if (larger.open || event.ctrlKey || event.metaKey || event.altKey) return;
  const writes = event.target.matches("input:not([type=checkbox], [type=range])");
  if (event.key === "/" && (!writes || (event.target === field && !field.value))) field.select();
  else if (event.key === "Escape" && event.target.closest(".item")) field.focus();
  else if (!move(event.key, event.target === field && event.key === "ArrowDown" ? null : event.target)) return;
  event.preventDefault();
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

connect(ask);
document.body.classList.add("scripts");
arrange();
recall();
follow();
