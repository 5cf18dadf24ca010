"use strict";
const $ = (id) => document.getElementById(id);
const STATES = { loading: "The converter is loading…", ready: "Ready.", working: "Reading…" };
let worker, file, ready = false, busy = false, waiting = null, answered = "", url = "";

// one conversion at a time: what is asked for meanwhile waits, and only the last of it counts
function ask(layers = []) {
  if (!file) return;
  waiting = { layers };
  if (!ready || busy) return;
  busy = true;
  const options = { ...chosen(), ...(layers.length ? { layers } : {}) };
  waiting = null;
  answered = JSON.stringify(chosen());
  for (const id of ["found", "refused", "done", "candidates"]) $(id).hidden = true;
  state(`${STATES.working} ${file.name}`);
  worker.postMessage({ file, options });
}

// a change that changes nothing must not take a result away: a field tells of its change again when it is left
function changed() {
  if (busy || JSON.stringify(chosen()) !== answered) ask();
}

function chosen() {
  const to = new FormData($("form")).get("to");
  if (to === "bands") return { bands: $("bands").value.trim() };
  return { to: to === "number" ? $("number").valueAsNumber || $("number").value : to };
}

function state(text, done = 0, total = 0) {
  $("state").textContent = text;
  $("progress").hidden = !total;
  $("progress").max = total || 1;
  $("progress").value = done;
}

function show(id, lines) {
  $(id).hidden = false;
  $(id).querySelector("pre").textContent = lines.join("\n");
}

const heard = {
  ready() {
    ready = true;
    state(STATES.ready);
    if (waiting) ask(waiting.layers);
  },
  progress({ done, total }) {
    state(`${STATES.working} ${file.name}: checksums, ${Math.floor((100 * done) / total)} %`, done, total);
  },
  found({ lines }) {
    if (lines) show("found", lines);
  },
  done(result) {
    busy = false;
    state(STATES.ready);
    if (waiting) return ask(waiting.layers);
    if (result.refused) refused(result);
    else offered(result);
  },
  broken({ text }) {
    busy = false;
    state("");
    show("refused", [`error: a bug of this page: ${text}`]);
  },
};

function refused({ refused: lines, candidates }) {
  show("refused", lines);
  $("candidates").hidden = !candidates.length;
  $("rows").replaceChildren(...candidates.map(([key, shape, why]) => {
    const label = document.createElement("label"), box = document.createElement("input");
    const name = document.createElement("code"), about = document.createElement("small");
    Object.assign(box, { type: "checkbox", name: "layer", value: key });
    name.textContent = `${key}  ${shape}`;
    about.textContent = why;
    label.append(box, name, about);
    return label;
  }));
}

function offered({ lines, load, name, blob, kernels }) {
  URL.revokeObjectURL(url);
  url = URL.createObjectURL(blob);
  Object.assign($("save"), { href: url, download: name, textContent: `Save ${name}` });
  $("done").hidden = false;
  $("report").textContent = lines.join("\n");
  $("loading").hidden = !load.length;
  $("load").textContent = load.join("\n");
  const scale = Math.max(...kernels.map((kernel) => (kernel.values = numbers(kernel)).reduce((most, x) => Math.max(most, Math.abs(x)), 0)));
  $("kernels").replaceChildren(...kernels.map((kernel, i) => drawn(kernel, scale, i ? "after" : "before")));
}

// the numbers of a kernel: BF16 is the upper half of F32, F16 has 5 bits of exponent and 10 of fraction
function numbers({ dtype, data }) {
  const bytes = data.slice().buffer;
  if (dtype === "F32") return new Float32Array(bytes);
  if (dtype === "F64") return new Float64Array(bytes);
  const halves = new Uint16Array(bytes);
  if (dtype === "BF16") return new Float32Array(Uint32Array.from(halves, (bits) => bits << 16).buffer);
  return Float32Array.from(halves, (bits) => {
    const exponent = (bits >> 10) & 31, fraction = bits & 1023, sign = bits >> 15 ? -1 : 1;
    return sign * (exponent ? 2 ** (exponent - 15) * (1 + fraction / 1024) : 2 ** -14 * (fraction / 1024));
  });
}

const MOST_TILES = 64, MOST_CHANNELS = 13, ACROSS = 16;

// filters side by side: three channels in colour, one in gray, of others a row for each channel; gray is zero
function drawn({ name, shape, axes, values, dtype }, scale, when) {
  const size = Object.fromEntries([..."OIDHW"].map((axis) => [axis, axes.includes(axis) ? shape[axes.indexOf(axis)] : 1]));
  const step = Object.fromEntries([..."OIDHW"].map((axis) => [axis, axes.includes(axis) ? shape.slice(axes.indexOf(axis) + 1).reduce((a, b) => a * b, 1) : 0]));
  const together = size.I === 1 || size.I === 3, shown = Math.min(size.O, together ? MOST_TILES : ACROSS);
  const across = Math.min(shown, ACROSS), down = together ? Math.ceil(shown / across) : Math.min(size.I, MOST_CHANNELS);
  const canvas = document.createElement("canvas"), width = size.W + 1, height = size.H + 1;
  Object.assign(canvas, { width: across * width + 1, height: down * height + 1 });
  const zoom = Math.max(1, Math.floor(520 / canvas.width));
  canvas.style.width = `${canvas.width * zoom}px`;
  const image = new ImageData(canvas.width, canvas.height);
  for (let row = 0; row < down; row++) for (let column = 0; column < across; column++) {
    const filter = together ? row * across + column : column;
    if (filter >= shown) continue;
    for (let y = 0; y < size.H; y++) for (let x = 0; x < size.W; x++) {
      const at = 4 * ((row * height + y + 1) * canvas.width + column * width + x + 1);
      for (let color = 0; color < 3; color++) {
        const channel = together ? (size.I === 3 ? color : 0) : row;
        const value = values[filter * step.O + channel * step.I + y * step.H + x * step.W];
        image.data[at + color] = 127.5 * (1 + value / (scale || 1));
      }
      image.data[at + 3] = 255;
    }
  }
  canvas.getContext("2d").putImageData(image, 0, 0);
  const text = `${when}: ${name}, ${shape.join("×")} ${dtype}` + (shown < size.O ? `, ${shown} filters of ${size.O}` : "");
  canvas.setAttribute("role", "img");
  canvas.setAttribute("aria-label", `filters ${text}`);
  const figure = document.createElement("figure"), caption = document.createElement("figcaption");
  caption.textContent = text;
  figure.append(canvas, caption);
  return figure;
}

function take(files) {
  if (!files.length) return;
  [file] = files;
  ask();
}

for (const kind of ["dragenter", "dragover", "dragleave", "drop"]) addEventListener(kind, (event) => {
  event.preventDefault();
  document.body.classList.toggle("over", kind === "dragover" || kind === "dragenter");
  if (kind !== "drop" || !event.dataTransfer.files.length) return;
  $("file").value = "";
  take(event.dataTransfer.files);
});
// a browser tells of no change where the same file is chosen once more
$("file").addEventListener("click", () => ($("file").value = ""));
$("file").addEventListener("change", () => take($("file").files));
$("form").addEventListener("submit", (event) => event.preventDefault());
$("take").addEventListener("click", () => ask(new FormData($("form")).getAll("layer")));
// a field that is clicked or typed in is what is meant; one that the keyboard only passes is not
for (const id of ["number", "bands"]) for (const kind of ["click", "input"]) $(id).addEventListener(kind, () => {
  const radio = $(id).closest("label").querySelector("[type=radio]");
  if (radio.checked) return;
  radio.checked = true;
  ask();
});
for (const input of document.querySelectorAll("[name=to], #number, #bands")) input.addEventListener("change", changed);

async function start() {
  const source = await (await fetch("worker.js")).blob();
  worker = new Worker(URL.createObjectURL(new Blob([source], { type: "text/javascript" })), { type: "module" });
  worker.onmessage = ({ data }) => heard[data.kind](data);
  worker.onerror = (event) => heard.broken({ text: event.message });
  worker.postMessage({ base: new URL(".", location.href).href });
}
start().catch((error) => heard.broken({ text: String(error) }));
