"use strict";
// The table of features: only rows in sight are elements, so that any number of them scrolls.

const ROW = 34; // pixels, as in the style
const TALLEST = 8e6; // pixels that browsers lay out well; beyond, scrolling is scaled

class Table {
  constructor(open) {
    this.open = open;
    this.rows = new Uint32Array(0);
    this.drawn = new Map(); // place -> element, of rows in sight
    this.scroll = document.getElementById("scroll");
    this.space = document.getElementById("space");
    this.box = document.getElementById("rows");
    this.head = document.getElementById("head");
    this.scroll.addEventListener("scroll", () => this.draw(), { passive: true });
    new ResizeObserver(() => this.draw()).observe(this.scroll);
  }

  // `columns`: entries of index.scored that are shown.
  show(index, rows, state, columns, sort) {
    this.index = index;
    this.rows = rows;
    this.state = state;
    this.columns = columns;
    this.space.style.height = `${Math.min(TALLEST, rows.length * ROW)}px`;
    this.scroll.setAttribute("aria-rowcount", rows.length);
    const grid = `${index.dictionaries.length > 1 ? "6.4rem" : "4rem"} minmax(5.6rem, 1fr) repeat(${columns.length}, minmax(var(--score), 6rem)) 3.8rem 3.3rem`;
    document.documentElement.style.setProperty("--grid", grid);
    this.head.style.paddingRight = `${12 + this.scroll.offsetWidth - this.scroll.clientWidth}px`; // the scroll bar
    this.drawHead(sort);
    this.drawn = new Map();
    this.box.replaceChildren();
    if (!rows.length) this.box.append(h("p", { class: "empty" }, "No feature matches. Clear the search or a filter."));
    this.draw();
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

  get height() {
    return this.scroll.clientHeight;
  }

  // The list place that is at the top, as a fraction of rows.
  get first() {
    const all = this.rows.length * ROW;
    if (all <= TALLEST) return this.scroll.scrollTop / ROW;
    return (this.scroll.scrollTop / Math.max(1, TALLEST - this.height)) * ((all - this.height) / ROW);
  }

  // Rows that are in sight already stay as they are: a click, a key or a little scrolling costs next to nothing.
  draw() {
    if (!this.index) return;
    const first = Math.floor(this.first);
    const end = Math.min(first + Math.ceil(this.height / ROW) + 2, this.rows.length);
    const offset = `translateY(${this.scroll.scrollTop - (this.first - first) * ROW}px)`;
    if (this.box.style.transform !== offset) this.box.style.transform = offset;
    for (const [place, element] of this.drawn) {
      if (place >= first && place < end) continue;
      element.remove();
      this.drawn.delete(place);
    }
    for (let place = first; place < end; place++) {
      const known = this.drawn.get(place);
      if (known) this.mark(known, place);
      else {
        const element = this.row(place);
        this.drawn.set(place, element);
        this.box.insertBefore(element, this.box.children[place - first] ?? null);
      }
    }
  }

  // Says of a row whether it is the one that is open.
  mark(element, place) {
    const isOpen = this.state.feature === this.index.id(this.rows[place]);
    if (element.classList.contains("open") === isOpen) return;
    element.classList.toggle("open", isOpen);
    element.setAttribute("aria-selected", isOpen);
  }

  row(place) {
    const row = this.rows[place];
    const index = this.index;
    const id = index.id(row);
    const dictionary = dictionaryOf(id);
    const label = index.label(row, this.state.explainer);
    const status = index.statuses[index.status[row]];
    const isOpen = this.state.feature === id;
    return h("div", { class: isOpen ? "row open" : "row", role: "row", "aria-selected": isOpen, "aria-rowindex": place + 1, "data-row": row, onclick: () => this.open(row) },
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

  // Scrolls no further than needed.
  reveal(place) {
    const first = this.first;
    const fit = this.height / ROW;
    let to = null;
    if (place < first) to = place;
    else if (place + 1 > first + fit) to = place + 1 - fit;
    if (to !== null) {
      const all = this.rows.length * ROW;
      this.scroll.scrollTop = all <= TALLEST ? to * ROW : (to / ((all - this.height) / ROW)) * (TALLEST - this.height);
    }
    this.draw();
  }
}

function densityText(density) {
  return Number.isNaN(density) ? "–" : percent(density);
}
