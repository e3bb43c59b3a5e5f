// Pictures to the bytes that the image graphs take: uint8 RGB of a fixed size, resized exactly as Pillow's bilinear filter does it.

// A side beyond this cannot be drawn by every browser, and more pixels take longer than anybody waits.
const MOST_SIDE = 16384;
const MOST_PIXELS = 2 ** 28 / 3;
// Pixels that are read back from the canvas at once.
const STRIP = 4_000_000;
// Pillow's fixed-point numbers: 8 bits of a color and 2 bits of head room leave 22.
const PRECISION = 32 - 8 - 2;

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

// A picture of RGB bytes, row by row, as `decode` gives one.
export function fromRgb(rgb, width, height) {
  function rows(y, count) {
    const rgba = new Uint8ClampedArray(4 * width * count).fill(255);
    for (let pixel = 0; pixel < width * count; pixel++) {
      for (let color = 0; color < 3; color++) rgba[4 * pixel + color] = rgb[3 * (y * width + pixel) + color];
    }
    return rgba;
  }
  return { width, height, rows, strip: Math.max(1, Math.floor(STRIP / width)) };
}

// `picture` squashed to `width` x `height`: Uint8Array [height, width, 3]. As in Pillow's Resample.c, rows are resized before
// columns, each to whole bytes; a side that already has its size stays as it is.
export function resize(picture, width, height) {
  const narrow = new Uint8Array(picture.height * width * 3);
  const across = picture.width === width ? null : coefficients(picture.width, width);
  for (let y = 0; y < picture.height; y += picture.strip) {
    const count = Math.min(picture.strip, picture.height - y);
    const rgba = picture.rows(y, count);
    for (let row = 0; row < count; row++) {
      filterRow(rgba, 4 * row * picture.width, narrow, 3 * (y + row) * width, width, across);
    }
  }
  return picture.height === height ? narrow : filterColumns(narrow, width, coefficients(picture.height, height));
}

function filterRow(rgba, from, out, to, width, across) {
  for (let x = 0; x < width; x++) {
    for (let color = 0; color < 3; color++) {
      if (across === null) {
        out[to++] = rgba[from + 4 * x + color];
        continue;
      }
      const { first, weights } = across[x];
      let sum = 1 << (PRECISION - 1);
      for (let k = 0, at = from + 4 * first + color; k < weights.length; k++, at += 4) sum += rgba[at] * weights[k];
      out[to++] = clipped(sum);
    }
  }
}

function filterColumns(narrow, width, down) {
  const stride = 3 * width;
  const out = new Uint8Array(down.length * stride);
  down.forEach(({ first, weights }, y) => {
    for (let x = 0; x < stride; x++) {
      let sum = 1 << (PRECISION - 1);
      for (let k = 0, at = first * stride + x; k < weights.length; k++, at += stride) sum += narrow[at] * weights[k];
      out[y * stride + x] = clipped(sum);
    }
  });
  return out;
}

function clipped(sum) {
  return Math.max(0, Math.min(255, sum >> PRECISION));
}

// For each of `size` outputs the first of `from` inputs that it reads, and the weight of each input: a triangle that is at least
// one input wide on both sides, scaled to a sum of 1, in fixed-point numbers.
function coefficients(from, size) {
  const scale = from / size;
  const support = Math.max(scale, 1);
  return Array.from({ length: size }, (_, out) => {
    const center = (out + 0.5) * scale;
    const first = Math.max(0, Math.trunc(center - support + 0.5));
    const last = Math.min(from, Math.trunc(center + support + 0.5));
    const shares = Array.from({ length: last - first }, (_, k) => {
      return Math.max(0, 1 - Math.abs((k + first - center + 0.5) * (1 / support)));
    });
    const total = shares.reduce((sum, share) => sum + share, 0);
    return { first, weights: shares.map((share) => Math.trunc(0.5 + (share / total) * 2 ** PRECISION)) };
  });
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
