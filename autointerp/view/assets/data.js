"use strict";
// Data: base64 of gzip of JSON, in blocks of this page or in scripts beside it. A page from a disk may neither fetch
// nor start workers, but it may load scripts, and each of ours calls `receive`.

const arrived = new Map(); // name -> [take, refuse], of what is under way
const payloadsOf = new Map(); // name -> payloads, the latest few
const KEPT_SHARDS = 24;

function receive(name, payloads) {
  arrived.get(name)?.[0](payloads);
}

function payloads(name) {
  const known = payloadsOf.get(name);
  if (known) return known;
  const found = new Promise((take, refuse) => {
    const block = document.getElementById(name);
    if (block) return take(block.textContent.split(","));
    arrived.set(name, [take, refuse]);
    const script = document.createElement("script");
    script.src = `data/${name}.js`;
    script.onerror = () => refuse(new Error(`data/${name}.js is missing, or can't be read: keep the folder together.`));
    script.onload = () => script.remove();
    document.head.append(script);
  });
  payloadsOf.set(name, found);
  found.catch(() => payloadsOf.delete(name));
  if (payloadsOf.size > KEPT_SHARDS) payloadsOf.delete(payloadsOf.keys().next().value);
  return found;
}

function bytesOf(base64) {
  if (Uint8Array.fromBase64) return Uint8Array.fromBase64(base64);
  return Uint8Array.from(atob(base64), (letter) => letter.charCodeAt(0));
}

async function unpacked(base64) {
  const stream = new Blob([bytesOf(base64)]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Response(stream).json();
}

// "index" or "texts", which are read once.
async function readWhole(name) {
  const [payload] = await payloads(name);
  payloadsOf.delete(name);
  return unpacked(payload);
}

async function readFeature(row, featuresAShard) {
  const found = await payloads(shardOf(row, featuresAShard));
  return unpacked(found[row % featuresAShard]);
}

// Begins to read what will be wanted. That it can't be read is said when it is.
function askFor(row, featuresAShard) {
  payloads(shardOf(row, featuresAShard)).catch(() => {});
}

function shardOf(row, featuresAShard) {
  return `s${String(Math.floor(row / featuresAShard)).padStart(5, "0")}`;
}

const ARRAYS = { f4: Float32Array, u4: Uint32Array, u2: Uint16Array, u1: Uint8Array };
const MISSING = -32768;

// A column of numbers -> an array of them. In decimals NaN says that there is none.
function numbersOf(column) {
  const bytes = bytesOf(column.data);
  if (column.kind !== "decimal") return new ARRAYS[column.kind](bytes.buffer);
  const scaled = new Int16Array(bytes.buffer);
  const scale = 10 ** column.digits;
  const values = new Float64Array(scaled.length);
  for (let at = 0; at < scaled.length; at++) values[at] = scaled[at] === MISSING ? NaN : scaled[at] / scale;
  return values;
}
