"use strict";
for (const table of document.querySelectorAll("table")) {
  const body = table.tBodies[0];
  const rows = [];  // each with the row that is shown when it is opened
  for (const row of body.rows) {
    if (row.classList.contains("more")) rows[rows.length - 1].more = row;
    else rows.push({ row, more: null, place: rows.length });
  }
  const hasMore = rows.some(r => r.more);
  for (const r of rows) {
    if (!r.more) continue;
    r.more.hidden = true;
    const button = document.createElement("button");
    button.className = "open";
    button.type = "button";
    button.setAttribute("aria-expanded", "false");
    button.setAttribute("aria-label", "Show more of " + r.row.cells[0].textContent.trim());
    button.addEventListener("click", () => open(r, r.more.hidden));
    r.row.cells[0].prepend(button);
  }
  function open(r, wanted) {
    r.more.hidden = !wanted;
    r.row.querySelector("button.open").setAttribute("aria-expanded", String(wanted));
  }
  function key(r, column) {
    const cell = r.row.cells[column];
    const value = cell.dataset.value ?? cell.textContent.trim();
    if (value === "" || value === "\u2013") return null;
    const asNumber = Number(value);
    return Number.isNaN(asNumber) ? value : asNumber;
  }
  function compare(a, b) {
    if (typeof a === "number" && typeof b === "number") return a - b;
    if (typeof a !== typeof b) return typeof a === "number" ? -1 : 1;
    return a.localeCompare(b, undefined, { numeric: true });
  }
  function sort(column, sign) {
    const keyed = rows.map(r => ({ r, key: key(r, column) }));
    keyed.sort((a, b) => {
      if (a.key === null || b.key === null) return (a.key === null) - (b.key === null);
      return sign * compare(a.key, b.key) || a.r.place - b.r.place;
    });
    const all = document.createDocumentFragment();
    for (const { r } of keyed) {
      all.append(r.row);
      if (r.more) all.append(r.more);
    }
    body.append(all);
  }
  if (table.hasAttribute("data-sort") && rows.length > 1) {
    const heads = [...table.tHead.rows[0].cells];
    heads.forEach((head, column) => {
      const button = document.createElement("button");
      button.type = "button";
      button.append(...head.childNodes);
      head.append(button);
      head.setAttribute("aria-sort", "none");
      button.addEventListener("click", () => {
        const isUp = head.getAttribute("aria-sort") === "ascending";
        for (const other of heads) other.setAttribute("aria-sort", "none");
        head.setAttribute("aria-sort", isUp ? "descending" : "ascending");
        sort(column, isUp ? -1 : 1);
      });
    });
  }
  const isFiltered = table.hasAttribute("data-filter");
  if (!isFiltered && !hasMore) continue;
  const bar = document.createElement("div");
  bar.className = "filter";
  table.parentElement.before(bar);
  if (isFiltered) {
    const input = document.createElement("input");
    input.type = "search";
    input.placeholder = "Filter rows";
    input.setAttribute("aria-label", "Filter rows");
    const count = document.createElement("span");
    count.setAttribute("role", "status");
    const texts = rows.map(r =>
      (r.row.textContent + " " + (r.more ? r.more.textContent : "")).toLowerCase());
    const filter = () => {
      const words = input.value.toLowerCase().split(/\s+/).filter(Boolean);
      let shown = 0;
      rows.forEach((r, i) => {
        const fits = words.every(word => texts[i].includes(word));
        shown += fits;
        r.row.hidden = !fits;
        if (r.more && !fits) open(r, false);
      });
      count.textContent = `${shown.toLocaleString("en")} of ${rows.length.toLocaleString("en")} rows`;
    };
    input.addEventListener("input", filter);
    bar.append(input, count);
    filter();
  }
  if (hasMore && rows.filter(r => r.more).length > 1) {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = "Open all";
    button.addEventListener("click", () => {
      const wanted = rows.some(r => r.more && !r.row.hidden && r.more.hidden);
      for (const r of rows) if (r.more && !r.row.hidden) open(r, wanted);
      button.textContent = wanted ? "Close all" : "Open all";
    });
    bar.append(button);
  }
}
for (const svg of document.querySelectorAll("svg.plot[data-box]")) {
  const [left, top, width, height] = JSON.parse(svg.dataset.box);
  const xScale = JSON.parse(svg.dataset.x), yScale = JSON.parse(svg.dataset.y);
  const label = JSON.parse(svg.dataset.label);
  const curves = [];
  for (const group of svg.querySelectorAll(".series")) {
    const title = group.querySelector("title"), path = group.querySelector(":scope > path");
    if (!title || !path) continue;
    group.setAttribute("aria-label", title.textContent);
    const numbers = path.getAttribute("d").match(/-?[\d.]+/g)?.map(Number) ?? [];
    const points = [];
    for (let i = 0; i + 1 < numbers.length; i += 2) points.push([numbers[i], numbers[i + 1]]);
    curves.push({ name: title.textContent, color: path.style.stroke, points });
    title.remove();  // the browser would show it too
  }
  const figure = svg.parentElement;
  const tip = document.createElement("div");
  tip.className = "tip";
  tip.hidden = true;
  const rule = document.createElementNS(svg.namespaceURI, "line");
  for (const [name, value] of Object.entries({ y1: top, y2: top + height, stroke: "currentColor",
    "stroke-opacity": .5, "pointer-events": "none", visibility: "hidden" }))
    rule.setAttribute(name, value);
  svg.append(rule);
  figure.append(tip);
  function valueAt(share, [low, high, scale]) {
    if (scale !== "log") return low + share * (high - low);
    return Math.exp(Math.log(low) + share * (Math.log(high) - Math.log(low)));
  }
  const shown = value => value.toLocaleString("en", { maximumSignificantDigits: 4 });
  function line(name, value, color) {
    const row = document.createElement("div");
    const [key, number] = [document.createElement("i"), document.createElement("b")];
    if (color) key.style.setProperty("--of", color);
    key.textContent = name;
    number.textContent = shown(value);
    row.append(key, number);
    return row;
  }
  function hide() {
    tip.hidden = true;
    rule.setAttribute("visibility", "hidden");
  }
  svg.addEventListener("pointermove", event => {
    const frame = svg.getBoundingClientRect();
    const scale = svg.viewBox.baseVal.width / frame.width;
    const [x, y] = [(event.clientX - frame.left) * scale, (event.clientY - frame.top) * scale];
    if (x < left || x > left + width || y < top || y > top + height) return hide();
    const near = [];
    for (const { name, color, points } of curves) {
      if (!points.length) continue;
      const best = points.reduce((a, b) => Math.abs(b[0] - x) < Math.abs(a[0] - x) ? b : a);
      if (Math.abs(best[0] - x) < width / 8) near.push({ name, color, best });
    }
    if (!near.length) return hide();
    const at = near.reduce((a, b) => Math.abs(b.best[0] - x) < Math.abs(a.best[0] - x) ? b : a);
    near.sort((a, b) => Math.abs(a.best[1] - y) - Math.abs(b.best[1] - y));
    const listed = near.slice(0, 8).sort((a, b) => a.best[1] - b.best[1]);
    tip.replaceChildren(
      line(label, valueAt((at.best[0] - left) / width, xScale)),
      ...listed.map(n => line(n.name, valueAt(1 - (n.best[1] - top) / height, yScale), n.color)));
    rule.setAttribute("x1", at.best[0]);
    rule.setAttribute("x2", at.best[0]);
    rule.setAttribute("visibility", "visible");
    tip.hidden = false;
    const place = (at.best[0] / scale);
    const isRight = place > frame.width / 2;
    tip.style.left = isRight ? "" : `${place + 10}px`;
    tip.style.right = isRight ? `${figure.clientWidth - place + 10}px` : "";
    tip.style.top = `${top / scale}px`;
  });
  svg.addEventListener("pointerleave", hide);
}
if (document.querySelector("meta[http-equiv=refresh]")) {  // what a reader has opened stays open
  const name = "open " + location.pathname;
  const all = [...document.querySelectorAll("details")];
  try {
    for (const i of JSON.parse(sessionStorage.getItem(name) ?? "[]")) if (all[i]) all[i].open = true;
  } catch { /* a browser that keeps nothing */ }
  addEventListener("pagehide", () => {
    try {
      sessionStorage.setItem(name, JSON.stringify(all.flatMap((d, i) => d.open ? [i] : [])));
    } catch { /* the same */ }
  });
}
addEventListener("beforeprint", () => {
  for (const d of document.querySelectorAll("details")) d.open = true;
});
