"use strict";
// What a run says of a column of scores. Means, chance and controls are those of one dictionary: others differ.

function scoreName(score, noExplainer) {
  return score.explainer === noExplainer ? words(score.scorer) : `${score.explainer} · ${words(score.scorer)}`;
}

function dictionaryOf(id) {
  return id.slice(0, id.lastIndexOf("/"));
}

Index.prototype.column = function ({ explainer, scorer }) {
  return this.scored.find((one) => one.explainer === explainer && one.scorer === scorer);
};

Index.prototype.summary = function (dictionary) {
  return this.card.summaries.find((one) => one.dictionary === dictionary);
};

// What it would be without knowing anything; null where nobody can say.
Index.prototype.chance = function (column, dictionary) {
  const known = this.summary(dictionary).scores.find((one) => one.explainer === column.explainer && one.scorer === column.scorer);
  return known?.chance ?? null;
};

// Means of the controls, where there are some: [{name, value}]. Control runs, and control explanations.
Index.prototype.floors = function (column, dictionary) {
  const summary = this.summary(dictionary);
  const isOf = (one) => one.explainer === column.explainer && one.scorer === column.scorer;
  const runs = summary.floors.filter((row) => isOf(row.instance)).flatMap((row) => row.floors).filter((one) => one.mean);
  return [
    ...runs.map((one) => ({ name: one.control, value: one.mean.value })),
    ...summary.controls.filter(isOf).map((one) => ({ name: words(one.kind), value: one.control.value })),
  ];
};

// A column's values a row, as plots and means take them: NaN where the feature is another dictionary's, or was judged
// by a test that may have stopped early, which biases its score.
Index.prototype.within = function (column, dictionary) {
  const code = this.dictionaries.indexOf(dictionary);
  return Float64Array.from(column.value, (value, row) => (this.dictionary[row] === code && !column.early?.[row] ? value : NaN));
};
