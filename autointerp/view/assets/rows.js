"use strict";
// The index: a row a feature. Searching, filtering and sorting give a list of rows.

class Index {
  constructor(content) {
    this.n = content.n;
    this.card = content.card;
    this.featuresAShard = content.features_a_shard;
    this.nWindows = content.n_windows;
    this.dictionaries = content.dictionaries;
    this.dictionary = numbersOf(content.dictionary);
    this.number = numbersOf(content.number);
    this.negative = numbersOf(content.negative);
    this.statuses = content.status.names;
    this.status = numbersOf(content.status);
    this.explained = content.explained;
    this.scored = content.scored.map((one) => ({
      key: `${one.explainer}·${one.scorer}`,
      explainer: one.explainer,
      scorer: one.scorer,
      headline: one.headline,
      value: numbersOf(one.value),
      low: numbersOf(one.low),
      high: numbersOf(one.high),
      early: one.early ? numbersOf(one.early) : null, // 1: a sequential test may have stopped it
    }));
    this.numeric = new Map([
      ["density", numbersOf(content.density)],
      ["maximum", numbersOf(content.maximum)],
      ["windows", numbersOf(content.windows)],
      ...this.scored.map((one) => [one.key, one.value]),
    ]);
    this.orders = new Map();
    this.hay = null;
  }

  id(row) {
    return `${this.dictionaries[this.dictionary[row]]}/${this.shortId(row)}`;
  }

  shortId(row) {
    return `${this.number[row]}${this.negative[row] ? "-" : ""}`;
  }

  // The row of an id, -1 where it has none. A scan of numbers: a map of a million ids would take a second to make.
  find(id) {
    const number = parseInt(id.slice(id.lastIndexOf("/") + 1), 10);
    for (let row = this.number.indexOf(number); row >= 0; row = this.number.indexOf(number, row + 1))
      if (this.id(row) === id) return row;
    return -1;
  }

  // What the explainer says of a row; without it, what the first of the others does.
  label(row, explainer) {
    const own = this.explained.find((one) => one.explainer === explainer);
    for (const one of own ? [own, ...this.explained] : this.explained)
      if (one.labels[row]) return one.labels[row];
    return "";
  }

  // All texts one behind the other, so that a search is one scan of one string. `texts`: of each explainer, in full;
  // none before they are there: then labels alone are searched.
  haystack(texts) {
    if (this.hay && !texts) return this.hay;
    const all = new Array(this.n);
    const starts = new Uint32Array(this.n + 1);
    for (let row = 0, at = 0; row < this.n; row++) {
      let text = this.id(row);
      this.explained.forEach((one, which) => (text += `\n${one.labels[row]}\n${texts?.[which][row] ?? ""}`));
      all[row] = `${text.toLowerCase()}\u0000`;
      at += all[row].length;
      starts[row + 1] = at;
    }
    this.hay = { text: all.join(""), starts, before: null };
    return this.hay;
  }

  // Rows that hold every word: 1, others 0. A "phrase in quotes" is one word.
  search(query) {
    const words = wordsOf(query).sort((one, other) => other.length - one.length);
    if (!words.length) return null;
    const { before } = this.haystack();
    // Who types on looks for less: only what was found then can hold the words now.
    const isLess = before && before.words.every((old) => words.some((word) => word.includes(old)));
    const rows = isLess && before.rows.length < this.n / 8 ? this.among(before.rows, words) : this.everywhere(words);
    this.hay.before = { words, rows };
    const found = new Uint8Array(this.n);
    for (const row of rows) found[row] = 1;
    return found;
  }

  among(rows, words) {
    const { text, starts } = this.hay;
    return rows.filter((row) => {
      const own = text.slice(starts[row], starts[row + 1]);
      return words.every((word) => own.includes(word));
    });
  }

  everywhere([first, ...others]) {
    const { text, starts } = this.hay;
    const found = [];
    const next = others.map(() => -1); // where a word comes next; each is looked for once
    let row = 0;
    for (let at = text.indexOf(first); at >= 0 && row < this.n; at = text.indexOf(first, starts[row])) {
      while (starts[row + 1] <= at) row++;
      const isIn = (word, which) => {
        if (next[which] < starts[row]) {
          const place = text.indexOf(word, starts[row]);
          next[which] = place < 0 ? Infinity : place;
        }
        return next[which] < starts[row + 1];
      };
      if (others.every(isIn)) found.push(row);
      row++;
    }
    return found;
  }

  // All rows, sorted; rows without a value last, equal ones in the order of the index. `explainer`: whose labels.
  order(column, descending, explainer) {
    const key = JSON.stringify([column, descending, column === "label" ? explainer : ""]);
    if (!this.orders.has(key)) {
      if (this.orders.size > 8) this.orders.clear();
      this.orders.set(key, this.sorted(column, descending, explainer));
    }
    return this.orders.get(key);
  }

  sorted(column, descending, explainer) {
    const rows = new Uint32Array(this.n);
    for (let row = 0; row < this.n; row++) rows[row] = row;
    const values = this.numeric.get(column);
    if (values) {
      const sign = descending ? -1 : 1;
      const keys = new Float64Array(this.n);
      for (let row = 0; row < this.n; row++) keys[row] = Number.isNaN(values[row]) ? Infinity : sign * values[row];
      return rows.sort((one, other) => (keys[one] === keys[other] ? one - other : keys[one] < keys[other] ? -1 : 1));
    }
    const texts = {
      label: () => Array.from(rows, (row) => this.label(row, explainer).toLowerCase()),
      status: () => Array.from(rows, (row) => this.statuses[this.status[row]]),
    }[column]?.();
    if (texts) {
      const sign = descending ? -1 : 1;
      return rows.sort((one, other) => {
        if (texts[one] === texts[other]) return one - other;
        if (!texts[one] || !texts[other]) return texts[one] ? -1 : 1;
        return texts[one] < texts[other] ? -sign : sign;
      });
    }
    return descending ? rows.reverse() : rows;
  }

  matching(state) {
    const found = this.search(state.query);
    const keep = found ?? new Uint8Array(this.n).fill(1);
    for (const [column, range] of Object.entries(state.ranges)) {
      const values = this.numeric.get(column);
      if (!values) continue;
      const { min = -Infinity, max = Infinity } = range;
      // What is not known is in no range.
      for (let row = 0; row < this.n; row++) if (!(values[row] >= min && values[row] <= max)) keep[row] = 0;
    }
    this.only(keep, this.status, state.status.map((name) => this.statuses.indexOf(name)));
    this.only(keep, this.dictionary, state.dictionary ? [this.dictionaries.indexOf(state.dictionary)] : []);
    return keep;
  }

  only(keep, codes, wanted) {
    if (!wanted.length) return;
    for (let row = 0; row < this.n; row++) if (!wanted.includes(codes[row])) keep[row] = 0;
  }

  rows(state) {
    const keep = this.matching(state);
    return this.order(state.sort, state.descending, state.explainer).filter((row) => keep[row]);
  }
}

function wordsOf(query) {
  const words = [];
  for (const [, phrase, word] of query.toLowerCase().matchAll(/"([^"]+)"?|(\S+)/g)) words.push(phrase ?? word);
  return words.filter((word) => word !== '"');
}
