
'use strict';
// Zooming, filtering, sorting; the page is complete without it.
window.onerror = (message, source, line) => {
  const note = document.createElement('p');
  note.id = 'script-error';
  note.textContent = `The page's script failed: ${message} (line ${line})`;
  document.body.prepend(note);
};

const $ = (id) => document.getElementById(id);
const scroll = $('scroll'), wide = $('wide');
let zoom = 1;

// Keeps what is at `x` pixels from the left edge where it is.
function setZoom(next, x) {
  next = Math.min(512, Math.max(1, next));
  const at = (scroll.scrollLeft + x) / zoom;
  zoom = next;
  wide.style.width = `${zoom * 100}%`;
  scroll.scrollLeft = at * zoom - x;
}
const middle = () => scroll.clientWidth / 2;
$('in').onclick = () => setZoom(zoom * 2, middle());
$('out').onclick = () => setZoom(zoom / 2, middle());
$('fit').onclick = () => setZoom(1, 0);
scroll.addEventListener('wheel', (event) => {
  if (!event.ctrlKey) return;
  event.preventDefault();
  setZoom(zoom * (event.deltaY < 0 ? 1.3 : 1 / 1.3), event.clientX - scroll.getBoundingClientRect().left);
}, { passive: false });

const bars = [...document.querySelectorAll('g.bar')];
const rows = [...document.querySelectorAll('tr[data-path]')];
function filter() {
  const text = $('filter').value.trim().toLowerCase();
  const hides = (element) => text !== '' && !element.dataset.path.toLowerCase().includes(text);
  for (const bar of bars) bar.classList.toggle('dim', hides(bar));
  for (const row of rows) row.hidden = hides(row);
  document.body.dataset.shown = bars.filter((bar) => !bar.classList.contains('dim')).length;
}
$('filter').addEventListener('input', filter);

wide.addEventListener('pointerover', (event) => {
  const title = event.target.closest('g.bar, .density rect')?.querySelector('title');
  if (title) $('hover').textContent = title.textContent.replaceAll('\n', '; ');
});
wide.addEventListener('click', (event) => {
  const bar = event.target.closest('g.bar');
  if (!bar) return;
  $('filter').value = $('filter').value === bar.dataset.path ? '' : bar.dataset.path;
  filter();
});

for (const head of document.querySelectorAll('thead th')) {
  head.onclick = () => {
    const body = head.closest('table').tBodies[0], column = head.cellIndex;
    const descending = head.dataset.order !== 'descending';
    head.dataset.order = descending ? 'descending' : 'ascending';
    const key = (row) => {
      const cell = row.cells[column];
      return cell.dataset.n === undefined ? cell.textContent : Number(cell.dataset.n);
    };
    const number = (text) => typeof text === 'number' ? text : /^\d+$/.test(text) ? Number(text) : text;
    const order = (a, b) => a < b ? -1 : a > b ? 1 : 0;
    const sorted = [...body.rows].sort((a, b) => order(number(key(a)), number(key(b))));
    body.append(...(descending ? sorted.reverse() : sorted));
  };
}

// `#filter=…` behind the page's address shows a part of it.
const wanted = new URLSearchParams(location.hash.slice(1)).get('filter');
if (wanted) $('filter').value = wanted;
filter();
document.body.dataset.ready = 'yes';
