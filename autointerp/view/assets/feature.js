"use strict";
// One feature in full.

// What is in sight when it is opened; below follows `featureRest`, three quarters of the elements.
function featurePane(feature, { index, step, open }) {
  const { sample } = feature;
  const facts = [
    sample.n_tokens ? `fires on ${count(sample.n_fired)} of ${count(sample.n_tokens)} tokens (${percent(sample.n_fired / sample.n_tokens)})` : "how often it fires is not known",
    sample.n_documents ? `in ${count(sample.n_documents)} documents` : null,
    `${count(sample.n_windows)} active windows${sample.contrast === "graded" ? ", set against weak ones" : ""}`,
    sample.maximum ? `maximum ${short(sample.maximum)}, mean ${short(sample.mean)}` : null,
    sample.random_rate === null ? null : `on ${percent(sample.random_rate)} of random tokens`,
  ].filter(Boolean);
  const title = feature.explanations.find((one) => one.label)?.label;
  return [
    h("header", { class: "feature-head" },
      h("div", { class: "steps" },
        h("button", { onclick: () => step(-1), title: "The one before (k)", "aria-label": "The one before" }, "↑"),
        h("button", { onclick: () => step(1), title: "The next (j)", "aria-label": "The next" }, "↓")),
      h("p", { class: "crumbs" }, feature.id, h("span", { class: `chip ${sample.status}` }, words(sample.status))),
      h("h2", { dir: "auto" }, title ? visible(title) : "No explanation"),
      h("p", { class: "note" }, facts.join(" · "))),
    explanationCards(feature, index),
    h("div", { class: "known" }, distribution(sample), vocabulary(feature.directions), topTokens(sample), nearest(feature.directions, index, open)),
    shownWindows(feature),
  ];
}

function featureRest(feature, index) {
  return [trialsSection(feature, index), scoresSection(feature, index), effectsSection(feature.effects)];
}

function headlineOf(score) {
  return score.metrics?.values?.[score.metrics.headline] ?? null;
}

// Which explanation has the best headline of each scorer, where two or more have one and one is above all others.
function bestOf(feature) {
  const best = new Map();
  for (const scorer of new Set(feature.scores.map((one) => one.scorer))) {
    const those = feature.scores.filter((one) => one.scorer === scorer && headlineOf(one));
    if (those.length < 2) continue;
    const most = Math.max(...those.map((one) => headlineOf(one).value));
    const first = those.filter((one) => headlineOf(one).value === most);
    if (first.length > 1) continue;
    const isApart = those.every((one) => one === first[0] || headlineOf(one).high < headlineOf(first[0]).low);
    best.set(scorer, { explainer: first[0].explainer, isApart });
  }
  return best;
}

function explanationCards(feature, index) {
  if (!feature.explanations.length) return null;
  const best = bestOf(feature);
  return h("div", { class: "cards" }, feature.explanations.map((one) => {
    const scores = feature.scores.filter((score) => score.explainer === one.explainer);
    return h("section", { class: "card" },
      h("h3", null, one.explainer, h("span", { class: "note" }, one.llm ?? "")),
      one.text !== undefined
        ? h("p", { class: "explanation", dir: "auto" }, prose(one.text))
        : h("p", { class: "explanation none" }, `${words(one.status)}${one.reason ? `: ${prose(one.reason)}` : ""}`),
      one.refused_by ? h("p", { class: "note" }, `Declined by ${one.refused_by.join(", ")}`) : null,
      scores.map((score) => scoreLine(feature, score, index, best.get(score.scorer))),
      one.details ? detailsOf(one.details) : null);
  }));
}

function scoreLine(feature, score, index, best) {
  const value = headlineOf(score);
  const { chance } = score.metrics ?? {};
  const column = index.column(score);
  const floors = index.floors(score, dictionaryOf(feature.id)).map((one) => one.value);
  return h("div", { class: "score-line" },
    h("span", { class: "what", title: score.metrics ? words(score.metrics.headline) : "" }, words(score.scorer)),
    scoreBar({ ...value, chance, floors }, column.range),
    h("span", { class: "number" }, value ? interval(value) : words(score.status)),
    best?.explainer === score.explainer ? h("span", { class: "chip best", title: `The highest of these explanations${best.isApart ? "" : "; the intervals overlap"}` }, best.isApart ? "best" : "highest") : null);
}

function interval({ value, low, high }) {
  return [fixed(value), h("span", { class: "ends" }, ` ${fixed(low)} to ${fixed(high)}`)];
}

// What else an explainer found: the candidates of a race, concepts, drafts. Shown as it is.
function detailsOf(details) {
  const { winner, candidates, ...others } = details;
  return h("details", null, h("summary", null, candidates ? `${Object.keys(candidates).length} candidates` : "details"),
    Object.entries(candidates ?? {}).map(([name, one]) =>
      h("p", { class: name === winner ? "candidate winner" : "candidate", dir: "auto" },
        h("b", null, name), name === winner ? h("span", { class: "chip best" }, "winner") : null, ` ${prose(one.text ?? `${one.status}: ${one.reason}`)}`,
        one.select === undefined ? null : h("span", { class: "note" }, ` ${short(one.select)} on select windows`))),
    Object.keys(others).length ? h("pre", null, prose(JSON.stringify(others, null, 1))) : null);
}

function distribution(sample) {
  return sample.histogram.length ? h("section", null, h("h3", null, "Activations"), activationHistogram(sample.histogram)) : null;
}

function vocabulary(directions) {
  if (!directions?.promoted) return null;
  const most = Math.max(...[...directions.promoted, ...(directions.suppressed ?? [])].map(([, effect]) => Math.abs(effect)));
  const column = (title, tokens, kind) => h("div", null, h("h3", null, title),
    (tokens ?? []).map(([text, effect]) => h("div", { class: `effect ${kind}` }, token(text),
      h("span", { class: "track" }, h("span", { class: "fill", style: { width: `${(100 * Math.abs(effect)) / most}%` } })), h("span", { class: "number" }, fixed(effect)))));
  return h("section", { class: "vocabulary" }, column("Promotes", directions.promoted, "up"), column("Suppresses", directions.suppressed, "down"));
}

function topTokens(sample) {
  if (!sample.top_tokens.length) return null;
  return h("section", null, h("h3", null, "Fires most on"),
    sample.top_tokens.map(([text, n]) => h("div", { class: "effect warm" }, token(text),
      h("span", { class: "track" }, h("span", { class: "fill", style: { width: `${(100 * n) / sample.n_fired}%` } })), h("span", { class: "number" }, percent(n / sample.n_fired)))));
}

const N_NEAREST = 10;

function nearest(directions, index, open) {
  if (!directions?.nearest.length) return null;
  return h("section", null, h("h3", null, "Nearest features", h("span", { class: "note" }, "cosine of decoder rows")),
    h("ol", { class: "nearest" }, directions.nearest.slice(0, N_NEAREST).map(([id, similarity]) => {
      const row = index.find(id);
      const label = row < 0 ? null : index.label(row, "");
      return h("li", null, h("span", { class: "number" }, fixed(similarity)),
        row < 0 ? h("span", { class: "id" }, id) : h("a", { href: addressOf({ ...state, feature: id }), onclick: (event) => { event.preventDefault(); open(row); } }, id),
        h("span", { class: "label", dir: "auto" }, label ? visible(label) : ""));
    })));
}

function trialsSection(feature, index) {
  const scores = feature.scores.filter((one) => one.trials);
  if (!scores.length) return null;
  const { no_explainer: none } = index.card;
  const body = h("div");
  const buttons = scores.map((score) => h("button", { role: "tab", onclick: () => show(score) }, scoreName(score, none)));
  const show = (score) => {
    buttons.forEach((button, at) => button.setAttribute("aria-selected", scores[at] === score));
    body.replaceChildren(...[trialsOf(feature, score)].flat().filter(Boolean));
  };
  const found = section("Trials", "on windows that no explainer saw", h("div", { class: "tabs", role: "tablist" }, buttons), body);
  show(scores[0]);
  return found;
}

function scoresSection(feature, index) {
  if (!feature.scores.length) return null;
  const { no_explainer: none } = index.card;
  return section("Scores", "95% intervals", feature.scores.map((score) => {
    const { metrics } = score;
    if (!metrics) return h("p", null, `${scoreName(score, none)}: ${words(score.status)}${score.reason ? `, ${prose(score.reason)}` : ""}`);
    const value = headlineOf(score);
    const floors = index.floors(score, dictionaryOf(feature.id));
    const facts = [
      `${metrics.n} trials`, metrics.n_unreadable ? `${metrics.n_unreadable} unreadable` : null,
      metrics.n_unreadable && metrics.bounds ? `between ${fixed(metrics.bounds[0])} and ${fixed(metrics.bounds[1])} whatever they were` : null,
      metrics.chance === null ? null : `chance ${fixed(metrics.chance)}`, metrics.p_value === null ? null : `p ${short(metrics.p_value, 2)}`,
      score.sequential ? `sequential test: ${score.sequential.decision}${score.sequential.in_panel ? ", of the panel that was asked everything" : ""}` : null,
      ...floors.map((one) => `${one.name} ${fixed(one.value)} on average`), ...metrics.flags,
    ].filter(Boolean);
    return h("details", { class: "score-card" },
      h("summary", null, h("b", null, scoreName(score, none)), h("span", { class: "note" }, words(metrics.headline)), scoreBar({ ...value, chance: metrics.chance, floors: floors.map((one) => one.value) }, index.column(score).range), h("span", { class: "number" }, value ? interval(value) : "–")),
      h("p", { class: "note" }, facts.join(" · ")),
      h("div", { class: "numbers" }, numbersTable("", Object.entries(metrics.values).filter(([, one]) => one)),
        numbersTable("controls on this feature", score.controls.map((one) => [one.lender ? `${one.name}, of ${one.lender}` : one.name, one.value, one.n])),
        Object.entries(metrics.groups).map(([by, group]) => numbersTable(GROUPS[by] ?? words(by), Object.entries(group).filter(([, one]) => one.value).map(([name, one]) => [groupLabel(by, name), one.value, one.n])))),
      h("p", { class: "note" }, `${score.protocol} · ${score.llm}`));
  }));
}

const GROUPS = { band: "by decile: share right", stratum: "by stratum", offset: "by place of the strongest token" };

function groupLabel(by, name) {
  return by === "band" ? `decile ${Number(name) + 1}` : words(name);
}

function numbersTable(title, rows) {
  if (!rows.length) return null;
  return h("table", null, title ? h("caption", null, title) : null, rows.map(([name, value, n]) =>
    h("tr", null, h("th", null, words(name)), h("td", null, fixed(value.value)), h("td", { class: "ends" }, `${fixed(value.low)} to ${fixed(value.high)}`), h("td", { class: "ends" }, n === undefined ? "" : `n ${n}`))));
}

const SEARCHES = { no_bracket: "no strength reaches this", not_reached: "no strength comes near enough" };

function effectsSection(effects) {
  if (!effects) return null;
  if (!effects.prompts) return section("Pushed along its direction", null, h("p", { class: "note" }, words(effects.status)));
  const own = effects.steered.filter((one) => one.arm === "feature");
  const changes = (title, tokens) => h("p", { class: "changes" }, h("span", { class: "what" }, title), tokens.map((one) => token(one)));
  const body = h("div");
  const show = (which) => {
    buttons.forEach((button, at) => button.setAttribute("aria-selected", own[at] === which));
    body.replaceChildren(
      changes("raises", which.raised), changes("lowers", which.lowered),
      ...(which.texts.length
        ? effects.prompts.map((prompt, at) => h("div", { class: "steered" },
            h("p", { class: "prompt", dir: "auto" }, visible(prompt)),
            h("p", { dir: "auto" }, h("span", { class: "what" }, "as it is"), visible(effects.clean[at])),
            h("p", { dir: "auto", class: "pushed" }, h("span", { class: "what" }, "pushed"), visible(which.texts[at]))))
        : [h("p", { class: "note" }, SEARCHES[which.status] ?? words(which.status))]));
  };
  const buttons = own.map((one) => h("button", { role: "tab", onclick: () => show(one) }, `KL ${short(one.target_kl)}`));
  const found = section("Pushed along its direction", "how the model goes on, at growing strength", h("div", { class: "tabs", role: "tablist" }, buttons), body);
  if (own.length) show(own[Math.min(2, own.length - 1)]);
  return found;
}
