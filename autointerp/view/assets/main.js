"use strict";
// The page: one state, kept in the address; everything shown follows from it.

let index;
let table;
let state = readAddress();
let shown = { feature: "" }; // what the pane holds: a feature by its id, or the run; another object each time
const $ = (id) => document.getElementById(id);
const MOST_COLUMNS = 3;

function columnsShown() {
  if (state.columns) return index.scored.filter((one) => state.columns.includes(one.key));
  const by = state.explainer || index.explained[0]?.explainer;
  const those = index.scored.filter((one) => one.explainer === by);
  return (those.length ? those : index.scored).slice(0, MOST_COLUMNS);
}

// --- showing ---

// `isFromTop`: whether it is scrolled back to its top.
function showList(isFromTop = false) {
  const began = performance.now();
  const rows = index.rows(state);
  table.show(index, rows, state, columnsShown(), { sort: sortBy, isFromTop });
  performance.measure("list", { start: began });
  $("count").textContent = rows.length === index.n ? `${count(index.n)} features` : `${count(rows.length)} of ${count(index.n)}`;
  const n = Object.keys(state.ranges).length + state.status.length + (state.dictionary ? 1 : 0);
  $("filters-button").textContent = n ? `Filters (${n})` : "Filters";
}

async function showPane() {
  const wanted = state.feature;
  const isOver = () => state.feature !== wanted || (shown.feature === wanted && $("pane").childElementCount);
  if (isOver()) return;
  const began = performance.now();
  const row = wanted ? index.find(wanted) : -1;
  let [content, rest] = [null, () => []];
  if (!wanted) {
    await painted(); // the list first: the card's plots look at every feature
    content = cardPane(index, { open: openRow, dictionary: index.dictionaries.includes(state.dictionary) ? state.dictionary : index.dictionaries[0] });
  } else if (row < 0) content = [h("p", { class: "empty" }, `There is no feature ${wanted} in this run's page.`)];
  else {
    try {
      const feature = await readFeature(row, index.featuresAShard);
      if (isOver()) return;
      content = featurePane(feature, { index, step, open: openRow });
      rest = () => featureRest(feature, index);
    } catch (error) {
      content = [h("p", { class: "empty" }, error.message)];
    }
  }
  if (isOver()) return;
  const own = (shown = { feature: wanted });
  $("pane").scrollTop = 0; // of what was there, which is laid out
  $("pane").replaceChildren(...elementsOf(content));
  performance.measure("pane", { start: began });
  await painted();
  if (shown !== own) return;
  try {
    $("pane").append(...elementsOf(rest()));
  } catch (error) {
    $("pane").append(h("p", { class: "empty" }, error.message));
  }
  if (row >= 0) readAhead(row);
}

function elementsOf(content) {
  return content.flat(Infinity).filter(Boolean);
}

// Those above and below in the list are likely the next.
function readAhead(row) {
  const place = table.placeOf(row);
  for (const next of place < 0 ? [] : [place + 1, place - 1])
    if (next in table.rows) askFor(table.rows[next], index.featuresAShard);
}

function painted() {
  return new Promise((go) => requestAnimationFrame(() => setTimeout(go)));
}

function change(changes, { isFromTop = false } = {}) {
  state = { ...state, ...changes };
  writeAddress(state, false);
  showList(isFromTop);
  showPane();
}

function openRow(row) {
  const id = row === null ? "" : index.id(row);
  state = { ...state, feature: id };
  writeAddress(state, true);
  showPane(); // first: while its file is read the list is drawn
  table.state = state;
  const place = row === null ? -1 : table.placeOf(row);
  if (place >= 0) table.reveal(place);
  else table.draw();
}

function sortBy(column) {
  const isSame = state.sort === column;
  // Scores are first looked at from the best, names from the first.
  change({ sort: column, descending: isSame ? !state.descending : index.numeric.has(column) }, { isFromTop: true });
}

function step(by) {
  const row = state.feature ? index.find(state.feature) : -1;
  const place = row < 0 ? -1 : table.placeOf(row);
  const next = place < 0 ? 0 : place + by;
  if (next >= 0 && next < table.rows.length) openRow(table.rows[next]);
}

// --- filters ---

function numericColumns() {
  const scores = index.scored.map((one) => [one.key, scoreName(one, index.card.no_explainer)]);
  return [...scores, ["density", "density"], ["maximum", "maximum"], ["windows", "active windows"]];
}

function drawFilters() {
  const range = (column, end) => h("input", {
    type: "number", step: "any", placeholder: end === "min" ? "from" : "to", value: state.ranges[column]?.[end], "aria-label": `${column} ${end}`,
    oninput: (event) => {
      const value = event.target.valueAsNumber;
      const ranges = { ...state.ranges, [column]: { ...state.ranges[column], [end]: Number.isNaN(value) ? undefined : value } };
      if (ranges[column].min === undefined && ranges[column].max === undefined) delete ranges[column];
      change({ ranges });
    },
  });
  const visibleColumns = new Set(columnsShown().map((one) => one.key));
  const columnBox = (key) => h("input", {
    type: "checkbox", checked: visibleColumns.has(key), title: "Show as a column", "aria-label": `Show ${key} as a column`,
    onchange: (event) => {
      if (event.target.checked) visibleColumns.add(key);
      else visibleColumns.delete(key);
      change({ columns: index.scored.map((one) => one.key).filter((one) => visibleColumns.has(one)) });
    },
  });
  const statuses = index.statuses.map((status) => h("label", null, h("input", {
    type: "checkbox", checked: state.status.includes(status),
    onchange: (event) => change({ status: event.target.checked ? [...state.status, status] : state.status.filter((one) => one !== status) }),
  }), ` ${words(status)}`));
  const parts = [
    h("div", { class: "ranges" }, numericColumns().map(([column, name]) =>
      h("div", { class: "range" }, index.scored.some((one) => one.key === column) ? columnBox(column) : h("span"), h("span", { class: "what" }, name), range(column, "min"), range(column, "max")))),
    h("div", { class: "others" },
      index.explained.length > 1 ? h("label", null, "labels of ", choose(index.explained.map((one) => [one.explainer, one.explainer]), state.explainer || index.explained[0].explainer, (explainer) => change({ explainer, columns: null }))) : null,
      index.dictionaries.length > 1 ? h("label", null, "dictionary ", choose([["", "all"], ...index.dictionaries.map((one) => [one, one])], state.dictionary, (dictionary) => change({ dictionary }))) : null,
      index.statuses.length > 1 ? h("div", { class: "statuses" }, "status", statuses) : null,
      h("button", { onclick: () => { change({ ranges: {}, status: [], dictionary: "", query: "" }); $("search").value = ""; drawFilters(); } }, "Clear all")),
  ];
  $("filters").replaceChildren(...parts);
}

function toggleFilters(open = $("filters").hidden) {
  $("filters").hidden = !open;
  $("filters-button").setAttribute("aria-expanded", open);
  if (open) drawFilters();
}

// --- keys, theme, help ---

const KEYS = [
  ["j  ↓", "the next feature", () => step(1)],
  ["k  ↑", "the one before", () => step(-1)],
  ["/", "search", () => $("search").focus()],
  ["f", "filters", () => toggleFilters()],
  ["r", "the run's card", () => openRow(null)],
  ["t", "light or dark", () => toggleTheme()],
  ["?", "these keys", () => toggleHelp()],
];
const ACTIONS = new Map(KEYS.flatMap(([keys, , action]) => keys.split(/\s+/).map((key) => [{ "↓": "ArrowDown", "↑": "ArrowUp" }[key] ?? key, action])));

function toggleHelp() {
  const help = $("help");
  if (help.open) return help.close();
  help.replaceChildren(
    h("h2", null, "Keys"),
    h("dl", null, KEYS.map(([keys, what]) => [h("dt", null, keys.split(/\s+/).map((key) => h("kbd", null, key))), h("dd", null, what)]), h("dt", null, h("kbd", null, "Enter")), h("dd", null, "in the search: open the first found")),
    h("p", { class: "note" }, "Several words: features with all of them. \"In quotes\": as a phrase. The address keeps search, filters, order and feature: copy it as a link."),
    h("form", { method: "dialog" }, h("button", null, "Close")));
  help.showModal();
}

function isDark() {
  const chosen = document.documentElement.dataset.theme;
  return chosen ? chosen === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
}

function setTheme(theme) {
  if (theme) document.documentElement.dataset.theme = theme;
  $("theme").textContent = isDark() ? "☀" : "☾";
}

function toggleTheme() {
  setTheme(isDark() ? "light" : "dark");
  remember("theme", document.documentElement.dataset.theme);
}

// Some browsers keep nothing for pages from a disk, and say so by an error.
function remember(name, value) {
  try {
    localStorage.setItem(`autointerp.${name}`, value);
  } catch (error) {
    if (!(error instanceof DOMException)) throw error;
  }
}

function remembered(name) {
  try {
    return localStorage.getItem(`autointerp.${name}`);
  } catch (error) {
    if (!(error instanceof DOMException)) throw error;
    return null;
  }
}

function onKey(event) {
  if (event.ctrlKey || event.metaKey || event.altKey || $("help").open) return;
  const isTyping = event.target.matches("input, select, textarea");
  if (event.key === "Escape") return event.target.blur();
  if (isTyping) {
    if (event.target === $("search") && event.key === "Enter" && table.rows.length) {
      openRow(table.rows[0]);
      $("scroll").focus();
    }
    return;
  }
  const action = ACTIONS.get(event.key);
  if (!action) return;
  event.preventDefault();
  action();
}

function showTip(event) {
  const said = event.target.dataset?.tip;
  const tip = $("tip");
  tip.hidden = !said;
  if (!said) return;
  tip.textContent = said;
  const box = event.target.getBoundingClientRect();
  tip.style.left = `${Math.min(box.left, innerWidth - tip.offsetWidth - 8)}px`;
  tip.style.top = `${box.top > 40 ? box.top - tip.offsetHeight - 4 : box.bottom + 4}px`;
}

// --- begin ---

function fromAddress() {
  state = readAddress();
  $("search").value = state.query;
  showList();
  showPane();
  const row = state.feature ? index.find(state.feature) : -1;
  if (row >= 0) table.reveal(table.placeOf(row));
  if (!$("filters").hidden) drawFilters();
}

async function begin() {
  setTheme(remembered("theme"));
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => setTheme());
  try {
    index = new Index(await readWhole("index"));
  } catch (error) {
    $("pane").replaceChildren(h("p", { class: "empty" }, error.message));
    return;
  }
  for (const one of index.scored) one.range = span(one.value);
  table = new Table({ open: openRow, ask: (row) => askFor(row, index.featuresAShard) });
  $("home").textContent = index.card.name;
  $("home").addEventListener("click", () => openRow(null));
  $("search").addEventListener("input", (event) => change({ query: event.target.value }, { isFromTop: true }));
  $("filters-button").addEventListener("click", () => toggleFilters());
  $("theme").addEventListener("click", toggleTheme);
  $("help-button").addEventListener("click", toggleHelp);
  addEventListener("popstate", fromAddress);
  addEventListener("hashchange", fromAddress);
  document.addEventListener("keydown", onKey);
  document.addEventListener("mouseover", showTip);
  fromAddress();
  performance.mark("usable");
  index.haystack(await readWhole("texts")); // now, so that the first search need not wait
  performance.mark("searchable");
  if (state.query) showList();
}

begin();
