// What of the input a word was written from: heat over a picture, over the time of a sound, over the words that were read.
'use strict';
const Looks = (() => {
  const values = text => Uint8Array.from(atob(text), letter => letter.charCodeAt(0));
  const heat = name => getComputedStyle(document.documentElement).getPropertyValue(name).split(',').map(Number);

  // Values as colour of a canvas with a pixel each, which the browser enlarges smoothly; null clears it.
  function paint(canvas, cells, columns, rows, colour) {
    canvas.width = columns;
    canvas.height = rows;
    if (!cells) return;
    const context = canvas.getContext('2d'), image = context.createImageData(columns, rows), [red, green, blue] = heat(colour);
    for (let i = 0; i < columns * rows; i++) image.data.set([red, green, blue, Math.round(0.8 * (cells[i] || 0))], 4 * i);
    context.putImageData(image, 0, 0);
  }

  // places: {image: canvas, audio: canvas, text: [elements of words]}
  function show(look, places, word) {
    const of = modality => word === null ? null : values(look[modality].values[word]);
    if (look.image && places.image) paint(places.image, of('image'), look.image.columns, look.image.rows, '--heat');
    if (look.audio && places.audio) paint(places.audio, of('audio'), values(look.audio.values[0]).length, 1, '--cold');
    if (look.text && places.text) {
      const cells = of('text');
      places.text.forEach((span, i) => { span.style.background = cells ? `rgba(${heat('--heat').join()}, ${(0.75 * cells[i] / 255).toFixed(2)})` : ''; });
    }
  }

  const NAMES = {image: 'picture', audio: 'sound', text: 'text'};
  const shares = (look, word) => Object.keys(NAMES).filter(name => look[name] && look[name].shares)
    .map(name => `${NAMES[name]} ${Math.round(100 * look[name].shares[word])} %`).join(', ');

  // A line of buttons, a word each: pointing at one or focusing it shows its heat, pressing keeps it.
  function line(look, places, make) {
    const told = make('small', {}, ''), words = make('p', {class: 'look', 'aria-label': 'attention'});
    let kept = null;
    const buttons = look.words.map((text, i) => {
      const button = make('button', {type: 'button', 'aria-pressed': 'false'}, text);
      const on = () => { show(look, places, i); told.textContent = shares(look, i); };
      const off = () => { show(look, places, kept); told.textContent = kept === null ? '' : shares(look, kept); };
      for (const name of ['pointerenter', 'focus']) button.addEventListener(name, on);
      for (const name of ['pointerleave', 'blur']) button.addEventListener(name, off);
      button.addEventListener('click', () => {
        kept = kept === i ? null : i;
        buttons.forEach((other, j) => other.setAttribute('aria-pressed', String(j === kept)));
        on();
      });
      return button;
    });
    const seen = Object.keys(NAMES).filter(name => look[name]).map(name => NAMES[name]).join(' and ');
    words.append(make('small', {}, `attention to the ${seen}: `), ...buttons, ' ', told);
    return words;
  }

  return {line};
})();
