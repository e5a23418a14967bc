"use strict";
(() => {
  const $ = (id) => document.getElementById(id);
  for (const node of document.querySelectorAll(".scripted")) node.hidden = false;

  // The table: sort by a column, search, filter.
  const table = $("sites"), body = table.tBodies[0], rows = [...body.rows];
  const value = (row, column) => {
    const text = row.cells[column].textContent.trim();
    const number = parseFloat(text.replace(/[,\s]/g, ""));
    return [1, 2, 11].includes(column) ? text : number;
  };
  const compare = (a, b) => {
    if (typeof a === "string") return a.localeCompare(b, "en", { numeric: true });
    return (isNaN(a) - isNaN(b)) || a - b;
  };
  [...table.tHead.rows[0].cells].forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const words = typeof value(rows[0], column) === "string" || column === 0;
      const up = head.ariaSort ? head.ariaSort === "descending" : words;
      for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", up ? "ascending" : "descending");
      rows.sort((a, b) => {
        const [x, y] = [value(a, column), value(b, column)];
        const last = typeof x === "number" && (isNaN(x) || isNaN(y));
        return (up || last ? compare(x, y) : compare(y, x)) || a.id.slice(1) - b.id.slice(1);
      });
      body.append(...rows);
    });
  });
  const names = new Map(rows.map((row) => [row.id.slice(1), row.cells[1].textContent]));
  const search = $("search"), fate = $("fate");
  const filter = () => {
    const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
    let shown = 0;
    for (const row of rows) {
      const text = (row.cells[1].textContent + " " + row.cells[2].textContent).toLowerCase();
      row.hidden = !words.every((word) => text.includes(word)) || (fate.value !== "" && row.dataset.fate !== fate.value);
      shown += !row.hidden;
    }
    $("count").textContent = shown + " of " + rows.length + " layers";
  };
  search.addEventListener("input", filter);
  fate.addEventListener("change", filter);
  filter();

  // The spectrum of one layer: picked from the list, the table or the chart by depth.
  const pick = $("pick"), large = $("large");
  if (!large) return;
  for (const [id, name] of names) {
    if ($("t" + id)) pick.add(new Option(id + " · " + name, id));
  }
  const show = (id) => {
    const drawing = $("t" + id);
    if (!drawing) return;
    large.replaceChildren(drawing.content.cloneNode(true));
    pick.value = id;
    for (const row of rows) row.classList.toggle("picked", row.id === "l" + id);
  };
  pick.value = large.dataset.first;
  pick.addEventListener("change", () => show(pick.value));
  body.addEventListener("click", (event) => {
    const link = event.target.closest("a");
    if (link) show(link.closest("tr").id.slice(1));
  });

  // The chart by depth: a line of text under the pointer, a spectrum on a click.
  const depth = document.querySelector(".depth"), readout = $("readout");
  if (!depth) return;
  const plot = depth.querySelector("svg svg"), bars = depth.dataset.rows.split(" ");
  const cursor = document.createElementNS("http://www.w3.org/2000/svg", "rect");
  cursor.setAttribute("class", "cursor");
  cursor.setAttribute("width", 10);
  cursor.setAttribute("height", 0);
  plot.append(cursor);
  depth.classList.add("live");
  const under = (event) => {
    const box = plot.querySelector(".grid").getBoundingClientRect();
    const at = Math.floor(((event.clientX - box.left) / box.width) * bars.length);
    return Math.min(Math.max(at, 0), bars.length - 1);
  };
  depth.addEventListener("pointermove", (event) => {
    const at = under(event), row = $("l" + bars[at]), cell = (column) => row.cells[column].textContent;
    cursor.setAttribute("x", 10 * at);
    cursor.setAttribute("height", 1000);
    readout.textContent = bars[at] + " · " + cell(1) + ": uses " + cell(9) + ", rank " + cell(7) + " of " + cell(2);
  });
  depth.addEventListener("pointerleave", () => {
    cursor.setAttribute("height", 0);
    readout.textContent = "\u00a0";
  });
  depth.addEventListener("click", (event) => {
    show(bars[under(event)]);
    $("spectra").scrollIntoView({ block: "start" });
  });
})();
