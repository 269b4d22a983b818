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

  // `texts`: of each explainer, in full; none before they are there: then labels alone are searched.
  haystack(texts) {
    if (this.hay && !texts) return this.hay;
    this.hay = new Haystack(this.n, (row) => {
      let text = this.id(row);
      this.explained.forEach((one, which) => (text += `\n${one.labels[row]}\n${texts?.[which][row] ?? ""}`));
      return text;
    });
    return this.hay;
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
    const every = counted(this.n);
    if (this.numeric.has(column)) return byNumbers(this.numeric.get(column), descending);
    if (column === "label") return byTexts(Array.from(every, (row) => this.label(row, explainer).toLowerCase()), descending);
    if (column === "status") return byTexts(Array.from(every, (row) => this.statuses[this.status[row]]), descending);
    return descending ? every.reverse() : every;
  }

  // 1 for rows that the search and filters leave, 0 for others; null where there are none.
  matching(state) {
    const words = wordsOf(state.query);
    const ranges = Object.entries(state.ranges).filter(([column]) => this.numeric.has(column));
    if (!words.length && !ranges.length && !state.status.length && !state.dictionary) return null;
    const keep = words.length ? this.haystack().search(words) : new Uint8Array(this.n).fill(1);
    for (const [column, { min = -Infinity, max = Infinity }] of ranges) {
      const values = this.numeric.get(column);
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

  // Picked out of the order that is kept: nothing is sorted again.
  rows(state) {
    const order = this.order(state.sort, state.descending, state.explainer);
    const keep = this.matching(state);
    if (!keep) return order;
    const rows = new Uint32Array(this.n);
    let n = 0;
    for (const row of order) if (keep[row]) rows[n++] = row;
    return rows.slice(0, n);
  }
}
