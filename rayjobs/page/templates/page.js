
"use strict";
(() => {
  const root = document.documentElement;
  root.classList.add("scripted");
  const svg = (name, attributes) => {
    const made = document.createElementNS("http://www.w3.org/2000/svg", name);
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    return made;
  };

  // Charts: one update at a time, read off all of them together.
  const charts = JSON.parse(document.getElementById("chart-data").textContent).map((data) => {
    const figure = document.getElementById(`chart-${data.id}`);
    const plot = figure.querySelector(".plot");
    const drawing = plot.querySelector("svg");
    const cursor = svg("g", { class: "cursor", visibility: "hidden" });
    cursor.append(svg("line", { y1: 10, y2: drawing.viewBox.baseVal.height - 30 }));
    data.series.forEach(() => cursor.append(svg("circle", { r: 3.5 })));
    drawing.append(cursor);
    return { ...data, figure, plot, drawing, cursor };
  });
  const updates = [...new Set(charts.flatMap((c) => c.series.flatMap((s) => s.updates)))].sort((a, b) => a - b);

  const newest = (series, update) => {  // the last point at or before an update
    let low = 0, high = series.updates.length - 1;
    if (series.updates[0] > update) return -1;
    while (low < high) {
      const middle = (low + high + 1) >> 1;
      if (series.updates[middle] <= update) low = middle; else high = middle - 1;
    }
    return low;
  };

  let shown = updates.length - 1;
  const show = (place, visible = true) => {
    shown = Math.max(0, Math.min(updates.length - 1, place));
    const update = updates[shown];
    for (const chart of charts) {
      const told = [];
      let x = null;
      chart.series.forEach((series, number) => {
        const at = newest(series, update);
        const dot = chart.cursor.children[number + 1];
        dot.setAttribute("visibility", at < 0 || !visible ? "hidden" : "visible");
        const value = at < 0 ? "–" : series.texts[at];
        chart.figure.querySelector(`[data-value="${series.key}"]`).textContent = value;
        told.push(`${series.name} ${value}`);
        if (at < 0) return;
        dot.setAttribute("cx", series.xs[at]);
        dot.setAttribute("cy", series.ys[at]);
        if (series.updates[at] === update || x === null) x = series.xs[at];
      });
      const label = chart.figure.querySelector(".at");
      label.hidden = false;
      label.querySelector("b").textContent = update;
      chart.cursor.setAttribute("visibility", visible && x !== null ? "visible" : "hidden");
      const line = chart.cursor.firstChild;
      if (x !== null) { line.setAttribute("x1", x); line.setAttribute("x2", x); }
      chart.plot.setAttribute("aria-valuenow", update);
      chart.plot.setAttribute("aria-valuetext", `after update ${update}: ${told.join(", ")}`);
    }
  };
  const nearest = (update) => {
    let best = 0;
    updates.forEach((u, place) => { if (Math.abs(u - update) < Math.abs(updates[best] - update)) best = place; });
    return best;
  };

  for (const chart of charts) {
    chart.plot.tabIndex = 0;
    const facts = { role: "slider", "aria-label": `${chart.figure.querySelector("h3").textContent}, read at an update`,
      "aria-valuemin": updates[0], "aria-valuemax": updates[updates.length - 1] };
    for (const [key, value] of Object.entries(facts)) chart.plot.setAttribute(key, value);
    const point = (event) => {
      const spot = new DOMPoint(event.clientX, event.clientY).matrixTransform(chart.drawing.getScreenCTM().inverse());
      let best = null;
      for (const series of chart.series) series.xs.forEach((x, place) => {
        if (best === null || Math.abs(x - spot.x) < best.off) best = { off: Math.abs(x - spot.x), update: series.updates[place] };
      });
      if (best !== null) show(nearest(best.update));
    };
    chart.drawing.addEventListener("pointermove", point);
    chart.drawing.addEventListener("pointerdown", point);
    chart.plot.addEventListener("keydown", (event) => {
      const many = Math.max(2, Math.round(updates.length / 10));
      const to = { ArrowLeft: shown - 1, ArrowDown: shown - 1, ArrowRight: shown + 1, ArrowUp: shown + 1,
        PageDown: shown - many, PageUp: shown + many, Home: 0, End: updates.length - 1 }[event.key];
      if (to === undefined) return;
      event.preventDefault();
      show(to);
    });
  }
  if (updates.length) show(shown, false);

  // The grids by step.
  const turns = [];
  for (const looks of document.querySelectorAll(".looks")) {
    const frames = [...looks.querySelectorAll(".frames figure")];
    const slider = looks.querySelector("input");
    looks.querySelector(".slider").hidden = frames.length < 2;
    const turn = () => {
      const place = Number(slider.value);
      frames.forEach((frame, number) => frame.classList.toggle("shown", number === place));
      const told = `after update ${frames[place].dataset.update}`;
      looks.querySelector("output").textContent = `${told} (${place + 1} of ${frames.length})`;
      slider.setAttribute("aria-valuetext", told);
    };
    const go = (by) => { slider.value = Number(slider.value) + by; turn(); follow(); };
    const follow = () => { if (updates.length) show(nearest(Number(frames[Number(slider.value)].dataset.update))); };
    slider.addEventListener("input", () => { turn(); follow(); });
    looks.querySelector(".look-before").addEventListener("click", () => go(-1));
    looks.querySelector(".look-after").addEventListener("click", () => go(1));
    turns.push((update) => {
      const places = frames.map((frame, place) => [Math.abs(Number(frame.dataset.update) - update), place]);
      slider.value = places.sort((a, b) => a[0] - b[0])[0][1];
      turn();
    });
    turn();
  }

  // report.html#update=12 opens the page at an update.
  const jump = () => {
    const asked = /^#update=(\d+)$/.exec(location.hash);
    if (!asked) return;
    if (updates.length) show(nearest(Number(asked[1])));
    turns.forEach((turn) => turn(Number(asked[1])));
  };
  addEventListener("hashchange", jump);
  jump();

  const theme = document.getElementById("theme");
  theme.hidden = false;
  theme.addEventListener("click", () => {
    const dark = root.style.colorScheme ? root.style.colorScheme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
    root.style.colorScheme = dark ? "light" : "dark";
  });
})();
