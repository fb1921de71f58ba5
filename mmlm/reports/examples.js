// Predictions: chosen, ordered, and shown a page at a time; all texts go into the page as text, never as markup.
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
  const mean = row => row.said.reduce((sum, answer) => sum + answer.value, 0) / row.said.length;
  const spread = row => Math.max(...row.said.map(a => a.value)) - Math.min(...row.said.map(a => a.value));
  const differs = row => new Set(row.said.map(a => a.text)).size;
  const sign = group => group.better === 'more' ? 1 : -1;
  const ORDERS = {
    'worst first': group => row => -sign(group) * mean(row),
    'best first': group => row => sign(group) * mean(row),
    'as in the file': () => () => 0,
    ...(several ? {'most different first': () => row => spread(row) + 1e-6 * differs(row)} : {}),
  };

  // An example

  function marked(text) {
    const wanted = at('search').value.trim().toLowerCase(), place = wanted ? text.toLowerCase().indexOf(wanted) : -1;
    if (place < 0) return [text];
    return [text.slice(0, place), make('mark', {}, text.slice(place, place + wanted.length)), text.slice(place + wanted.length)];
  }

  function edit([kind, wanted, said]) {
    if (kind === 'equal') return [...marked(said), ' '];
    const parts = [...(wanted ? [make('del', {}, wanted)] : []), ...(wanted && said ? [' '] : []), ...(said ? [make('ins', {}, said)] : [])];
    return [make('span', {class: kind}, ...parts), ' '];
  }

  function picture(row, media, places) {
    const look = row.said.map(answer => answer.look).find(found => found && found.image);
    const source = look ? look.image.picture : media.picture;
    if (!source) return data.pictures ? make('div', {class: 'none'}, media.note || 'no picture') : '';
    places.image = make('canvas', {'aria-hidden': 'true', width: 1, height: 1});
    const image = make('img', {class: media.small && !look ? 'small' : '', alt: '', decoding: 'async', src: source});
    return make('div', {class: 'picture'}, make('span', {class: 'place'}, image, places.image));
  }

  function sound(media, places) {
    const heard = media.sound;
    if (!heard) return data.sounds && media.note && !data.pictures ? [make('p', {class: 'soft note'}, media.note)] : [];
    const parts = [];
    if (heard.picture) {
      places.audio = make('canvas', {'aria-hidden': 'true', width: 1, height: 1});
      const wide = make('div', {style: `width: max(100%, ${heard.width}px)`},
        make('span', {class: 'place'}, make('img', {alt: heard.kind, src: heard.picture}), places.audio));
      if (heard.words.length) {
        const lines = heard.words.map(word => make('i', {style: `left: ${word.left}%; width: ${word.length}%; height: ${10 + 18 * word.lane}px`}));
        const texts = heard.words.map(word => make('span', {style: `left: min(${word.left}%, 100% - ${word.width}px); top: ${6 + 18 * word.lane}px`}, word.text));
        wide.append(make('div', {class: 'words', style: `height: ${8 + 18 * heard.lanes}px`}, ...lines, ...texts));
      }
      wide.append(make('div', {class: 'times'}, ...heard.times.map(time => make('span', {style: `left: ${time.left}%`}, time.text))));
      parts.push(make('div', {class: 'heard'}, wide));
    }
    if (heard.source) parts.push(make('audio', {controls: true, preload: 'none', src: heard.source}));
    if (heard.note) parts.push(make('p', {class: 'soft note'}, heard.note));
    return parts;
  }

  const list = pairs => {
    const told = pairs.filter(pair => pair[1] !== undefined && pair[1] !== null).flatMap(([name, text]) => [make('dt', {}, name), make('dd', {}, ...marked(text || '(nothing)'))]);
    return told.length ? [make('dl', {}, ...told)] : [];
  };

  function answer(said, number, row, places) {
    const parts = [];
    if (several) parts.push(make('p', {class: `s${number % 8}`}, `● ${data.runs[number]}`));
    if (said.parts) {
      const marks = said.parts.length ? said.parts.flatMap(edit) : ['(nothing)'];
      parts.push(make('p', {class: 'difference'}, ...marks));
    } else parts.push(make('p', {class: 'said'}, ...marked(said.text || '(nothing)')));
    const exact = said.exact ? [make('span', {class: 'exact'}, '✓ exact'), ' '] : [];
    parts.push(make('p', {}, ...exact, make('small', {}, said.told)));
    if (said.look) parts.push(Looks.line(said.look, places, make));
    const written = said.parts && !row.references.includes(said.text) ? said.text : null;
    parts.push(...list([['written', written], ['heard', said.transcript]]));
    if (said.chances) {
      parts.push(make('div', {class: 'chances'}, ...said.chances.flatMap(([name, chance]) => [make('span', {}, name),
        make('meter', {min: 0, max: 1, value: chance, 'aria-label': name}), make('span', {}, chance.toFixed(3))])));
    }
    if (said.n_best) {
      const rows = said.n_best.map(([text, score]) => make('li', {}, text || '(nothing)', ' ', make('small', {}, score.toFixed(3))));
      parts.push(make('details', {}, make('summary', {}, `${rows.length} best`), make('ol', {}, ...rows)));
    }
    return make('div', {class: 'answer'}, ...parts);
  }

  // The text that was read, word by word where the decoder's attention to it is known.
  function read(row, places) {
    const look = row.said.map(said => said.look).find(found => found && found.text);
    if (!look) return row.text ? [make('p', {}, ...marked(row.text))] : [];
    places.text = look.text.read.map(word => make('span', {}, word));
    return [make('p', {class: 'words-read', title: row.text || ''}, ...places.text.flatMap(span => [span, ' ']))];
  }

  function example(row) {
    const media = data.media[row.id] || {}, places = {};
    const parts = [picture(row, media, places), ...sound(media, places)], text = read(row, places);
    const answers = row.said.map((said, number) => answer(said, number, row, places));
    const references = list(row.references.map(reference => ['reference', reference]));
    const about = make('small', {}, ...marked(row.id), row.speaker ? `, speaker ${row.speaker}` : '');
    return make('li', {class: 'box example', tabindex: '-1'}, ...parts, make('div', {}, ...text, ...(several ? [...references, ...answers] : [...answers, ...references]), make('p', {}, about)));
  }

  // Which, and in what order

  let chosen = [], page = 0;
  const group = () => data.groups[at('group').value];
  const texts = row => [row.id, row.text || '', ...row.references, ...row.said.map(said => said.text)].join('\n').toLowerCase();

  function choose() {
    const found = group(), wanted = at('search').value.trim().toLowerCase(), bound = (id, usual) => at(id).value === '' ? usual : Number(at(id).value);
    const least = bound('least', -Infinity), most = bound('most', Infinity), key = ORDERS[at('order').value](found);
    const keep = row => (!wanted || texts(row).includes(wanted)) && row.said.some(said => said.value >= least && said.value <= most)
      && !(at('wrong').checked && row.said.every(said => said.exact)) && !(at('looked').checked && !row.said.some(said => said.look));
    chosen = found.rows.filter(keep).map(row => [key(row), row]).sort((a, b) => b[0] - a[0]).map(pair => pair[1]);
    page = 0;
    draw();
  }

  function draw() {
    const found = group(), pages = Math.max(1, Math.ceil(chosen.length / PAGE)), rows = chosen.slice(page * PAGE, (page + 1) * PAGE);
    at('examples').replaceChildren(...rows.map(example));
    const all = found.of > found.rows.length ? ` (the best, the worst and others of ${found.of.toLocaleString('en')})` : '';
    at('count').textContent = `${chosen.length.toLocaleString('en')} of ${found.rows.length.toLocaleString('en')} predictions${all}`;
    at('page').textContent = `page ${page + 1} of ${pages}`;
    at('before').disabled = page === 0;
    at('after').disabled = page >= pages - 1;
  }

  function turn(by) {
    page += by;
    draw();
    at('predictions').scrollIntoView();
  }

  function renew() {
    const found = group(), graded = found.rows.some(row => row.said.some(said => said.exact));
    at('measure').textContent = found.measure;
    at('wrong-label').hidden = !graded;
    at('looked-label').hidden = !found.rows.some(row => row.said.some(said => said.look));
    for (const [id, off] of [['wrong', !graded], ['looked', at('looked-label').hidden]]) at(id).checked = at(id).checked && !off;
    choose();
  }

  // Keys

  function step(by) {
    const cards = [...at('examples').children], now = cards.findIndex(card => card.contains(document.activeElement));
    if (now < 0 || cards[now + by]) return focus(cards[now < 0 ? 0 : now + by]);
    const other = by > 0 ? at('after') : at('before');
    if (other.disabled) return;
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
      event.preventDefault();  // which would empty the field and not say so
      return node.blur();
    }
    if (typing(node) || node.tagName === 'AUDIO') return;
    const by = {j: 1, k: -1, ...(inside ? {ArrowDown: 1, ArrowUp: -1} : {})}[event.key];
    if (by) step(by);
    else if (event.key === '/') at('search').focus();
    else if (inside && node.closest('.look') && /^Arrow(Left|Right)$/.test(event.key)) {
      const other = event.key === 'ArrowRight' ? node.nextElementSibling : node.previousElementSibling;
      if (other && other.tagName === 'BUTTON') other.focus();
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
  for (const id of ['order', 'wrong', 'looked']) at(id).addEventListener('change', choose);
  document.querySelector('.tools').addEventListener('submit', event => { event.preventDefault(); choose(); });
  at('before').addEventListener('click', () => turn(-1));
  at('after').addEventListener('click', () => turn(1));
  renew();
})();
