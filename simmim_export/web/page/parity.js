// Does a graph compute here what PyTorch computed? The checks of simmim_export/proof/parity.py, in the same order.

// Logits whose difference is at most this many roundings of the largest of them are equal.
const ROUNDINGS = 8;
// FP32 can tell classes apart if they differ by this share of their logits (root mean squares).
const RESOLVED = 0.003;
const EPSILON = 2 ** -23;

// The golden tensors: `arrays` of golden.npz, named CASE/TENSOR for inputs and CASE/GRAPH:TENSOR for PyTorch's outputs.
export class Golden {
  constructor(arrays) {
    this.cases = new Map();
    for (const [name, array] of arrays) {
      const slash = name.indexOf("/");
      const label = name.slice(0, slash);
      if (!this.cases.has(label)) this.cases.set(label, new Map());
      this.cases.get(label).set(name.slice(slash + 1), array);
    }
  }

  feeds(label, spec) {
    return new Map(spec.inputs.map(({ name }) => [name, this.input(label, name)]));
  }

  expected(label, spec) {
    return new Map(spec.outputs.map(({ name }) => [name, this.cases.get(label).get(`${spec.name}:${name}`)]));
  }

  // As it was stored, or else as the first graph before it gave it.
  input(label, name) {
    const tensors = this.cases.get(label);
    return tensors.get(name) ?? [...tensors].find(([key]) => key.endsWith(`:${name}`))?.[1];
  }

  // The case with the largest batch; of those, the one with the longest texts.
  largest(spec) {
    const size = (label) => {
      const batch = this.feeds(label, spec).values().next().value.shape[0];
      const values = [...this.cases.get(label).values()].reduce((sum, array) => sum + array.data.length, 0);
      return [batch, values];
    };
    return [...this.cases.keys()].reduce((best, label) => {
      const [a, b] = [size(best), size(label)];
      return b[0] > a[0] || (b[0] === a[0] && b[1] > a[1]) ? label : best;
    });
  }
}

// Everything that is compared for one graph: each is {check, feeds, expected}, maps of arrays by name.
export function checksOf(golden, spec) {
  const checks = [...golden.cases.keys()].map((label) => {
    return { check: label, feeds: golden.feeds(label, spec), expected: golden.expected(label, spec) };
  });
  const largest = golden.largest(spec);
  const [feeds, expected] = [golden.feeds(largest, spec), golden.expected(largest, spec)];
  const batch = feeds.values().next().value.shape[0];
  for (let index = 0; index < batch; index++) {
    const alone = mapped(feeds, (array) => row(array, index));
    const reference = mapped(expected, (array) => row(array, index));
    checks.push({ check: `alone, sample ${index}`, feeds: alone, expected: reference });
    for (const mask of spec.inputs.filter(({ kind }) => kind === "text_mask" || kind === "frame_mask")) {
      const axis = mask.shape[1];
      if (typeof axis !== "string") continue;
      const filled = alone.get(mask.name).data.reduce((sum, value) => sum + Number(value), 0);
      const length = Math.max(filled, spec.axes.find(({ name }) => name === axis).minimum);
      checks.push({
        check: `without padding, sample ${index}`,
        feeds: cut(alone, spec.inputs, axis, length),
        expected: cut(reference, spec.outputs, axis, length),
      });
    }
  }
  return checks;
}

// How far apart the classes of each output of logits are, by its name: what their errors are relative to.
export function scalesOf(golden, spec, precision) {
  const scales = new Map();
  for (const { name } of spec.outputs.filter(({ kind }) => kind === "logits")) {
    const all = [...golden.cases.keys()].map((label) => logitsScale(golden.expected(label, spec).get(name)));
    const scale = all.reduce((most, value) => Math.max(most, value), 0);
    scales.set(name, precision === "fp32" ? scale : Math.max(scale, 1));
  }
  return scales;
}

// {error, cosine} of an output against PyTorch's. `scale` is that of scalesOf for logits, and undefined for other outputs.
export function compare(output, expected, scale) {
  const result = difference(output, expected);
  if (scale !== undefined) result.error = Math.max(result.error, logitsError(output, expected, scale));
  return result;
}

function difference(output, expected) {
  const failed = { error: Infinity, cosine: -1 };
  const count = expected.data.length;
  if (!output || String(output.shape) !== String(expected.shape) || output.dtype !== "float32" || !count) return failed;
  const width = expected.shape[expected.shape.length - 1];
  let [worst, squares, cosine] = [0, 0, 1];
  for (let start = 0; start < count; start += width) {
    let [ab, aa, bb, mostA, mostB] = [0, 0, 0, 0, 0];
    for (let at = start; at < start + width; at++) {
      const [a, b] = [output.data[at], expected.data[at]];
      if (!Number.isFinite(a)) return failed;
      worst = Math.max(worst, Math.abs(a - b));
      [ab, aa, bb] = [ab + a * b, aa + a * a, bb + b * b];
      [mostA, mostB] = [Math.max(mostA, Math.abs(a)), Math.max(mostB, Math.abs(b))];
    }
    squares += bb;
    // Two rows of zeros (padding) point the same way; one of them alone does not.
    const zeros = mostA < 1e-9 && mostB < 1e-9;
    cosine = Math.min(cosine, zeros ? 1 : ab / Math.max(Math.sqrt(aa) * Math.sqrt(bb), 1e-30));
  }
  return { error: worst / Math.max(1, Math.sqrt(squares / count)), cosine };
}

function logitsScale({ shape, data }) {
  const width = shape[shape.length - 1];
  let [apart, all] = [0, 0];
  for (let start = 0; start < data.length; start += width) {
    const values = data.subarray(start, start + width);
    const mean = average(values);
    for (const value of values) [apart, all] = [apart + (value - mean) ** 2, all + value ** 2];
  }
  return Math.max(Math.sqrt(apart / data.length), RESOLVED * Math.sqrt(all / data.length));
}

function logitsError(output, expected, scale) {
  const width = expected.shape[expected.shape.length - 1];
  let [far, largest] = [0, 0];
  for (let start = 0; start < expected.data.length; start += width) {
    const [a, b] = [output, expected].map(({ data }) => data.subarray(start, start + width));
    const [meanA, meanB] = [average(a), average(b)];
    for (let at = 0; at < width; at++) {
      far = Math.max(far, Math.abs(a[at] - meanA - (b[at] - meanB)));
      largest = Math.max(largest, Math.abs(b[at]));
    }
  }
  const excess = far - ROUNDINGS * EPSILON * largest;
  if (excess <= 0) return 0;
  return scale ? excess / scale : Infinity;
}

function average(values) {
  return values.reduce((sum, value) => sum + value, 0) / values.length;
}

function mapped(tensors, change) {
  return new Map([...tensors].map(([name, array]) => [name, change(array)]));
}

// Row `index` of an array, as a batch of one.
export function row({ dtype, shape, data }, index) {
  const size = data.length / shape[0];
  return { dtype, shape: [1, ...shape.slice(1)], data: data.slice(index * size, (index + 1) * size) };
}

// `tensors`, batches of one, with only the first `length` positions of `axis`, wherever `specs` have it.
function cut(tensors, specs, axis, length) {
  return new Map(
    specs.map(({ name, shape }) => {
      let array = tensors.get(name);
      shape.forEach((size, place) => {
        if (size === axis) array = shortened(array, place, length);
      });
      return [name, array];
    }),
  );
}

function shortened({ dtype, shape, data }, place, length) {
  const inner = shape.slice(place + 1).reduce((product, size) => product * size, 1);
  const outer = shape.slice(0, place).reduce((product, size) => product * size, 1);
  const short = new data.constructor(outer * length * inner);
  for (let part = 0; part < outer; part++) {
    const start = part * shape[place] * inner;
    short.set(data.subarray(start, start + length * inner), part * length * inner);
  }
  return { dtype, shape: shape.map((size, index) => (index === place ? length : size)), data: short };
}
