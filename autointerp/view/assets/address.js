"use strict";
// What is looked at stands behind the # of the address, so that a link shows the same and Back goes back.
//   f: feature   q: search   by: explainer   sort: column, "-" before it where the largest come first
//   min.COLUMN, max.COLUMN: ranges   status, dictionary: only these   columns: score columns shown

const RANGE = /^(min|max)\.(.+)$/;

function readAddress() {
  const given = new URLSearchParams(location.hash.slice(1));
  const sort = given.get("sort") ?? "";
  const state = {
    feature: given.get("f") ?? "",
    query: given.get("q") ?? "",
    explainer: given.get("by") ?? "",
    sort: sort.replace(/^-/, ""),
    descending: sort.startsWith("-"),
    ranges: {},
    status: given.getAll("status"),
    dictionary: given.get("dictionary") ?? "",
    columns: given.has("columns") ? given.get("columns").split("|").filter(Boolean) : null,
  };
  for (const [name, value] of given) {
    const match = RANGE.exec(name);
    const number = Number(value);
    if (!match || value === "" || Number.isNaN(number)) continue;
    (state.ranges[match[2]] ??= {})[match[1]] = number;
  }
  return state;
}

function addressOf(state) {
  const said = new URLSearchParams();
  if (state.feature) said.set("f", state.feature);
  if (state.query) said.set("q", state.query);
  if (state.explainer) said.set("by", state.explainer);
  if (state.sort) said.set("sort", (state.descending ? "-" : "") + state.sort);
  for (const [column, range] of Object.entries(state.ranges))
    for (const end of ["min", "max"]) if (range[end] !== undefined) said.set(`${end}.${column}`, range[end]);
  for (const status of state.status) said.append("status", status);
  if (state.dictionary) said.set("dictionary", state.dictionary);
  if (state.columns) said.set("columns", state.columns.join("|"));
  return `#${said}`;
}

function writeAddress(state, asNew) {
  const address = addressOf(state);
  if (address === location.hash || (address === "#" && !location.hash)) return;
  history[asNew ? "pushState" : "replaceState"](null, "", address);
}
