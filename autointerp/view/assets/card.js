"use strict";
// The run's card: what it is, how far it is, what it found.

// `dictionary`: whose plots come first, where there are several.
function cardPane(index, { open, dictionary }) {
  const { card } = index;
  return [
    h("header", { class: "feature-head" }, h("p", { class: "crumbs" }, "run"), h("h2", null, card.name),
      card.replica ? h("p", { class: "chip" }, `a replica of ${card.replica}: its windows and splits, faults included`) : null,
      facts(card)),
    card.summaries.map((summary) => summaryOf(index, summary)),
    plotsOfOne(index, { open, dictionary }),
    money(card.spent),
    protocols(card),
    settings(card),
  ];
}

const IDENTITY = 12; // characters of it that are shown; the whole is its title

function facts(card) {
  const source = card.corpus ?? card.activations;
  const rows = [
    ["model", `${card.model.path}${card.model.revision ? `@${card.model.revision}` : ""}${card.model.weights === "random" ? ", with random weights" : ""}`, card.model.identity],
    ...card.dictionaries.map((one) => ["dictionary", `${one.path} at ${one.site}, ${count(one.width ?? 0)} features`, one.identity]),
    source ? [card.corpus ? "corpus" : "activations", `${source.path}${source.revision ? `@${source.revision}` : ""}, ${count(card.cache.n_tokens)} tokens in rows of ${card.cache.context_length}`, source.identity] : null,
    ["explainers", Object.entries(card.explainers).map(([name, one]) => (one.use === name ? name : `${name} (${one.use})`)).join(", ")],
    ["LLMs", Object.entries(card.llms).filter(([, one]) => one).map(([role, one]) => `${role}: ${one.model ?? one.use}${one.revision ? `@${one.revision}` : ""}`).join(", ")],
    ["made by", `autointerp ${card.made_by?.autointerp ?? card.package}, seed ${card.seed}`],
  ].filter(Boolean);
  return h("dl", { class: "facts" }, rows.map(([name, value, identity]) => [h("dt", null, name), h("dd", null, visible(value), identity ? h("code", { class: "identity", title: `identity ${visible(identity)}` }, visible(identity.slice(0, IDENTITY))) : null)]));
}

function summaryOf(index, summary) {
  const { card } = index;
  const reasons = (ends) => Object.entries(ends).map(([name, n]) => `${count(n)} ${card.meanings[name] ?? words(name)}`).join("; ");
  const lost = Object.fromEntries(Object.entries(summary.by_status).filter(([name]) => name !== "full"));
  const steps = [
    { name: "asked for", n: summary.n_asked },
    { name: "sampled", n: summary.n_sampled },
    { name: "with enough windows", n: summary.n_explainable, note: reasons(lost) },
    ...summary.explainers.map((one) => ({ name: `explained by ${one.explainer}`, n: one.n_explained, note: reasons(one.ends) + (one.n_open ? ` ${count(one.n_open)} still open` : ""), kind: "explained" })),
    ...summary.scores.map((one) => ({ name: `scored: ${scoreName(one, card.no_explainer)}`, n: one.n_scored, note: reasons(one.ends), kind: "scored" })),
  ];
  return [
    section(card.dictionaries.length > 1 ? `How far: ${summary.dictionary}` : "How far", null, funnel(steps)),
    summary.scores.length ? section("Scores", "means over features, 95% intervals", meansTable(index, summary)) : null,
  ];
}

function meansTable(index, summary) {
  const { card } = index;
  const controls = [...new Set(index.scored.flatMap((one) => index.floors(one, summary.dictionary)).map((one) => one.name))];
  return h("div", { class: "wide" }, h("table", { class: "means" },
    h("tr", null, ["", "", "mean", "chance", ...controls, "trials", "unreadable", "above chance"].map((one) => h("th", null, one))),
    summary.scores.map((one) => {
      const floors = index.floors(one, summary.dictionary);
      return h("tr", null,
        h("th", null, scoreName(one, card.no_explainer), h("span", { class: "note" }, ` ${words(one.headline)}`)),
        h("td", null, one.value ? scoreBar({ ...one.value, chance: one.chance, floors: floors.map((floor) => floor.value) }, index.column(one).range) : null),
        h("td", null, one.value ? [fixed(one.value.value, 3), one.value.low === null ? null : h("span", { class: "ends" }, ` ${fixed(one.value.low, 3)} to ${fixed(one.value.high, 3)}`)] : "–"),
        h("td", null, fixed(one.chance)),
        controls.map((name) => h("td", null, fixed(floors.find((floor) => floor.name === name)?.value, 3))),
        h("td", null, count(one.n_trials)), h("td", null, count(one.n_unreadable)),
        h("td", null, one.n_tested ? `${count(one.n_claimed)} of ${count(one.n_tested)}` : "–"));
    })));
}

// The plots of a dictionary; where there are several, a choice above them.
function plotsOfOne(index, { open, dictionary }) {
  const plots = (name) => [charts(index, name, { open }), recallByDecile(index, name)].flat().filter(Boolean);
  if (index.dictionaries.length === 1) return plots(dictionary);
  const body = h("div", { class: "of-one" });
  const show = (name) => {
    for (const button of buttons) button.setAttribute("aria-pressed", button.textContent === name);
    body.replaceChildren(...plots(name));
  };
  const buttons = index.dictionaries.map((name) => h("button", { onclick: () => show(name) }, name));
  show(dictionary);
  return [section("Plots", "of one dictionary", h("div", { class: "choices", role: "group", "aria-label": "Which dictionary" }, buttons)), body];
}

function charts(index, dictionary, { open }) {
  const scored = index.scored
    .map((one) => ({ ...one, value: index.within(one, dictionary) }))
    .filter((one) => one.value.some((value) => !Number.isNaN(value)));
  if (!scored.length) return null;
  const name = (one) => scoreName(one, index.card.no_explainer);
  const chance = (one) => index.chance(one, dictionary);
  const axis = (one) => `${name(one)}: ${words(one.headline)}`;
  const histograms = h("div", { class: "plots" }, scored.map((one) => histogram(one.value, {
    name: axis(one),
    marks: [
      ...(chance(one) === null ? [] : [{ at: chance(one), text: "chance", kind: "chance" }]),
      ...index.floors(one, dictionary).map((floor) => ({ at: floor.value, text: floor.name, kind: "floor" })),
    ],
  })));
  const density = index.numeric.get("density");
  const againstDensity = h("div", { class: "plots" }, scored.map((one) => cloud(density, one.value, { xName: "density", yName: name(one), logX: true, open, mark: chance(one) ?? undefined })));
  const pairs = [...new Set(scored.map((one) => one.explainer))].flatMap((explainer) => {
    const [first, second] = index.card.against.map((names) => scored.filter((one) => one.explainer === explainer && names.includes(one.scorer)));
    return first.flatMap((one) => second.map((other) => [one, other]));
  });
  const marks = scored.some((one) => index.floors(one, dictionary).length) ? "dashed: chance; dotted: controls" : "dashed: chance";
  const panel = scored.some((one) => one.early) ? "of sequential scorers the panel alone, which was asked everything: elsewhere stopping biases scores" : null;
  const note = (...said) => said.filter(Boolean).join("; ");
  return [
    section("Score histograms", note(marks, panel), histograms),
    section("Score against density", note(scored[0].value.length > POINTS_UP_TO ? "darker: more features" : "a point opens its feature", panel), againstDensity),
    pairs.length ? section("Detection against fuzzing", panel, h("div", { class: "plots" }, pairs.map(([one, other]) => cloud(one.value, other.value, { xName: name(one), yName: name(other), open })))) : null,
  ];
}

function recallByDecile(index, dictionary) {
  const scores = index.summary(dictionary).scores.filter((one) => Object.keys(one.bands).length);
  if (!scores.length) return null;
  const n = 1 + Math.max(...scores.flatMap((one) => Object.keys(one.bands).map(Number)));
  const names = Array.from({ length: n }, (_, at) => String(at + 1));
  const series = scores.map((one) => ({ name: scoreName(one, index.card.no_explainer), values: names.map((_, at) => one.bands[at]?.value ?? null) }));
  return section("Right by decile", "active windows by activation, 1 the strongest", h("div", { class: "with-legend" }, lines(series, { xName: "decile of activation", yName: "share right", xNames: names }), legend(series.map((one) => one.name))));
}

function money(spent) {
  const places = Object.entries(spent);
  if (!places.length) return null;
  const sum = (name) => places.reduce((total, [, one]) => total + one[name], 0);
  const dollars = (one) => (one.n_unpriced < one.n_requests ? `$${one.cost.toFixed(4)}${one.n_unpriced ? ` + ${count(one.n_unpriced)} unpriced` : ""}` : "unknown");
  const row = (name, one) => h("tr", null, h("th", null, name), ["n_requests", "prompt_tokens", "cached_tokens", "completion_tokens", "reasoning_tokens"].map((field) => h("td", null, count(one[field]))), h("td", null, dollars(one)));
  const names = ["n_requests", "prompt_tokens", "cached_tokens", "completion_tokens", "reasoning_tokens", "cost", "n_unpriced"];
  const total = Object.fromEntries(names.map((name) => [name, sum(name)]));
  return section("Tokens and money", null, h("div", { class: "wide" }, h("table", { class: "means" },
    h("tr", null, ["", "requests", "tokens in", "cached", "out", "of it thought", "cost"].map((one) => h("th", null, one))),
    places.map(([name, one]) => row(name, one)), places.length > 1 ? row("all", total) : null)));
}

function protocols(card) {
  const rows = card.summaries.flatMap((summary) => summary.scores).filter((one) => one.protocol);
  if (!rows.length) return null;
  const seen = new Map(rows.map((one) => [`${one.scorer} ${one.protocol}`, one]));
  return section("Protocols", "scores compare only under the same one", h("dl", { class: "facts" }, [...seen.values()].map((one) => [h("dt", null, words(one.scorer)), h("dd", null, visible(one.protocol))])));
}

function settings(card) {
  const { cache, sampling, explainers, scorers, model, corpus } = card;
  return h("details", null, h("summary", null, "Settings"), h("pre", null, prose(JSON.stringify({ model, corpus, cache, sampling, explainers, scorers }, null, 1))));
}
