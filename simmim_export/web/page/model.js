// A bundle in the browser: its files, checked; its graphs, wired by the names of the manifest; and the verbs that they serve.

import { Golden, checksOf, compare, row, scalesOf } from "./parity.js";
import { readNpz } from "./npz.js";
import { decode, fromRgb, keepsPixels, noise, resize } from "./picture.js";
import { Texts } from "./text.js";

// Where a graph can run, and the ONNX Runtime that does it.
export const DEVICES = { wasm: "CPU (WebAssembly)", webgpu: "GPU (WebGPU)" };
// Each graph is timed for so many milliseconds, and at least five times.
const TIMED = 100;

// Something that the user can fix: shown as it is.
export class PageError extends Error {}

// Load the site in the folder of this page. `watch(bytes, total)` is told the progress of the download.
export async function load(device, watch) {
  if (!globalThis.isSecureContext || !crypto.subtle) {
    throw new PageError(
      "This page cannot check its files here, because browsers compute digests only for pages from https:// or from localhost. " +
        "Serve it over https, or open it as http://localhost.",
    );
  }
  const site = JSON.parse(new TextDecoder().decode(await download("site.json")));
  const runtime = site.runtimes[device];
  if (!runtime) throw new PageError(`This page cannot run on '${device}'. Remove the part of its address after the question mark.`);
  const manifestBytes = await download("bundle/manifest.json", { sha256: site.manifest.sha256 });
  const manifest = JSON.parse(new TextDecoder().decode(manifestBytes));
  const artifacts = Object.entries(site.variants).map(([graph, variant]) => {
    return manifest.artifacts.find((one) => one.graph === graph && one.variant === variant && one.engine === null);
  });
  const total = runtime.bytes + site.bytes["tokenizer.json"] + site.bytes["golden.npz"] + artifacts.reduce((sum, one) => sum + one.bytes, 0);
  let done = 0;
  const counted = (bytes) => watch((done += bytes), total);
  const bundled = (path, sha256, bytes) => download(`bundle/${path}`, { sha256, bytes, counted });

  const ort = await import(runtime.script);
  ort.env.wasm.wasmBinary = (await download(runtime.wasm, { ...runtime, counted })).buffer;
  // More than one thread needs a page that is isolated from all others, which depends on the headers of its host.
  ort.env.wasm.numThreads = globalThis.crossOriginIsolated ? Math.min(4, navigator.hardwareConcurrency) : 1;
  ort.env.logLevel = "error";
  const tokenizer = await bundled("tokenizer.json", manifest.files["tokenizer.json"], site.bytes["tokenizer.json"]);
  const golden = await bundled("golden.npz", manifest.files["golden.npz"], site.bytes["golden.npz"]);
  const sessions = new Map();
  for (const artifact of artifacts) {
    const bytes = await bundled(artifact.path, artifact.sha256, artifact.bytes);
    try {
      sessions.set(artifact.graph, await ort.InferenceSession.create(bytes, { executionProviders: [device], logSeverityLevel: 3 }));
    } catch (error) {
      const fix = device === "wasm" ? "Use a current browser, or a device with more memory." : `Remove ?device=${device} from the address.`;
      throw new PageError(`ONNX Runtime cannot open ${artifact.path} on the ${DEVICES[device]}: ${error.message} ${fix}`);
    }
  }
  const texts = site.text && new Texts(JSON.parse(new TextDecoder().decode(tokenizer)), site.text);
  return new Model({ site, manifest, ort, sessions, texts, device, golden: new Golden(await readNpz(golden)) });
}

// The bytes of a file beside this page. Throws a PageError if it cannot be loaded, or has another digest or size than it should.
async function download(path, { sha256, bytes, counted = () => {} } = {}) {
  const again = "Copy the whole folder to the host again.";
  let response;
  try {
    response = await fetch(path);
  } catch {
    throw new PageError(`${path} cannot be loaded: the host does not answer. Check the connection, and load the page again.`);
  }
  if (!response.ok) throw new PageError(`${path} cannot be loaded: the host says ${response.status}. ${again}`);
  const parts = [];
  let length = 0;
  const reader = response.body.getReader();
  for (let part = await reader.read(); !part.done; part = await reader.read()) {
    parts.push(part.value);
    length += part.value.byteLength;
    counted(part.value.byteLength);
    if (bytes !== undefined && length > bytes) break;
  }
  if (bytes !== undefined && length !== bytes) throw new PageError(`${path} does not have ${bytes.toLocaleString("en")} bytes. ${again}`);
  const content = new Uint8Array(length);
  parts.reduce((at, part) => (content.set(part, at), at + part.byteLength), 0);
  if (sha256 !== undefined && hex(await crypto.subtle.digest("SHA-256", content)) !== sha256) {
    throw new PageError(`${path} was changed: its SHA-256 is not the one it had when the page was made. ${again}`);
  }
  return content;
}

function hex(buffer) {
  return [...new Uint8Array(buffer)].map((byte) => byte.toString(16).padStart(2, "0")).join("");
}

export class Model {
  constructor(parts) {
    Object.assign(this, parts);
    this.graphs = new Map(this.manifest.graphs.map((graph) => [graph.name, graph]));
    const inputs = this.manifest.graphs.flatMap((graph) => graph.inputs);
    // The names of the tensors that the host feeds, by kind.
    this.fed = new Map(inputs.map(({ kind, name }) => [kind, name]).reverse());
    this.pipelines = this.manifest.pipelines.filter(({ graphs }) => graphs.every((name) => this.sessions.has(name)));
    // Two runs at once would disturb each other: each waits for the one before it.
    this.last = Promise.resolve();
  }

  // The pipeline that serves `verb` for images or texts, or undefined.
  pipeline(verb) {
    return this.pipelines.find((one) => one.verb === verb);
  }

  // -- running ---------------------------------------------------------------------------------------------------------

  // Run one graph on `tensors` (a map of arrays by name, which may hold more): a map of its outputs.
  runGraph(name, tensors) {
    const run = this.last.then(async () => {
      const session = this.sessions.get(name);
      const spec = this.graphs.get(name);
      const feeds = {};
      for (const { name: input } of spec.inputs) {
        const { dtype, shape, data } = tensors.get(input);
        feeds[input] = new this.ort.Tensor(dtype, data, shape);
      }
      const outputs = await session.run(feeds);
      const arrays = new Map();
      for (const { name: output } of spec.outputs) {
        const tensor = outputs[output];
        arrays.set(output, { dtype: tensor.type, shape: [...tensor.dims], data: await tensor.getData() });
      }
      return arrays;
    });
    this.last = run.catch(() => {});
    return run;
  }

  // Run graphs in order: `tensors` with all outputs added. A graph whose outputs are all there already is skipped.
  async run(names, tensors) {
    const flowing = new Map(tensors);
    for (const name of names) {
      const spec = this.graphs.get(name);
      if (spec.outputs.every((output) => tensors.has(output.name))) continue;
      for (const [output, array] of await this.runGraph(name, flowing)) flowing.set(output, array);
    }
    return flowing;
  }

  // -- verbs -----------------------------------------------------------------------------------------------------------

  // How pictures are resized.
  get preprocessing() {
    return { ...this.manifest.preprocessing.image, ...this.site.image };
  }

  // A picture that `decode` gave, as the tensors that start with it.
  picture(decoded) {
    const { width, height } = this.manifest.preprocessing.image;
    const pixels = { dtype: "uint8", shape: [1, height, width, 3], data: resize(decoded, this.preprocessing) };
    return new Map([[this.fed.get("image"), pixels]]);
  }

  // Run those graphs of `pipeline` that read only an image. Their outputs stay in `picture`, so that the next question about it
  // does not compute them again.
  async encode(pipeline, picture) {
    const known = new Set([this.fed.get("image")]);
    const alone = this.manifest.graphs.filter(({ inputs, outputs }) => {
      const reads = inputs.every(({ name }) => known.has(name)) && outputs.every(({ kind }) => kind !== "logits");
      if (reads) outputs.forEach(({ name }) => known.add(name));
      return reads;
    });
    const names = alone.map(({ name }) => name).filter((name) => pipeline.graphs.includes(name));
    for (const [name, array] of await this.run(names, picture)) picture.set(name, array);
  }

  // For each text its classes, most probable first: rows of {label, score}. Without texts one row, of the picture alone.
  async classes(verb, picture, texts) {
    const pipeline = this.pipeline(verb);
    await this.encode(pipeline, picture);
    if (!texts) return { rows: this.labeled(pipeline, await this.run(pipeline.graphs, picture)), notes: [] };
    const inputs = pipeline.graphs.flatMap((name) => this.graphs.get(name).inputs);
    const repeated = new Set(inputs.filter(({ shared }) => !shared).map(({ name }) => name));
    const { batches, notes } = this.tokens(pipeline, texts);
    const rows = [];
    for (const tokens of batches) {
      const count = tokens.values().next().value.shape[0];
      const tensors = new Map([...picture].map(([name, array]) => [name, repeated.has(name) ? repeat(array, count) : array]));
      rows.push(...this.labeled(pipeline, await this.run(pipeline.graphs, new Map([...tensors, ...tokens]))));
    }
    return { rows, notes };
  }

  // The probability in [0, 1] of each text that it describes the picture.
  async match(picture, texts) {
    const { rows, notes } = await this.classes("match", picture, texts);
    return { scores: rows.map((classes) => classes.find(({ index }) => index === 1).score), notes };
  }

  async embedImage(picture) {
    const pipeline = this.pipeline("embed_image");
    await this.encode(pipeline, picture);
    return this.finite((await this.run(pipeline.graphs, picture)).get(pipeline.outputs[0]), pipeline).data;
  }

  async embedText(text) {
    const pipeline = this.pipeline("embed_text");
    const { batches, notes } = this.tokens(pipeline, [text]);
    const vector = this.finite((await this.run(pipeline.graphs, batches[0])).get(pipeline.outputs[0]), pipeline).data;
    return { vector, notes };
  }

  // Texts as batches of at most as many rows as every graph of the pipeline takes.
  tokens(pipeline, texts) {
    const sizes = pipeline.graphs.map((name) => this.graphs.get(name).axes.find((axis) => axis.name === "batch").maximum);
    const step = Math.min(...sizes);
    const batches = [];
    const notes = [];
    for (let at = 0; at < texts.length; at += step) {
      const batch = this.texts.batch(texts.slice(at, at + step), { first: at, of: texts.length });
      const arrays = [["token_ids", batch.ids], ["text_mask", batch.mask]].filter(([kind]) => this.fed.has(kind));
      batches.push(new Map(arrays.map(([kind, array]) => [this.fed.get(kind), array])));
      notes.push(...batch.notes);
    }
    return { batches, notes };
  }

  labeled(pipeline, tensors) {
    const { shape, data } = this.finite(tensors.get(pipeline.outputs[0]), pipeline);
    const labels = this.manifest.labels[pipeline.labels];
    return Array.from({ length: shape[0] }, (_, index) => {
      const scores = softmax(data.subarray(index * shape[1], (index + 1) * shape[1]));
      const classes = Array.from(scores, (score, place) => ({ label: labels[place], score, index: place }));
      return classes.sort((a, b) => b.score - a.score);
    });
  }

  finite(array, pipeline) {
    if (!array.data.every(Number.isFinite)) {
      throw new PageError(`The model's output for ${pipeline.name} is not a number. The checks below show which graph fails.`);
    }
    return array;
  }

  // -- proof -----------------------------------------------------------------------------------------------------------

  // Some of the model's own pictures, as `decode` gives them.
  samples(most) {
    const name = this.fed.get("image");
    const spec = this.manifest.graphs.find(({ inputs }) => inputs.some((input) => input.name === name));
    if (!spec || !this.sessions.has(spec.name)) return [];
    const pixels = this.golden.input(this.golden.largest(spec), name);
    const [count, height, width] = pixels.shape;
    return Array.from({ length: Math.min(most, count) }, (_, index) => fromRgb(row(pixels, index).data, width, height));
  }

  // Compare every graph with PyTorch's outputs, and this page's texts and pictures with Python's. Yields after every step:
  // {done, total, graphs, texts, pictures}, with what is known so far.
  async *verify() {
    const names = [...this.sessions.keys()];
    const checks = new Map(names.map((name) => [name, checksOf(this.golden, this.graphs.get(name))]));
    const total = [...checks.values()].reduce((sum, all) => sum + all.length, 0);
    const state = { done: 0, total, graphs: [], cases: this.golden.cases.size, ...(await this.verifyHost()) };
    yield state;
    for (const name of names) {
      const spec = this.graphs.get(name);
      const precision = this.site.variants[name].split("-")[0];
      const tolerance = this.site.tolerances[name];
      const scales = scalesOf(this.golden, spec, precision);
      const graph = { name, variant: this.site.variants[name], rows: 0, passed: 0, error: 0, cosine: 1, milliseconds: null };
      state.graphs.push(graph);
      for (const { feeds, expected } of checks.get(name)) {
        const outputs = await this.runGraph(name, feeds);
        for (const [output, reference] of expected) {
          const { error, cosine } = compare(outputs.get(output), reference, scales.get(output));
          graph.rows += 1;
          graph.passed += error <= tolerance.scaled_error && cosine >= tolerance.cosine;
          [graph.error, graph.cosine] = [Math.max(graph.error, error), Math.min(graph.cosine, cosine)];
        }
        state.done += 1;
        yield state;
      }
      graph.milliseconds = await this.time(name, checks.get(name).find(({ check }) => check.startsWith("alone")).feeds);
      yield state;
    }
  }

  // The median time of a graph for one sample, in milliseconds.
  async time(name, feeds) {
    const end = performance.now() + TIMED;
    const times = [];
    while (times.length < 5 || performance.now() < end) {
      const before = performance.now();
      await this.runGraph(name, feeds);
      times.push(performance.now() - before);
    }
    return times.sort((a, b) => a - b)[Math.floor(times.length / 2)];
  }

  // Texts and pictures whose ids and bytes Python computed when the page was made: how many of them come out the same here.
  async verifyHost() {
    const { texts, pictures } = this.site.checks;
    const same = texts.filter(({ text, ids }) => String(this.texts.encode(text).ids) === String(ids));
    let right = 0;
    for (const picture of pictures) {
      const rgb = Uint8Array.from({ length: picture.width * picture.height * 3 }, (_, index) => noise(index));
      const resized = resize(fromRgb(rgb, picture.width, picture.height), this.preprocessing);
      right += hex(await crypto.subtle.digest("SHA-256", resized)) === picture.sha256;
    }
    const kept = pictures.length === 0 || (await keepsPixels());
    return {
      texts: { right: same.length, of: texts.length },
      pictures: { right, of: pictures.length, kept },
    };
  }
}

function repeat({ dtype, shape, data }, count) {
  const all = new data.constructor(data.length * count);
  for (let index = 0; index < count; index++) all.set(data, index * data.length);
  return { dtype, shape: [count, ...shape.slice(1)], data: all };
}

function softmax(logits) {
  const largest = logits.reduce((most, value) => Math.max(most, value), -Infinity);
  const powers = Float64Array.from(logits, (value) => Math.exp(value - largest));
  const sum = powers.reduce((total, value) => total + value, 0);
  return powers.map((value) => value / sum);
}

export { decode };
