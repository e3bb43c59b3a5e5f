// Reads the arrays of a .npz file, as NumPy writes it: a zip archive of .npy files, stored or deflated.

const TYPES = {
  "|u1": ["uint8", Uint8Array],
  "|b1": ["uint8", Uint8Array],
  "<i8": ["int64", BigInt64Array],
  "<i4": ["int32", Int32Array],
  "<f4": ["float32", Float32Array],
};

// The arrays of `archive` (Uint8Array) by name, each {dtype, shape, data}. Throws an Error for a file that is not such an archive.
export async function readNpz(archive) {
  const view = new DataView(archive.buffer, archive.byteOffset, archive.byteLength);
  const end = archive.byteLength - 22;
  if (end < 0 || view.getUint32(end, true) !== 0x06054b50) throw new Error("it is not a zip archive, or has a comment");
  const arrays = new Map();
  let at = view.getUint32(end + 16, true);
  for (let member = 0; member < view.getUint16(end + 10, true); member++) {
    if (view.getUint32(at, true) !== 0x02014b50) throw new Error("its directory is damaged");
    const [method, packed, size] = [view.getUint16(at + 10, true), view.getUint32(at + 20, true), view.getUint32(at + 24, true)];
    const [nameLength, extra, comment] = [28, 30, 32].map((place) => view.getUint16(at + place, true));
    const local = view.getUint32(at + 42, true);
    const name = new TextDecoder().decode(archive.subarray(at + 46, at + 46 + nameLength)).replace(/\.npy$/, "");
    const start = local + 30 + view.getUint16(local + 26, true) + view.getUint16(local + 28, true);
    const content = await unpacked(archive.subarray(start, start + packed), method);
    if (content.byteLength !== size) throw new Error(`${name} has ${content.byteLength} bytes in place of ${size}`);
    arrays.set(name, readNpy(content, name));
    at += 46 + nameLength + extra + comment;
  }
  return arrays;
}

async function unpacked(bytes, method) {
  if (method === 0) return bytes.slice();
  if (method !== 8) throw new Error(`it is compressed by method ${method}`);
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate-raw"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

function readNpy(content, name) {
  const view = new DataView(content.buffer, content.byteOffset, content.byteLength);
  const [start, length] = content[6] === 1 ? [10, view.getUint16(8, true)] : [12, view.getUint32(8, true)];
  const header = new TextDecoder().decode(content.subarray(start, start + length));
  const fields = /'descr': '([^']+)', 'fortran_order': False, 'shape': \(([\d, ]*)\)/.exec(header);
  if (!fields || !(fields[1] in TYPES)) throw new Error(`${name} has a header that this page cannot read: ${header.slice(0, 100)}`);
  const [dtype, Type] = TYPES[fields[1]];
  const shape = fields[2].split(",").map((size) => size.trim()).filter(Boolean).map(Number);
  const count = shape.reduce((product, size) => product * size, 1);
  const bytes = content.slice(start + length);
  if (bytes.byteLength !== count * Type.BYTES_PER_ELEMENT) throw new Error(`${name} does not have the size of its shape`);
  return { dtype, shape, data: new Type(bytes.buffer) };
}
