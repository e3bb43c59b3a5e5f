// Pictures to the bytes that the image graphs take: uint8 RGB of a fixed size, resized and cropped exactly as
// Pillow's bilinear and bicubic filters do it.

// A side beyond this cannot be drawn by every browser, and more pixels take longer than anybody waits.
const MOST_SIDE = 16384;
const MOST_PIXELS = 2 ** 28 / 3;
// Pixels that are read back from the canvas at once.
const STRIP = 4_000_000;
// Pillow's fixed-point numbers: 8 bits of a color and 2 bits of head room leave 22.
const PRECISION = 32 - 8 - 2;
const HALF = 1 << (PRECISION - 1);
// The longest side of a scaled picture before it is cut; runtime/images.py has the same.
const LONGEST_SCALED = 65_535;
// Pillow's filters: how many inputs they reach to each side, and the share of an input at a distance of x.
const FILTERS = {
  bilinear: { reach: 1, share: (x) => Math.max(0, 1 - Math.abs(x)) },
  bicubic: { reach: 2, share: (x) => bicubic(Math.abs(x)) },
};

// The cubic of Keys (1981) with a = -0.5, in the order in which Pillow computes it.
function bicubic(x) {
  if (x < 1) return (1.5 * x - 2.5) * x * x + 1;
  return x < 2 ? (((x - 5) * x + 8) * x - 4) * -0.5 : 0;
}

export class PictureError extends Error {}

// Decode a file or blob. The result has `width`, `height` in pixels, `bitmap`, and `rows(y, count)`, which gives the RGBA bytes of
// some rows. Transparency is laid over white, and the picture is turned upright as its EXIF tag says.
export async function decode(file, name = "the file") {
  if (file.size === 0) throw new PictureError(`${name} is empty. Choose a picture.`);
  let bitmap;
  try {
    bitmap = await createImageBitmap(file, { colorSpaceConversion: "none" });
  } catch {
    throw new PictureError(`${name} is not a picture that this browser can read. Choose a JPEG, PNG or WebP file.`);
  }
  return fromBitmap(bitmap, name);
}

export function fromBitmap(bitmap, name) {
  const { width, height } = bitmap;
  if (Math.max(width, height) > MOST_SIDE || width * height > MOST_PIXELS) {
    throw new PictureError(`${name} has ${width} x ${height} pixels, which is too many. Choose a smaller picture.`);
  }
  const canvas = new OffscreenCanvas(width, Math.min(height, Math.max(1, Math.floor(STRIP / width))));
  const context = canvas.getContext("2d", { willReadFrequently: true });
  function rows(y, count) {
    context.fillStyle = "white";
    context.fillRect(0, 0, width, count);
    context.drawImage(bitmap, 0, -y);
    return context.getImageData(0, 0, width, count).data;
  }
  return { width, height, bitmap, rows, strip: canvas.height };
}

// A picture of RGB bytes, row by row, as `decode` gives one. As in Python, `resize` leaves it alone if it has its size already.
export function fromRgb(rgb, width, height) {
  function rows(y, count) {
    const rgba = new Uint8ClampedArray(4 * width * count).fill(255);
    for (let pixel = 0; pixel < width * count; pixel++) {
      for (let color = 0; color < 3; color++) rgba[4 * pixel + color] = rgb[3 * (y * width + pixel) + color];
    }
    return rgba;
  }
  return { width, height, rows, strip: Math.max(1, Math.floor(STRIP / width)), ready: true };
}

// `picture` as preprocessing.image of a manifest says: Uint8Array [height, width, 3]. "squash" scales both sides; "crop" scales the
// shorter one to `shortest`, keeps the aspect ratio and cuts out the center. As in Pillow's Resample.c, rows and columns are resized
// one after the other, each to whole bytes; a side that already has its size stays as it is. Pillow 13 and later, with `tallFirst`,
// resizes the columns first if the height shrinks much more than the width.
export function resize(picture, { width, height, resize: how, interpolation, shortest, tallFirst }) {
  const ready = picture.ready && picture.width === width && picture.height === height;
  const scaled = how === "crop" && !ready ? scaledSize(picture, shortest) : { width, height };
  const columnsFirst =
    tallFirst && picture.height > scaled.height && picture.height - scaled.height > 2 * (picture.width - scaled.width);
  const columns = part(picture.width, { scaled: scaled.width, size: width, filter: FILTERS[interpolation] });
  const lines = part(picture.height, { scaled: scaled.height, size: height, filter: FILTERS[interpolation] });
  const across = (rows) => (columns ? resizedRows(rows, columns) : rows);
  const down = (rows) => (lines ? resizedColumns(rows, lines) : rows);
  const out = new Uint8Array(height * width * 3);
  let at = 0;
  for (const row of columnsFirst ? across(down(pixelRows(picture))) : down(across(pixelRows(picture)))) {
    out.set(row, at);
    at += row.length;
  }
  return out;
}

// The size of `picture` when its shorter side is scaled to `shortest`.
function scaledSize({ width, height }, shortest) {
  const longer = Math.floor((shortest * Math.max(width, height)) / Math.min(width, height));
  if (longer > LONGEST_SCALED) {
    throw new PictureError(`The picture has ${width} x ${height} pixels, which is too narrow. Crop it, or choose another.`);
  }
  return width <= height ? { width: shortest, height: longer } : { width: longer, height: shortest };
}

// How one side of `from` pixels is scaled to `scaled` and cut to the `size` in its middle: the coefficients of what is left, or
// null if it stays as it is.
function part(from, { scaled, size, filter }) {
  if (from === scaled && scaled === size) return null;
  const start = Math.floor((scaled - size) / 2);
  return coefficients(from, { scaled, start, size, filter });
}

// The rows of a picture, from the top, each a Uint8Array of RGB.
function* pixelRows(picture) {
  for (let y = 0; y < picture.height; y += picture.strip) {
    const count = Math.min(picture.strip, picture.height - y);
    const rgba = picture.rows(y, count);
    for (let start = 0; start < rgba.length; start += 4 * picture.width) {
      const row = new Uint8Array(3 * picture.width);
      for (let from = start, to = 0; to < row.length; from += 4) {
        row[to++] = rgba[from];
        row[to++] = rgba[from + 1];
        row[to++] = rgba[from + 2];
      }
      yield row;
    }
  }
}

function* resizedRows(rows, across) {
  for (const row of rows) {
    const out = new Uint8Array(3 * across.length);
    across.forEach(({ first, weights }, x) => {
      for (let color = 0; color < 3; color++) {
        let sum = HALF;
        for (let k = 0, at = 3 * first + color; k < weights.length; k++, at += 3) sum += row[at] * weights[k];
        out[3 * x + color] = clipped(sum);
      }
    });
    yield out;
  }
}

function* resizedColumns(rows, down) {
  // The rows from number `start` on that the next output may need.
  const waiting = [];
  let start = 0;
  for (const { first, weights } of down) {
    while (start + waiting.length < first + weights.length) waiting.push(rows.next().value);
    while (start < first) {
      waiting.shift();
      start += 1;
    }
    const sums = new Int32Array(waiting[0].length).fill(HALF);
    weights.forEach((weight, k) => {
      const row = waiting[k];
      for (let at = 0; at < sums.length; at++) sums[at] += row[at] * weight;
    });
    yield Uint8Array.from(sums, clipped);
  }
}

function clipped(sum) {
  return Math.max(0, Math.min(255, sum >> PRECISION));
}

// For each of `size` of the `scaled` outputs, from number `start` on: the first of `from` inputs that it reads, and the weight of
// each input: `filter`, widened where the picture shrinks and scaled to a sum of 1, in fixed-point numbers.
function coefficients(from, { scaled, start, size, filter }) {
  const scale = from / scaled;
  // A side that keeps its length is only cut.
  if (scale === 1) return Array.from({ length: size }, (_, out) => ({ first: start + out, weights: [1 << PRECISION] }));
  const widened = Math.max(scale, 1);
  const support = filter.reach * widened;
  return Array.from({ length: size }, (_, out) => {
    const center = (start + out + 0.5) * scale;
    const first = Math.max(0, Math.trunc(center - support + 0.5));
    const last = Math.min(from, Math.trunc(center + support + 0.5));
    const shares = Array.from({ length: last - first }, (_, k) => filter.share((k + first - center + 0.5) * (1 / widened)));
    const total = shares.reduce((sum, share) => sum + share, 0);
    return { first, weights: shares.map((share) => fixed(share / total)) };
  });
}

// The nearest fixed-point number, and of two the one farther from zero.
function fixed(share) {
  return Math.trunc((share < 0 ? -0.5 : 0.5) + share * 2 ** PRECISION);
}

// Whether this browser gives back the pixels that were drawn. Some change them slightly to prevent tracking, which changes answers.
export async function keepsPixels() {
  const image = new ImageData(64, 64);
  for (let at = 0; at < image.data.length; at++) image.data[at] = at % 4 === 3 ? 255 : noise(at);
  const picture = fromBitmap(await createImageBitmap(image), "a test picture");
  return picture.rows(0, 64).every((value, at) => value === image.data[at]);
}

// The byte number `index` of the test pictures; web/checks.py has the same.
export function noise(index) {
  return Math.imul(index, 2654435761) >>> 24;
}
