"use strict";
// The table of features: only rows in sight are elements, so that any number of them scrolls.

const ROW = 34; // pixels, as in the style
const TALLEST = 8e6; // pixels that browsers lay out well; beyond, scrolling is scaled

class Table {
  // `open`: a row. `ask`: for a row that is likely opened next.
  constructor({ open, ask }) {
    this.open = open;
    this.ask = ask;
    this.rows = new Uint32Array(0);
    this.drawn = new Map(); // row -> element, of those in sight
    this.look = ""; // what it was laid out for
    this.scroll = document.getElementById("scroll");
    this.space = document.getElementById("space");
    this.box = document.getElementById("rows");
    this.head = document.getElementById("head");
    this.nothing = h("p", { class: "empty" }, "No feature matches. Clear the search or a filter.");
    this.height = this.scroll.clientHeight;
    this.scroll.addEventListener("scroll", () => this.draw(), { passive: true });
    new ResizeObserver(() => {
      this.height = this.scroll.clientHeight;
      this.draw();
    }).observe(this.scroll);
  }

  // `columns`: entries of index.scored that are shown. `isFromTop`: whether the list is scrolled back to its top.
  show(index, rows, state, columns, { sort, isFromTop }) {
    // Before anything changes: later the browser would have to lay out the page to answer, and then again.
    if (isFromTop && this.scroll.scrollTop) this.scroll.scrollTop = 0;
    const top = this.scroll.scrollTop;
    const before = this.rows.length;
    this.index = index;
    this.rows = rows;
    this.state = state;
    this.columns = columns;
    this.layOut(sort);
    if (rows.length !== before) {
      this.space.style.height = `${Math.min(TALLEST, rows.length * ROW)}px`;
      this.scroll.setAttribute("aria-rowcount", rows.length);
    }
    if (rows.length) this.nothing.remove();
    else this.box.append(this.nothing);
    this.draw(top ? this.scroll.scrollTop : 0); // a list that got shorter may have moved
  }

  // The head and the width of columns; rows that were drawn with others, or with other labels, are dropped.
  layOut(sort) {
    const { sort: by, descending, explainer } = this.state;
    const look = JSON.stringify([by, descending, explainer, this.columns.map((one) => one.key)]);
    if (look === this.look) return;
    this.look = look;
    const grid = `${this.index.dictionaries.length > 1 ? "6.4rem" : "4rem"} minmax(5.6rem, 1fr) repeat(${this.columns.length}, minmax(var(--score), 6rem)) 3.8rem 3.3rem`;
    document.documentElement.style.setProperty("--grid", grid);
    this.head.style.paddingRight = `${12 + this.scroll.offsetWidth - this.scroll.clientWidth}px`; // the scroll bar
    this.drawHead(sort);
    this.drawn.clear();
    this.box.replaceChildren();
  }

  drawHead(sort) {
    const cell = (column, text, title) => {
      const isSorted = this.state.sort === column;
      const arrow = isSorted ? (this.state.descending ? " ↓" : " ↑") : "";
      return h("button", { class: isSorted ? "sorted" : "", title, onclick: () => sort(column) }, `${text}${arrow}`);
    };
    this.head.replaceChildren(
      cell("", "feature", "In the order of the dictionary"),
      cell("label", "label", "By label"),
      ...this.columns.map((one) => cell(one.key, words(one.scorer), `${words(one.explainer)} · ${words(one.scorer)}: ${words(one.headline)}, 95% interval`)),
      cell("density", "density", "Share of tokens on which it fires"),
      cell("status", "status", "Whether it has windows enough to be explained and tested"),
    );
  }

  // The list place that is at the top, as a fraction of rows, when it is scrolled by so many pixels.
  firstAt(top) {
    const all = this.rows.length * ROW;
    if (all <= TALLEST) return top / ROW;
    return (top / Math.max(1, TALLEST - this.height)) * ((all - this.height) / ROW);
  }

  // Rows that are in sight already stay as they are: a letter typed, a click or a little scrolling costs next to
  // nothing.
  draw(top = this.scroll.scrollTop) {
    if (!this.index) return;
    const atTop = Math.max(0, this.firstAt(top)); // less where a browser lets a list be pulled down
    const first = Math.floor(atTop);
    const rows = this.rows.subarray(first, first + Math.ceil(this.height / ROW) + 2);
    const offset = `translateY(${top - (atTop - first) * ROW}px)`;
    if (this.box.style.transform !== offset) this.box.style.transform = offset;
    const inSight = new Set(rows);
    for (const [row, element] of this.drawn) {
      if (inSight.has(row)) continue;
      element.remove();
      this.drawn.delete(row);
    }
    let next = this.box.firstElementChild;
    rows.forEach((row, at) => {
      let element = this.drawn.get(row);
      if (!element) this.drawn.set(row, (element = this.row(row)));
      this.mark(element, row, first + at);
      if (element === next) next = next.nextElementSibling;
      else this.box.insertBefore(element, next);
    });
  }

  // Says of a row where in the list it is, and whether it is the one that is open.
  mark(element, row, place) {
    element.setAttribute("aria-rowindex", place + 1);
    const isOpen = this.state.feature === this.index.id(row);
    if (element.classList.contains("open") === isOpen) return;
    element.classList.toggle("open", isOpen);
    element.setAttribute("aria-selected", isOpen);
  }

  row(row) {
    const index = this.index;
    const id = index.id(row);
    const dictionary = dictionaryOf(id);
    const label = index.label(row, this.state.explainer);
    const status = index.statuses[index.status[row]];
    return h("div", { class: "row", role: "row", "aria-selected": "false", "data-row": row, onpointerdown: () => this.ask(row), onclick: () => this.open(row) },
      h("span", { class: "id", title: id }, index.dictionaries.length > 1 ? h("span", { class: "of" }, `${dictionary}/`) : null, index.shortId(row)),
      h("span", { class: label ? "label" : "label none", dir: "auto", title: visible(label) }, label ? visible(label) : "no explanation"),
      this.columns.map((one) => h("span", { class: "score" },
        scoreBar({ value: one.value[row], low: one.low[row], high: one.high[row], chance: index.chance(one, dictionary) }, one.range),
        h("span", { class: "number" }, fixed(one.value[row])))),
      h("span", { class: "number" }, densityText(index.numeric.get("density")[row])),
      h("span", { class: `status ${status}`, title: index.card.meanings[status] }, words(status)));
  }

  placeOf(row) {
    return this.rows.indexOf(row);
  }

  // Scrolls no further than needed; a row that is not in the list (-1) is nowhere to be scrolled to.
  reveal(place) {
    if (place < 0) return this.draw();
    const first = this.firstAt(this.scroll.scrollTop);
    const fit = this.height / ROW;
    let to = null;
    if (place < first) to = place;
    else if (place + 1 > first + fit) to = place + 1 - fit;
    if (to === null) return this.draw();
    const all = this.rows.length * ROW;
    const top = all <= TALLEST ? to * ROW : (to / ((all - this.height) / ROW)) * (TALLEST - this.height);
    this.scroll.scrollTop = top;
    this.draw(top); // where it ends up to a fraction of a pixel, which the browser says by an event
  }
}

function densityText(density) {
  return Number.isNaN(density) ? "–" : percent(density);
}
