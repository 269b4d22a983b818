"use strict";
// Trials: what a judge was asked, what is true and what it said. Wrong ones come first.

const VERDICTS = { right: "✓", wrong: "✗", unreadable: "?" };

function verdictOf(truth, answer) {
  if (answer === null || answer === undefined) return "unreadable";
  return answer === truth ? "right" : "wrong";
}

// Of features that fire nearly everywhere strong windows stand against weak ones.
function yes(truth, contrast) {
  if (contrast === "graded") return truth ? "strong" : "weak";
  return truth ? "fires" : "silent";
}

// Rows of a table of trials: {verdict, band, stratum, said, window}; `window`: place among the held-out windows.
const ROWS_OF = {
  judged: (trials, contrast) => trials.truth.map((truth, at) => {
    const answer = trials.answer?.[at] ?? null;
    const probability = trials.probability?.[at];
    const said = `${yes(truth, contrast)}, judge: ${answer === null ? "unreadable" : yes(answer, contrast)}`;
    return {
      ...cell(trials, at), verdict: verdictOf(truth, answer), marks: trials.marks?.[at],
      said: probability === null || probability === undefined ? said : `${said} (P ${fixed(probability)})`,
    };
  }),
  "judged in blocks": (trials, contrast) => ROWS_OF.judged(trials, contrast),
  ranked: (trials, contrast) => trials.truth.map((truth, at) => {
    const value = trials.value?.[at] ?? null;
    return { ...cell(trials, at), verdict: value === null ? "unreadable" : "", said: `${yes(truth, contrast)}, ${short(value)}`, value: value ?? -Infinity };
  }).sort((one, other) => other.value - one.value),
  chosen: (trials) => trials.right.map((right, at) => {
    const chosen = trials.chosen?.[at] ?? null;
    return { ...cell(trials, at), verdict: verdictOf(right, chosen), said: `the odd one is ${right + 1} of ${trials.n_options[at]}, judge: ${chosen === null ? "unreadable" : chosen + 1}` };
  }),
  predicted: (trials) => trials.predicted.map((predicted, at) => ({
    ...cell(trials, at), verdict: predicted.every((one) => one === null) ? "unreadable" : "", said: "", predicted, actual: trials.actual[at],
  })),
  responded: (trials) => trials.text.map((text, at) => {
    const active = trials.active?.[at] ?? null;
    return { verdict: verdictOf(true, active), said: `largest activation ${short(trials.maximum[at])}, threshold ${short(trials.threshold[at])}`, text };
  }),
  steered: (trials) => {
    const gains = new Map();
    trials.arm.forEach((arm, at) => {
      const name = `${words(arm)}, KL ${short(trials.target_kl?.[at])}`;
      const [steered, clean] = [trials.logp_steered?.[at] ?? null, trials.logp_clean?.[at] ?? null];
      if (!gains.has(name)) gains.set(name, []);
      gains.get(name).push(steered === null || clean === null ? null : steered - clean);
    });
    return [...gains].map(([name, all]) => {
      const known = all.filter((one) => one !== null);
      const mean = known.reduce((total, one) => total + one, 0) / known.length;
      const said = known.length ? `${fixed(mean, 3)} over ${known.length} prompts` : "no strength found";
      return { verdict: "", group: "change of the explanation's log-probability, mean", said: name, text: said };
    });
  },
};

function cell(trials, at) {
  return { window: trials.window?.[at], band: trials.band?.[at] ?? null, stratum: trials.stratum?.[at] ?? null };
}

// The trials of one score: a strip a decile or stratum, each trial a square, and beneath it the trials in full.
function trialsOf(feature, score) {
  const rows = ROWS_OF[score.trials.kind]?.(score.trials, score.contrast) ?? [];
  if (!rows.length) return h("p", { class: "note" }, "No trials.");
  const windows = new Map((feature.windows.heldout ?? []).map((one) => [one.at, one]));
  const groups = rows[0].group === undefined ? grouped(rows) : byGroup(rows);
  const list = h("div", { class: "windows" });
  const counts = { wrong: 0, right: 0, unreadable: 0 };
  for (const row of rows) if (row.verdict) counts[row.verdict]++;
  const kinds = ["wrong", "unreadable", "right"].filter((kind) => counts[kind]);
  const show = (kind) => {
    for (const button of buttons) button.setAttribute("aria-pressed", button.dataset.kind === kind);
    list.replaceChildren(...groups.flatMap(({ name, rows }) => {
      const those = rows.filter((row) => kind === "all" || row.verdict === kind);
      return those.length ? [h("div", { class: "group" }, h("h4", null, name), those.map((row) => trialLine(feature, row, windows)))] : [];
    }));
  };
  const buttons = ["all", ...kinds].map((kind) =>
    h("button", { "data-kind": kind, onclick: () => show(kind) }, kind === "all" ? `all ${rows.length}` : `${VERDICTS[kind]} ${kind} ${counts[kind]}`));
  if (kinds.length) buttons.push(buttons.shift());
  const locate = (row) => {
    show("all");
    const line = list.querySelector(`[data-trial="${rows.indexOf(row)}"]`);
    line?.scrollIntoView({ block: "center" });
    line?.classList.add("found");
  };
  rows.forEach((row, at) => (row.number = at));
  const strips = kinds.length ? h("div", { class: "strips" }, groups.map((group) => strip(group, locate))) : null;
  show(counts.wrong ? "wrong" : "all");
  return [strips, h("div", { class: "choices", role: "group", "aria-label": "Which trials" }, buttons), list];
}

function byGroup(rows) {
  const groups = new Map();
  for (const row of rows) groups.set(row.group, [...(groups.get(row.group) ?? []), row]);
  return [...groups].map(([name, rows]) => ({ name, rows }));
}

function strip({ name, rows }, locate) {
  const right = rows.filter((row) => row.verdict === "right").length;
  const read = rows.filter((row) => row.verdict !== "unreadable").length;
  return h("div", { class: "strip" },
    h("span", { class: "what" }, name),
    h("span", { class: "squares" }, rows.map((row) =>
      h("button", { class: `square ${row.verdict}`, title: row.said, "aria-label": `${row.verdict}: ${row.said}`, onclick: () => locate(row), tabindex: -1 }, VERDICTS[row.verdict] ?? ""))),
    h("span", { class: "n" }, `${right} of ${read} right`));
}

function trialLine(feature, row, windows) {
  const window = windows.get(row.window);
  let text;
  if (row.predicted && window) text = predictedText(window, row);
  else if (window) text = textOf(window, feature.sample.maximum, row.marks);
  else if (row.text !== undefined) text = h("span", { class: "text", dir: "auto" }, visible(row.text));
  else if (row.window !== undefined && row.window !== null) text = h("span", { class: "note" }, "its text is not in this page (autointerp view --windows)");
  return h("div", { class: `window trial ${row.verdict}`, "data-trial": row.number },
    row.verdict ? h("span", { class: "verdict", title: row.verdict }, VERDICTS[row.verdict]) : null,
    h("span", { class: "said" }, row.said), text);
}

// What was predicted above what is: two lines of the same tokens.
function predictedText(window, row) {
  const line = (values, name) => {
    const places = values.map((value, place) => (value > 0 ? place : -1)).filter((place) => place >= 0);
    const most = Math.max(...values.map((value) => value ?? 0));
    return h("span", { class: "pair" }, h("span", { class: "note" }, name), textOf({ tokens: window.tokens, places, values: places.map((place) => values[place]) }, most));
  };
  return h("span", { class: "predicted" }, line(row.predicted, "predicted"), line(row.actual, "true"));
}
