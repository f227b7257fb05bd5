// Line charts and stacked areas in SVG, read by pointer or by arrow keys, each with its numbers as a table.
"use strict";

const HEIGHT = 190;
const MARGIN = { left: 46, right: 10, top: 8, bottom: 22 };
const NUM_COLOURS = 9;

function showChart(chart) {
  const readout = element("p", { class: "readout", "aria-live": "polite" });
  const area = shape("svg", { tabindex: 0, role: "img", height: HEIGHT,
    "aria-label": `${chart.title}. Left and right arrow keys read the values.` });
  const legend = element("ul", { class: "legend" },
    ...chart.series.map((one, i) => element("li", { class: colour(chart, i) }, visible(one.name))));
  const figure = element("figure", {},
    element("figcaption", {}, visible(chart.title), " ", element("small", {}, chart.unit)),
    readout, area, chart.series.length > 1 ? legend : null,
    chart.about ? element("details", {}, element("summary", {}, "About"), element("p", { class: "soft" }, chart.about)) : null,
    tableBehind(chart));
  let at = chart.x.length - 1, place = null;
  const draw = () => { if (area.clientWidth) place = drawChart(area, chart, area.clientWidth); };
  const read = (index) => {
    at = Math.max(0, Math.min(chart.x.length - 1, index));
    place?.mark(at);
    readout.textContent = sentence(chart, at);
  };
  new ResizeObserver(draw).observe(area);
  area.addEventListener("pointermove", (event) => {
    if (place) read(place.nearest(event.clientX - area.getBoundingClientRect().left));
  });
  area.addEventListener("focus", () => read(at));
  area.addEventListener("keydown", (event) => {
    const to = { ArrowLeft: at - 1, ArrowRight: at + 1, Home: 0, End: chart.x.length - 1 }[event.key];
    if (to === undefined) return;
    event.preventDefault();
    read(to);
  });
  return figure;
}

const colour = (chart, i) => "s" + (chart.stacked && i === chart.series.length - 1 && i > 4 ? NUM_COLOURS - 1 : i % NUM_COLOURS);

function sentence(chart, at) {
  const values = chart.series.filter((one) => one.y[at] != null).map((one) => {
    const range = one.low ? ` [${number(one.low[at])}, ${number(one.high[at])}]` : "";
    return (chart.series.length > 1 ? visible(one.name) + " " : "") + number(one.y[at]) + range;
  });
  return `step ${number(Math.round(chart.x[at]))}: ${values.join(" · ") || "not defined"}`;
}

function tableBehind(chart) {
  const details = element("details", {}, element("summary", {}, "Table"));
  details.addEventListener("toggle", () => {
    const heads = ["step", ...chart.series.map((one) => visible(one.name))];
    const cell = (one, i) => number(one.y[i]) + (one.low && one.y[i] != null ? ` [${number(one.low[i])}, ${number(one.high[i])}]` : "");
    details.append(element("div", { class: "scroll", tabindex: 0 }, element("table", {},
      element("thead", {}, element("tr", {}, ...heads.map((head) => element("th", { scope: "col" }, head)))),
      element("tbody", {}, ...chart.x.map((x, i) => element("tr", {},
        element("td", { class: "number" }, number(Math.round(x))),
        ...chart.series.map((one) => element("td", { class: "number" }, cell(one, i)))))))));
  }, { once: true });
  return details;
}

/** The lower and upper edge of every series at every point: 0 to y, the interval, or the stack. */
function edges(chart) {
  const below = chart.x.map(() => 0);
  return chart.series.map((one) => {
    if (!chart.stacked) return { low: one.low || one.y, high: one.high || one.y };
    const low = [...below];
    one.y.forEach((y, i) => { below[i] += Math.max(y ?? 0, 0); });
    return { low, high: [...below] };
  });
}

function ticks(low, high, number) {
  const step = 10 ** Math.floor(Math.log10((high - low) / number));
  const nice = step * ([1, 2, 5, 10].find((factor) => (high - low) / (step * factor) <= number) || 10);
  const found = [];
  for (let value = Math.ceil(low / nice) * nice; value <= high + nice * 1e-6; value += nice) found.push(Number(value.toPrecision(10)));
  return found;
}

function drawChart(area, chart, width) {
  const all = edges(chart), values = all.flatMap((one) => [...one.low, ...one.high]).filter((value) => value != null);
  let low = Math.min(...values), high = Math.max(...values);
  if (low > 0 && low < 0.6 * high) low = 0;
  if (low === high) [low, high] = low ? [low - Math.abs(low) / 2, high + Math.abs(high) / 2] : [0, 1];
  if (!chart.stacked) high += 0.05 * (high - low);
  const first = chart.x.length > 1 ? chart.x[0] : 0, last = chart.x.at(-1) || 1;
  const x = (value) => MARGIN.left + ((value - first) / (last - first || 1)) * (width - MARGIN.left - MARGIN.right);
  const y = (value) => HEIGHT - MARGIN.bottom - ((value - low) / (high - low)) * (HEIGHT - MARGIN.top - MARGIN.bottom);
  const parts = [];
  for (const tick of ticks(low, high, 4)) {
    parts.push(shape("line", { class: "axis", x1: MARGIN.left, x2: width - MARGIN.right, y1: y(tick), y2: y(tick) }),
      shape("text", { class: "tick", x: MARGIN.left - 5, y: y(tick) + 4, "text-anchor": "end" }, short(tick)));
  }
  for (const tick of ticks(first, last, Math.max(2, Math.floor(width / 90)))) {
    parts.push(shape("text", { class: "tick", x: x(tick), y: HEIGHT - 6, "text-anchor": x(tick) > width - 24 ? "end" : "middle" }, short(tick)));
  }
  chart.series.forEach((one, i) => {
    if (chart.stacked || one.low) parts.push(shape("path", { class: `${chart.stacked ? "area" : "band"} ${colour(chart, i)}`, d: ribbon(chart.x, all[i], x, y) }));
    if (!chart.stacked) parts.push(shape("path", { class: `curve ${colour(chart, i)}`, d: line(chart.x, one.y, x, y) }));
  });
  for (const limit of chart.limits) {
    if (limit >= low && limit <= high) parts.push(shape("line", { class: "limit", x1: MARGIN.left, x2: width - MARGIN.right, y1: y(limit), y2: y(limit) }));
  }
  const cursor = shape("g", {});
  area.setAttribute("viewBox", `0 0 ${width} ${HEIGHT}`);
  area.replaceChildren(...parts, cursor);
  return {
    nearest: (pixel) => chart.x.reduce((best, value, i) => (Math.abs(x(value) - pixel) < Math.abs(x(chart.x[best]) - pixel) ? i : best), 0),
    mark: (at) => cursor.replaceChildren(
      shape("line", { class: "cursor", x1: x(chart.x[at]), x2: x(chart.x[at]), y1: MARGIN.top, y2: HEIGHT - MARGIN.bottom }),
      ...chart.series.map((one, i) => ({ value: chart.stacked ? all[i].high[at] : one.y[at], i }))
        .filter((dot) => dot.value != null)
        .map((dot) => shape("circle", { class: `dot ${colour(chart, dot.i)}`, cx: x(chart.x[at]), cy: y(dot.value), r: 3.5 }))),
  };
}

/** Indices of neighbouring points that all have a value. */
function stretches(values) {
  const found = [];
  values.forEach((value, i) => {
    if (value == null) return;
    if (i > 0 && values[i - 1] != null) found.at(-1).push(i);
    else found.push([i]);
  });
  return found;
}

function line(xs, ys, x, y) {
  return stretches(ys).map((part) => part.length === 1
    ? `M${x(xs[part[0]]) - 1} ${y(ys[part[0]])}h2`
    : part.map((i, n) => `${n ? "L" : "M"}${x(xs[i]).toFixed(1)} ${y(ys[i]).toFixed(1)}`).join("")).join("");
}

function ribbon(xs, edge, x, y) {
  return stretches(edge.high).map((part) => {
    const up = part.map((i, n) => `${n ? "L" : "M"}${x(xs[i]).toFixed(1)} ${y(edge.high[i]).toFixed(1)}`);
    const down = [...part].reverse().map((i) => `L${x(xs[i]).toFixed(1)} ${y(edge.low[i]).toFixed(1)}`);
    return up.join("") + down.join("") + "Z";
  }).join("");
}
