"use strict";
// Windows of text: tokens shaded by how strongly the feature fires on them.

// Of one window: tokens that fire stand in elements of their own, runs of silent ones in plain text.
function textOf(window, maximum, marks) {
  const line = h("span", { class: "text", dir: "auto" });
  const values = new Map(window.places.map((place, at) => [place, window.values[at]]));
  const marked = new Set(marks ?? []);
  let silent = "";
  window.tokens.forEach((text, place) => {
    const value = values.get(place);
    if (value === undefined && !marked.has(place)) {
      silent += text;
      return;
    }
    if (silent) line.append(visible(silent));
    silent = "";
    line.append(shaded(text, value ?? 0, maximum, marked.has(place)));
  });
  if (silent) line.append(visible(silent));
  return line;
}

function shaded(text, value, maximum, isMarked) {
  const share = maximum ? Math.min(1, value / maximum) : 0;
  const element = h("span", { class: isMarked ? "fires marked" : "fires" }, visible(text));
  element.dataset.tip = `${short(value, 4)} · ${percent(share)} of the maximum${isMarked ? " · marked for the judge" : ""}`;
  if (value > 0) element.style.setProperty("--share", share.toFixed(3));
  return element;
}

const STRATA = {
  random: "silent, drawn at random",
  graded: "weak",
  same_token: "silent, with one of its top tokens",
  neighbour: "silent, where a feature alike fires",
  same_document: "silent, from a document where it fires",
  density: "silent, where a feature as dense fires",
  embedding: "silent, of similar text",
};

function groupName(band, stratum) {
  if (stratum !== null && stratum !== undefined) return STRATA[stratum] ?? words(stratum);
  if (band === null || band === undefined) return "other";
  return band === 0 ? "decile 1, the strongest" : `decile ${band + 1}`;
}

function strongest(window) {
  return window.values.length ? Math.max(...window.values) : 0;
}

// [{name, rows}] of rows that have a band or a stratum: deciles first, from the strongest.
function grouped(rows) {
  const groups = new Map();
  for (const row of rows) {
    const name = groupName(row.band, row.stratum);
    if (!groups.has(name)) groups.set(name, { name, order: row.stratum ? 100 + Object.keys(STRATA).indexOf(row.stratum) : (row.band ?? 99), rows: [] });
    groups.get(name).rows.push(row);
  }
  return [...groups.values()].sort((one, other) => one.order - other.order);
}

// What the explainer was shown: active windows by decile, silent ones folded away.
function shownWindows(feature) {
  const windows = feature.windows.shown ?? [];
  if (!windows.length) return null;
  const maximum = feature.sample.maximum;
  const all = feature.n_windows.shown;
  const line = (window) => h("div", { class: "window" }, h("span", { class: "value" }, short(strongest(window))), textOf(window, maximum));
  const [active, silent] = [windows.filter((one) => one.stratum === null), windows.filter((one) => one.stratum !== null)];
  const bands = grouped(active).map(({ name, rows }) =>
    h("div", { class: "group" }, h("h4", null, name), rows.sort((one, other) => strongest(other) - strongest(one)).map(line)));
  const others = silent.length
    ? h("details", null, h("summary", null, `${silent.length} windows it was set against`), silent.map(line))
    : null;
  const note = all > windows.length ? `${windows.length} of ${all} kept in this page` : `${windows.length}`;
  return section("Shown to the explainer", note, h("div", { class: "windows" }, bands), others);
}

function section(title, note, ...content) {
  return h("section", null, h("h3", null, title, note ? h("span", { class: "note" }, note) : null), content);
}
