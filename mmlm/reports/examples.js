// Predictions: filtered, sorted and shown a page at a time. All texts go into the page as text, never as markup.
'use strict';
(() => {
  const PAGE = 50;
  const data = JSON.parse(document.getElementById('data').textContent);
  const at = id => document.getElementById(id);
  const make = (name, attributes = {}, ...children) => {
    const node = document.createElement(name);
    for (const key in attributes) if (attributes[key] !== false) node.setAttribute(key, attributes[key] === true ? '' : attributes[key]);
    node.append(...children);
    return node;
  };
  const several = data.runs.length > 1;

  // Orders: larger first
  const mean = row => row.answers.reduce((sum, answer) => sum + answer.value, 0) / row.answers.length;
  const spread = row => Math.max(...row.answers.map(a => a.value)) - Math.min(...row.answers.map(a => a.value));
  const differs = row => new Set(row.answers.map(a => a.text)).size;
  const sign = group => group.higher_is_better ? 1 : -1;
  const ORDERS = {
    'worst first': group => row => -sign(group) * mean(row),
    'best first': group => row => sign(group) * mean(row),
    'as in the file': () => () => 0,
    ...(several ? {'most different first': () => row => spread(row) + 1e-6 * differs(row)} : {}),
  };

  // An example

  function marked(text) {
    const query = at('search').value.trim().toLowerCase(), start = query ? text.toLowerCase().indexOf(query) : -1;
    if (start < 0) return [text];
    return [text.slice(0, start), make('mark', {}, text.slice(start, start + query.length)), text.slice(start + query.length)];
  }

  function edit([kind, reference, hypothesis]) {
    if (kind === 'equal') return [...marked(hypothesis), ' '];
    const removed = reference ? [make('del', {}, reference)] : [], added = hypothesis ? [make('ins', {}, hypothesis)] : [];
    const parts = [...removed, ...(reference && hypothesis ? [' '] : []), ...added];
    return [make('span', {class: kind}, ...parts), ' '];
  }

  function picture(row, media, targets) {
    const attention = row.answers.map(answer => answer.attention).find(entry => entry && entry.image);
    const source = attention ? attention.image.picture : media.picture;
    if (!source) return data.pictures ? make('div', {class: 'none'}, media.note || 'no picture') : '';
    targets.image = make('canvas', {'aria-hidden': 'true', width: 1, height: 1});
    const image = make('img', {class: media.small && !attention ? 'small' : '', alt: '', decoding: 'async', src: source});
    return make('div', {class: 'picture'}, make('span', {class: 'place'}, image, targets.image));
  }

  function sound(media, targets) {
    const sound = media.sound;
    if (!sound) return data.sounds && media.note && !data.pictures ? [make('p', {class: 'soft note'}, media.note)] : [];
    const parts = [];
    if (sound.picture) {
      targets.audio = make('canvas', {'aria-hidden': 'true', width: 1, height: 1});
      const wide = make('div', {style: `width: max(100%, ${sound.width}px)`},
        make('span', {class: 'place'}, make('img', {alt: sound.kind, src: sound.picture}), targets.audio));
      if (sound.words.length) {
        const lines = sound.words.map(word => make('i', {style: `left: ${word.left}%; width: ${word.length}%; height: ${10 + 18 * word.lane}px`}));
        const texts = sound.words.map(word => make('span', {style: `left: min(${word.left}%, 100% - ${word.width}px); top: ${6 + 18 * word.lane}px`}, word.text));
        wide.append(make('div', {class: 'words', style: `height: ${8 + 18 * sound.lanes}px`}, ...lines, ...texts));
      }
      wide.append(make('div', {class: 'times'}, ...sound.times.map(time => make('span', {style: `left: ${time.left}%`}, time.text))));
      parts.push(make('div', {class: 'sound'}, wide));
    }
    if (sound.source) parts.push(make('audio', {controls: true, preload: 'none', src: sound.source}));
    if (sound.note) parts.push(make('p', {class: 'soft note'}, sound.note));
    return parts;
  }

  const list = pairs => {
    const items = pairs.filter(pair => pair[1] !== undefined && pair[1] !== null).flatMap(([name, text]) => [make('dt', {}, name), make('dd', {}, ...marked(text || '(nothing)'))]);
    return items.length ? [make('dl', {}, ...items)] : [];
  };

  function answer(entry, number, row, targets) {
    const parts = [];
    if (several) parts.push(make('p', {class: `s${number % 8}`}, `● ${data.runs[number]}`));
    if (entry.edits) {
      const marks = entry.edits.length ? entry.edits.flatMap(edit) : ['(nothing)'];
      parts.push(make('p', {class: 'difference'}, ...marks));
    } else parts.push(make('p', {class: 'hypothesis'}, ...marked(entry.text || '(nothing)')));
    const exact = entry.exact ? [make('span', {class: 'exact'}, '✓ exact'), ' '] : [];
    parts.push(make('p', {}, ...exact, make('small', {}, entry.summary)));
    if (entry.attention) parts.push(Attention.line(entry.attention, targets, make));
    const hypothesis = entry.edits && !row.references.includes(entry.text) ? entry.text : null;
    parts.push(...list([['hypothesis', hypothesis], ['transcript', entry.transcript]]));
    if (entry.probabilities) {
      parts.push(make('div', {class: 'probabilities'}, ...entry.probabilities.flatMap(([name, probability]) => [make('span', {}, name),
        make('meter', {min: 0, max: 1, value: probability, 'aria-label': name}), make('span', {}, probability.toFixed(3))])));
    }
    if (entry.n_best) {
      const rows = entry.n_best.map(([text, score]) => make('li', {}, text || '(nothing)', ' ', make('small', {}, score.toFixed(3))));
      parts.push(make('details', {}, make('summary', {}, `${rows.length} best`), make('ol', {}, ...rows)));
    }
    return make('div', {class: 'answer'}, ...parts);
  }

  // The text that was read, word by word where the decoder's attention to it is known.
  function inputText(row, targets) {
    const attention = row.answers.map(answer => answer.attention).find(entry => entry && entry.text);
    if (!attention) return row.text ? [make('p', {}, ...marked(row.text))] : [];
    targets.text = attention.text.read.map(word => make('span', {}, word));
    return [make('p', {class: 'words-read', title: row.text || ''}, ...targets.text.flatMap(span => [span, ' ']))];
  }

  function example(row) {
    const media = data.media[row.id] || {}, targets = {};
    const parts = [picture(row, media, targets), ...sound(media, targets)], text = inputText(row, targets);
    const answers = row.answers.map((entry, number) => answer(entry, number, row, targets));
    const references = list(row.references.map(reference => ['reference', reference]));
    const about = make('small', {}, ...marked(row.id), row.speaker ? `, speaker ${row.speaker}` : '');
    return make('li', {class: 'box example', tabindex: '-1'}, ...parts, make('div', {}, ...text, ...(several ? [...references, ...answers] : [...answers, ...references]), make('p', {}, about)));
  }

  // Which, and in what order

  let chosen = [], page = 0;
  const group = () => data.groups[at('group').value];
  const texts = row => [row.id, row.text || '', ...row.references, ...row.answers.map(entry => entry.text)].join('\n').toLowerCase();

  function choose() {
    const current = group(), query = at('search').value.trim().toLowerCase(), bound = (id, unset) => at(id).value === '' ? unset : Number(at(id).value);
    const least = bound('least', -Infinity), most = bound('most', Infinity), key = ORDERS[at('order').value](current);
    const keep = row => (!query || texts(row).includes(query)) && row.answers.some(entry => entry.value >= least && entry.value <= most)
      && !(at('wrong').checked && row.answers.every(entry => entry.exact)) && !(at('with-attention').checked && !row.answers.some(answer => answer.attention));
    chosen = current.rows.filter(keep).map(row => [key(row), row]).sort((a, b) => b[0] - a[0]).map(pair => pair[1]);
    page = 0;
    draw();
  }

  function draw() {
    const current = group(), pages = Math.max(1, Math.ceil(chosen.length / PAGE)), rows = chosen.slice(page * PAGE, (page + 1) * PAGE);
    at('examples').replaceChildren(...rows.map(example));
    const all = current.total > current.rows.length ? ` (the best, the worst and random ones of ${current.total.toLocaleString('en')})` : '';
    at('count').textContent = `${chosen.length.toLocaleString('en')} of ${current.rows.length.toLocaleString('en')} predictions${all}`;
    at('page').textContent = `page ${page + 1} of ${pages}`;
    at('previous').disabled = page === 0;
    at('next').disabled = page >= pages - 1;
  }

  function turn(by) {
    page += by;
    draw();
    at('predictions').scrollIntoView();
  }

  function renew() {
    const current = group(), graded = current.rows.some(row => row.answers.some(entry => entry.exact));
    at('measure').textContent = current.measure;
    at('wrong-label').hidden = !graded;
    at('attention-label').hidden = !current.rows.some(row => row.answers.some(answer => answer.attention));
    for (const [id, off] of [['wrong', !graded], ['with-attention', at('attention-label').hidden]]) at(id).checked = at(id).checked && !off;
    choose();
  }

  // Keys

  function step(by) {
    const cards = [...at('examples').children], now = cards.findIndex(card => card.contains(document.activeElement));
    if (now < 0 || cards[now + by]) return focus(cards[now < 0 ? 0 : now + by]);
    const button = by > 0 ? at('next') : at('previous');
    if (button.disabled) return;
    turn(by);
    focus(by > 0 ? at('examples').firstElementChild : at('examples').lastElementChild);
  }

  function focus(card) {
    if (!card) return;
    card.focus({preventScroll: true});
    card.scrollIntoView({block: 'nearest'});
  }

  const typing = node => /^(INPUT|SELECT|TEXTAREA)$/.test(node.tagName) && node.type !== 'checkbox';
  document.addEventListener('keydown', event => {
    const node = document.activeElement, inside = at('examples').contains(node);
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key === 'Escape' && typing(node)) {
      event.preventDefault();  // Escape would empty the field without a change event
      return node.blur();
    }
    if (typing(node) || node.tagName === 'AUDIO') return;
    const by = {j: 1, k: -1, ...(inside ? {ArrowDown: 1, ArrowUp: -1} : {})}[event.key];
    if (by) step(by);
    else if (event.key === '/') at('search').focus();
    else if (inside && node.closest('.attention') && /^Arrow(Left|Right)$/.test(event.key)) {
      const sibling = event.key === 'ArrowRight' ? node.nextElementSibling : node.previousElementSibling;
      if (sibling && sibling.tagName === 'BUTTON') sibling.focus();
    } else return;
    event.preventDefault();
  });

  for (const name in ORDERS) at('order').append(make('option', {value: name}, name));
  if (several) at('order').value = 'most different first';
  at('examples').classList.toggle('several', several);
  at('examples').classList.toggle('sounds', data.sounds);
  at('group').addEventListener('change', renew);
  let wait = 0;
  for (const id of ['search', 'least', 'most']) at(id).addEventListener('input', () => { clearTimeout(wait); wait = setTimeout(choose, 80); });
  for (const id of ['order', 'wrong', 'with-attention']) at(id).addEventListener('change', choose);
  document.querySelector('.tools').addEventListener('submit', event => { event.preventDefault(); choose(); });
  at('previous').addEventListener('click', () => turn(-1));
  at('next').addEventListener('click', () => turn(1));
  renew();
})();
