// The page of `vit serve`: asks /models, /attention (or /classify) and /embed, and draws what they say.
// Nothing is kept but in this tab, and nothing is asked of another host.

const $ = (id) => document.getElementById(id);
const SIDE = 1024; // pixels of an image that is drawn, along its longer side
const THUMB = 160;
const TINY = 64; // images up to here are drawn as squares of pixels
const LABELS = 5;
const NEAREST = 6;
const PATIENCE = 5; // times that a busy server is asked again for a vector
const EMPTY = document.getElementById("no-neighbours").textContent;
const INFERNO = [[0, 0, 4], [31, 12, 72], [85, 15, 109], [136, 34, 106], [186, 54, 85], [227, 89, 51], [249, 140, 10], [249, 201, 50], [252, 255, 164]];
const PLATFORMS = {
  pt: "PyTorch", tf: "TensorFlow", flax: "Flax", // and of exports, by their format
  onnx: "ONNX Runtime", openvino: "OpenVINO", torch: "PyTorch", stablehlo: "JAX", "saved-model": "TensorFlow", litert: "LiteRT",
};

let models = [], model = null, maxBody = Infinity, key = "";
const images = []; // of this visit, in the order in which they came
let current = null; // the one that is shown
let job = null; // the request on its way: {image, model, kind, view, controller}
let source = null; // the pixels of the current image: {image, canvas}, where the browser can read it
let rest = 0; // until when no vectors are asked for: the server was busy
const view = { show: "heat", way: "mean", layer: null, threshold: 0.6 };

// === What is to be asked ===

// What a model said of an image: {main, maps: {view: answer}, embedding, failed: {kind: sentence}}.
function answers(image, of = model) {
  if (!image.answers.has(of.name)) image.answers.set(of.name, { maps: {}, failed: {} });
  return image.answers.get(of.name);
}

const can = (task) => model !== null && model.tasks.includes(task);
const viewName = () => (can("attention") ? `${view.way}/${view.layer}` : "labels");

// The next request: of the image that is shown its labels and map, then vectors, of that image first.
function next() {
  if (!model) return null;
  if (current) {
    const found = answers(current), name = viewName();
    if (!found.maps[name] && !found.failed.main && (can("attention") || can("classify"))) return { image: current, kind: "main", view: name };
  }
  if (!can("embed") || performance.now() < rest) return null;
  const lacks = (image) => !answers(image).embedding && !answers(image).failed.embed && !answers(image).failed.main;
  const image = current && lacks(current) ? current : images.find(lacks);
  return image ? { image, kind: "embed" } : null;
}

function wanted(each) {
  return each.model === model && (each.kind === "embed" || (each.image === current && each.view === viewName()));
}

async function work() {
  if (job && !wanted(job)) job.controller.abort();
  if (job) return;
  const found = next();
  if (!found) return;
  job = { ...found, model, controller: new AbortController(), begin: performance.now() };
  show();
  const mine = job, said = answers(mine.image, mine.model);
  try {
    const { answer, seconds } = await ask(mine);
    if (mine.kind === "embed") said.embedding = unit(answer.embedding);
    else {
      said.maps[mine.view] = answer;
      if (!said.main) {
        said.main = answer;
        said.seconds = seconds;
        announce(`${mine.image.name}: ${spoken(answer)}`);
      }
    }
  } catch (error) {
    if (error.name === "AbortError" && !mine.cancelled) return; // something else is wanted by now
    if (mine.kind === "embed" && error.status === 503 && !mine.cancelled && (said.busy = (said.busy ?? 0) + 1) <= PATIENCE) {
      rest = performance.now() + 1000 * said.busy; // nobody waits for it as for what is shown
      setTimeout(work, 1000 * said.busy + 10);
      return;
    }
    said.failed[mine.kind] = mine.cancelled ? "Cancelled." : error.message;
    said.lasting = error.status >= 400 && error.status < 500;
    if (error.status === 401) unlock(error.message);
  } finally {
    job = null;
    show();
    work();
  }
}

class Problem extends Error {
  constructor(message, status) {
    super(message);
    this.status = status;
  }
}

async function request(path, options = {}) {
  let response;
  const headers = key ? { "X-API-Key": key } : {};
  try {
    response = await fetch(path, { ...options, headers: { ...headers, ...options.headers } });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Problem("The server does not answer.");
  }
  const answer = await response.json().catch((error) => {
    if (error.name === "AbortError") throw error;
    return {};
  });
  if (!response.ok) throw new Problem(answer.error ?? `The server answered ${response.status}.`, response.status);
  return answer;
}

async function ask({ image, kind, view: name, model: of, controller }) {
  if (image.file.size > maxBody) throw new Problem(`The image has ${bytes(image.file.size)}; the server takes at most ${bytes(maxBody)}.`);
  const query = new URLSearchParams({ model: of.name });
  let route = kind;
  if (kind === "main") {
    route = of.tasks.includes("attention") ? "attention" : "classify";
    if (of.tasks.includes("classify")) query.set("top_k", LABELS);
  }
  if (route === "attention") {
    const [way, layer] = name.split("/");
    query.set("layer", layer);
    if (way === "rollout") query.set("rollout", "true");
    else if (way !== "mean") query.set("head", way);
  }
  const begin = performance.now();
  const answer = await request(`${route}?${query}`, {
    method: "POST", body: image.file, signal: controller.signal, headers: { "Content-Type": "application/octet-stream" },
  });
  const took = (performance.now() - begin) / 1000;
  return { answer: answer.results[0], seconds: { took, server: answer.seconds } };
}

// === Images come in ===

function take(files) {
  const added = [...files].map((file) => ({ file, name: file.name || "pasted image", thumb: null, size: null, answers: new Map() }));
  if (!added.length) return;
  images.push(...added);
  thumbnails(added);
  choose(added[0]);
}

function choose(image) {
  current = image;
  if (source?.image !== image) {
    source = null;
    decode(image).then((canvas) => {
      if (current !== image) return;
      source = { image, canvas };
      draw();
    });
  }
  show();
  const strip = $("images"), { offsetLeft, offsetWidth } = strip.children[images.indexOf(image)];
  const left = offsetLeft - strip.offsetLeft;
  if (left < strip.scrollLeft || left + offsetWidth > strip.scrollLeft + strip.clientWidth) strip.scrollLeft = left - offsetWidth;
  $("stage").scrollIntoView({ block: "nearest" });
  work();
}

async function decode(image, side = SIDE) {
  let bitmap;
  try {
    bitmap = await createImageBitmap(image.file); // turned as EXIF says
  } catch {
    return null; // the server may read what the browser does not
  }
  const { width, height } = bitmap, tiny = Math.max(width, height) <= TINY;
  const scale = side / Math.max(width, height);
  const canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = [width, height].map((length) => Math.max(1, Math.round(length * (tiny ? scale : Math.min(1, scale)))));
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.imageSmoothingEnabled = !tiny;
  context.imageSmoothingQuality = "high";
  context.drawImage(bitmap, 0, 0, canvas.width, canvas.height);
  bitmap.close();
  return canvas;
}

async function thumbnails(added) {
  for (const image of added) { // one at a time: each takes the memory of a whole image
    const canvas = await decode(image, THUMB);
    image.thumb = canvas ? await new Promise((done) => canvas.toBlob((blob) => done(URL.createObjectURL(blob)), "image/webp", 0.9)) : "";
    show();
  }
}

for (const input of document.querySelectorAll('input[type="file"]')) {
  input.addEventListener("change", () => {
    take(input.files);
    input.value = ""; // so that the same file can be chosen again
  });
}

document.addEventListener("paste", (event) => {
  if (event.target.matches?.("input[type=password]")) return;
  const files = [...(event.clipboardData?.files ?? [])];
  if (files.length) event.preventDefault();
  files.length ? take(files) : announce("The clipboard holds no image.");
});

let depth = 0; // of elements that a drag has entered and not left
const holdsFiles = (event) => [...(event.dataTransfer?.types ?? [])].includes("Files");
const over = (change) => {
  depth = change === 0 ? 0 : Math.max(0, depth + change);
  document.body.classList.toggle("over", depth > 0);
};
addEventListener("dragenter", (event) => holdsFiles(event) && over(1));
addEventListener("dragleave", (event) => holdsFiles(event) && over(-1));
addEventListener("dragover", (event) => event.preventDefault());
addEventListener("drop", (event) => {
  event.preventDefault();
  over(0);
  const files = [...(event.dataTransfer?.files ?? [])];
  files.length ? take(files) : announce("What was dropped is no file.");
});

// === What is shown ===

function show() {
  const said = current && model ? answers(current) : null;
  const failed = said && (said.failed.main ?? (said.main ? null : said.failed.embed));
  $("empty").hidden = current !== null;
  $("canvas").hidden = current === null;
  $("failed").hidden = !failed;
  $("again").hidden = Boolean(said?.lasting); // the same image would get the same answer
  if (failed && $("sentence").textContent !== failed) $("sentence").textContent = failed;
  $("name").textContent = current ? current.name : "\u00a0";
  $("time").textContent = said?.seconds ? `${decimal(said.seconds.took)} s, ${decimal(said.seconds.server)} s of it in the server` : "";
  $("controls").disabled = !(can("attention") && said?.main);
  showWorking();
  showLabels(said);
  showNeighbours(said);
  showImages();
  draw();
}

let waiting = null;

function showWorking() {
  const seen = job !== null && job.image === current;
  clearInterval(waiting);
  $("stage").setAttribute("aria-busy", String(seen));
  $("working").hidden ||= !seen;
  if (!seen) return;
  const mine = job;
  const tick = () => {
    const seconds = (performance.now() - mine.begin) / 1000;
    $("working").hidden = seconds < 0.3; // what is soon done needs no word
    $("elapsed").textContent = `${seconds.toFixed(0)} s`;
    if (seconds >= 3 && !mine.told) {
      mine.told = true;
      announce(`Still looking at ${mine.image.name}. Cancel is beside the image.`);
    }
  };
  tick();
  waiting = setInterval(tick, 100);
}

function showLabels(said) {
  const main = said?.main;
  $("labelled").classList.toggle("old", Boolean(job && job.kind === "main" && job.image === current && !main));
  $("no-labels").hidden = Boolean(main?.labels);
  $("labelled").hidden = model !== null && !can("classify"); // a base model
  const rows = main?.labels ?? [];
  fill($("labels"), rows.length, () => {
    const row = make("li", ["label", "share", "bar"].map((name) => make("span", [], name)));
    row.lastChild.append(document.createElement("i"));
    row.lastChild.setAttribute("aria-hidden", "true");
    return row;
  });
  rows.forEach((label, i) => {
    const [name, share, bar] = $("labels").children[i].children;
    name.textContent = name.title = label;
    share.textContent = percent(main.probabilities[i]);
    bar.firstChild.style.transform = `scaleX(${main.probabilities[i]})`;
  });
}

function showNeighbours(said) {
  const near = said?.embedding ? nearest(current) : [];
  $("no-neighbours").hidden = near.length > 0;
  const alone = said?.embedding && images.length === 1, lack = said?.main && said.failed.embed;
  $("no-neighbours").textContent = !can("embed") && model ? "The model gives no vectors to compare." : lack ? lack : alone ? "Add another image to see how alike the model finds the two." : EMPTY;
  fill($("neighbours"), near.length, () => make("li", [make("button", [], "thumb"), make("span", [])]));
  near.forEach(({ image, cosine }, i) => {
    const [button, text] = $("neighbours").children[i].children;
    face(button, image, `${image.name}, cosine ${signed(cosine)}`);
    text.textContent = signed(cosine);
    text.setAttribute("aria-hidden", "true");
  });
}

function showImages() {
  fill($("images"), images.length, () => make("li", [make("button", [], "thumb")]));
  images.forEach((image, i) => {
    const button = $("images").children[i].firstChild;
    const said = model && answers(image), broken = said && (said.failed.main ?? said.failed.embed);
    face(button, image, broken ? `${image.name}: ${broken}` : image.name);
    button.classList.toggle("broken", Boolean(broken));
    button.setAttribute("aria-current", String(image === current));
  });
}

// A button with an image's thumbnail; elements stay where they are, so that focus does.
function face(button, image, name) {
  button.type = "button";
  button.onclick = () => choose(image);
  button.title = name;
  button.setAttribute("aria-label", name);
  if (button.thumb === image.thumb && button.image === image) return;
  [button.thumb, button.image] = [image.thumb, image];
  const inside = image.thumb ? document.createElement("img") : make("span", []);
  if (image.thumb) [inside.src, inside.alt] = [image.thumb, ""];
  else inside.textContent = image.thumb === null ? "" : image.name.split(".").pop().slice(0, 8);
  button.replaceChildren(inside);
}

function fill(list, count, one) {
  while (list.children.length > count) list.lastChild.remove();
  while (list.children.length < count) list.append(one());
}

function make(tag, children, name = "") {
  const element = document.createElement(tag);
  element.className = name;
  element.append(...children);
  return element;
}

// === The map over the image ===

let drawn = ""; // what the canvas holds

function draw() {
  if (!current) return;
  const said = model ? answers(current) : null;
  const answer = said?.maps[viewName()] ?? (source?.image === current ? said?.shown : null);
  const mask = answer?.map && view.show === "mask" ? strongest(answer.map, view.threshold) : null;
  if (said && answer?.map) said.shown = answer; // while another is on its way
  describe(answer, mask);
  if (source?.image !== current) return;
  $("canvas").hidden = !source.canvas && !answer?.map; // nothing to see of a file that is no image
  if ($("canvas").hidden) return;
  const state = [images.indexOf(current), model?.name, answer?.layer, answer?.head, answer?.rollout, view.show, view.show === "mask" && view.threshold].join();
  if (state === drawn) return;
  drawn = state;
  const pixels = source.canvas ?? blank(answer);
  const canvas = $("canvas"), context = canvas.getContext("2d", { willReadFrequently: true });
  [canvas.width, canvas.height] = [pixels.width, pixels.height];
  context.drawImage(pixels, 0, 0);
  if (!answer?.map || view.show === "image") return;
  const { width, height } = canvas, frame = context.getImageData(0, 0, width, height);
  const [left, top, right, bottom] = answer.area.map((share, i) => share * (i % 2 ? height : width));
  if (mask) cut(frame, enlarge(mask.map((row) => row.map(Number)), left, top, right, bottom, width, height, false));
  else heat(frame, enlarge(scaled(answer.map), left, top, right, bottom, width, height, true));
  context.putImageData(frame, 0, 0);
}

// In place of an image that the browser cannot read: nothing, of the map's proportions.
function blank(answer) {
  const canvas = document.createElement("canvas"), [rows, columns] = answer?.grid ?? [1, 1];
  [canvas.width, canvas.height] = [Math.round((640 * columns) / Math.max(rows, columns)), Math.round((640 * rows) / Math.max(rows, columns))];
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.fillStyle = "#777";
  context.fillRect(0, 0, canvas.width, canvas.height);
  return canvas;
}

const luminance = (data, at) => 0.299 * data[at] + 0.587 * data[at + 1] + 0.114 * data[at + 2];

// The image in grey under the map in colour, as `vit attention` draws it.
function heat({ data }, values) {
  for (let i = 0, at = 0; i < values.length; i++, at += 4) {
    const grey = 0.8 * luminance(data, at), value = Math.max(0, values[i]), weight = 0.85 * value;
    const place = value * (INFERNO.length - 1), from = Math.min(Math.floor(place), INFERNO.length - 2), part = place - from;
    for (let c = 0; c < 3; c++) {
      const colour = INFERNO[from][c] * (1 - part) + INFERNO[from + 1][c] * part;
      data[at + c] = grey * (1 - weight) + colour * weight;
    }
    data[at + 3] = 255;
  }
}

// In colour what the mask keeps; dark grey elsewhere.
function cut({ data }, kept) {
  for (let i = 0, at = 0; i < kept.length; i++, at += 4) {
    if (kept[i] > 0.5) continue;
    data[at] = data[at + 1] = data[at + 2] = 0.22 * luminance(data, at);
    data[at + 3] = 255;
  }
}

// A map's least becomes 0 and its most 1.
function scaled(map) {
  const least = Math.min(...map.flat()), most = Math.max(...map.flat());
  return map.map((row) => row.map((value) => (value - least) / (most - least || 1)));
}

// A map over the part of (height, width) pixels that it covers; 0 elsewhere. Smoothly: Keys' cubic convolution.
function enlarge(map, left, top, right, bottom, width, height, smooth) {
  const across = taps(map[0].length, left, right, width, smooth), down = taps(map.length, top, bottom, height, smooth);
  const rows = map.map((row) => across.map((tap) => tap && tap.reduce((sum, [i, weight]) => sum + row[i] * weight, 0)));
  const found = new Float32Array(width * height);
  for (let y = 0; y < height; y++) {
    if (!down[y]) continue;
    for (let x = 0; x < width; x++) {
      if (!across[x]) continue;
      let sum = 0;
      for (const [i, weight] of down[y]) sum += rows[i][x] * weight;
      found[y * width + x] = Math.min(1, Math.max(0, sum));
    }
  }
  return found;
}

// For each pixel along an axis [[cell, weight], ...], or null beside the map.
function taps(cells, from, to, pixels, smooth) {
  const clip = (i) => Math.min(cells - 1, Math.max(0, i));
  return Array.from({ length: pixels }, (_, pixel) => {
    const place = ((pixel + 0.5 - from) / (to - from)) * cells;
    if (place < 0 || place >= cells) return null;
    if (!smooth) return [[clip(Math.floor(place)), 1]];
    const centre = place - 0.5, first = Math.floor(centre);
    return [-1, 0, 1, 2].map((step) => [clip(first + step), cubic(Math.abs(centre - first - step))]);
  });
}

const cubic = (x) => (x < 1 ? (1.5 * x - 2.5) * x * x + 1 : x < 2 ? ((-0.5 * x + 2.5) * x - 4) * x + 2 : 0);

// The fewest patches that hold a share of the attention; of equal ones the first.
function strongest(map, share) {
  const columns = map[0].length, flat = map.flat(), mask = map.map((row) => row.map(() => false));
  const order = flat.map((_, i) => i).sort((a, b) => flat[b] - flat[a] || a - b);
  const enough = share * order.reduce((sum, i) => sum + flat[i], 0);
  let held = 0;
  for (const i of order) {
    if (held >= enough) break;
    mask[Math.floor(i / columns)][i % columns] = true;
    held += flat[i];
  }
  return mask;
}

// What the canvas shows, in words.
function describe(answer, mask) {
  let text = current.name;
  if (answer?.map && view.show !== "image") {
    const { map, grid: [rows, columns] } = answer, flat = map.flat(), at = flat.indexOf(Math.max(...flat));
    const what = answer.rollout ? `rollout through layers 0 to ${answer.layer}` : `layer ${answer.layer}, ${answer.head === null ? `mean of ${answer.heads} heads` : `head ${answer.head}`}`;
    text += `, with the attention of ${what}: strongest in row ${Math.floor(at / columns) + 1} of ${rows}, column ${(at % columns) + 1} of ${columns}`;
    if (mask) text += `; ${mask.flat().filter(Boolean).length} of ${flat.length} patches hold ${percent(view.threshold, 0)} of it`;
  }
  if ($("canvas").getAttribute("aria-label") !== text) $("canvas").setAttribute("aria-label", text);
}

// === Neighbours ===

function unit(vector) {
  const length = Math.hypot(...vector) || 1;
  return Float32Array.from(vector, (value) => value / length);
}

function nearest(image) {
  const vector = answers(image).embedding;
  const others = images.filter((each) => each !== image && answers(each).embedding);
  const cosine = (each) => answers(each).embedding.reduce((sum, value, i) => sum + value * vector[i], 0);
  return others.map((each) => ({ image: each, cosine: cosine(each) })).sort((a, b) => b.cosine - a.cosine).slice(0, NEAREST);
}

// === Words ===

const percent = (share, digits = 1) => `${(100 * share).toFixed(digits)}%`;
const signed = (value) => value.toFixed(2).replace("-", "\u2212").replace("\u22120.00", "0.00");
const decimal = (seconds) => seconds.toFixed(seconds < 0.1 ? 3 : 2);
const bytes = (count) => (count < 2 ** 20 ? `${(count / 2 ** 10).toFixed(1)} kB` : `${(count / 2 ** 20).toFixed(1)} MB`);

function spoken(answer) {
  return answer.labels ? answer.labels.slice(0, 3).map((label, i) => `${label} ${percent(answer.probabilities[i])}`).join(", ") : "attention shown";
}

function announce(text) {
  $("said").textContent = "";
  setTimeout(() => ($("said").textContent = text), 50); // a region that says the same again is not read
}

// === Controls ===

$("model").addEventListener("change", () => pick(models[$("model").selectedIndex]));

function pick(found) {
  model = found;
  const { layers = 1, heads = 0 } = model;
  view.layer = layers - 1;
  if (view.way !== "rollout") view.way = "mean";
  $("layer").max = view.layer;
  $("layer").value = view.layer;
  $("layer-value").textContent = view.layer;
  const ways = [["mean", "Mean of all"], ["rollout", "Rollout"], ...Array.from({ length: heads }, (_, i) => [i, `Head ${i}`])];
  $("way").replaceChildren(...ways.map(([value, text]) => new Option(text, value, false, String(value) === view.way)));
  const sizes = model.layers ? `, ${layers} layers of ${heads} heads` : "";
  $("about").textContent = `${PLATFORMS[model.platform] ?? model.platform}${sizes}`;
  document.title = `${model.name} · trivit`;
  show();
  work();
}

for (const radio of document.querySelectorAll("[name=show]")) {
  radio.addEventListener("change", () => {
    view.show = radio.value;
    $("threshold").closest(".field").classList.toggle("off", view.show !== "mask");
    draw();
  });
}

$("way").addEventListener("change", () => look({ way: $("way").value }));

let settled = null;
$("layer").addEventListener("input", () => {
  $("layer-value").textContent = $("layer").value;
  clearTimeout(settled);
  settled = setTimeout(() => look({ layer: Number($("layer").value) }), 120);
});

function look(change) {
  Object.assign(view, change);
  if (current) delete answers(current).failed.main;
  show();
  work();
}

$("threshold").addEventListener("input", () => {
  view.threshold = $("threshold").value / 100;
  $("threshold-value").textContent = percent(view.threshold, 0);
  $("threshold").setAttribute("aria-valuetext", percent(view.threshold, 0));
  if (view.show !== "mask") document.querySelector("[name=show][value=mask]").click();
  draw();
});

$("cancel").addEventListener("click", () => {
  if (!job) return;
  job.cancelled = true;
  job.controller.abort();
  $("stage").focus();
});

$("again").addEventListener("click", () => {
  answers(current).failed = {};
  for (const image of images) if (!answers(image).lasting) answers(image).failed = {};
  $("stage").focus();
  show();
  work();
});

// === The beginning ===

function unlock(sentence) {
  $("locked-why").textContent = sentence;
  $("locked").hidden = false;
  $("key").focus();
}

$("locked").addEventListener("submit", (event) => {
  event.preventDefault();
  key = $("key").value;
  $("locked").hidden = true;
  for (const image of images) image.answers.clear();
  begin();
});

async function begin() {
  let found;
  try {
    found = await request("models");
  } catch (error) {
    if (error.status === 401) unlock(error.message);
    else {
      $("about").textContent = error.message;
      setTimeout(begin, 2000);
    }
    return;
  }
  maxBody = found.max_body;
  if (found.models.length !== models.length) {
    models = found.models;
    $("model").replaceChildren(...models.map(({ name }) => new Option(name, name, false, name === model?.name)));
    $("model").disabled = models.length < 2;
    if (!model) pick(models[0]);
  }
  if (!found.ready) {
    if (!models.length) $("about").textContent = "The model is being loaded.";
    setTimeout(begin, 1000);
  }
}

$("threshold").closest(".field").classList.add("off");
begin();
