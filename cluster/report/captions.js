// The caption browser: unpacks the blocks one by one, searches and sorts them, and shows 50 at a time.
"use strict";

const PAGE_ROWS = 50;
const SLICE = 100000;
const ORDERS = { paid: "Mass (reward paid)", reward: "Reward R", count: "Count", firstSeen: "First seen" };
const TYPES = { "<f4": Float32Array, "<u4": Uint32Array, "<u2": Uint16Array, u1: Uint8Array };

/** A column [rows] from the planes of its bytes (all supported browsers are little-endian). */
function column(bytes, offset, rows, type) {
  const width = TYPES[type].BYTES_PER_ELEMENT, whole = new Uint8Array(rows * width);
  for (let plane = 0; plane < width; plane++) {
    const from = offset + plane * rows;
    for (let row = 0; row < rows; row++) whole[row * width + plane] = bytes[from + row];
  }
  return new TYPES[type](whole.buffer);
}

class CaptionStore {
  constructor(about) {
    this.about = about;
    this.texts = [];
    this.columns = Object.fromEntries(about.columns.map(([name, type]) => [name, new TYPES[type](about.shown)]));
  }

  async add(base64, rows) {
    const bytes = await unpacked(base64);
    let offset = 0;
    for (const [name, type] of this.about.columns) {
      this.columns[name].set(column(bytes, offset, rows, type), this.texts.length);
      offset += rows * TYPES[type].BYTES_PER_ELEMENT;
    }
    const texts = new TextDecoder().decode(bytes.subarray(offset)).split("\n");
    for (const text of texts) this.texts.push(text);
  }

  /** Indices of the captions that contain `query`, in this order; null once `isOld` says that nobody waits for it. */
  async found(query, order, isOld) {
    const wanted = query.toLowerCase(), rows = [];
    for (let start = 0; start < this.texts.length; start += SLICE) {
      const end = Math.min(start + SLICE, this.texts.length);
      for (let row = start; row < end; row++) {
        if (!wanted || this.texts[row].toLowerCase().includes(wanted)) rows.push(row);
      }
      await breath();
      if (isOld()) return null;
    }
    return this.sorted(rows, order);
  }

  /** The greatest first, but the earliest seen first; captions without a reward last; equals by what was paid, then by R and count. */
  sorted(rows, order) {
    const sign = order === "firstSeen" ? 1 : -1, keys = this.columns[order];
    const { paid, reward, count } = this.columns;
    const value = (row) => (Number.isNaN(keys[row]) ? -Infinity : keys[row]);
    return Uint32Array.from(rows).sort((a, b) => sign * (value(a) - value(b)) || paid[b] - paid[a]
      || (reward[b] || 0) - (reward[a] || 0) || count[b] - count[a] || a - b);
  }

  share(name, row) {
    const parts = this.columns[name][row];
    return parts === this.about.unknown ? null : parts / this.about.parts;
  }
}

/** The texts that the judge was asked about: the rubric's parts of a caption, each on one line, cut to its limit. */
function askedTexts(prompt, text) {
  const parts = prompt.separator ? [...new Set(text.split(prompt.separator).map((part) => part.trim()))].filter(Boolean) : [text];
  return (parts.length ? parts : [text]).slice(-prompt.maxParts).map((part) => {
    const line = part.replace(/[\p{C}\p{Z}]/gu, " ").split(/ +/).filter(Boolean).join(" ");
    return [...line].slice(0, prompt.maxChars).join("").trimEnd();
  });
}

const termOf = (store, run, row) => run.terms[store.columns.term[row]];

function judgement(store, run, row) {
  const status = store.about.statuses[store.columns.status[row]], probability = store.share("probability", row);
  const { threshold, noise } = termOf(store, run, row).judge;
  const rows = [["Status", status], ["Probability", number(probability)], ["Answer mass", number(store.share("answerMass", row))],
    ["Threshold θ", threshold == null ? "not known" : `${number(threshold)} (undecided within ± ${number(noise || 0, 2)})`],
    ["Reward R", Number.isNaN(store.columns.reward[row]) ? "not in the reward table" : number(store.columns.reward[row])],
    ["Paid in the run", number(store.columns.paid[row])], ["Occurrences", number(store.columns.count[row])],
    ["First seen", "step " + number(store.columns.firstSeen[row] * store.about.stepUnit)]];
  return element("dl", {}, ...rows.map(([term, text]) => element("div", {}, element("dt", {}, term), element("dd", {}, text))));
}

function openedRow(store, run, row) {
  const { prompt } = termOf(store, run, row), notes = prompt.notes.map((note) => element("p", { class: "soft" }, visible(note)));
  const asked = prompt.before === undefined ? [] : askedTexts(prompt, store.texts[row]);
  const intro = asked.length > 1 ? `The judge was asked about each of ${asked.length} parts; the likeliest gives the judgement.` : null;
  return element("td", { colspan: run.terms.length > 1 ? 7 : 6 }, judgement(store, run, row),
    prompt.answers ? element("p", { class: "soft" }, `Answers and their weights: ${prompt.answers}`) : null,
    intro && element("p", { class: "soft" }, intro), ...notes,
    ...asked.map((text) => element("pre", { class: "prompt", tabindex: 0, dir: "ltr" }, prompt.before, element("mark", {}, visible(text)), prompt.after)));
}

function captionRow(store, run, row) {
  const cell = (label, text) => element("td", { class: "number", "data-label": label }, text);
  const button = element("button", { type: "button", class: "text", "aria-expanded": "false" }, visible(store.texts[row]));
  const { paid, reward, count, firstSeen } = store.columns;
  const line = element("tr", {}, cell("R", number(reward[row])), cell("mass", number(paid[row])), cell("count", number(count[row])),
    cell("first", short(firstSeen[row] * store.about.stepUnit)), cell("p", number(store.share("probability", row))),
    run.terms.length > 1 ? element("td", {}, visible(termOf(store, run, row).name)) : null, element("td", {}, button));
  let below = null;
  button.addEventListener("click", () => {
    if (below) below.remove();
    below = below ? null : element("tr", { class: "opened" }, openedRow(store, run, row));
    if (below) line.after(below);
    button.setAttribute("aria-expanded", String(Boolean(below)));
  });
  return line;
}

function showCaptions(home, run, blocks) {
  const about = run.captions;
  if (!about?.total) {
    home.append(element("p", {}, "There are no captions yet."));
    return;
  }
  const store = new CaptionStore(about);
  const left = about.total - about.shown;
  const rule = left ? ` ${number(left)} of the ${number(about.total)} captions are left out, so that the page stays small: those that were paid least, then of lowest R, seen least and latest.` : "";
  const status = element("p", { class: "soft", role: "status" });
  const search = element("input", { type: "search", placeholder: "Search captions", "aria-label": "Search captions" });
  const order = element("select", { "aria-label": "Sort by" }, ...Object.entries(ORDERS).map(([value, text]) => element("option", { value }, text)));
  const body = element("tbody", {}), place = element("span", { class: "soft" });
  const heads = [["R", "number"], ["mass", "number"], ["count", "number"], ["first seen", "number"], ["p", "number"], ...(run.terms.length > 1 ? [["term", ""]] : []), ["caption", ""]];
  let rows = [], page = 0, asked = 0, isComplete = false;
  const pages = () => Math.max(1, Math.ceil(rows.length / PAGE_ROWS));
  const show = (to) => {
    page = Math.max(0, Math.min(pages() - 1, to));
    const part = Array.from(rows.slice(page * PAGE_ROWS, (page + 1) * PAGE_ROWS));
    body.replaceChildren(...part.map((row) => captionRow(store, run, row)));
    place.textContent = `page ${number(page + 1)} of ${number(pages())}`;
    before.disabled = page === 0;
    after.disabled = page >= pages() - 1;
  };
  const update = async () => {
    const mine = ++asked;
    status.textContent = "Searching …";
    const found = await store.found(search.value, order.value, () => mine !== asked);
    if (!found) return;
    rows = found;
    show(0);
    const loaded = isComplete ? "" : ` (${number(store.texts.length)} of ${number(about.shown)} unpacked so far)`;
    status.textContent = `${number(rows.length)} captions${loaded}.${rule}`;
  };
  const before = element("button", { type: "button", onclick: () => show(page - 1) }, "← Previous");
  const after = element("button", { type: "button", onclick: () => show(page + 1) }, "Next →");
  search.addEventListener("input", update);
  order.addEventListener("change", update);
  home.append(element("div", { class: "bar", role: "search" }, search, element("label", {}, "Sort by ", order)), status,
    element("table", { class: "list" }, element("thead", {}, element("tr", {}, ...heads.map(([text, kind]) => element("th", { scope: "col", class: kind }, text)))), body),
    element("div", { class: "bar" }, before, place, after));
  (async () => {
    for (const [i, block] of blocks.entries()) {
      await store.add(block.textContent, Number(block.dataset.rows));
      block.remove();
      if (i === 0) await update();
      await breath();
    }
    isComplete = true;
    home.dataset.loaded = "true";
    if (blocks.length > 1 || !rows.length) await update();
    else status.textContent = `${number(rows.length)} captions.${rule}`;
  })().catch((error) => { status.textContent = `The captions cannot be unpacked: ${error.message}`; });
}
