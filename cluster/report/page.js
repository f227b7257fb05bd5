// Fills the page: contents, theme, charts, captions and replays of every run, each when it is first seen.
"use strict";

/** Calls `work` when the node first comes near the view: a run may be collapsed. */
function whenSeen(node, work) {
  const watcher = new IntersectionObserver((entries) => {
    if (!entries.some((entry) => entry.isIntersecting)) return;
    watcher.disconnect();
    work();
  }, { rootMargin: "600px" });
  watcher.observe(node);
}

function chartsOf(home) {
  const key = home.dataset.charts, run = DATA.runs[Number(home.dataset.run)];
  const found = key === "groups" ? DATA.groups : key === "mass" ? [run.mass].filter(Boolean) : run.charts[key];
  if (!found.length) return [element("p", { class: "soft" }, key === "mass" ? "No intrinsic reward was paid." : "Nothing was measured yet.")];
  return found.map(showChart);
}

for (const home of document.querySelectorAll(".charts")) home.append(...chartsOf(home));
for (const home of document.querySelectorAll(".captions")) {
  const run = home.dataset.run, blocks = [...document.querySelectorAll(`script.block[data-run="${run}"]`)];
  whenSeen(home.parentElement, () => showCaptions(home, DATA.runs[Number(run)], blocks));
}
for (const home of document.querySelectorAll(".replays")) {
  const found = DATA.runs[Number(home.dataset.run)].replays;
  if (!found.length) home.append(element("p", { class: "soft" }, "There are no replays."));
  else whenSeen(home.parentElement, async () => { for (const replay of found) await showReplay(home, replay); });
}

const headings = [...document.querySelectorAll("main > section > h2, main > details > summary > h2")];
headings.forEach((heading, i) => { heading.id ||= `part-${i}`; });
document.getElementById("contents").append(...headings.map((heading) => element("a", { href: "#" + heading.id }, heading.textContent)));
document.getElementById("theme").addEventListener("click", () => {
  const root = document.documentElement, isDark = matchMedia("(prefers-color-scheme: dark)").matches;
  root.dataset.theme = (root.dataset.theme || (isDark ? "dark" : "light")) === "dark" ? "light" : "dark";
});
document.documentElement.dataset.ready = "true";
