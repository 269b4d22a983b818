"use strict";
// Searching: which rows hold every word. All texts stand one behind the other, so that to look for a word is one scan
// of one string. Where a word begins in each row is kept: who types on looks there first, and for that word alone.

const NOWHERE = 2 ** 32 - 1;
const KEPT_WORDS = 8; // of queries before: 4 bytes a row each

class Haystack {
  // `textOf`: of a row, of which there are n.
  constructor(n, textOf) {
    this.n = n;
    this.starts = new Uint32Array(n + 1);
    const all = new Array(n);
    for (let row = 0; row < n; row++) {
      all[row] = `${textOf(row).toLowerCase()}\u0000`;
      this.starts[row + 1] = this.starts[row] + all[row].length;
    }
    this.text = all.join("");
    this.known = new Map(); // word -> {at: where it first is in each row, n: rows that hold it}
  }

  // 1 for rows that hold all words, which are in lower case; 0 for others.
  search(words) {
    const found = new Uint8Array(this.n).fill(1);
    for (const word of words) {
      const { at } = this.find(word);
      for (let row = 0; row < this.n; row++) if (at[row] === NOWHERE) found[row] = 0;
    }
    for (const old of [...this.known.keys()].slice(0, -KEPT_WORDS - words.length)) this.known.delete(old);
    return found;
  }

  find(word) {
    const known = this.known.get(word) ?? this.looked(word);
    this.known.delete(word);
    this.known.set(word, known); // as the latest
    return known;
  }

  looked(word) {
    let before = null;
    for (const [other, known] of this.known)
      if (word.startsWith(other) && !(other.length < before?.length)) before = { ...known, length: other.length };
    const found = { at: new Uint32Array(this.n).fill(NOWHERE), n: 0 };
    if (!before) this.everywhere(word, found);
    else if (before.n < this.n / 8) this.among(word, before, found);
    else this.onwards(word, before, found);
    return found;
  }

  everywhere(word, found) {
    const { text, starts, n } = this;
    let row = 0;
    for (let at = text.indexOf(word); at >= 0; at = text.indexOf(word, starts[row])) {
      while (starts[row + 1] <= at) row++;
      found.at[row] = at;
      found.n++;
      if (++row === n) return;
    }
  }

  // In rows that hold its beginning: there, or further on in the row.
  among(word, before, found) {
    const { text, starts, n } = this;
    for (let row = 0; row < n; row++) {
      const from = before.at[row];
      if (from === NOWHERE) continue;
      const at = text.slice(from, starts[row + 1]).indexOf(word);
      if (at < 0) continue;
      found.at[row] = from + at;
      found.n++;
    }
  }

  // The same where such rows are many: further on in the text, so that rows before the next place are passed over.
  onwards(word, before, found) {
    const { text, starts, n } = this;
    const rest = word.slice(before.length);
    let next = -1; // the first place behind the last one from which it was looked for
    for (let row = 0; row < n; row++) {
      const from = before.at[row];
      if (from === NOWHERE || next >= starts[row + 1]) continue;
      const isThere = text.startsWith(rest, from + before.length);
      if (!isThere && next <= from) {
        next = text.indexOf(word, from + 1);
        if (next < 0) next = NOWHERE;
        if (next >= starts[row + 1]) continue;
      }
      found.at[row] = isThere ? from : next;
      found.n++;
    }
  }
}

// A "phrase in quotes" is one word.
function wordsOf(query) {
  const words = [];
  for (const [, phrase, word] of query.toLowerCase().matchAll(/"([^"]+)"?|(\S+)/g)) words.push(phrase ?? word);
  return words.filter((word) => word !== '"');
}
