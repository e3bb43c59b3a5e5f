// The page: what it shows, and what happens when somebody chooses a picture, types a text or presses a button.

import { DEVICES, PageError, load, decode } from "./model.js";
import { PictureError } from "./picture.js";
import { TextError } from "./text.js";

// Each task that the page offers: the verbs that serve it, and what its text is. It is offered if the model has one of the verbs.
const TASKS = [
  { name: "ask", title: "Ask", verbs: ["answer"], label: "Question", help: "", picture: true },
  { name: "match", title: "Match", verbs: ["match"], label: "Texts", help: "One text on each line. Each gets the probability that it describes the picture.", picture: true },
  { name: "classify", title: "Classify", verbs: ["classify"], picture: true },
  { name: "judge", title: "Judge texts", verbs: ["classify_text"], label: "Texts", help: "One text on each line.", picture: true },
  { name: "embed-image", title: "Embed the picture", verbs: ["embed_image"], picture: true },
  { name: "embed-text", title: "Embed a text", verbs: ["embed_text"], label: "Text", help: "" },
];
const SHOWN = 5;
const SAMPLES = 8;

const byId = (id) => document.getElementById(id);
let model;
// The chosen picture as tensors, with what the model computed of it alone.
let picture;

async function start() {
  byId("hint").hidden = true;
  const device = new URLSearchParams(location.search).get("device") ?? "wasm";
  try {
    model = await load(device, showProgress);
  } catch (error) {
    fail(error);
    return;
  }
  const { family, model: configuration } = model.manifest;
  byId("about").textContent = `${family} ${configuration.preset} at ${model.site.precision}. Pictures and texts stay on this device.`;
  byId("loading").hidden = true;
  byId("work").hidden = false;
  showDevices(device);
  showTasks();
  if (model.fed.has("image") && TASKS.some((task) => task.picture && offers(task))) showPictures();
  showSizes();
  document.body.dataset.state = "ready";
  await prove();
}

function fail(error) {
  byId("loading").hidden = true;
  byId("work").hidden = true;
  byId("failure").hidden = false;
  byId("failure-text").textContent = said(error);
  document.body.dataset.state = "failed";
}

// What to tell the user. Any other error is a bug, or a browser that lacks something, and says so.
function said(error) {
  const ours = [PageError, PictureError, TextError].some((kind) => error instanceof kind);
  if (!ours) console.error(error);
  return ours ? error.message : `Unexpected error: ${error.message ?? error}. Try a current version of Chrome, Firefox or Safari.`;
}

function showProgress(bytes, total) {
  byId("progress").value = bytes / total;
  byId("loaded").textContent = bytes < total ? `${megabytes(bytes)} of ${megabytes(total)}` : "Preparing";
}

function megabytes(bytes) {
  return `${(bytes / 1e6).toFixed(1)} MB`;
}

// -- choosing --------------------------------------------------------------------------------------------------------------

function offers(task) {
  return task.verbs.some((verb) => model.pipeline(verb));
}

function showTasks() {
  for (const task of TASKS.filter(offers)) {
    const label = element("label");
    const radio = element("input", { type: "radio", name: "task", value: task.name });
    radio.addEventListener("change", chooseTask);
    label.append(radio, task.title);
    byId("tasks").append(label);
  }
  document.querySelector("input[name=task]").checked = true;
  chooseTask();
}

function chosenTask() {
  const name = document.querySelector("input[name=task]:checked").value;
  return TASKS.find((task) => task.name === name);
}

function chooseTask() {
  const task = chosenTask();
  byId("text-block").hidden = !task.label;
  byId("text-label").textContent = task.label ?? "";
  byId("text-help").textContent = task.help ?? "";
  byId("text").rows = lines(task) ? 4 : 2;
  byId("run").textContent = task.title;
  clear();
}

function clear() {
  byId("results").replaceChildren();
  byId("trouble").textContent = "";
}

function showPictures() {
  byId("picture").hidden = false;
  byId("file").addEventListener("change", (event) => take(event.target.files[0]));
  const drop = byId("picture");
  for (const name of ["dragenter", "dragover"]) {
    drop.addEventListener(name, (event) => {
      event.preventDefault();
      byId("drop").classList.add("over");
    });
  }
  for (const name of ["dragleave", "drop"]) drop.addEventListener(name, () => byId("drop").classList.remove("over"));
  drop.addEventListener("drop", (event) => {
    event.preventDefault();
    take(event.dataTransfer.files[0]);
  });
  document.addEventListener("paste", (event) => take(event.clipboardData?.files[0]));
  model.samples(SAMPLES).forEach((sample, index) => {
    const canvas = element("canvas", { width: sample.width, height: sample.height });
    drawSample(canvas, sample);
    const button = element("button", { type: "button", ariaLabel: `Sample picture ${index + 1}`, ariaPressed: "false" });
    button.append(canvas);
    button.addEventListener("click", () => {
      usePicture(sample, `Sample picture ${index + 1}`);
      button.ariaPressed = "true";
    });
    byId("samples").append(button);
    byId("samples-block").hidden = false;
  });
}

async function take(file) {
  if (!file) return;
  clear();
  try {
    usePicture(await decode(file, file.name), file.name);
  } catch (error) {
    byId("trouble").textContent = said(error);
  }
  byId("file").value = "";
}

function usePicture(decoded, name) {
  clear();
  picture = model.picture(decoded);
  for (const button of byId("samples").children) button.ariaPressed = "false";
  const preview = byId("preview");
  const scale = Math.min(1, 800 / Math.max(decoded.width, decoded.height));
  [preview.width, preview.height] = [decoded.width, decoded.height].map((side) => Math.max(1, Math.round(side * scale)));
  preview.classList.toggle("small", decoded.width < 200);
  if (decoded.bitmap) preview.getContext("2d").drawImage(decoded.bitmap, 0, 0, preview.width, preview.height);
  else drawSample(preview, decoded);
  preview.hidden = false;
  preview.ariaLabel = name;
  byId("picture-name").textContent = name;
}

function drawSample(canvas, { width, height, rows }) {
  canvas.getContext("2d").putImageData(new ImageData(rows(0, height), width, height), 0, 0);
}

// -- asking ----------------------------------------------------------------------------------------------------------------

byId("form").addEventListener("submit", async (event) => {
  event.preventDefault();
  const task = chosenTask();
  clear();
  if (task.picture && !picture) {
    byId("trouble").textContent = "There is no picture yet. Choose one first.";
    return;
  }
  byId("run").disabled = true;
  byId("results").ariaBusy = "true";
  byId("run").textContent = "Running";
  await painted();
  try {
    const before = performance.now();
    const { parts, notes } = await perform(task);
    const milliseconds = performance.now() - before;
    const all = [...notes, `${milliseconds.toFixed(0)} ms on this device.`];
    byId("results").append(...parts, ...all.map((note) => element("p", { className: "help", textContent: note })));
  } catch (error) {
    byId("trouble").textContent = said(error);
  }
  byId("results").ariaBusy = "false";
  byId("run").textContent = task.title;
  byId("run").disabled = false;
});

// In a text of one line, Enter asks.
byId("text").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing && !lines(chosenTask())) {
    event.preventDefault();
    byId("form").requestSubmit();
  }
});

// Whether the text of a task is a list, one on each line.
function lines(task) {
  return task.name === "match" || task.name === "judge";
}

async function perform(task) {
  const text = byId("text").value;
  const texts = lines(task) ? text.split("\n").filter((line, _, all) => line.trim() || all.length === 1) : [text];
  if (task.name === "embed-image") return { parts: [vectorOf(await model.embedImage(picture))], notes: [] };
  if (task.name === "embed-text") {
    const { vector, notes } = await model.embedText(text);
    return { parts: [vectorOf(vector)], notes };
  }
  if (task.name === "match") {
    const { scores, notes } = await model.match(picture, texts);
    return { parts: [listOf(scores.map((score, index) => ({ label: texts[index], score })))], notes };
  }
  const { rows, notes } = await model.classes(task.verbs[0], picture, task.label ? texts : null);
  const parts = rows.flatMap((row, index) => {
    const title = lines(task) ? [element("h3", { textContent: texts[index] })] : [];
    return [...title, listOf(row.slice(0, SHOWN))];
  });
  return { parts, notes };
}

function listOf(items) {
  const list = element("ol");
  for (const { label, score } of items) {
    const item = element("li");
    item.style.setProperty("--share", `${100 * score}%`);
    item.dataset.score = score;
    item.append(element("span", { textContent: label }), element("span", { textContent: `${(100 * score).toFixed(1)} %` }));
    list.append(item);
  }
  return list;
}

function vectorOf(vector) {
  const numbers = Array.from(vector, (value) => value.toFixed(6)).join(" ");
  const block = element("div");
  const box = element("p", { className: "vector", textContent: numbers, tabIndex: 0, role: "region", ariaLabel: "The vector" });
  block.append(element("p", { textContent: `A vector of ${vector.length} numbers and length 1:` }), box);
  return block;
}

// -- proving ---------------------------------------------------------------------------------------------------------------

async function prove() {
  const native = model.site.native;
  // A model that was adopted from ONNX files is compared with ONNX Runtime.
  const reference = model.manifest.provenance.reference === "onnxruntime" ? "ONNX Runtime in FP32" : "PyTorch";
  byId("proof-title").textContent = `Does it compute what ${reference} computed?`;
  byId("native-title").hidden = !native;
  let state;
  try {
    let shown = -Infinity;
    for await (state of model.verify()) {
      if (performance.now() - shown < 100) continue;
      showProof(state);
      await painted();
      shown = performance.now();
    }
    showProof(state);
  } catch (error) {
    byId("proof").dataset.state = "failed";
    byId("verdict").textContent = said(error);
    return;
  }
  const { graphs, texts, pictures, cases } = state;
  const [right, all] = [graphs.reduce((sum, { passed }) => sum + passed, 0), graphs.reduce((sum, { rows }) => sum + rows, 0)];
  const passed = right === all && texts.right === texts.of && pictures.right === pictures.of && pictures.kept;
  byId("proof-progress").hidden = true;
  byId("proof").dataset.state = passed ? "passed" : "failed";
  const verdict = passed ? "Yes." : "No: do not rely on its answers here.";
  byId("verdict").textContent = `${verdict} ${right} of ${all} comparisons with ${reference} passed, in ${cases} golden cases.`;
  const origin = native ? ` Native: ONNX Runtime on the machine that made this page, ${native.cpu}, one thread.` : "";
  const threads = model.ort.env.wasm.numThreads === 1 ? "one thread" : `${model.ort.env.wasm.numThreads} threads`;
  byId("legend").textContent = `Times are for one sample. Here: ${DEVICES[model.device]}, ${threads}.${origin}`;
}

function showProof(state) {
  byId("proof-progress").value = state.done / state.total;
  byId("verdict").textContent = `Check ${state.done} of ${state.total}`;
  showHostChecks(state);
  byId("graphs").tBodies[0].replaceChildren(...state.graphs.map((graph) => graphRow(graph, model.site.native)));
}

function showHostChecks({ texts, pictures }) {
  const rows = [];
  if (texts.of) rows.push([texts.right === texts.of, `${texts.right} of ${texts.of} texts give the token ids that Python gives.`]);
  if (pictures.of) rows.push([pictures.right === pictures.of, `${pictures.right} of ${pictures.of} pictures are resized as in Python.`]);
  if (!pictures.kept) rows.push([false, "This browser changes the pixels of pictures, perhaps to prevent tracking. Allow this page to read canvases."]);
  byId("host-checks").replaceChildren(
    ...rows.map(([good, text]) => element("li", { className: good ? "" : "bad", textContent: text })),
  );
}

function graphRow({ name, variant, rows, passed, error, cosine, milliseconds }, native) {
  const row = element("tr");
  // A browser's clock has steps of 0.1 ms.
  const time = (value) => (value == null ? "" : value < 0.1 ? "< 0.1" : value.toFixed(1));
  const cells = ["", `${passed}/${rows}`, error.toExponential(1), cosine.toFixed(4), time(milliseconds)];
  if (native) cells.push(time(native.milliseconds[name]));
  row.append(...cells.map((text) => element("td", { textContent: text })));
  row.cells[0].append(name, element("small", { textContent: variant }));
  row.cells[1].className = passed === rows ? "" : "bad";
  return row;
}

async function showDevices(device) {
  if (device === "wasm" && !(await navigator.gpu?.requestAdapter())) return;
  const other = device === "wasm" ? "webgpu" : "wasm";
  const link = element("a", { href: `?device=${other}`, textContent: `Use the ${DEVICES[other]} instead` });
  byId("about").append(" ", link);
}

function showSizes() {
  const { bytes, gzipped } = model.site.download;
  const download = `The page and its model are a download of ${megabytes(bytes)}; ${megabytes(gzipped)} if the host compresses it.`;
  byId("sizes").textContent = `${model.device === "wasm" ? download : ""} Made by simmim-export ${model.site.version}.`;
}

// -- small things ----------------------------------------------------------------------------------------------------------

// Texts become text, never HTML: labels come from the bundle, which may be a stranger's.
function element(name, properties = {}) {
  return Object.assign(document.createElement(name), properties);
}

// After the browser has shown what changed. A hidden page shows nothing, and must not wait.
function painted() {
  return new Promise((resolve) => {
    if (document.hidden) setTimeout(resolve);
    else requestAnimationFrame(() => setTimeout(resolve));
  });
}

start();
