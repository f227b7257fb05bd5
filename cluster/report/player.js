// Replays: the screen of a game, or its pictures, with what was done, said and paid. By keyboard: space, arrows, Home,
// End, + and -.
"use strict";

const SPEEDS = [1, 2, 5, 10, 20, 50];
const FRAME_TYPES = { 1: Uint8Array, 2: Uint16Array };

/** Arrays by name, each frame added up from the differences. */
async function unpackedFrames(replay) {
  const bytes = replay.planes.length ? await unpacked(replay.frames) : new Uint8Array();
  const found = {};
  let offset = 0;
  for (const plane of replay.planes) {
    const size = plane.shape.slice(1).reduce((product, side) => product * side, 1), length = plane.shape[0] * size * plane.bytes;
    const all = new FRAME_TYPES[plane.bytes](bytes.slice(offset, offset + length).buffer);
    for (let i = size; i < all.length; i++) all[i] += all[i - size];
    found[plane.name] = { all, size, shape: plane.shape };
    offset += length;
  }
  return found;
}

function drawScreen(home, frames, frame) {
  const { all, size, shape } = frames.characters, [, rows, columns] = shape, colours = frames.colours?.all;
  const lines = [];
  for (let row = 0; row < rows; row++) {
    let from = frame * size + row * columns;
    const end = from + columns;
    while (from < end) {
      let to = from + 1;
      while (to < end && (!colours || colours[to] === colours[from])) to++;
      const text = String.fromCharCode(...all.subarray(from, to));
      lines.push(colours ? element("span", { class: "t" + (colours[from] & 15) }, text) : text);
      from = to;
    }
    lines.push("\n");
  }
  home.replaceChildren(...lines);
}

function drawPicture(canvas, frames, frame) {
  const { all, size, shape } = frames.pixels, [, height, width] = shape;
  if (canvas.width !== width || canvas.height !== height) [canvas.width, canvas.height] = [width, height];
  const image = new ImageData(width, height);
  for (let pixel = 0, at = frame * size; pixel < width * height; pixel++, at += 3) {
    image.data.set([all[at], all[at + 1], all[at + 2], 255], 4 * pixel);
  }
  canvas.getContext("2d").putImageData(image, 0, 0);
}

function momentText(moments, at, sums) {
  const rows = [["Action", moments.action[at] ?? "reset"], ["Reward", `${number(moments.reward[at])} (so far ${number(sums[at])})`],
    ["Caption", visible(moments.caption[at]) || "none"], ["Intrinsic", number(moments.intrinsic[at])],
    ["Judge's probability", number(moments.probability[at])], ["Value", number(moments.value[at])]];
  return rows.map(([term, text]) => element("div", {}, element("dt", {}, term), element("dd", {}, text)));
}

async function showReplay(home, replay) {
  const moments = JSON.parse(new TextDecoder().decode(await unpacked(replay.moments)));
  const frames = await unpackedFrames(replay);
  let total = 0;
  const sums = moments.reward.map((reward) => (total += reward || 0));
  const view = frames.pixels ? element("canvas", { role: "img", "aria-label": "picture of the environment" })
    : frames.characters ? element("pre", { class: "screen", tabindex: 0, "aria-label": "screen of the game" }) : null;
  const facts = element("dl", {}), place = element("output", { class: "soft" });
  const last = moments.action.length - 1;
  let at = 0, timer = null;
  const show = (to) => {
    at = Math.max(0, Math.min(last, to));
    const frame = Math.floor(at / replay.every);
    if (frames.pixels) drawPicture(view, frames, frame);
    else if (frames.characters) drawScreen(view, frames, frame);
    facts.replaceChildren(...momentText(moments, at, sums));
    slider.value = at;
    place.textContent = `step ${number(at)} of ${number(last)}`;
  };
  const stop = () => { clearInterval(timer); timer = null; play.textContent = "Play"; };
  const start = () => {
    if (at === last) show(0);
    play.textContent = "Pause";
    timer = setInterval(() => { show(at + 1); if (at === last) stop(); }, 1000 / Number(speed.value));
  };
  const toggle = () => (timer ? stop() : start());
  const play = element("button", { type: "button", onclick: toggle }, "Play");
  const slider = element("input", { type: "range", min: 0, max: last, value: 0, "aria-label": "step", oninput: () => { stop(); show(Number(slider.value)); } });
  const speed = element("select", { "aria-label": "steps per second", onchange: () => { if (timer) { stop(); start(); } } },
    ...SPEEDS.map((value) => element("option", { value, selected: value === 10 }, `${value} steps/s`)));
  const faster = (by) => {
    speed.selectedIndex = Math.max(0, Math.min(SPEEDS.length - 1, speed.selectedIndex + by));
    speed.dispatchEvent(new Event("change"));
  };
  const keys = { ArrowLeft: () => show(at - 1), ArrowRight: () => show(at + 1), Home: () => show(0), End: () => show(last), "+": () => faster(1), "-": () => faster(-1), " ": toggle };
  const step = (by) => element("button", { type: "button", "aria-label": by > 0 ? "one step on" : "one step back", onclick: () => { stop(); show(at + by); } }, by > 0 ? "Step ›" : "‹ Step");
  const metrics = Object.entries(replay.metrics).map(([name, value]) => `${visible(name)} ${number(value)}`).join(", ");
  const box = element("div", { class: "player", tabindex: 0, role: "group", "aria-label": `Replay of a ${replay.label} episode: space plays, arrow keys step, + and - change the speed` },
    element("h3", {}, `A ${replay.label} episode`), element("p", { class: "soft" }, `${visible(replay.environment)}, game ${replay.game.join(".")}: ${metrics}`), view,
    element("div", { class: "bar" }, step(-1), play, step(1), slider, place, speed), facts,
    replay.every > 1 ? element("p", { class: "soft" }, `Of a long episode only every ${replay.every}th frame is shown.`) : null);
  box.addEventListener("keydown", (event) => {
    if (!keys[event.key] || (event.target !== box && event.target !== view)) return;
    event.preventDefault();
    if (event.key !== " " && event.key !== "+" && event.key !== "-") stop();
    keys[event.key]();
  });
  home.append(box);
  show(0);
}
