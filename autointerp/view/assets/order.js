"use strict";
// Orders of rows: by numbers or by texts. Rows without a value come last, equal ones stay in the order of the index.

const HALVES = 4; // a double is four times 16 bits

// A radix sort, for it needs no call a comparison. `values`: NaN where there is none.
function byNumbers(values, descending) {
  const keys = new Uint16Array(sortable(values, descending).buffer);
  const n = values.length;
  let [rows, next] = [counted(n), new Uint32Array(n)];
  for (let half = 0; half < HALVES; half++) {
    const places = new Uint32Array(2 ** 16 + 1);
    for (let at = half; at < keys.length; at += HALVES) places[keys[at] + 1]++;
    if (places.includes(n)) continue; // all have the same
    for (let key = 1; key <= 2 ** 16; key++) places[key] += places[key - 1];
    for (let at = 0; at < n; at++) next[places[keys[HALVES * rows[at] + half]]++] = rows[at];
    [rows, next] = [next, rows];
  }
  return rows;
}

// Doubles whose bits, read as a whole number, are in the order of the values.
function sortable(values, descending) {
  const doubles = Float64Array.from(values);
  const bits = new Uint32Array(doubles.buffer);
  const SIGN = 2 ** 31;
  for (let row = 0; row < doubles.length; row++) {
    doubles[row] += 0; // -0 is 0
    const isMissing = Number.isNaN(doubles[row]);
    const isNegative = bits[2 * row + 1] >= SIGN;
    const flip = isNegative === descending ? 0 : -1;
    bits[2 * row] = isMissing ? -1 : bits[2 * row] ^ flip;
    bits[2 * row + 1] = isMissing ? -1 : bits[2 * row + 1] ^ flip ^ (isNegative ? 0 : SIGN);
  }
  return doubles;
}

// 0, 1, ..., n - 1
function counted(n) {
  const rows = new Uint32Array(n);
  for (let row = 0; row < n; row++) rows[row] = row;
  return rows;
}

// `texts`: empty where there is none.
function byTexts(texts, descending) {
  const ranks = new Map([...new Set(texts)].sort().map((text, rank) => [text, text ? rank : NaN]));
  return byNumbers(texts.map((text) => ranks.get(text)), descending);
}
