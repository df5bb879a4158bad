// The console: asks for a snapshot every second and shows it. It changes nothing.

const $ = (id) => document.getElementById(id);
const views = { topology: 'Topology', tasks: 'Tasks', restores: 'Restores', stores: 'Stores', events: 'Events', settings: 'Settings' };
let now = null; // the last snapshot
let before = null; // the one before, for rates
let selected = null; // name of a node
let token = sessionStorage.getItem('token') || '';

// el makes an element: el('td', {class: 'n'}, 'text', child).
function el(name, attributes = {}, ...children) {
  return fill(document.createElement(name), attributes, children);
}

function svg(name, attributes = {}, ...children) {
  return fill(document.createElementNS('http://www.w3.org/2000/svg', name), attributes, children);
}

function fill(e, attributes, children) {
  for (const [k, v] of Object.entries(attributes)) {
    if (typeof v === 'function') e.addEventListener(k, v);
    else if (v !== undefined && v !== false) e.setAttribute(k, v);
  }
  e.append(...children.filter((c) => c !== null && c !== undefined));
  return e;
}

const number = (n) => Math.round(n).toLocaleString('en');

function rateOf(n) {
  if (n === null) return '';
  return (n < 10 && n > 0 ? n.toFixed(1) : number(n)) + '/s';
}

// rate returns how fast a counter of two snapshots goes up, null if that is not known.
function rate(counter) {
  if (!now || !before) return null;
  const seconds = (new Date(now.at) - new Date(before.at)) / 1000;
  const [a, b] = [counter(before), counter(now)];
  if (seconds <= 0 || a === undefined || b === undefined || b < a) return null;
  return (b - a) / seconds;
}

const sum = (list, f) => (list || []).reduce((n, x) => n + (f(x) || 0), 0);

// Tabs.
function show(view) {
  for (const name of Object.keys(views)) {
    $(name).hidden = name !== view;
    $('tab-' + name).setAttribute('aria-selected', name === view);
    $('tab-' + name).tabIndex = name === view ? 0 : -1;
  }
  history.replaceState(null, '', '#' + view);
}

function tabs() {
  const names = Object.keys(views);
  const nav = document.querySelector('nav');
  for (const [i, name] of names.entries()) {
    nav.append(el('button', {
      id: 'tab-' + name, role: 'tab', 'aria-controls': name, click: () => show(name),
      keydown: (e) => {
        const step = { ArrowRight: 1, ArrowLeft: -1 }[e.key];
        if (!step) return;
        const next = names[(i + step + names.length) % names.length];
        show(next);
        $('tab-' + next).focus();
      },
    }, views[name]));
  }
  const wanted = location.hash.slice(1);
  show(names.includes(wanted) ? wanted : 'topology');
}

// The graph: topics, operators and stores in layers, one band a sub-topology.
function layout(topology) {
  const nodes = new Map();
  const edges = [];
  const node = (id, kind, label, sub) => {
    if (!nodes.has(id)) nodes.set(id, { id, kind, label, sub, in: [], out: [], layer: 0 });
    return nodes.get(id);
  };
  const edge = (from, to) => { edges.push([from, to]); from.out.push(to); to.in.push(from); };
  for (const s of topology.subtopologies) {
    const band = s.nodes.length ? s.id : undefined;
    for (const n of s.nodes) {
      const me = node(n.name, n.kind, n.name, band);
      for (const t of n.topics || (n.pattern ? [n.pattern] : [])) edge(node('topic ' + t, 'topic', t), me);
      if (n.topic) edge(me, node('topic ' + n.topic, 'topic', n.topic));
      for (const c of n.stores || []) edge(me, node('store ' + c, 'store', c, band));
    }
    for (const n of s.nodes) for (const c of n.children || []) edge(nodes.get(n.name), nodes.get(c) || node(c, 'processor', c, band));
  }
  // The longest way from a source says the layer; a cycle through a topic ends at the number of nodes.
  const list = [...nodes.values()];
  for (let moved = true, round = 0; moved && round < list.length; round++) {
    moved = false;
    for (const [a, b] of edges) if (b.layer < a.layer + 1 && a.layer < list.length) { b.layer = a.layer + 1; moved = true; }
  }
  const layers = [];
  for (const n of list) (layers[n.layer] ||= []).push(n);
  for (const [i, l] of layers.entries()) {
    if (!l) continue;
    const place = (n) => n.in.length ? sum(n.in, (m) => m.row) / n.in.length : 0;
    if (i) l.sort((a, b) => place(a) - place(b));
    l.forEach((n, row) => { n.row = row; });
  }
  return { list, edges, layers: layers.filter(Boolean) };
}

const high = 44, gapX = 26, gapY = 52;
const widthOf = (n) => Math.max(96, n.label.length * 7.3 + 30);

function draw() {
  const { list, edges, layers } = layout(now.topology);
  let width = 0;
  layers.forEach((l, y) => {
    let x = 16;
    for (const n of l) { n.w = widthOf(n); n.x = x; n.y = 26 + y * (high + gapY); x += n.w + gapX; }
    width = Math.max(width, x);
  });
  layers.forEach((l) => {
    const total = l.at(-1).x + l.at(-1).w;
    for (const n of l) n.x += Math.max(0, (width - total - 16) / 2);
  });
  const height = layers.length * (high + gapY) + 10;
  const root = svg('svg', { width: width + 16, height, viewBox: `0 0 ${width + 16} ${height}`, role: 'group', 'aria-label': 'Topology' },
    svg('defs', {}, svg('marker', { id: 'arrow', viewBox: '0 0 8 8', refX: 7, refY: 4, markerWidth: 7, markerHeight: 7, orient: 'auto' }, svg('path', { d: 'M0 0 8 4 0 8z' }))));
  const labels = []; // drawn last, over the edges
  for (const s of now.topology.subtopologies) {
    const mine = list.filter((n) => n.sub === s.id);
    if (!mine.length) continue;
    const [x, y] = [Math.min(...mine.map((n) => n.x)) - 8, Math.min(...mine.map((n) => n.y)) - 18];
    const [r, b] = [Math.max(...mine.map((n) => n.x + n.w)) + 8, Math.max(...mine.map((n) => n.y)) + high + 8];
    root.append(svg('rect', { class: 'band', x, y, width: r - x, height: b - y, rx: 8 }));
    labels.push(svg('text', { class: 'band-name', x: x + 6, y: y + 12, 'data-band': s.id }, 'sub-topology ' + s.id));
  }
  for (const [a, b] of edges) {
    const [x1, y1, x2, y2] = [a.x + a.w / 2, a.y + high, b.x + b.w / 2, b.y];
    root.append(svg('path', { class: 'edge', d: `M${x1} ${y1}C${x1} ${y1 + gapY / 2} ${x2} ${y2 - gapY / 2} ${x2} ${y2}` }));
    if (a.kind === 'topic' || b.kind === 'topic') {
      labels.push(svg('text', { class: 'rate flow', x: (x1 + x2) / 2 + 6, y: (y1 + y2) / 2 + 4, 'data-from': a.id, 'data-to': b.id }));
    }
  }
  for (const n of list) {
    const choose = () => { selected = n.id; paint(); };
    root.append(svg('g', {
      class: 'node ' + n.kind, tabindex: 0, role: 'button', 'data-node': n.id, 'aria-label': `${n.kind} ${n.label}`, click: choose,
      keydown: (e) => { if (e.key === 'Enter' || e.key === ' ') { e.preventDefault(); choose(); } },
    },
    svg('rect', { x: n.x, y: n.y, width: n.w, height: high, rx: n.kind === 'topic' ? 20 : n.kind === 'store' ? 3 : 7 }),
    svg('text', { x: n.x + n.w / 2, y: n.y + (n.kind === 'store' ? 19 : 26), 'text-anchor': 'middle' }, n.label),
    svg('text', { class: 'rate', x: n.x + n.w / 2, y: n.y + 35, 'text-anchor': 'middle' })));
  }
  root.append(...labels);
  $('graph').replaceChildren(root);
}

// paint shows rates and the selection in the graph that is drawn.
function paint() {
  for (const g of document.querySelectorAll('.node')) {
    const id = g.dataset.node;
    g.classList.toggle('on', id === selected);
    g.querySelector('.rate').textContent = figureOf(id);
  }
  for (const e of document.querySelectorAll('.flow')) e.textContent = flowOf(e.dataset.from, e.dataset.to);
  for (const b of document.querySelectorAll('.band-name')) {
    const mine = now.tasks.filter((t) => t.here && t.role === 'active' && t.id.startsWith(b.dataset.band + '_'));
    b.textContent = `sub-topology ${b.dataset.band} · ${mine.length ? `${mine.length} task${mine.length > 1 ? 's' : ''} here, lag ${number(sum(mine, (t) => t.lag))}` : 'none of its tasks here'}`;
  }
  detail();
}

const topicOf = (s, name) => (s.topics || []).find((t) => t.name === name || t.name === s.application + '-' + name);
const subOf = (name) => now.topology.subtopologies.find((s) => s.nodes.some((n) => n.name === name || (n.stores || []).includes(name)));

function figureOf(id) {
  const [kind, name] = split(id);
  return kind === 'store' ? now.stores.find((s) => s.name === name)?.kind || 'store' : '';
}

// flowOf returns what goes along an edge to or from a topic: records a second, and how old they are by their timestamps.
function flowOf(from, to) {
  const [topic, operator, field] = split(from)[0] === 'topic' ? [split(from)[1], to, 'consumed'] : [split(to)[1], from, 'produced'];
  const r = rate((s) => topicOf(s, topic)?.[field]);
  if (r === null || !topicOf(now, topic)?.[field]) return '';
  const of = (s) => s.operators.find((x) => x.name === operator);
  const [a, b] = [of(before), of(now)];
  const late = a && b && b.records > a.records ? (b.seconds - a.seconds) / (b.records - a.records) : null;
  return rateOf(r) + (late === null ? '' : `, ${secondsOf(late)} old`);
}

const secondsOf = (s) => s < 1 ? `${Math.round(s * 1000)} ms` : s < 120 ? `${s.toFixed(1)} s` : s < 7200 ? `${Math.round(s / 60)} min` : `${number(s / 3600)} h`;

function split(id) {
  const m = /^(topic|store) (.*)$/.exec(id);
  return m ? [m[1], m[2]] : ['operator', id];
}

function detail() {
  const aside = $('detail');
  if (!selected) {
    aside.replaceChildren(el('p', { class: 'soft' }, 'Choose a topic, an operator or a store.'));
    return;
  }
  const [kind, name] = split(selected);
  const parts = [el('h2', {}, name), el('p', { class: 'soft' }, kind)];
  if (kind === 'topic') {
    const t = topicOf(now, name);
    parts.push(t ? rows([['records read here', number(t.consumed)], ['records written here', number(t.produced)]])
      : el('p', {}, 'This instance has neither read nor written it so far.'));
  } else {
    const sub = subOf(name);
    if (sub) {
      const tasks = now.tasks.filter((t) => t.id.startsWith(sub.id + '_'));
      parts.push(el('h3', {}, `Tasks of sub-topology ${sub.id}`), taskTable(tasks));
    }
    const node = sub?.nodes.find((n) => n.name === name);
    const stores = kind === 'store' ? [name] : node?.stores || [];
    for (const s of stores) {
      const info = now.topology.stores?.find((x) => x.name === s);
      parts.push(el('h3', {}, 'Store ' + s));
      if (info) {
        parts.push(rows([['kind', info.kind], ['changelog', info.logged ? now.application + '-' + s + '-changelog' : info.source || 'none'],
          ['kept', info.inMemory ? 'in memory' : 'on disk']]));
      }
      if (now.stores.some((x) => x.name === s)) {
        parts.push(el('p', {}, el('button', { click: () => { $('store').value = s; show('stores'); $('key').focus(); } }, 'Look into it')));
      }
    }
  }
  if (!aside.contains(document.activeElement)) aside.replaceChildren(...parts);
}

const rows = (pairs) => el('table', {}, el('tbody', {}, ...pairs.map(([k, v]) => el('tr', {}, el('th', { scope: 'row' }, k), el('td', {}, v)))));

function table(heads, lines) {
  const cell = (tag, c) => typeof c === 'number' ? el(tag, { class: 'n' }, number(c)) : el(tag, {}, c);
  return el('table', {},
    el('thead', {}, el('tr', {}, ...heads.map((h, i) => el('th', { scope: 'col', class: typeof lines[0]?.[i] === 'number' && 'n' }, h)))),
    el('tbody', {}, ...lines.map((l) => el('tr', {}, ...l.map((c) => cell('td', c))))));
}

// nameOf names an instance: by where it answers, or else by its host and the beginning of its id.
function nameOf(id) {
  const i = now.instances.find((x) => x.id === id);
  if (!i) return id.slice(0, 8);
  return (i.endpoint || `${(i.host || '').replace(/^\//, '')} ${id.slice(0, 8)}`.trim()) + (i.here ? ' (here)' : '');
}

function taskTable(tasks) {
  if (!tasks.length) return el('p', { class: 'soft' }, 'None is known.');
  const inOrder = tasks.toSorted((a, b) => a.id.localeCompare(b.id, 'en', { numeric: true }) || a.role.localeCompare(b.role));
  return table(['task', 'instance', 'role', 'lag'], inOrder.map((t) => [t.id, nameOf(t.instance), t.role, t.here ? t.lag || 0 : '']));
}

function drawTasks() {
  const cards = now.instances.map((i) => {
    const mine = now.tasks.filter((t) => t.instance === i.id);
    const line = (role) => {
      const of = mine.filter((t) => t.role === role);
      return [el('h3', {}, `${of.length} ${role}`), el('div', { class: 'chips' }, ...of.map((t) => el('span', { class: 'chip ' + role, title: t.here ? `lag ${number(t.lag || 0)}` : '' }, t.id)))];
    };
    return el('div', { class: 'card' }, el('h2', {}, nameOf(i.id)), el('p', { class: 'soft' }, i.id, i.host ? ` on ${i.host.replace(/^\//, '')}` : ''), ...line('active'), ...line('standby'));
  });
  const here = now.tasks.filter((t) => t.here && t.role === 'active');
  $('tasks').replaceChildren(
    now.unknown ? el('p', { class: 'warn' }, 'Other instances: ' + now.unknown) : '',
    el('div', { class: 'cards' }, ...cards), el('h3', {}, 'Tasks that run here'),
    table(['task', 'records', 'rate', 'lag', 'queued bytes'], here.map((t) => [t.id, t.records || 0,
      rateOf(rate((s) => s.tasks.find((x) => x.id === t.id && x.here)?.records || 0)), t.lag || 0, t.queued || 0])));
}

function drawRestores() {
  const list = now.restores.map((r) => {
    const left = Math.max(0, r.to - r.next);
    const speed = rate((s) => s.restores.find((x) => x.task === r.task && x.store === r.store)?.records);
    const text = left === 0 ? 'at the end' : `${number(left)} records left` + (speed ? `, ${rateOf(speed)}, about ${Math.ceil(left / speed)} s` : '');
    return el('div', { class: 'card' }, el('h2', {}, `${r.store}, task ${r.task}`), el('progress', { max: 1, value: left === 0 ? 1 : r.records / (r.records + left) }),
      el('p', {}, text, r.standby ? el('span', { class: 'soft' }, ' · standby') : ''));
  });
  $('restores').replaceChildren(list.length ? el('div', { class: 'cards' }, ...list) : el('p', { class: 'soft' }, 'Nothing is being restored.'));
}

function drawStores() {
  const select = $('store');
  const names = now.stores.map((s) => s.name);
  if ([...select.options].map((o) => o.value).join('\n') !== names.join('\n')) {
    select.replaceChildren(...names.map((n) => el('option', { value: n }, n)));
  }
}

async function lookUp(e) {
  e.preventDefault();
  const store = now.stores.find((s) => s.name === $('store').value);
  const key = $('key').value;
  if (!store) return;
  const windowed = store.kind === 'window' || store.kind === 'session';
  let path = `../stores/${encodeURIComponent(store.name)}/${windowed ? 'windows' : 'entries'}`;
  path += key === '' && !windowed ? '?limit=50' : '/' + encodeURIComponent(key);
  const found = $('found');
  try {
    const r = await ask(path);
    if (r.headers.get('Content-Type') !== 'application/json') {
      found.replaceChildren(el('p', { class: 'warn' }, 'Stores are not served: start the application with --queries.'));
      return;
    }
    const body = await r.json();
    if (body.error) {
      found.replaceChildren(el('p', { class: 'warn' }, body.error));
    } else if (!body.entries.length) {
      found.replaceChildren(el('p', { class: 'soft' }, 'Nothing is there under this key.'));
    } else {
      const text = (v) => el('code', {}, typeof v === 'string' ? v : JSON.stringify(v));
      found.replaceChildren(table(['key', 'value', 'timestamp', 'from', 'to', 'partition', 'instance'], body.entries.map((x) =>
        [text(x.key), text(x.value), x.timestamp || '', x.from || '', x.to || '', String(x.partition), nameOf(x.instance)])),
      body.more ? el('p', { class: 'soft' }, 'There are more.') : '');
    }
  } catch (err) {
    found.replaceChildren(el('p', { class: 'bad' }, String(err)));
  }
}

function drawEvents() {
  const dropped = Object.entries(now.dropped || {});
  $('events').replaceChildren(
    el('h3', {}, 'Records left out'),
    dropped.length ? table(['reason', 'records'], dropped) : el('p', { class: 'soft' }, 'None.'),
    now.deadLetters ? el('p', {}, `Dead letters go to ${now.deadLetters}: ${number(topicOf(now, now.deadLetters)?.produced || 0)} from here so far.`) : '',
    el('h3', {}, 'Warnings and errors'),
    now.problems.length ? table(['time', 'what was logged'], now.problems.map((e) => [new Date(e.at).toLocaleTimeString(), el('span', { class: e.bad ? 'bad' : 'warn' }, e.text)]))
      : el('p', { class: 'soft' }, 'None.'),
    el('h3', {}, 'What happened'),
    table(['time', 'event'], now.events.map((e) => [new Date(e.at).toLocaleTimeString(), el('span', { class: e.bad ? 'bad' : '' }, e.text)])));
}

function drawHead() {
  document.title = `${now.application} · ${now.state} · Eddyline`;
  $('application').textContent = now.application;
  $('state').textContent = now.state + (now.paused ? ', paused' : '');
  $('state').className = 'state ' + now.state;
  const here = now.tasks.filter((t) => t.here && t.role === 'active');
  const figures = [
    ['records', rateOf(rate((s) => sum(s.tasks.filter((t) => t.here), (t) => t.records)))],
    ['lag', number(sum(here, (t) => t.lag))],
    ['tasks here', String(here.length)],
    ['commits', rateOf(rate((s) => s.commits))],
    ['instances', String(now.instances.length)],
  ];
  $('figures').replaceChildren(...figures.map(([k, v]) => el('div', {}, el('dt', {}, k), el('dd', {}, v || '–'))));
}

async function ask(path) {
  const r = await fetch(path, { headers: token ? { Authorization: 'Bearer ' + token } : {} });
  if (r.status === 401 && !$('ask').open) $('ask').showModal();
  return r;
}

let drawn = '';
async function refresh() {
  try {
    const r = await ask('snapshot');
    if (!r.ok) throw new Error(`the application answers ${r.status}`);
    [before, now] = [now, await r.json()];
    $('trouble').hidden = true;
    const shape = JSON.stringify(now.topology);
    if (shape !== drawn) { draw(); drawn = shape; }
    drawHead(); paint(); drawTasks(); drawRestores(); drawStores(); drawEvents();
    $('settings').replaceChildren(table(['setting', 'value'], now.settings.map((s) => [s.name, s.value])));
  } catch (err) {
    $('trouble').hidden = false;
    $('trouble').textContent = `No answer: ${err.message}. What is shown is from before.`;
  }
  setTimeout(refresh, 1000);
}

tabs();
$('lookup').addEventListener('submit', lookUp);
$('ask').addEventListener('close', () => { token = $('token').value; sessionStorage.setItem('token', token); });
refresh();
