"use strict";
const byId = id => document.getElementById(id);
const table = document.querySelector("table.sortable"), body = table.tBodies[0];
const rowOf = new Map([...body.rows].map(row => [Number(row.dataset.rank), row]));
let explorer = null, selected = null;

/* The table: sorting and filtering. */
const heads = [...table.tHead.rows[0].cells];
const valueOf = (row, column) => {
  const cell = row.cells[column], text = cell.dataset.value ?? cell.textContent.trim();
  return text === "" || text === "–" ? null : isNaN(text) ? text : Number(text);
};
const order = (a, b) => typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b), "en", {numeric: true});
heads.forEach((head, column) => head.querySelector("button")?.addEventListener("click", () => {
  const sign = head.getAttribute("aria-sort") === "ascending" ? -1 : 1;
  heads.forEach(other => other.removeAttribute("aria-sort"));
  head.setAttribute("aria-sort", sign === 1 ? "ascending" : "descending");
  const rows = [...body.rows].map(row => [valueOf(row, column), row]);
  rows.sort(([a], [b]) => a === null ? (b === null ? 0 : 1) : b === null ? -1 : sign * order(a, b));
  body.append(...rows.map(([, row]) => row));
}));
byId("filter").addEventListener("input", event => {
  const wanted = event.target.value.trim().toLowerCase();
  let n = 0;
  for (const row of body.rows) n += !(row.hidden = !row.textContent.toLowerCase().includes(wanted));
  byId("shown").textContent = wanted ? `${n} of ${body.rows.length}` : "";
});

/* The selected structure: its row, what the row says, its pictures. */
function element(tag, text, attributes = {}) {
  const made = Object.assign(document.createElement(tag), attributes);
  made.append(text);
  return made;
}
function scrollTable(row) {
  const box = table.parentElement, top = row.offsetTop - table.tHead.offsetHeight;
  if (top < box.scrollTop || row.offsetTop + row.offsetHeight > box.scrollTop + box.clientHeight) box.scrollTop = top;
}
function show(rank) {
  if (rank === selected) return;
  rowOf.get(selected)?.removeAttribute("aria-selected");
  selected = rank;
  const row = rowOf.get(rank), panel = byId("selected");
  row.setAttribute("aria-selected", "true");
  scrollTable(row);
  panel.querySelector("dl").replaceChildren(...heads.flatMap((head, column) => {
    const cell = row.cells[column].cloneNode(true), name = head.textContent.trim();
    return [element("dt", name === "#" ? "structure" : name), element("dd", name === "file" ? cell.firstElementChild : cell.textContent.trim())];
  }));
  const pictures = Object.entries(adlayerData.pictures[rank] ?? {});
  panel.querySelector(".shown").replaceChildren(...pictures.map(([label, path]) => {
    const picture = element("img", "", {src: path, alt: `${label} of structure ${rank}`});
    const figure = element("figure", element("a", picture, {href: path, target: "_blank"}));
    figure.append(element("figcaption", label));
    return figure;
  }));
  if (!pictures.length) panel.querySelector(".shown").append(element("p", "Pictures are drawn of the lowest structures only; this one is shown in three dimensions.", {className: "note"}));
  panel.classList.add("ready");
}
function select(rank) {
  show(rank);
  explorer?.select({environment: rank - 1, structure: rank - 1, atom: 0});
}
async function unpack(packed) {
  const bytes = Uint8Array.from(atob(packed), character => character.charCodeAt(0));
  return new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"))).blob();
}
async function download(rank) {
  const wanted = rank ? [adlayerData.files[rank - 1]] : adlayerData.files;
  const blob = new Blob(await Promise.all(wanted.map(([, packed]) => unpack(packed))), {type: "chemical/x-xyz"});
  const link = element("a", "", {href: URL.createObjectURL(blob), download: rank ? wanted[0][0] : "structures.extxyz"});
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60000);
}
document.addEventListener("click", event => {
  const row = event.target.closest("tr[data-rank]"), pick = event.target.closest("a.pick"), file = event.target.closest("a.file");
  if (file) {
    event.preventDefault();
    download(Number(file.dataset.rank));
  } else if (pick) select(Number(pick.dataset.rank));
  else if (row && !event.target.closest("a")) select(Number(row.dataset.rank));
});

/* The explorer. Kinds of atoms that are no elements to 3Dmol get their own colour and radius. */
function structure({looks, positions, cell, repeat}) {
  const made = {names: [], elements: [], x: [], y: [], z: [], cell};
  for (let a = 0; a < repeat[0]; a++) for (let b = 0; b < repeat[1]; b++) looks.forEach((k, i) => {
    made.names.push(adlayerData.looks[k].name);
    made.elements.push(adlayerData.looks[k].kind);
    ["x", "y", "z"].forEach((axis, j) => made[axis].push(positions[3 * i + j] / 1000 + a * cell[j] + b * cell[3 + j]));
  });
  return {...made, size: made.names.length};
}
async function explore() {
  const fit = $3Dmol.GLViewer.prototype.zoomTo;
  $3Dmol.GLViewer.prototype.zoomTo = function (...where) { fit.apply(this, where); this.zoom(0.9); };
  for (const look of adlayerData.looks) {
    $3Dmol.elementColors.Jmol[look.kind] = parseInt(look.colour.slice(1), 16);
    $3Dmol.GLModel.vdwRadii[look.kind] = look.radius;
  }
  const properties = Object.fromEntries(Object.entries(adlayerData.properties).map(([name, property]) =>
    [name, {...property, values: property.values.map(value => value ?? NaN)}]));
  const dataset = {
    meta: {name: adlayerData.title},
    structures: adlayerData.structures.map(compact => ({size: compact.looks.length * compact.repeat[0] * compact.repeat[1], data: compact})),
    properties,
    settings: {target: "structure", map: adlayerData.map, structure: [{spaceFilling: true, bonds: false, unitCell: true}]},
  };
  byId("explorer").classList.add("ready");
  const places = Object.fromEntries(["meta", "map", "info", "structure"].map(part => [part, `explorer-${part}`]));
  const made = await Chemiscope.DefaultVisualizer.load({...places, loadStructure: (_, {data}) => Promise.resolve(structure(data))}, dataset);
  const inform = made.info.show.bind(made.info);
  made.info.show = indexes => { inform(indexes); show(indexes.structure + 1); };
  explorer = made;
  byId("explorer-message").textContent = "";
  show(1);
}
explore().catch(error => {
  byId("explorer").classList.remove("ready");
  byId("explorer-message").textContent = `The explorer does not work in this browser (${error.message}): try one with WebGL. The table and the pictures do.`;
  show(1);
});
